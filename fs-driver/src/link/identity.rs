//! Who a node is: a key of its own and the fingerprint its peer is told.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The name all certificates carry: nodes are known by their key, not by a name.
pub const SERVER_NAME: &str = "twinfold";

/// What the other node must be told: the BLAKE3 hash of a node's certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate (DER).
    pub fn of(certificate: &[u8]) -> Fingerprint {
        Fingerprint(*blake3::hash(certificate).as_bytes())
    }

    fn check(&self) -> String {
        let sum = blake3::hash(&self.0);
        format!("{:02x}{:02x}", sum.as_bytes()[0], sum.as_bytes()[1])
    }

    /// Reads what [`fmt::Display`] wrote; a mistyped digit is noticed.
    pub fn parse(text: &str) -> Result<Fingerprint> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let ["tf1", hex, check] = parts[..] else {
            bail!("an identity has the form tf1-HEX-CHECK; `twinfold-fs identity` prints it");
        };
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!("the middle part of an identity has 64 hexadecimal digits");
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16)?;
        }
        let fingerprint = Fingerprint(bytes);
        if fingerprint.check() != check.to_ascii_lowercase() {
            bail!("the identity was mistyped: its check digits do not fit");
        }
        Ok(fingerprint)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tf1-")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "-{}", self.check())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node's certificate and private key.
#[derive(Clone)]
pub struct Identity {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint())
    }
}

impl Fingerprint {
    /// The bytes.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// A fingerprint from its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }
}

impl Identity {
    /// Makes a new key and a certificate for it.
    pub fn generate() -> Result<Identity> {
        let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])
            .context("cannot make a key")?;
        Ok(Identity {
            certificate: made.cert.der().to_vec(),
            key: made.signing_key.serialize_der(),
        })
    }

    /// Reads the identity in `directory`, or makes one there.
    pub fn load_or_create(directory: &Path) -> Result<Identity> {
        if directory.join("node.key").exists() {
            return Identity::load(directory);
        }
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let identity = Identity::generate()?;
        // The key last: a crash in between leaves no half identity behind.
        write_private(&directory.join("node.crt"), &identity.certificate)?;
        write_private(&directory.join("node.key"), &identity.key)?;
        Ok(identity)
    }

    /// Reads the identity in `directory`.
    pub fn load(directory: &Path) -> Result<Identity> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| {
                format!(
                    "cannot read {}; `twinfold-fs identity` makes this node's key",
                    path.display()
                )
            })
        };
        Ok(Identity {
            certificate: read("node.crt")?,
            key: read("node.key")?,
        })
    }

    /// What the peer must be told.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("id");
        let a = Identity::load_or_create(&home).unwrap();
        let b = Identity::load_or_create(&home).unwrap();
        assert_eq!(a.fingerprint(), b.fingerprint());
        let mode = std::fs::metadata(home.join("node.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_mistyped_fingerprint_is_noticed() {
        let text = Fingerprint::of(b"x").to_string();
        assert_eq!(Fingerprint::parse(&text).unwrap(), Fingerprint::of(b"x"));
        for at in 4..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            let bad = String::from_utf8(bad).unwrap();
            assert!(Fingerprint::parse(&bad).is_err(), "{bad}");
        }
        assert!(Fingerprint::parse("").is_err());
    }
}
