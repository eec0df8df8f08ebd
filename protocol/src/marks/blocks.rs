//! Data marks of one file.

use roaring::RoaringBitmap;

use crate::limits;

/// Data marks of one file.
#[derive(Clone, Default, Debug)]
pub struct Blocks(Set);

/// Most files that are marked at all are new or were written in one place: that costs
/// no memory beside the map's entry.
#[derive(Clone, Default, Debug)]
enum Set {
    /// No block.
    #[default]
    None,
    /// One run, both ends included.
    Run(u32, u32),
    /// These blocks.
    Map(Box<RoaringBitmap>),
    /// Every block, whatever the size.
    All,
}

impl PartialEq for Blocks {
    fn eq(&self, other: &Blocks) -> bool {
        match (&self.0, &other.0) {
            (Set::All, Set::All) => true,
            (Set::All, _) | (_, Set::All) => false,
            _ => self.runs().eq(other.runs()),
        }
    }
}

impl Blocks {
    /// Every block, whatever the size.
    pub const fn all() -> Blocks {
        Blocks(Set::All)
    }

    /// No block.
    pub(super) const fn none() -> Blocks {
        Blocks(Set::None)
    }

    /// Whether every block is marked, whatever the size.
    pub fn is_all(&self) -> bool {
        matches!(self.0, Set::All)
    }

    /// Whether no block is marked.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Set::None => true,
            Set::Map(map) => map.is_empty(),
            Set::Run(..) | Set::All => false,
        }
    }

    /// Whether the marks need memory of their own.
    pub(super) fn is_scattered(&self) -> bool {
        matches!(self.0, Set::Map(_))
    }

    /// Where the last marked block ends; of [`Blocks::all`] nobody knows: 0.
    pub(super) fn reach(&self) -> u64 {
        let last = match &self.0 {
            Set::Run(_, last) => Some(*last),
            Set::Map(map) => map.max(),
            Set::None | Set::All => None,
        };
        last.map_or(0, |last| (u64::from(last) + 1) * limits::BLOCK)
    }

    /// Marks the blocks that `offset .. offset + length` touches.
    pub fn mark(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let first = offset / limits::BLOCK;
        let last = offset.saturating_add(length - 1) / limits::BLOCK;
        match (u32::try_from(first), u32::try_from(last)) {
            (Ok(first), Ok(last)) => self.mark_run(first, last),
            // Files beyond 16 TiB: the mark cannot be told apart, so all of the file is suspect.
            _ => self.0 = Set::All,
        }
    }

    /// Marks the blocks from `first` to `last`.
    pub(super) fn mark_run(&mut self, first: u32, last: u32) {
        match &mut self.0 {
            Set::None => self.0 = Set::Run(first, last),
            Set::Run(from, to)
                if first <= to.saturating_add(1) && *from <= last.saturating_add(1) =>
            {
                *from = first.min(*from);
                *to = last.max(*to);
            }
            Set::Run(from, to) => {
                let mut map = RoaringBitmap::new();
                map.insert_range(*from..=*to);
                map.insert_range(first..=last);
                self.0 = Set::Map(Box::new(map));
            }
            Set::Map(map) => {
                map.insert_range(first..=last);
            }
            Set::All => {}
        }
    }

    /// The marked runs in order, both ends included; of [`Blocks::all`] none.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.runs_from(0)
    }

    /// The same from a block on.
    pub(super) fn runs_from(&self, start: u32) -> impl Iterator<Item = (u32, u32)> {
        let (run, mut rest) = match &self.0 {
            Set::Run(first, last) if *last >= start => (Some((start.max(*first), *last)), None),
            Set::Map(map) => (None, Some(map.range(start..))),
            Set::None | Set::Run(..) | Set::All => (None, None),
        };
        run.into_iter().chain(std::iter::from_fn(move || {
            let run = rest.as_mut()?.next_range()?;
            Some((*run.start(), *run.end()))
        }))
    }

    /// Takes the first run of marked blocks out of the marks: at most `most`
    /// blocks, none at or beyond byte `size`. Marks beyond the size are dropped:
    /// there is no data there to differ.
    pub fn take_run(&mut self, most: u32, size: u64) -> Option<(u64, u64)> {
        let end = size.div_ceil(limits::BLOCK);
        if let Set::All = self.0 {
            self.0 = match u32::try_from(end).unwrap_or(u32::MAX) {
                0 => Set::None,
                end => Set::Run(0, end - 1),
            };
        }
        let (first, last) = self.runs().next()?;
        if u64::from(first) >= end {
            self.0 = Set::None;
            return None;
        }
        let last = last
            .min(first.saturating_add(most.saturating_sub(1)))
            .min(u32::try_from(end - 1).unwrap_or(u32::MAX));
        self.remove_up_to(last);
        let offset = u64::from(first) * limits::BLOCK;
        let length = (u64::from(last) + 1) * limits::BLOCK - offset;
        Some((offset, length.min(size - offset)))
    }

    /// The first run of marked blocks below byte `size`, at most `most` blocks; the marks
    /// stay. Nothing when there is none, or when every block is marked.
    pub fn first_run(&self, most: u32, size: u64) -> Option<(u64, u64)> {
        let (first, last) = self.runs().next()?;
        let offset = u64::from(first) * limits::BLOCK;
        if offset >= size {
            return None;
        }
        let last = last.min(first.saturating_add(most.saturating_sub(1)));
        let length = (u64::from(last) + 1) * limits::BLOCK - offset;
        Some((offset, length.min(size - offset)))
    }

    /// Takes the marks of the blocks that a range touches.
    pub fn take(&mut self, offset: u64, length: u64) {
        let end = (offset + length).div_ceil(limits::BLOCK);
        let (Ok(first), Ok(last)) = (
            u32::try_from(offset / limits::BLOCK),
            u32::try_from(end.saturating_sub(1)),
        ) else {
            return;
        };
        match &mut self.0 {
            // What is moved is nearly always what comes first.
            Set::Run(from, _) if *from >= first => {
                if *from <= last {
                    self.remove_up_to(last);
                }
            }
            Set::Run(from, to) => {
                if *to >= first {
                    let mut map = RoaringBitmap::new();
                    map.insert_range(*from..=*to);
                    map.remove_range(first..=last);
                    self.0 = Set::Map(Box::new(map));
                }
            }
            Set::Map(map) => {
                map.remove_range(first..=last);
                if map.is_empty() {
                    self.0 = Set::None;
                }
            }
            Set::None | Set::All => {}
        }
    }

    /// Clears the marks up to a block.
    fn remove_up_to(&mut self, block: u32) {
        match &mut self.0 {
            Set::Run(_, last) if *last <= block => self.0 = Set::None,
            Set::Run(first, _) => *first = block + 1,
            Set::Map(map) => {
                map.remove_range(..=block);
                if map.is_empty() {
                    self.0 = Set::None;
                }
            }
            Set::None | Set::All => {}
        }
    }

    /// The marked byte ranges in order; runs with no more than `gap` unmarked blocks
    /// between them fall together. All blocks are one range without end.
    pub fn spans(&self, gap: u32) -> Vec<(u64, u64)> {
        if self.is_all() {
            return vec![(0, limits::MAX_OFFSET)];
        }
        let mut spans: Vec<(u64, u64)> = Vec::new();
        for (first, last) in self.runs() {
            let at = u64::from(first) * limits::BLOCK;
            let end = (u64::from(last) + 1) * limits::BLOCK;
            match spans.last_mut() {
                Some((from, length))
                    if at - (*from + *length) <= u64::from(gap) * limits::BLOCK =>
                {
                    *length = end - *from;
                }
                _ => spans.push((at, end - at)),
            }
        }
        spans
    }

    /// Adds all marks of `other`.
    pub(super) fn unite(&mut self, other: Blocks) {
        match (&mut self.0, other.0) {
            (Set::All, _) | (_, Set::None) => {}
            (_, Set::All) => self.0 = Set::All,
            (mine @ Set::None, theirs) => *mine = theirs,
            (Set::Map(mine), Set::Map(theirs)) => **mine |= *theirs,
            (_, theirs) => Blocks(theirs)
                .runs()
                .for_each(|(first, last)| self.mark_run(first, last)),
        }
    }

    /// Marked bytes in a file of `size` bytes.
    pub fn bytes(&self, size: u64) -> u64 {
        match &self.0 {
            Set::All => size,
            _ => (self.count() * limits::BLOCK).min(size),
        }
    }

    /// Marked blocks; of [`Blocks::all`] none, for their number is not known.
    pub(super) fn count(&self) -> u64 {
        match &self.0 {
            Set::None | Set::All => 0,
            Set::Run(first, last) => u64::from(*last - *first) + 1,
            Set::Map(map) => map.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_out_in_order_cut_at_the_limit_and_at_the_end_of_the_file() {
        let mut blocks = Blocks::default();
        blocks.mark(4096 * 10, 4096 * 5);
        blocks.mark(1, 1);
        let size = 4096 * 12 + 5;
        assert_eq!(blocks.take_run(100, size), Some((0, 4096)));
        assert_eq!(blocks.take_run(2, size), Some((4096 * 10, 8192)));
        assert_eq!(blocks.take_run(2, size), Some((4096 * 12, 5)));
        assert_eq!(blocks.take_run(2, size), None);
        assert!(blocks.is_empty());
    }

    #[test]
    fn a_run_can_be_looked_at_before_it_is_taken() {
        let mut blocks = Blocks::default();
        blocks.mark(4096 * 10, 4096 * 5);
        blocks.mark(4096 * 20, 1);
        let size = 4096 * 20 + 7;
        assert_eq!(blocks.first_run(100, size), Some((4096 * 10, 4096 * 5)));
        assert_eq!(blocks.first_run(2, size), Some((4096 * 10, 4096 * 2)));
        blocks.take(4096 * 10, 4096 * 2);
        assert_eq!(blocks.first_run(100, size), Some((4096 * 12, 4096 * 3)));
        // One that came up before it meanwhile stays.
        blocks.mark(4096 * 3, 1);
        blocks.take(4096 * 12, 4096 * 3);
        assert_eq!(blocks.first_run(100, size), Some((4096 * 3, 4096)));
        blocks.take(4096 * 3, 4096);
        assert_eq!(blocks.first_run(100, size), Some((4096 * 20, 7)));
        assert_eq!(blocks.first_run(100, 4096 * 20), None, "beyond the end");
        blocks.take(4096 * 20, 7);
        assert!(blocks.is_empty());
        assert_eq!(Blocks::all().first_run(1, size), None);
        let mut one = Blocks::default();
        one.mark(4096 * 5, 4096 * 10);
        one.take(4096 * 7, 4096 * 2);
        assert_eq!(one.runs().collect::<Vec<_>>(), [(5, 6), (9, 14)]);
    }

    #[test]
    fn spans_bridge_small_gaps_only() {
        let mut blocks = Blocks::default();
        for block in [0, 1, 4, 100] {
            blocks.mark(block * 4096, 1);
        }
        let pages = |from: u64, count: u64| (from * 4096, count * 4096);
        assert_eq!(blocks.spans(2), [pages(0, 5), pages(100, 1)]);
        assert_eq!(blocks.spans(0), [pages(0, 2), pages(4, 1), pages(100, 1)]);
    }

    #[test]
    fn all_blocks_become_the_blocks_below_the_size() {
        let mut blocks = Blocks::all();
        assert_eq!(blocks.take_run(10, 4096 * 3), Some((0, 4096 * 3)));
        assert_eq!(blocks.take_run(10, 4096 * 3), None);
    }

    #[test]
    fn all_blocks_of_the_largest_file_are_moved_to_its_last_byte() {
        for largest in [limits::MAX_MAPPED_FILE, limits::MAX_MAPPED_FILE - 1] {
            let mut blocks = Blocks::all();
            assert_eq!(blocks.take_run(u32::MAX, largest), Some((0, largest)));
            assert_eq!(blocks.take_run(u32::MAX, largest), None);
            blocks.mark(largest - 1, 1);
            assert!(!blocks.is_all());
            assert!(blocks.take_run(1, largest).is_some());
        }
    }

    #[test]
    fn one_run_grows_in_place_and_a_second_one_is_kept_apart() {
        let mut blocks = Blocks::default();
        blocks.mark(4096 * 7, 4096);
        blocks.mark(4096 * 8, 4096);
        blocks.mark(4096 * 6, 1);
        assert_eq!(blocks, Blocks(Set::Run(6, 8)));
        blocks.mark(4096 * 20, 1);
        assert_eq!(blocks.runs().collect::<Vec<_>>(), [(6, 8), (20, 20)]);
        blocks.mark(4096 * 9, 4096 * 11);
        assert_eq!(blocks.runs().collect::<Vec<_>>(), [(6, 20)]);
    }
}
