//! Where everything of a node lies.
//!
//! ```text
//! /etc/twinfold/       node.crt node.key   this node's key (as of the driver)
//!                      cluster.xml         the nodes and the networks between them
//!                      pair.json           which node this is, and the peer's identity
//!   modules/NAME/      userconfig.xml      one module; bin/ has its scripts
//! /var/lib/twinfold/   run                 the number of the daemon's run, higher than any before
//!   NAME/              memory.json         what is remembered of a module
//!                      config/             what was applied (`versions`)
//! /var/log/twinfold/
//!   NAME/              events.log  events.log.old  driver.log
//!                      application.log     the scripts' output; application.N.log: older
//! /run/twinfold/       twinfold.sock       the local API
//!                      daemon.lock         held by the running daemon
//! ```

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The four directories.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Everything lies below it, if it is named.
    pub(crate) home: Option<PathBuf>,
    pub(crate) etc: PathBuf,
    lib: PathBuf,
    log: PathBuf,
    pub(crate) run: PathBuf,
}

impl Places {
    /// The usual ones, or all four below one directory.
    pub(crate) fn new(home: Option<&Path>) -> Places {
        // Drivers and scripts work in another directory than whoever said it.
        let home = home.map(|home| std::path::absolute(home).unwrap_or_else(|_| home.to_owned()));
        let at = |usual: &str, name: &str| match &home {
            Some(home) => home.join(name),
            None => PathBuf::from(usual),
        };
        Places {
            etc: at("/etc/twinfold", "etc"),
            lib: at("/var/lib/twinfold", "lib"),
            log: at("/var/log/twinfold", "log"),
            run: at("/run/twinfold", "run"),
            home,
        }
    }

    pub(crate) fn cluster(&self) -> PathBuf {
        self.etc.join("cluster.xml")
    }

    pub(crate) fn pair(&self) -> PathBuf {
        self.etc.join("pair.json")
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.etc.join("modules")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.join("twinfold.sock")
    }

    pub(crate) fn runs(&self) -> PathBuf {
        self.lib.join("run")
    }

    /// Where the daemon holds a lock as long as it runs.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run.join("daemon.lock")
    }

    pub(crate) fn memory(&self, module: &str) -> PathBuf {
        self.lib.join(module).join("memory.json")
    }

    /// Where the applied configurations of a module are.
    pub(crate) fn configurations(&self, module: &str) -> PathBuf {
        self.lib.join(module).join("config")
    }

    /// Of all modules.
    pub(crate) fn states(&self) -> &Path {
        &self.lib
    }

    pub(crate) fn logs(&self, module: &str) -> PathBuf {
        self.log.join(module)
    }

    /// Makes what the daemon writes into; private to root.
    pub(crate) fn make(&self, modules: &[String]) -> Result<()> {
        let mut all = vec![self.lib.clone(), self.log.clone(), self.run.clone()];
        for module in modules {
            all.extend([self.lib.join(module), self.logs(module)]);
        }
        for path in all {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(())
    }
}

/// Replaces a file in one step: after a crash it holds the old or the new bytes.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}

/// Makes a file that only its owner reads, in place of what has its name. A link that waits there
/// for whoever writes is not followed.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_private_is_read_by_its_owner_alone_and_goes_through_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("passwd"), dir.path().join("node.zip"));
        std::fs::write(&victim, "root").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        for text in ["first", "second, which is longer", "third"] {
            write_private(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let made = std::fs::symlink_metadata(&path).unwrap();
            assert!(made.is_file());
            assert_eq!(made.permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "root");
        write_private(dir.path(), b"").unwrap_err();
    }
}
