//! What was acknowledged, and what the folder must therefore hold.
//!
//! A writer notes each operation before it asks for it (`issue`) and again when it
//! has succeeded (`acknowledge`). What was issued only may have happened or not;
//! what was acknowledged must be there until something later replaced it. The
//! judgements compare this with what was read and touch no file themselves.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{BLOCK, Bad, Stamp};

/// An acknowledged operation that is not there, or something that must not be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Complaint {
    /// Operations it is about.
    pub(crate) count: u64,
    /// Where and what.
    pub(crate) what: String,
}

impl Complaint {
    pub(crate) fn new(what: impl Into<String>) -> Complaint {
        Complaint {
            count: 1,
            what: what.into(),
        }
    }
}

/// Blocks of one file that one writer overwrites again and again.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    slots: BTreeMap<u64, Slot>,
    /// Places written since [`Blocks::count_from_here`], or in flight then.
    changed: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The last write that was acknowledged.
    held: Option<u64>,
    /// Later ones that were not.
    open: Vec<u64>,
}

impl Blocks {
    pub(crate) fn issue(&mut self, place: u64, seq: u64) {
        self.slots.entry(place).or_default().open.push(seq);
        self.changed.insert(place);
    }

    pub(crate) fn acknowledge(&mut self, place: u64, seq: u64) {
        let slot = self.slots.entry(place).or_default();
        slot.held = Some(seq);
        // The writer does one thing at a time: what was open came before.
        slot.open.clear();
    }

    /// Counts what changes from here on.
    pub(crate) fn count_from_here(&mut self) {
        let open = self.slots.iter().filter(|(_, s)| !s.open.is_empty());
        self.changed = open.map(|(place, _)| *place).collect();
    }

    /// The places changed since [`Blocks::count_from_here`].
    pub(crate) fn changed(&self) -> impl Iterator<Item = u64> {
        self.changed.iter().copied()
    }

    /// Judges what was read at `place`. `me` gives the run and the writer.
    pub(crate) fn judge(&self, me: Stamp, place: u64, data: &[u8]) -> Option<Complaint> {
        let (held, open) = match self.slots.get(&place) {
            Some(slot) => (slot.held, slot.open.as_slice()),
            None => (None, &[][..]),
        };
        let wanted = held.map_or("nothing".into(), |seq| format!("write {seq}"));
        let complain = |what: String| Some(Complaint::new(format!("block {place}: {what}")));
        match Stamp::of(data) {
            // Bytes of a stamp go on for ever: a piece of them looks whole.
            _ if data.len() != BLOCK => {
                complain(format!("{wanted} expected, {} bytes found", data.len()))
            }
            Err(Bad::Blank) if held.is_none() => None,
            Err(Bad::Blank) => complain(format!("{wanted} is lost, the block is empty")),
            Err(Bad::NoStamp) => complain(format!("{wanted} expected, foreign data found")),
            Err(Bad::Torn) => complain(format!("{wanted} expected, a torn block found")),
            Ok(s) if (s.seed, s.writer, s.place) != (me.seed, me.writer, place) => {
                complain(format!("{wanted} expected, found what belongs to {s:?}"))
            }
            Ok(s) if held == Some(s.seq) || open.contains(&s.seq) => None,
            Ok(s) if held.is_some_and(|held| s.seq < held) => complain(format!(
                "{wanted} is lost, the older write {} is there",
                s.seq
            )),
            Ok(s) => complain(format!("{wanted} expected, write {} found", s.seq)),
        }
    }
}

/// A log that one writer appends lines to.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Sequence numbers in order, and whether each was acknowledged.
    lines: Vec<(u64, bool)>,
    /// Acknowledged bytes when counting began.
    counted_from: u64,
}

impl Log {
    pub(crate) fn issue(&mut self, seq: u64) {
        self.lines.push((seq, false));
    }

    pub(crate) fn acknowledge(&mut self, seq: u64) {
        if let Some(last) = self.lines.last_mut().filter(|(s, _)| *s == seq) {
            last.1 = true;
        }
    }

    /// Counts what is appended from here on.
    pub(crate) fn count_from_here(&mut self, me: Stamp) {
        let sure = self.lines.iter().filter(|(_, sure)| *sure);
        self.counted_from = sure
            .map(|(seq, _)| Stamp { seq: *seq, ..me }.line().len() as u64)
            .sum();
    }

    /// The first byte that changed since then.
    pub(crate) fn changed_from(&self) -> u64 {
        self.counted_from
    }

    /// Judges the whole log.
    pub(crate) fn judge(&self, me: Stamp, mut data: &[u8]) -> Option<Complaint> {
        for (i, (seq, sure)) in self.lines.iter().enumerate() {
            let line = Stamp { seq: *seq, ..me }.line();
            if let Some(rest) = data.strip_prefix(line.as_slice()) {
                data = rest;
            } else if !sure {
                let next = self.lines.get(i + 1);
                let next = next.map(|(seq, _)| Stamp { seq: *seq, ..me }.line());
                data = behind_torn(data, &line, next.as_deref());
            } else {
                let missing = self.lines[i..].iter().filter(|(_, sure)| *sure).count() as u64;
                let how = match data.len() {
                    0 => "the log ends before it",
                    n if n < line.len() && line.starts_with(data) => "it is torn",
                    _ => "something else is in its place",
                };
                return Some(Complaint {
                    count: missing,
                    what: format!("line {seq} (and those after it, {missing} in all): {how}"),
                });
            }
        }
        (!data.is_empty()).then(|| {
            let more = data.len();
            Complaint::new(format!(
                "{more} bytes nobody wrote are behind the last line"
            ))
        })
    }
}

/// What follows a line that was never acknowledged: of it any part may be there, for
/// the kernel writes what crosses a page in two requests, and the kill came between.
fn behind_torn<'a>(data: &'a [u8], line: &[u8], next: Option<&[u8]>) -> &'a [u8] {
    let most = data.iter().zip(line).take_while(|(a, b)| a == b).count();
    let follows = |rest: &[u8]| match next {
        Some(next) => rest.starts_with(next) || rest.is_empty(),
        None => rest.is_empty(),
    };
    (0..=most)
        .map(|torn| &data[torn..])
        .find(|rest| follows(rest))
        .unwrap_or(data)
}

/// Where a small file is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Under no name.
    Nowhere,
    /// Under the temporary name, empty.
    Begun,
    /// Under the temporary name, with its content.
    Written,
    /// Under its own name, with its content.
    Renamed,
}

impl Life {
    fn brings_data(self) -> bool {
        matches!(self, Life::Begun | Life::Written)
    }
}

/// Small files, each made under a temporary name, written, renamed, later removed.
#[derive(Debug, Default)]
pub(crate) struct Files {
    files: BTreeMap<u64, (Life, Option<Life>)>,
    changed: BTreeSet<u64>,
}

impl Files {
    pub(crate) fn issue(&mut self, number: u64, next: Life) {
        self.files.entry(number).or_insert((Life::Nowhere, None)).1 = Some(next);
        if next.brings_data() {
            self.changed.insert(number);
        }
    }

    pub(crate) fn acknowledge(&mut self, number: u64, now: Life) {
        self.files.insert(number, (now, None));
    }

    /// Counts what changes from here on.
    pub(crate) fn count_from_here(&mut self) {
        let open = self
            .files
            .iter()
            .filter(|(_, (_, next))| next.is_some_and(Life::brings_data));
        self.changed = open.map(|(number, _)| *number).collect();
    }

    /// Files whose data may have changed since then.
    pub(crate) fn changed(&self) -> impl Iterator<Item = u64> {
        self.changed.iter().copied()
    }

    /// All numbers ever used.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.files.keys().copied()
    }

    /// Judges what is under the two names of a file.
    pub(crate) fn judge(
        &self,
        me: Stamp,
        number: u64,
        temporary: Option<&[u8]>,
        own: Option<&[u8]>,
    ) -> Option<Complaint> {
        let (now, next) = self
            .files
            .get(&number)
            .copied()
            .unwrap_or((Life::Nowhere, None));
        let complain = |what: String| Some(Complaint::new(format!("file {number}: {what}")));
        let stamp = Stamp {
            seq: number,
            place: number,
            ..me
        };
        let content = stamp.file();
        let is = match (temporary, own) {
            (None, None) => Life::Nowhere,
            (Some([]), None) => Life::Begun,
            (Some(data), None) if data == content => Life::Written,
            (None, Some(data)) if data == content => Life::Renamed,
            (Some(_), Some(_)) => return complain("it is there under both names".into()),
            (Some(data), None) | (None, Some(data)) => {
                let size = data.len();
                return complain(format!(
                    "{size} bytes found that are not its content ({} bytes)",
                    content.len()
                ));
            }
        };
        if is == now || Some(is) == next {
            return None;
        }
        complain(format!("it must be {now:?}, but it is {is:?}"))
    }
}

/// The record of one writer.
#[derive(Debug)]
pub(crate) enum Record {
    Blocks(Blocks),
    Log(Log),
    Files(Files),
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Stamp = Stamp {
        seed: 77,
        writer: 1,
        seq: 0,
        place: 0,
    };

    fn block(seq: u64, place: u64) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        Stamp { seq, place, ..ME }.fill(&mut out);
        out
    }

    fn refused(complaint: Option<Complaint>, words: &str) {
        let what = complaint.expect("this must be complained about").what;
        assert!(what.contains(words), "{what:?} does not say {words:?}");
    }

    #[test]
    fn a_block_holds_the_last_acknowledged_write_or_the_one_in_flight() {
        let mut blocks = Blocks::default();
        blocks.issue(5, 1);
        assert_eq!(blocks.judge(ME, 5, &[0; BLOCK]), None, "not acknowledged");
        blocks.acknowledge(5, 1);
        blocks.issue(5, 2);
        blocks.acknowledge(5, 2);
        assert_eq!(blocks.judge(ME, 5, &block(2, 5)), None);
        refused(blocks.judge(ME, 5, &[0; BLOCK]), "lost, the block is empty");
        refused(blocks.judge(ME, 5, &block(1, 5)), "lost, the older write 1");
        refused(blocks.judge(ME, 5, &block(3, 5)), "write 3 found");
        blocks.issue(5, 3);
        assert_eq!(blocks.judge(ME, 5, &block(2, 5)), None);
        assert_eq!(blocks.judge(ME, 5, &block(3, 5)), None);
        refused(blocks.judge(ME, 5, &block(1, 5)), "lost");
        refused(blocks.judge(ME, 6, &block(3, 6)), "nothing expected");
        assert_eq!(blocks.judge(ME, 6, &[0; BLOCK]), None);
    }

    #[test]
    fn torn_foreign_and_misplaced_blocks_are_found() {
        let mut blocks = Blocks::default();
        blocks.issue(5, 1);
        blocks.acknowledge(5, 1);
        let mut torn = block(1, 5);
        torn[2048..].copy_from_slice(&block(2, 5)[2048..]);
        refused(blocks.judge(ME, 5, &torn), "torn");
        refused(blocks.judge(ME, 5, &block(1, 6)), "belongs to");
        refused(blocks.judge(ME, 5, &[7; BLOCK]), "foreign");
        let mut other = vec![0; BLOCK];
        Stamp {
            writer: 2,
            seq: 1,
            place: 5,
            ..ME
        }
        .fill(&mut other);
        refused(blocks.judge(ME, 5, &other), "belongs to");
        refused(blocks.judge(ME, 5, &block(1, 5)[..100]), "100 bytes");
    }

    #[test]
    fn changed_blocks_are_counted_once_and_with_those_in_flight() {
        let mut blocks = Blocks::default();
        for (place, seq) in [(1, 1), (2, 2)] {
            blocks.issue(place, seq);
            blocks.acknowledge(place, seq);
        }
        blocks.issue(9, 3);
        blocks.count_from_here();
        assert_eq!(blocks.changed().collect::<Vec<_>>(), [9]);
        for seq in [4, 5] {
            blocks.issue(2, seq);
            blocks.acknowledge(2, seq);
        }
        assert_eq!(blocks.changed().collect::<Vec<_>>(), [2, 9]);
    }

    fn lines(seqs: &[u64]) -> Vec<u8> {
        let line = |seq: &u64| Stamp { seq: *seq, ..ME }.line();
        seqs.iter().flat_map(line).collect()
    }

    #[test]
    fn a_log_has_all_acknowledged_lines_in_order() {
        let mut log = Log::default();
        for seq in 1..=3 {
            log.issue(seq);
            log.acknowledge(seq);
        }
        log.issue(4);
        assert_eq!(log.judge(ME, &lines(&[1, 2, 3])), None);
        assert_eq!(log.judge(ME, &lines(&[1, 2, 3, 4])), None);
        refused(log.judge(ME, &lines(&[1, 2])), "line 3");
        assert_eq!(log.judge(ME, &lines(&[1])).unwrap().count, 2);
        refused(log.judge(ME, &lines(&[1, 3, 2])), "something else");
        refused(log.judge(ME, &lines(&[1, 2, 3, 4, 4])), "nobody wrote");
        let whole = lines(&[1, 2, 3]);
        refused(log.judge(ME, &whole[..whole.len() - 1]), "torn");
        let whole = lines(&[1, 2, 3, 4]);
        // The last one was never acknowledged: a part of it may be there.
        let torn = &whole[..whole.len() - 1];
        assert_eq!(log.judge(ME, torn), None);
        log.issue(5);
        log.acknowledge(5);
        assert_eq!(log.judge(ME, &[torn, &lines(&[5])].concat()), None);
        refused(log.judge(ME, torn), "line 5");
        assert_eq!(log.judge(ME, &lines(&[1, 2, 3, 5])), None);
        assert_eq!(log.judge(ME, &lines(&[1, 2, 3, 4, 5])), None);
    }

    #[test]
    fn a_file_is_under_the_name_it_was_acknowledged_under() {
        let stamp = Stamp {
            seq: 8,
            place: 8,
            ..ME
        };
        let content = stamp.file();
        let full = Some(content.as_slice());
        let mut files = Files::default();
        refused(files.judge(ME, 8, None, full), "must be Nowhere");
        files.issue(8, Life::Begun);
        assert_eq!(files.judge(ME, 8, None, None), None);
        assert_eq!(files.judge(ME, 8, Some(&[]), None), None);
        files.acknowledge(8, Life::Begun);
        refused(files.judge(ME, 8, None, None), "must be Begun");
        files.issue(8, Life::Written);
        assert_eq!(files.judge(ME, 8, full, None), None);
        refused(files.judge(ME, 8, Some(&content[1..]), None), "not its");
        files.acknowledge(8, Life::Written);
        files.issue(8, Life::Renamed);
        assert_eq!(files.judge(ME, 8, full, None), None);
        assert_eq!(files.judge(ME, 8, None, full), None);
        refused(files.judge(ME, 8, full, full), "both names");
        files.acknowledge(8, Life::Renamed);
        refused(files.judge(ME, 8, full, None), "must be Renamed");
        refused(files.judge(ME, 8, None, Some(&[])), "not its content");
        files.issue(8, Life::Nowhere);
        assert_eq!(files.judge(ME, 8, None, None), None);
        files.acknowledge(8, Life::Nowhere);
        refused(files.judge(ME, 8, None, full), "must be Nowhere");
    }
}
