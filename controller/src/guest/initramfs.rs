//! The guest's first and only file system: a cpio archive (the "newc" format of the
//! kernel's Documentation/driver-api/early-userspace/buffer-format.rst) with this
//! program as `init`, the libraries it needs, and kernel modules.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::MODULES;

const DIRECTORY: u32 = libc::S_IFDIR | 0o755;
const PROGRAM: u32 = libc::S_IFREG | 0o755;
const CONSOLE: u32 = libc::S_IFCHR | 0o600;

/// An archive being made.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: Vec<PathBuf>,
    /// Libraries that are in it.
    files: Vec<PathBuf>,
    count: u32,
}

impl Archive {
    /// An archive with a program as `/init`, and these modules of its kernel.
    pub fn with_init(program: &Path, modules: &[PathBuf]) -> Result<Archive> {
        let mut archive = Archive::default();
        archive.program("init", program)?;
        archive.directory(Path::new("dev"));
        // The kernel opens it before anything can be mounted: character device 5, 1.
        archive.entry("dev/console", CONSOLE, (5, 1), &[]);
        for module in modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            let data = std::fs::read(module)
                .with_context(|| format!("cannot read {}", module.display()))?;
            archive.file(&format!("{MODULES}/{name}"), &data);
        }
        Ok(archive)
    }

    /// Adds a program with the libraries it needs, but without what is only for debuggers.
    pub fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        self.file(name, loaded_part(&read(path)?)?);
        for library in libraries(path)? {
            if !self.files.contains(&library) {
                // A link is followed: the name is what the loader looks for.
                self.file(&library.to_string_lossy(), &read(&library)?);
                self.files.push(library);
            }
        }
        Ok(())
    }

    /// Adds a file, and the directories it is in.
    pub fn file(&mut self, name: &str, data: &[u8]) {
        let name = name.trim_start_matches('/');
        if let Some(parent) = Path::new(name).parent() {
            self.directory(parent);
        }
        self.entry(name, PROGRAM, (0, 0), data);
    }

    fn directory(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || self.directories.iter().any(|d| d == path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.directories.push(path.to_owned());
        self.entry(&path.to_string_lossy(), DIRECTORY, (0, 0), &[]);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.count += 1;
        let fields = [
            self.count,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            data.len() as u32,
            0, // the file system's device, two numbers
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, not used in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The archive's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

/// The libraries of a program, as its loader finds them, and the loader itself.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("`ldd` is needed to find this program's libraries (package libc-bin)")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if text.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("ldd {} failed: {}", program.display(), said.trim());
    }
    Ok(parse_ldd(&text))
}

/// `NAME => PATH (0x...)` and `PATH (0x...)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// A program without what is only for debuggers: everything behind the last byte
/// that its program headers load. The section table, which lies there too, is not
/// needed to run it.
fn loaded_part(elf: &[u8]) -> Result<&[u8]> {
    let field = |at: usize, length: usize| -> Result<usize> {
        let bytes = elf.get(at..at + length).context("a program cut short")?;
        let number = bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Ok(usize::try_from(number)?)
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01".as_slice()) {
        bail!("this program is not a 64-bit little-endian ELF file");
    }
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let mut end = table + size * count;
    for header in (0..count).map(|i| table + i * size) {
        end = end.max(field(header + 8, 8)? + field(header + 32, 8)?);
    }
    elf.get(..end).context("a program cut short")
}

/// A kernel and the modules the guest needs with it.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel.
    pub image: PathBuf,
    /// Those of the modules asked for that it has.
    pub modules: Vec<PathBuf>,
}

/// What a virtio disk needs; some may be built in, some not exist in a version.
pub const DISK: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

const HOW_TO_GET_ONE: &str = "get one with:\n  \
    apt-get download $(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2}')\n  \
    dpkg -x linux-image-*.deb guest-kernel\n\
    and name it with: --kernel guest-kernel/boot/vmlinuz-VERSION";

impl Kernel {
    /// The kernel that was named, or the newest one of this machine, with these modules as
    /// far as it has them.
    pub fn find(named: Option<&Path>, needed: &[&str]) -> Result<Kernel> {
        let image = match named {
            Some(image) => std::path::absolute(image)?,
            None => newest(Path::new("/boot"))
                .with_context(|| format!("no kernel in /boot for the guest; {HOW_TO_GET_ONE}"))?,
        };
        if !image.is_file() {
            bail!("{} is not there; {HOW_TO_GET_ONE}", image.display());
        }
        let modules = match modules_of(&image) {
            Some(directory) => needed_in(&directory, needed)
                .with_context(|| format!("cannot look through {}", directory.display()))?,
            // All built in, perhaps. The guest says so if it finds no disk.
            None => Vec::new(),
        };
        Ok(Kernel { image, modules })
    }
}

fn newest(boot: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(boot).ok()?.flatten();
    let kernels = entries.filter(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"));
    kernels
        .max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok())
        .map(|e| e.path())
}

/// `X/boot/vmlinuz-V` has `X/lib/modules/V` or `X/usr/lib/modules/V`.
fn modules_of(image: &Path) -> Option<PathBuf> {
    let name = image.file_name()?.to_string_lossy().into_owned();
    let version = name.strip_prefix("vmlinuz-")?;
    let root = image.parent()?.parent()?;
    let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place).join(version));
    places.into_iter().find(|place| place.is_dir())
}

fn needed_in(directory: &Path, needed: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.join("kernel")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let name = entry.file_name().to_string_lossy().replace('-', "_");
            let module = name.split(".ko").next().unwrap_or_default();
            if needed.contains(&module) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_format_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello");
        archive.file("a/c", b"");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4, "a, a/b, a/c, the end");
        // Magic, 13 fields of 8, the name with a zero, to a multiple of four.
        assert_eq!(&bytes[110..112], b"a\0");
        let b = &bytes[112..];
        assert_eq!(&b[..6], b"070701");
        assert_eq!(&b[6 + 48..6 + 56], b"00000005", "the size");
        assert_eq!(&b[110..114], b"a/b\0");
        assert_eq!(&b[116..124], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n";
        assert_eq!(
            parse_ldd(text),
            [Path::new("/lib/x/libc.so.6"), Path::new("/lib64/ld.so")]
        );
    }

    #[test]
    fn a_program_without_its_debug_sections_still_runs() {
        use std::io::ErrorKind;
        use std::os::unix::fs::PermissionsExt;
        use std::time::{Duration, Instant};
        let dir = tempfile::tempdir().unwrap();
        let whole = std::fs::read("/bin/true").unwrap();
        let cut = loaded_part(&whole).unwrap();
        let path = dir.path().join("true");
        std::fs::write(&path, cut).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // A program that another test is about to start has it open until it begins.
        let until = Instant::now() + Duration::from_secs(60);
        let ended = loop {
            match Command::new(&path).status() {
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                ended => break ended.unwrap(),
            }
        };
        assert!(ended.success());
        assert!(loaded_part(b"#!/bin/sh").is_err());
        assert!(loaded_part(&whole[..60]).is_err());
    }
}
