//! That this node's disk has failed, remembered where that disk is not needed.
//!
//! The note on the copy itself ("not up to date") lies on the disk that failed, and may
//! not be writable any more. So there is a second one beside the control socket, on a
//! file system that lasts until the next boot; after a boot a primary whose peer was up to
//! date is not started without force anyway. It names the generation that it condemns:
//! a copy that got another one since is another copy.

use std::io;
use std::path::{Path, PathBuf};

use twinfold_protocol::ids::Generation;

use super::RUN_DIRECTORY;

/// The note of one folder.
#[derive(Clone, Debug)]
pub(crate) struct Condemned(PathBuf);

impl Condemned {
    /// The note of the folder whose private parts lie at `base`.
    pub(crate) fn of(base: &Path) -> Condemned {
        let hash = blake3::hash(base.as_os_str().as_encoded_bytes());
        Condemned(Path::new(RUN_DIRECTORY).join(format!("failed-{}", &hash.to_hex()[..16])))
    }

    /// Notes that the copy of this generation is condemned.
    pub(crate) fn set(&self, generation: Generation) -> io::Result<()> {
        std::fs::create_dir_all(RUN_DIRECTORY)?;
        super::replace(&self.0, generation.0.to_string().as_bytes())
    }

    /// Whether the copy of this generation is condemned. A note that cannot be understood may
    /// have been on any.
    pub(crate) fn is_set(&self, generation: Generation) -> io::Result<bool> {
        match std::fs::read(&self.0) {
            Ok(bytes) => {
                let text = std::str::from_utf8(&bytes).ok();
                let noted = text.and_then(|text| text.parse::<u128>().ok());
                Ok(noted.is_none_or(|noted| noted == generation.0))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The note is not needed any more.
    pub(crate) fn clear(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_generation_that_was_condemned_is() {
        let dir = tempfile::tempdir().unwrap();
        let note = Condemned(dir.path().join("failed"));
        assert!(!note.is_set(Generation(7)).unwrap());
        note.set(Generation(7)).unwrap();
        assert!(note.is_set(Generation(7)).unwrap());
        assert!(!note.is_set(Generation(8)).unwrap());
        assert_eq!(std::fs::read(&note.0).unwrap(), b"7");
        note.clear().unwrap();
        note.clear().unwrap();
        assert!(!note.is_set(Generation(7)).unwrap());
    }

    #[test]
    fn a_note_that_cannot_be_understood_condemns_every_copy() {
        let dir = tempfile::tempdir().unwrap();
        let note = Condemned(dir.path().join("failed"));
        let long = "9".repeat(40);
        for bytes in [
            &b""[..],
            b"seven",
            b"7\n",
            b"-7",
            &[0xff, 0],
            long.as_bytes(),
        ] {
            std::fs::write(&note.0, bytes).unwrap();
            assert!(note.is_set(Generation(7)).unwrap(), "{bytes:?}");
        }
        std::fs::remove_file(&note.0).unwrap();
        std::fs::create_dir(&note.0).unwrap();
        assert!(note.is_set(Generation(7)).is_err(), "it cannot be read");
    }
}
