//! Starting and stopping leave no trace in the log, and no state others can read.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use harness::{Pair, Role};

fn files_below(path: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), into);
        }
        into.push(entry.path());
    }
}

#[test]
fn an_orderly_stop_unmounts_once_and_warns_of_nothing() {
    let mut pair = Pair::new();
    std::fs::write(pair.on_a("file"), "contents").unwrap();
    for node in [&mut pair.b, &mut pair.a] {
        assert!(node.stop().unwrap().success());
        assert!(!node.is_mounted());
        let said = node.log_text();
        assert!(!said.contains("mount filesystem"), "{said}");
        assert!(!said.contains("nvalid argument"), "{said}");
        assert!(!said.contains("ERROR"), "{said}");
    }
    // A's peer went before it, which is worth a warning there; here nothing is.
    assert!(!pair.b.log_text().contains("WARN"), "{}", pair.b.log_text());
    pair.a.start(Role::Primary).unwrap();
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
}

#[test]
fn a_mount_in_use_is_taken_away_and_that_is_said() {
    let mut pair = Pair::new();
    std::fs::write(pair.on_a("file"), "contents").unwrap();
    let open = std::fs::File::open(pair.on_a("file")).unwrap();
    assert!(pair.a.stop().unwrap().success());
    assert!(!pair.a.is_mounted());
    assert!(
        pair.a.log_text().contains("in use"),
        "{}",
        pair.a.log_text()
    );
    drop(open);
}

#[test]
fn state_is_roots_alone_whatever_umask_the_application_has() {
    let pair = Pair::new();
    // Threads of the driver take on the umask of whoever makes something.
    crate::area::in_thread(|| {
        // SAFETY: an integer; the umask is this thread's own.
        unsafe { libc::umask(0) };
        for n in 0..200 {
            std::fs::write(pair.on_a(format!("file-{n}")), "contents").unwrap();
        }
    });
    // New intent segments and index files are made on both nodes, by many threads.
    for n in 0..5 {
        std::fs::write(pair.on_a(format!("more-{n}")), "contents").unwrap();
        pair.checkpoint();
    }
    for node in [&pair.a, &pair.b] {
        let mut all = Vec::new();
        files_below(&node.layout().state(), &mut all);
        assert!(all.len() > 3, "{all:?}");
        for path in all {
            let mode = match std::fs::metadata(&path) {
                Ok(meta) => meta.permissions().mode() & 0o7777,
                // A segment that a checkpoint has retired meanwhile.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => panic!("{}: {e}", path.display()),
            };
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
    }
    pair.assert_identical();
}
