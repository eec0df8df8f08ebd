//! Listing, showing and dropping archives, and the limits on them.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{ABOUT, About, FILES, FORMAT, Line, MANIFEST, PART, REMOVED};
use crate::store::Layout;

/// How long, and how many of them, archives are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Days; 0 for ever.
    pub days: u64,
    /// Bytes of file data in all of them; 0 without limit. The newest stays all the same.
    pub bytes: u64,
}

/// One complete archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Archive {
    /// Its name.
    pub name: String,
    /// What it is of.
    pub about: About,
    /// Its directory.
    pub path: PathBuf,
}

impl Archive {
    /// Where the objects lie under their paths.
    pub fn files(&self) -> PathBuf {
        self.path.join(FILES)
    }

    /// Where lies what the resync took from the copy, under the paths that it had.
    pub fn removed(&self) -> PathBuf {
        self.path.join(REMOVED)
    }
}

pub(super) fn names(layout: &Layout) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(layout.archive()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// The complete archives, the oldest first.
pub fn list(layout: &Layout) -> Result<Vec<Archive>> {
    let mut all = Vec::new();
    let found = names(layout).with_context(|| layout.archive().display().to_string())?;
    for name in found.into_iter().filter(|n| !n.ends_with(PART)) {
        let path = layout.archive().join(&name);
        let about = path.join(ABOUT);
        let text = fs::read(&about).with_context(|| format!("cannot read {}", about.display()))?;
        let about: About =
            serde_json::from_slice(&text).with_context(|| format!("in {}", about.display()))?;
        if about.format != FORMAT {
            bail!(
                "{} has format {}, this build reads format {FORMAT}",
                path.display(),
                about.format
            );
        }
        all.push(Archive { name, about, path });
    }
    all.sort_by(|a, b| (a.about.time, &a.name).cmp(&(b.about.time, &b.name)));
    Ok(all)
}

fn find(layout: &Layout, name: &str) -> Result<Archive> {
    let all = list(layout)?;
    all.into_iter().find(|a| a.name == name).with_context(|| {
        format!(
            "there is no archive {name:?} in {}; `archive list` shows them",
            layout.archive().display()
        )
    })
}

/// The lines of an archive's manifest.
pub fn manifest(layout: &Layout, name: &str) -> Result<(Archive, Vec<Line>)> {
    let archive = find(layout, name)?;
    let path = archive.path.join(MANIFEST);
    let file = fs::File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = BufReader::new(file)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<_>>()
        .with_context(|| format!("in {}", path.display()))?;
    Ok((archive, lines))
}

/// Drops an archive: what it keeps is gone for good.
pub fn drop_archive(layout: &Layout, name: &str) -> Result<()> {
    let archive = find(layout, name)?;
    remove(layout, &archive)
}

fn remove(layout: &Layout, archive: &Archive) -> Result<()> {
    // Under a name that says so: half of one must not look like a whole one.
    let going = layout.archive().join(format!("{}{PART}", archive.name));
    fs::rename(&archive.path, &going)
        .and_then(|()| fs::remove_dir_all(&going))
        .with_context(|| format!("cannot remove {}", archive.path.display()))
}

/// Removes what is left of archives that were not completed, or dropped halfway.
pub fn remove_incomplete(layout: &Layout) -> io::Result<()> {
    for name in names(layout)?.iter().filter(|n| n.ends_with(PART)) {
        fs::remove_dir_all(layout.archive().join(name))?;
    }
    Ok(())
}

/// Drops archives beyond the limits, the oldest first: all that are older than `days`, and
/// as many as are needed to come below `bytes`, but never the newest. One that was made while
/// the clock was not set is of no known age. Returns the names of those that went. `now` is
/// in seconds since 1970.
pub fn enforce(layout: &Layout, limits: Limits, now: u64) -> Result<Vec<String>> {
    const DAY: u64 = 24 * 60 * 60;
    /// 2020 began: an earlier time is one of a clock that was not set.
    const CLOCK_IS_SET: u64 = 1_577_836_800;
    let all = list(layout)?;
    let mut bytes: u64 = all.iter().map(|a| a.about.bytes).sum();
    let mut gone = Vec::new();
    for (n, archive) in all.iter().enumerate() {
        let time = archive.about.time;
        let old = limits.days > 0 && time >= CLOCK_IS_SET && time + limits.days * DAY < now;
        let much = limits.bytes > 0 && bytes > limits.bytes;
        if (old || much) && n + 1 < all.len() {
            remove(layout, archive)?;
            bytes -= archive.about.bytes;
            gone.push(archive.name.clone());
        }
    }
    Ok(gone)
}

/// A place beside the folder where there is nothing yet.
pub(crate) fn beside(layout: &Layout, what: &str) -> io::Result<PathBuf> {
    let numbered = |n: u32| {
        let mut name = layout.base.clone().into_os_string();
        name.push(match n {
            0 => format!("-{what}"),
            n => format!("-{what}.{n}"),
        });
        PathBuf::from(name)
    };
    let free = |path: &Path| fs::symlink_metadata(path).is_err();
    let to = (0..u32::MAX).map(numbered).find(|p| free(p));
    to.ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

/// Takes the archives out of a folder that is given back; where they are then, if there are any.
pub(crate) fn move_out(layout: &Layout) -> io::Result<Option<PathBuf>> {
    remove_incomplete(layout)?;
    if names(layout)?.is_empty() {
        return Ok(None);
    }
    let to = beside(layout, "archive")?;
    fs::rename(layout.archive(), &to)?;
    Ok(Some(to))
}

#[cfg(test)]
mod tests {
    use twinfold_protocol::handshake::CopyState;

    use super::super::{Reason, Wanted, keep};
    use super::*;

    fn made(layout: &Layout, time: u64, bytes: u64) -> String {
        let name = format!("t{time}");
        let path = layout.archive().join(&name);
        fs::create_dir_all(path.join(FILES)).unwrap();
        let about = About {
            format: FORMAT,
            time,
            module: "m".into(),
            generation: "g".into(),
            bases: Vec::new(),
            reason: Reason::GivenUp,
            everything: false,
            changes: 0,
            files: 0,
            bytes,
            removed: 0,
        };
        fs::write(path.join(ABOUT), serde_json::to_vec(&about).unwrap()).unwrap();
        name
    }

    const DAY: u64 = 86_400;
    /// In 2026.
    const TODAY: u64 = 20_500 * DAY;

    fn limits(days: u64, bytes: u64) -> Limits {
        Limits { days, bytes }
    }

    #[test]
    fn the_oldest_go_first_and_the_newest_never() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(place.path());
        assert_eq!(enforce(&layout, limits(1, 1), 9).unwrap(), [""; 0]);
        let names = [1, 2, 3, 4].map(|day| made(&layout, TODAY + day * DAY, 100));
        let day = |n| TODAY + n * DAY;
        assert_eq!(enforce(&layout, limits(0, 0), day(99)).unwrap(), [""; 0]);
        let gone = enforce(&layout, limits(3, 0), day(4) + 1).unwrap();
        assert_eq!(gone, names[..1]);
        let gone = enforce(&layout, limits(0, 250), day(5)).unwrap();
        assert_eq!(gone, names[1..2]);
        let gone = enforce(&layout, limits(0, 50), day(5)).unwrap();
        assert_eq!(gone, names[2..3]);
        let left: Vec<_> = list(&layout).unwrap().into_iter().map(|a| a.name).collect();
        assert_eq!(left, names[3..]);
        assert_eq!(enforce(&layout, limits(3, 1), day(99)).unwrap(), [""; 0]);
    }

    #[test]
    fn one_that_was_made_before_the_clock_was_set_does_not_go_for_its_age() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(place.path());
        let unset = made(&layout, 60, 100);
        let names = [1, 2].map(|day| made(&layout, TODAY + day * DAY, 100));
        let gone = enforce(&layout, limits(3, 0), TODAY + 9 * DAY).unwrap();
        assert_eq!(gone, names[..1]);
        let gone = enforce(&layout, limits(3, 150), TODAY + 9 * DAY).unwrap();
        assert_eq!(gone, [unset]);
    }

    #[test]
    fn one_that_is_not_complete_is_not_listed_and_goes() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(place.path());
        let part = layout.archive().join("x.part");
        fs::create_dir_all(part.join("deep/er")).unwrap();
        assert_eq!(list(&layout).unwrap(), []);
        assert!(drop_archive(&layout, "x.part").is_err());
        remove_incomplete(&layout).unwrap();
        assert!(!part.exists());
        assert!(drop_archive(&layout, "../state").is_err());
    }

    /// A run that is killed when its archive is complete, and not noted yet, leaves one; the
    /// next run makes another, perhaps in the same second.
    #[test]
    fn two_of_the_same_second_and_generation_stand_side_by_side() {
        let place = tempfile::tempdir().unwrap();
        let layout = Layout::new(place.path().join("base"));
        let root = place.path().join("root");
        fs::create_dir(&root).unwrap();
        let wanted = Wanted {
            everything: true,
            ..Wanted::default()
        };
        let kept = [1, 2, 3].map(|n: u8| {
            fs::write(root.join("f"), [n]).unwrap();
            let copy = CopyState::default();
            keep(
                &layout,
                root.clone(),
                &copy,
                Reason::GivenUp,
                &wanted,
                TODAY,
            )
            .unwrap()
        });
        let all = list(&layout).unwrap();
        assert_eq!(all.len(), kept.len());
        for ((archive, (name, about)), n) in all.iter().zip(&kept).zip(1..) {
            assert_eq!((&archive.name, &archive.about), (name, about));
            assert_eq!(fs::read(archive.files().join("f")).unwrap(), [n]);
        }
    }
}
