//! Flags of many ids, kept together for 64 ids in a row: ids are given out one after the
//! other, so that a million new files cost a few bits each.

use std::collections::BTreeMap;

use crate::ids::FileId;

/// Ids of a group.
const GROUP: u64 = u64::BITS as u64;

/// `N` flags for each id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flags<const N: usize> {
    /// By `id / GROUP`, a word for each flag; none without any bit.
    groups: BTreeMap<u64, [u64; N]>,
    /// Ids that have a flag.
    count: usize,
}

impl<const N: usize> Default for Flags<N> {
    fn default() -> Flags<N> {
        Flags {
            groups: BTreeMap::new(),
            count: 0,
        }
    }
}

fn place(file: FileId) -> (u64, u64) {
    (file.0 / GROUP, 1 << (file.0 % GROUP))
}

fn any<const N: usize>(words: &[u64; N]) -> u64 {
    words.iter().fold(0, |all, word| all | word)
}

/// The ids of a group whose bits are set.
fn ids(group: u64, mut bits: u64) -> impl Iterator<Item = FileId> {
    std::iter::from_fn(move || {
        let bit = u64::from(bits.trailing_zeros());
        bits &= bits.checked_sub(1)?;
        Some(FileId(group * GROUP + bit))
    })
}

impl<const N: usize> Flags<N> {
    /// Whether no id has a flag.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// How many ids have one.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// How many groups they lie in: what this takes memory for.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The flags of an id, none if it has none.
    pub(crate) fn of(&self, file: FileId) -> Option<[bool; N]> {
        let (group, bit) = place(file);
        let flags = self.groups.get(&group)?.map(|word| word & bit != 0);
        flags.contains(&true).then_some(flags)
    }

    /// Sets a flag. Returns whether it was not set.
    pub(crate) fn set(&mut self, file: FileId, flag: usize) -> bool {
        let (group, bit) = place(file);
        let words = self.groups.entry(group).or_insert([0; N]);
        let new = words[flag] & bit == 0;
        self.count += usize::from(any(words) & bit == 0);
        words[flag] |= bit;
        new
    }

    /// Clears flags of an id.
    pub(crate) fn clear(&mut self, file: FileId, flags: &[usize]) {
        let (group, bit) = place(file);
        let Some(words) = self.groups.get_mut(&group) else {
            return;
        };
        let before = any(words) & bit;
        for flag in flags {
            words[*flag] &= !bit;
        }
        self.count -= usize::from(before != any(words) & bit);
        if any(words) == 0 {
            self.groups.remove(&group);
        }
    }

    /// The first id from this one on that has a flag.
    pub(crate) fn next(&self, from: FileId) -> Option<FileId> {
        let first = from.0 / GROUP;
        self.groups.range(first..).find_map(|(group, words)| {
            let mut bits = any(words);
            if *group == first {
                bits &= u64::MAX << (from.0 % GROUP);
            }
            let bit = u64::from(bits.trailing_zeros());
            (bits != 0).then(|| FileId(group * GROUP + bit))
        })
    }

    /// All ids that have a flag, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FileId> {
        let groups = self.groups.iter();
        groups.flat_map(|(group, words)| ids(*group, any(words)))
    }

    /// All ids that have this flag, in order.
    pub(crate) fn with(&self, flag: usize) -> impl Iterator<Item = FileId> {
        let groups = self.groups.iter();
        groups.flat_map(move |(group, words)| ids(*group, words[flag]))
    }

    /// How many ids have this flag.
    pub(crate) fn count_of(&self, flag: usize) -> usize {
        let bits = self.groups.values().map(|words| words[flag].count_ones());
        bits.sum::<u32>() as usize
    }

    /// The same without a flag.
    pub(crate) fn without(mut self, flag: usize) -> Flags<N> {
        self.groups.retain(|_, words| {
            words[flag] = 0;
            any(words) != 0
        });
        let bits = self.groups.values().map(|words| any(words).count_ones());
        self.count = bits.sum::<u32>() as usize;
        self
    }

    /// Sets all flags that are set in `other`.
    pub(crate) fn unite(&mut self, other: Flags<N>) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for (group, theirs) in other.groups {
            let mine = self.groups.entry(group).or_insert([0; N]);
            self.count += (any(&theirs) & !any(mine)).count_ones() as usize;
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine |= theirs;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against a set of pairs, step by step.
    #[test]
    fn flags_are_set_cleared_found_and_united_like_in_a_plain_set() {
        let ids = [1, 2, 63, 64, 65, 127, 128, 5000, (3 << 40) + 7, u64::MAX].map(FileId);
        let (mut flags, mut plain) = (Flags::<3>::default(), BTreeSet::new());
        let (mut other, mut others) = (Flags::<3>::default(), BTreeSet::new());
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..20_000 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let file = ids[(dice >> 32) as usize % ids.len()];
            let flag = (dice >> 20) as usize % 3;
            match dice % 16 {
                0..7 => assert_eq!(flags.set(file, flag), plain.insert((file, flag))),
                7..10 => {
                    other.set(file, flag);
                    others.insert((file, flag));
                }
                10..15 => {
                    flags.clear(file, &[flag, (flag + 1) % 3]);
                    plain.remove(&(file, flag));
                    plain.remove(&(file, (flag + 1) % 3));
                }
                _ => {
                    flags.unite(std::mem::take(&mut other));
                    plain.append(&mut others);
                }
            }
            let all: BTreeSet<_> = plain.iter().map(|(file, _)| *file).collect();
            assert!(flags.iter().eq(all.iter().copied()), "step {step}");
            assert_eq!(flags.len(), all.len());
            assert_eq!(flags.is_empty(), all.is_empty());
            assert_eq!(flags.next(file), all.range(file..).next().copied());
            let of_flag = plain.iter().filter(|(_, f)| *f == flag).count();
            assert_eq!(flags.count_of(flag), of_flag);
            let with = plain.iter().filter(|(_, f)| *f == flag).map(|(id, _)| *id);
            assert!(flags.with(flag).eq(with));
            let wanted = [0, 1, 2].map(|flag| plain.contains(&(file, flag)));
            assert_eq!(flags.of(file), wanted.contains(&true).then_some(wanted));
            let less = flags.clone().without(flag);
            let other: BTreeSet<_> = plain.iter().filter(|(_, f)| *f != flag).collect();
            assert_eq!(less.count_of(flag), 0);
            assert_eq!(
                (0..3).map(|flag| less.count_of(flag)).sum::<usize>(),
                other.len()
            );
            let ids: BTreeSet<_> = other.iter().map(|(file, _)| *file).collect();
            assert_eq!(less.len(), ids.len());
        }
    }
}
