//! What a crash may leave of the one call that was under way.
//!
//! A change of a name or of an attribute, and the size that a truncation sets, are one
//! step of the kernel and one transaction of ext4's journal: all or nothing, always. Bytes
//! are more than one step:
//!
//! * *A node that did not crash* has whole requests of the kernel. A write is one of them,
//!   but where it begins within a page that the kernel does not have in its cache: it ends
//!   the first request with that page (`fuse_fill_write_pages`).
//! * *A killed process* leaves its page cache. The kernel copies a write into it page by
//!   page, in order, and looks for a fatal signal between two of them
//!   (`generic_perform_write`); the size grows with each page. So a prefix of the write is
//!   there, which ends where a page does. A copy between files goes through pages of the
//!   source as well. Nothing else that changes bytes can be interrupted.
//! * *A power cut* leaves what the disk had been given, in any order, by the sector. New
//!   blocks of a file are zeros until their bytes are written, and the size that the
//!   journal has may be behind: it ends where a block does. A truncation zeroes the rest of
//!   its last block first, as data, and ordered data reach the disk before the transaction
//!   that has the new size: of a file that still has its old size, the bytes from the new
//!   end to the end of that block may be zeros.
//!
//! `bare.rs` holds ext4 alone to these rules, so they are not wider than what it does.

use crate::acts::Act;
use crate::look::{Look, Seen};

/// How the copy that is looked at went through the crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// It did not crash: a request of the kernel is there or it is not.
    Whole,
    /// The page cache stayed.
    Pages,
    /// The power was cut.
    Sectors,
}

/// The page cache's unit, in bytes.
const PAGE: usize = 4096;

/// What a disk replaces as a whole.
const SECTOR: usize = 512;

/// The largest block of the file systems below; those of small disks are of 1024 bytes.
const BLOCK: usize = 4096;

/// Whether `found` is what `act` may have left on its way from `before` to `after`, when
/// it is neither of the two.
pub(crate) fn is_part(act: Act, before: &Look, after: &Look, found: &Look, left: Left) -> bool {
    if act.changes().is_none() || !before.keys().eq(found.keys()) {
        return false;
    }
    let mut part: Option<&Seen> = None;
    before
        .iter()
        .zip(found.values())
        .all(|((path, before), found)| {
            let Some(after) = after.get(path) else {
                return false;
            };
            if before.data == after.data {
                return before == found;
            }
            // All names of the file lead to the same bytes.
            part.replace(found)
                .is_none_or(|other| other.data == found.data)
                && found.has_same_attributes(before)
                && is_part_of_file(act, &before.data, &after.data, &found.data, left)
        })
}

fn is_part_of_file(act: Act, before: &[u8], after: &[u8], found: &[u8], left: Left) -> bool {
    match (act, left) {
        (
            Act::Write(_, at, length, _)
            | Act::WriteDsync(_, at, length, _)
            | Act::WriteOpen(_, at, length, _),
            Left::Whole | Left::Pages,
        ) => {
            let at = at as usize;
            let mut cuts = cuts(at, length);
            if left == Left::Whole {
                cuts.truncate(usize::from(!at.is_multiple_of(PAGE)));
            }
            cuts.into_iter()
                .any(|cut| found == cut_at(before, after, cut))
        }
        (Act::Copy(_, from, _, at, length), Left::Pages) => {
            // Where a page of the source ends, and where one of the target does.
            let (from, at) = (from as usize, at as usize);
            let source = cuts(from, length);
            (source.into_iter().map(|cut| cut - from + at))
                .chain(cuts(at, length))
                .any(|cut| found == cut_at(before, after, cut))
        }
        (
            Act::Write(..)
            | Act::WriteDsync(..)
            | Act::WriteOpen(..)
            | Act::Copy(..)
            | Act::Punch(..)
            | Act::Allocate(..),
            Left::Sectors,
        ) => {
            has_size_between(before.len(), after.len(), found.len())
                && is_mixed(before, after, found)
        }
        (Act::Truncate(_, size), Left::Sectors) => {
            let end = (size as usize).next_multiple_of(BLOCK).min(before.len());
            found.len() == before.len()
                && after.len() < before.len()
                && found[end..] == before[end..]
                && is_mixed(&before[..end], after, &found[..end])
        }
        _ => false,
    }
}

/// Where pages end within a range.
fn cuts(at: usize, length: usize) -> Vec<usize> {
    (at / PAGE + 1..)
        .map(|page| page * PAGE)
        .take_while(|cut| *cut < at + length)
        .collect()
}

/// New up to `cut`, old from there.
fn cut_at(before: &[u8], after: &[u8], cut: usize) -> Vec<u8> {
    let mut data = after[..cut].to_vec();
    data.extend(before.get(cut..).unwrap_or_default());
    data
}

fn has_size_between(before: usize, after: usize, found: usize) -> bool {
    found == before
        || found == after
        || (before < found && found < after && found.is_multiple_of(1024))
}

/// Each sector is the old or the new one; zeros where the old file had none.
fn is_mixed(before: &[u8], after: &[u8], found: &[u8]) -> bool {
    found.chunks(SECTOR).enumerate().all(|(n, sector)| {
        [before, after]
            .iter()
            .any(|data| is_sector(data, n, sector))
    })
}

/// Whether `sector` is number `n` of a file with `data`, or the first part of it; zeros
/// follow the file's end.
fn is_sector(data: &[u8], n: usize, sector: &[u8]) -> bool {
    let rest = data.get(n * SECTOR..).unwrap_or_default();
    let common = rest.len().min(sector.len());
    sector[..common] == rest[..common] && sector[common..].iter().all(|b| *b == 0)
}

/// Everything in `found` that never was in one of `states`: a name, attributes, a sector
/// that is not of zeros.
pub(crate) fn never_was(states: &[Look], found: &Look) -> Vec<String> {
    let mut versions: Vec<&[u8]> = Vec::new();
    for seen in states.iter().flat_map(Look::values) {
        if seen.kind == "file" && !versions.contains(&&seen.data[..]) {
            versions.push(&seen.data);
        }
    }
    let mut lines = Vec::new();
    for (path, seen) in found {
        let mut was = states.iter().filter_map(|state| state.get(path)).peekable();
        if was.peek().is_none() {
            lines.push(format!("{path:?} never had this name: {seen:?}"));
        } else if !was.any(|was| {
            was.has_same_attributes(seen) && (seen.kind == "file" || was.data == seen.data)
        }) {
            lines.push(format!("{path:?} never was so: {seen:?}"));
        }
        let strange = |n: usize, sector: &[u8]| {
            sector.iter().any(|b| *b != 0)
                && !versions.iter().any(|data| is_sector(data, n, sector))
        };
        if seen.kind == "file"
            && let Some((n, _)) = seen
                .data
                .chunks(SECTOR)
                .enumerate()
                .find(|(n, s)| strange(*n, s))
        {
            lines.push(format!(
                "{path:?} never had such bytes from {} on: {seen:?}",
                n * SECTOR
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::acts::bytes;

    fn file(data: Vec<u8>) -> Look {
        let seen = Seen {
            kind: "file",
            mode: 0o640,
            owner: (0, 0),
            links: 1,
            data,
            xattrs: Default::default(),
        };
        [(PathBuf::from("f"), seen)].into()
    }

    /// Makes of the old bytes what is found; may it be there on a node that did not crash,
    /// behind a kill, behind a power cut?
    type Found<'a> = (&'a dyn Fn(&mut Vec<u8>), [bool; 3]);

    fn check(act: Act, before: &[u8], after: &[u8], found: &[Found<'_>]) {
        for (n, (make, wanted)) in found.iter().enumerate() {
            let mut data = before.to_vec();
            make(&mut data);
            let is = |left| {
                is_part(
                    act,
                    &file(before.to_vec()),
                    &file(after.to_vec()),
                    &file(data.clone()),
                    left,
                )
            };
            assert_eq!(
                [Left::Whole, Left::Pages, Left::Sectors].map(is),
                *wanted,
                "{act:?}, number {n}"
            );
        }
    }

    #[test]
    fn a_write_may_end_at_a_page_behind_a_kill_and_have_any_sector_behind_a_power_cut() {
        let before = bytes(1, 0, 20_000);
        let mut after = before.clone();
        after.splice(1000..11_000, bytes(2, 1000, 10_000));
        let part = |range: std::ops::Range<usize>| {
            let after = after.clone();
            move |data: &mut Vec<u8>| data[range.clone()].copy_from_slice(&after[range.clone()])
        };
        check(
            Act::Write("f", 1000, 10_000, 2),
            &before,
            &after,
            &[
                (&part(1000..4096), [true, true, true]),
                (&part(1000..8192), [false, true, true]),
                (&part(4096..8192), [false, false, true]),
                (&part(1024..1536), [false, false, true]),
                (&part(1000..1100), [false, false, false]),
                (&|data| data[15_000] ^= 1, [false, false, false]),
                (&|data| data[5000] ^= 1, [false, false, false]),
                (&|data| data.truncate(19_000), [false, false, false]),
            ],
        );
    }

    #[test]
    fn a_write_behind_the_end_grows_the_file_by_whole_blocks() {
        let before = bytes(1, 0, 1000);
        let after = [before.clone(), bytes(2, 1000, 9000)].concat();
        let grown = |size: usize, zeros: bool| {
            let after = after.clone();
            move |data: &mut Vec<u8>| match zeros {
                true => data.resize(size, 0),
                false => *data = after[..size].to_vec(),
            }
        };
        check(
            Act::Write("f", 1000, 9000, 2),
            &before,
            &after,
            &[
                (&grown(4096, false), [true, true, true]),
                (&grown(5120, false), [false, false, true]),
                (&grown(5000, false), [false, false, false]),
                (&grown(10_000, true), [false, false, true]),
                (&grown(11_264, true), [false, false, false]),
            ],
        );
    }

    #[test]
    fn a_truncation_may_have_zeroed_the_rest_of_its_last_block_and_nothing_else() {
        let before = bytes(1, 0, 50_000);
        let zero =
            |range: std::ops::Range<usize>| move |data: &mut Vec<u8>| data[range.clone()].fill(0);
        check(
            Act::Truncate("f", 30_000),
            &before,
            &before[..30_000],
            &[
                (&zero(30_000..32_768), [false, false, true]),
                (&zero(30_000..30_720), [false, false, true]),
                (&zero(30_000..33_280), [false, false, false]),
                (&zero(29_000..30_000), [false, false, false]),
                (&|data| data.truncate(40_000), [false, false, false]),
            ],
        );
    }

    #[test]
    fn attributes_are_never_a_part() {
        let (before, after) = (file(vec![1; 9000]), file(vec![2; 9000]));
        let mut found = file(cut_at(&[1; 9000], &[2; 9000], 4096));
        let act = Act::Write("f", 0, 9000, 2);
        assert!(is_part(act, &before, &after, &found, Left::Pages));
        found.values_mut().for_each(|seen| seen.mode = 0o600);
        assert!(!is_part(act, &before, &after, &found, Left::Pages));
    }
}
