//! Configuration files, read within limits.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What is read of a file, in bytes, at most: more is no configuration.
const MAX_READ: u64 = 8 << 20;

/// The text of a configuration file.
pub(crate) fn text(path: &Path) -> Result<String> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_READ + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_READ {
            bail!("it is larger than {MAX_READ} bytes");
        }
        Ok(String::from_utf8(bytes)?)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_without_end_only_so_much_is_read() {
        let error = text(Path::new("/dev/zero")).unwrap_err();
        assert!(format!("{error:#}").contains("larger than"), "{error:#}");
        let error = text(Path::new("/not/there")).unwrap_err();
        let cause = error.downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
    }
}
