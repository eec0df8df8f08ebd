//! Listing directories: all of them, while they change, and from any place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::area::Area;

/// Entries of the largest directory.
const MANY: usize = 10_000;

/// A directory stream of the C library.
struct Stream(*mut libc::DIR);

impl Stream {
    fn open(path: &Path) -> Stream {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a NUL-terminated path that outlives the call.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!stream.is_null(), "{}", std::io::Error::last_os_error());
        Stream(stream)
    }

    fn next(&self) -> Option<String> {
        // SAFETY: the stream is open, and the entry is used before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            if entry.is_null() {
                return None;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            Some(name.to_str().unwrap().to_owned())
        }
    }

    fn tell(&self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&self, place: i64) {
        // SAFETY: the stream is open, the place one it told.
        unsafe { libc::seekdir(self.0, place) }
    }

    fn rewind(&self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open and not used any more.
        unsafe { libc::closedir(self.0) };
    }
}

fn names(path: &Path) -> Vec<String> {
    let stream = Stream::open(path);
    std::iter::from_fn(|| stream.next()).collect()
}

#[test]
fn ten_thousand_entries_are_listed_once_each_on_both_nodes() {
    let area = Area::new("list-many");
    std::thread::scope(|s| {
        for worker in 0..4 {
            let area = area.a("");
            s.spawn(move || {
                for n in (worker..MANY).step_by(4) {
                    let path = area.join(format!("entry-{n}"));
                    if n % 5 == 0 {
                        std::fs::create_dir(path).unwrap();
                    } else {
                        drop(std::fs::File::create(path).unwrap());
                    }
                }
            });
        }
    });
    // However many are made one after the other, only so many stay open in the drivers.
    for node in [&area.pair.a, &area.pair.b] {
        let open = format!("/proc/{}/fd", node.pid().unwrap());
        let open = std::fs::read_dir(open).unwrap().count();
        assert!(
            open < 2 * 8192 + 500,
            "{open} descriptors on {}",
            node.name()
        );
    }
    for path in [area.a(""), area.b("")] {
        let listed = names(&path);
        let different: BTreeSet<_> = listed.iter().collect();
        assert_eq!((listed.len(), different.len()), (MANY + 2, MANY + 2));
        // As `ls -l` does: numbers and kinds agree with a look at the object itself.
        for entry in std::fs::read_dir(&path).unwrap().step_by(97) {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            assert_eq!(entry.ino(), meta.ino());
            assert_eq!(entry.file_type().unwrap(), meta.file_type());
        }
    }

    // From any place that was told, the rest comes, in the same order.
    let stream = Stream::open(&area.a(""));
    let mut places = BTreeMap::new();
    let mut order = Vec::new();
    loop {
        if order.len() % 611 == 0 {
            places.insert(order.len(), stream.tell());
        }
        match stream.next() {
            Some(name) => order.push(name),
            None => break,
        }
    }
    for (index, place) in places.into_iter().rev() {
        stream.seek(place);
        for expected in order.iter().skip(index).take(300) {
            assert_eq!(
                stream.next().as_ref(),
                Some(expected),
                "behind entry {index}"
            );
        }
    }
    stream.rewind();
    assert_eq!(stream.next().as_ref(), order.first());

    area.identical();

    // Emptied while it is listed, as `rm -r` does it.
    std::fs::remove_dir_all(area.a("")).unwrap();
    assert!(!area.b("").exists());
    std::fs::create_dir(area.a("")).unwrap();
    area.identical();
}

#[test]
fn entries_that_stay_are_listed_once_while_others_come_and_go() {
    let area = Area::new("list-changing");
    let staying: BTreeSet<_> = (0..1500).map(|n| format!("staying-{n}")).collect();
    for name in &staying {
        std::fs::write(area.a(name), "").unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let path = area.a("");
        let (changing, stop) = (path.clone(), &done);
        s.spawn(move || {
            let mut n = 0u32;
            while !stop.load(Ordering::Acquire) {
                let name = changing.join(format!("coming-and-going-{}", n % 500));
                match n / 500 % 3 {
                    0 => std::fs::write(name, "").unwrap(),
                    1 => std::fs::rename(&name, name.with_extension("renamed")).unwrap(),
                    _ => std::fs::remove_file(name.with_extension("renamed")).unwrap(),
                }
                n += 1;
            }
        });
        for round in 0..40 {
            for path in [&path, &area.b("")] {
                let mut seen = BTreeMap::<_, u32>::new();
                for name in names(path) {
                    *seen.entry(name).or_default() += 1;
                }
                // Only what was there all the time is promised.
                for name in &staying {
                    let times = seen.get(name).copied();
                    assert_eq!(times, Some(1), "{name} in round {round} of {path:?}");
                }
            }
        }
        done.store(true, Ordering::Release);
    });
    area.identical();
}

#[test]
fn every_directory_begins_with_itself_and_what_holds_it() {
    let area = Area::new("list-dots");
    std::fs::create_dir_all(area.a("one/two")).unwrap();
    for path in [area.a(""), area.b("")] {
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        for below in ["one", "one/two"] {
            let path = path.join(below);
            assert_eq!(inode(&path.join(".")), inode(&path));
            assert_eq!(inode(&path.join("..")), inode(path.parent().unwrap()));
            assert!(names(&path).contains(&".".to_owned()));
            assert!(names(&path).contains(&"..".to_owned()));
        }
    }
    let top = std::fs::metadata(area.pair.a.mount()).unwrap().ino();
    assert_eq!(std::fs::metadata(area.a("..")).unwrap().ino(), top);
    area.identical();
}

#[test]
fn a_directory_counts_those_in_it() {
    let area = Area::new("list-links");
    area.same(|at| {
        let links = || std::fs::metadata(at).unwrap().nlink();
        let mut told = vec![links()];
        for n in 0..5 {
            std::fs::create_dir(at.join(n.to_string())).unwrap();
            told.push(links());
        }
        std::fs::rename(at.join("0"), at.join("1/moved")).unwrap();
        told.push(links());
        std::fs::remove_dir(at.join("2")).unwrap();
        told.push(links());
        told
    });
    area.identical();
}
