//! Who uses a directory, by what the kernel tells of every process (`proc(5)`).

use std::fmt;
use std::fs::ReadDir;
use std::path::{Path, PathBuf};

/// So many are named; there may be more.
const MAX_NAMED: usize = 8;

/// A process that uses a directory.
#[derive(Debug)]
pub(super) struct User {
    pid: u32,
    name: String,
    what: PathBuf,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let User { pid, name, what } = self;
        write!(f, "{name} (process {pid}) uses {}", what.display())
    }
}

/// Processes that work in a directory or below it, or have something there open or mapped.
/// They reach it also when it has got another name, or a mount covers it.
pub(super) fn users_of(directory: &Path) -> Vec<User> {
    // The kernel tells of places as they are, without symbolic links.
    let real = std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let processes = entries(Path::new("/proc")).filter_map(|process| {
        let pid = process.file_name()?.to_str()?.parse().ok()?;
        let places = ["cwd", "root"].map(|link| process.join(link)).into_iter();
        let open = ["fd", "map_files"].map(|links| entries(&process.join(links)));
        let mut uses = places.chain(open.into_iter().flatten());
        // One that ends while it is looked at uses nothing.
        let what = uses.find_map(|link| {
            let leads = std::fs::read_link(link).ok()?;
            leads.starts_with(&real).then_some(leads)
        })?;
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some(User {
            pid,
            name: name.trim().to_owned(),
            what,
        })
    });
    processes.take(MAX_NAMED).collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let listed = std::fs::read_dir(directory).into_iter();
    listed.flat_map(ReadDir::flatten).map(|entry| entry.path())
}
