//! `init`: the directory becomes the store, its path becomes the mount point.

use std::collections::HashSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use twinfold_protocol::handshake::CopyState;
use twinfold_protocol::ids::{Epoch, Generation, ModuleId, Side};

use super::sync_parent;
use super::users::{User, users_of};
use crate::engine::random_id;
use crate::mounts;
use crate::state::{CopyFile, IntentLog, MarksFile, Record, Settings, sync_directory};
use crate::store::{Adoption, Layout, mark_as_seed};

/// What `init` shall do.
#[derive(Clone, Debug)]
pub struct Init {
    /// The folder's settings; `mount` is the directory.
    pub settings: Settings,
    /// Where the private parts go.
    pub base: PathBuf,
    /// This node's data is what shall be replicated; otherwise it comes from the peer.
    pub good_copy: bool,
    /// What is in the directory is a copy of the peer's data: it is compared with that, and
    /// only what differs is moved. What the peer does not have is removed.
    pub seed: bool,
    /// Which of the two nodes this one is.
    pub side: Side,
}

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// Makes a replicated folder. Returns how many objects were taken over. Until the
/// last step nothing is final: a broken-off `init` can be repeated, also one that a power
/// cut broke off.
pub fn init(init: &Init, mut progress: impl FnMut(u64)) -> Result<u64> {
    let mount = &init.settings.mount;
    let building = super::unfinished(&init.base);
    let layout = Layout::new(&building);
    undo(&layout, mount)?;
    check(init, mount)?;
    for directory in [&building, &layout.aside(), &layout.state()] {
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    init.settings.save(&layout.state())?;
    let epoch = Epoch::next(Epoch::default(), init.side).context("no epoch")?;
    let copy = match init.good_copy {
        true => CopyState {
            module: ModuleId(random_id()),
            current: Generation(random_id()),
            up_to_date: true,
            ..CopyState::default()
        },
        false => CopyState::default(),
    };
    let record = Record {
        copy,
        epoch,
        clean: true,
        ..Record::default()
    };
    CopyFile::create(&layout.state(), record).context("cannot write the copy's history")?;
    MarksFile::create(&layout.state()).context("cannot write the first marks")?;
    IntentLog::create(&layout.state().join("intents")).context("cannot begin the intent log")?;

    let ids = if init.good_copy { epoch } else { Epoch::SEED };
    let mut adoption = Adoption::begin(&layout, mount, ids).with_context(|| {
        format!(
            "{} cannot hold a replicated folder: extended attributes and file handles are needed \
             (ext4, xfs and btrfs have them)",
            mount.display()
        )
    })?;
    let taken = take_over(mount, &mut adoption, &mut progress)?;
    if init.seed {
        mark_as_seed(&layout).context("cannot note that this copy is a seed")?;
    }
    adoption
        .finish()
        .with_context(|| format!("cannot flush {}", mount.display()))?;

    let old = std::fs::metadata(mount)?;
    move_in(mount, &layout)?;
    make_mount_point(mount, &old)?;
    sync_directory(&building)?;
    sync_parent(mount)?;
    // The last step: a folder that is there is whole.
    std::fs::rename(&building, &init.base)
        .with_context(|| format!("cannot make {}", init.base.display()))?;
    sync_parent(&init.base)?;
    Ok(taken)
}

/// Takes back what an `init` that was broken off has done: the data is where it was.
fn undo(building: &Layout, mount: &Path) -> Result<()> {
    if !building.base.exists() {
        return Ok(());
    }
    // Before it has settings nothing is in it.
    match Settings::load(&building.state()) {
        Ok(settings) if settings.mount != *mount => bail!(
            "{} is left of an `init` of {} that was broken off: repeat that one first",
            building.base.display(),
            settings.mount.display()
        ),
        Err(e) if building.data().exists() => return Err(e),
        _ => {}
    }
    if building.data().exists() {
        match std::fs::remove_dir(mount) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| {
                    format!(
                        "the data lies in {} since an `init` was broken off, and cannot be moved \
                         back to {}, which was used meanwhile: empty it",
                        building.data().display(),
                        mount.display()
                    )
                });
            }
            _ => {}
        }
        std::fs::rename(building.data(), mount)
            .with_context(|| format!("cannot move the data back to {}", mount.display()))?;
        sync_parent(mount)?;
    }
    std::fs::remove_dir_all(&building.base)
        .with_context(|| format!("cannot remove {}", building.base.display()))
}

/// The data goes into the store, unless somebody uses it: who has something open there, or
/// works there, would go on behind the mount, and nothing of that would be replicated.
fn move_in(mount: &Path, layout: &Layout) -> Result<()> {
    std::fs::rename(mount, layout.data())
        .with_context(|| format!("cannot move {} into its store", mount.display()))?;
    // From here on nobody new comes to it.
    let users = users_of(&layout.data());
    if users.is_empty() {
        return Ok(());
    }
    undo(layout, mount)?;
    bail!(in_use(mount, &users))
}

fn in_use(mount: &Path, users: &[User]) -> String {
    let users: Vec<_> = users.iter().map(User::to_string).collect();
    format!(
        "{} is in use, and who uses it would go on beside what is replicated. Stop first: {}",
        mount.display(),
        users.join("; ")
    )
}

/// Whether a directory is the private part of a replicated folder.
fn is_base(directory: &Path) -> bool {
    let layout = Layout::new(directory);
    layout.state().join("module.toml").exists() && layout.data().is_dir()
}

fn check(init: &Init, mount: &Path) -> Result<()> {
    if init.base.exists() {
        bail!(
            "{} exists: {} is a replicated folder already (`status` shows it, `deinit` gives the \
             directory back)",
            init.base.display(),
            mount.display()
        );
    }
    let meta = std::fs::symlink_metadata(mount)
        .with_context(|| format!("cannot look at {}", mount.display()))?;
    if !meta.is_dir() {
        bail!("{} is not a directory", mount.display());
    }
    let parent = mount
        .parent()
        .with_context(|| format!("{} has no parent directory", mount.display()))?;
    if std::fs::metadata(parent)?.dev() != meta.dev() {
        bail!(
            "{} is a mount point: its data cannot move into a store beside it. Replicate a \
             directory in it, or mount the file system one level higher",
            mount.display()
        );
    }
    let table = std::fs::read("/proc/self/mountinfo").context("cannot see what is mounted")?;
    if let Some(inner) = mount_below(&table, mount) {
        bail!(
            "{} is mounted in {}: what is there is not part of the directory, and would be left \
             behind. Unmount it first",
            inner.display(),
            mount.display()
        );
    }
    if let Some(outer) = mount.ancestors().skip(1).find(|above| is_base(above)) {
        bail!(
            "{} lies in {}, where a replicated folder keeps its data",
            mount.display(),
            outer.display()
        );
    }
    // The name is taken away from under them only for a moment; but not without need.
    let users = users_of(mount);
    if !users.is_empty() {
        bail!(in_use(mount, &users));
    }
    if !init.good_copy && !init.seed && std::fs::read_dir(mount)?.next().is_some() {
        bail!(
            "{} is not empty, but its data is to come from the peer: empty it first; or let it be \
             compared with the peer's and overwritten with --from-peer --seed; or name it the good \
             copy with --good-copy",
            mount.display()
        );
    }
    Ok(())
}

/// A mount point below a directory, by the kernel's table (`proc_pid_mountinfo(5)`). Also of
/// the same file system: a directory of it may be bound to a place below.
fn mount_below(table: &[u8], directory: &Path) -> Option<PathBuf> {
    let points = table.split(|b| *b == b'\n').filter_map(|line| {
        let point = line.split(|b| *b == b' ').nth(4)?;
        Some(mounts::unescaped(point))
    });
    let mut below = points.filter(|point| point != directory && point.starts_with(directory));
    below.next()
}

/// Gives every object its id.
fn take_over(mount: &Path, adoption: &mut Adoption, progress: &mut impl FnMut(u64)) -> Result<u64> {
    let device = std::fs::metadata(mount)?.dev();
    let mut linked = HashSet::new();
    let mut directories = vec![mount.to_owned()];
    let mut taken = 0;
    let mut shown = Instant::now();
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let meta = std::fs::symlink_metadata(&path)
                .with_context(|| format!("cannot look at {}", path.display()))?;
            if meta.dev() != device {
                bail!(
                    "{} is another file system, which cannot be replicated with this one",
                    path.display()
                );
            }
            if meta.is_dir() && is_base(&path) {
                bail!(
                    "{} holds the data of another replicated folder: `deinit` that one first, or \
                     leave it outside",
                    path.display()
                );
            }
            // A file with several names gets one id.
            if !meta.is_dir() && meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            }
            adoption
                .adopt(&path)
                .with_context(|| format!("cannot take over {}", path.display()))?;
            taken += 1;
            if meta.is_dir() {
                directories.push(path);
            }
            if shown.elapsed() >= PROGRESS {
                progress(taken);
                shown = Instant::now();
            }
        }
    }
    Ok(taken)
}

/// An empty directory where the data was. Without a mount over it nobody but root
/// can put anything there by mistake.
fn make_mount_point(mount: &Path, old: &std::fs::Metadata) -> Result<()> {
    std::fs::create_dir(mount).with_context(|| format!("cannot make {}", mount.display()))?;
    std::fs::set_permissions(mount, std::fs::Permissions::from_mode(0o000))?;
    std::os::unix::fs::chown(mount, Some(old.uid()), Some(old.gid()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_a_directory_is_found_whatever_it_is() {
        let table = b"36 35 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 36 8:1 /srv/vm /srv/vm rw - ext4 /dev/sda1 rw\n\
            41 36 8:1 /etc /srv/vm\\040two/bound\\134x rw,noatime master:1 - ext4 /dev/sda1 rw\n\
            42 36 8:1 /etc /srv/vmware rw - ext4 /dev/sda1 rw\n";
        let below = |path: &str| mount_below(table, Path::new(path));
        assert_eq!(below("/srv/vm"), None);
        assert_eq!(below("/srv/vm two"), Some("/srv/vm two/bound\\x".into()));
        assert_eq!(below("/srv/vm two/bound\\x"), None);
        assert_eq!(below("/srv/vmwa"), None);
        assert_eq!(below("/srv"), Some("/srv/vm".into()));
    }

    #[test]
    fn what_an_init_of_another_directory_left_is_not_taken_apart() {
        let place = tempfile::tempdir().unwrap();
        let building = Layout::new(place.path().join("base.twinfold-new"));
        let theirs = place.path().join("theirs");
        for directory in [&building.base, &building.state(), &building.data()] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(building.data().join("file"), "data").unwrap();
        let mine = place.path().join("mine");
        assert!(undo(&building, &mine).is_err(), "nobody knows whose it is");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let settings = Settings {
            listen: vec![address],
            peer: vec![address],
            ..Settings::new(
                "vm",
                &theirs,
                &crate::link::Fingerprint::of(b"peer").to_string(),
            )
        };
        settings.save(&building.state()).unwrap();
        let refused = undo(&building, &mine).unwrap_err().to_string();
        assert!(refused.contains(&theirs.display().to_string()), "{refused}");
        assert!(!mine.exists() && building.data().join("file").exists());
        undo(&building, &theirs).unwrap();
        assert_eq!(std::fs::read(theirs.join("file")).unwrap(), b"data");
        assert!(!building.base.exists());
    }

    fn wanted(mount: &Path) -> Init {
        let peer = crate::link::Fingerprint::of(b"peer").to_string();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Init {
            settings: Settings {
                listen: vec![address],
                peer: vec![address],
                ..Settings::new("vm", mount, &peer)
            },
            base: super::super::default_base(mount).unwrap(),
            good_copy: true,
            seed: false,
            side: Side::Even,
        }
    }

    /// Somebody who works in a directory, and has nothing open there.
    struct Worker(std::process::Child);

    impl Worker {
        fn in_directory(directory: &Path) -> Worker {
            let mut sleep = std::process::Command::new("sleep");
            Worker(sleep.arg("3600").current_dir(directory).spawn().unwrap())
        }
    }

    impl Drop for Worker {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_directory_that_somebody_uses_is_left_where_it_is_and_the_user_is_named() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let mount = place.path().join("vm");
        std::fs::create_dir_all(mount.join("below")).unwrap();
        std::fs::write(mount.join("file"), "data").unwrap();
        let init = wanted(&mount);
        let refused = |done: Result<()>| {
            let told = done.unwrap_err().to_string();
            assert!(told.contains("sleep (process "), "{told}");
            assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"data");
        };
        let worker = Worker::in_directory(&mount.join("below"));
        refused(super::init(&init, |_| ()).map(drop));
        // One who has come after the first look.
        let building = Layout::new(super::super::unfinished(&init.base));
        for directory in [&building.base, &building.state()] {
            std::fs::create_dir(directory).unwrap();
        }
        init.settings.save(&building.state()).unwrap();
        refused(move_in(&mount, &building));
        assert!(!building.base.exists());
        drop(worker);
        assert_eq!(super::init(&init, |_| ()).unwrap(), 2);
    }

    #[test]
    fn a_replicated_folder_is_not_taken_apart_by_an_init_around_it_or_in_it() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let outer = place.path().join("outer");
        let inner = outer.join("inner");
        std::fs::create_dir_all(inner.join("below")).unwrap();
        let first = wanted(&inner);
        super::init(&first, |_| ()).unwrap();
        let data = Layout::new(&first.base).data();
        let id = || {
            let mut id = [0; 8];
            let below = data.join("below");
            rustix::fs::lgetxattr(below, "trusted.twinfold", &mut id).unwrap();
            id
        };
        let before = id();
        for (mount, named) in [(&outer, &first.base), (&data.join("below"), &first.base)] {
            let told = super::init(&wanted(mount), |_| ()).unwrap_err().to_string();
            assert!(told.contains(&named.display().to_string()), "{told}");
            assert_eq!(id(), before);
        }
    }
}
