//! Directories that lay one in the other when the peer left, and lie the other way round
//! when it comes back.

use std::fs;
use std::path::Path;

use harness::{Pair, Role};

use crate::forget_what_was_flushed;

/// Made in this order, the outer one has the lowest id: a resync tells of its new place
/// first.
fn nest(root: &Path, names: &[&str]) {
    let mut at = root.to_path_buf();
    for name in names {
        at.push(name);
        fs::create_dir(&at).unwrap();
        fs::write(at.join("file"), name.as_bytes()).unwrap();
    }
}

fn away(pair: &mut Pair, change: impl FnOnce(&Path)) {
    forget_what_was_flushed(pair);
    pair.b.stop().unwrap();
    change(&pair.on_a(""));
    pair.b.start(Role::Secondary).unwrap();
    pair.assert_identical();
}

#[test]
fn two_directories_that_changed_places_while_the_peer_was_away_end_alike() {
    let mut pair = Pair::new();
    nest(&pair.on_a(""), &["outer", "inner"]);
    pair.assert_identical();
    away(&mut pair, |root| {
        fs::rename(root.join("outer/inner"), root.join("inner")).unwrap();
        fs::rename(root.join("outer"), root.join("inner/outer")).unwrap();
    });
    let file = fs::read(pair.on_b("inner/outer/file")).unwrap();
    assert_eq!(file, b"outer");
}

/// The one between them stays in the outer one: nothing tells the peer of it.
#[test]
fn directories_that_changed_places_take_along_what_lies_between_them() {
    let mut pair = Pair::new();
    nest(&pair.on_a(""), &["outer", "between", "inner"]);
    pair.assert_identical();
    away(&mut pair, |root| {
        fs::rename(root.join("outer/between/inner"), root.join("inner")).unwrap();
        fs::rename(root.join("outer"), root.join("inner/outer")).unwrap();
    });
    let file = fs::read(pair.on_b("inner/outer/between/file")).unwrap();
    assert_eq!(file, b"between");
}
