//! Promise 3, looked at directly: a secondary that is not being brought up holds what
//! the primary's sequence makes of its beginning, up to some op and no further, across
//! all files.

use std::collections::VecDeque;

use twinfold_protocol::ids::{FileId, Seq, SessionId};
use twinfold_protocol::op::Op;

use crate::fs::Fs;

/// Everything that took its place in one primary's sequence.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// What all of it together makes.
    whole: Fs,
    /// What the secondary has not applied yet.
    waiting: VecDeque<(Seq, Op)>,
    behind: Option<Behind>,
}

#[derive(Debug)]
struct Behind {
    session: SessionId,
    /// What the part that the secondary has applied makes.
    fs: Fs,
    /// The end of its resync.
    end: Seq,
}

impl Sequence {
    /// A node becomes primary with this copy.
    pub(crate) fn begins(&mut self, fs: &Fs) {
        *self = Sequence {
            whole: fs.clone(),
            ..Sequence::default()
        };
    }

    /// An op takes its place; `seq` is its number if it is shipped.
    pub(crate) fn placed(&mut self, op: &Op, seq: Option<Seq>) -> Result<(), String> {
        if self.behind.is_some()
            && let Some(seq) = seq
        {
            self.waiting.push_back((seq, op.clone()));
        }
        self.whole.apply(op)
    }

    /// Something that took its place was not done here, and nothing more is shipped of it:
    /// this is what the primary has.
    pub(crate) fn is_left(&mut self, file: FileId, fs: &Fs) {
        if let (Some(whole), Some(here)) = (self.whole.items.get_mut(&file), fs.items.get(&file)) {
            *whole = here.clone();
        }
    }

    /// A resync has moved everything: from its end on the secondary follows.
    pub(crate) fn ends_resync(&mut self, session: SessionId, end: Seq) {
        self.waiting.clear();
        self.behind = Some(Behind {
            session,
            fs: self.whole.clone(),
            end,
        });
    }

    /// The secondary has applied everything up to `applied` and now holds `fs`, or nothing that
    /// counts. Returns whether there was something to compare.
    pub(crate) fn applied(
        &mut self,
        session: SessionId,
        applied: Seq,
        fs: Option<&Fs>,
    ) -> Result<bool, String> {
        let Some(behind) = self.behind.as_mut().filter(|b| b.session == session) else {
            return Ok(false);
        };
        while let Some((seq, op)) = self.waiting.front()
            && *seq <= applied
        {
            behind.fs.apply(op)?;
            self.waiting.pop_front();
        }
        let Some(fs) = fs.filter(|_| applied >= behind.end) else {
            return Ok(false);
        };
        let (wanted, held) = (behind.fs.reachable(), fs.reachable());
        if wanted == held {
            return Ok(true);
        }
        let differ = wanted
            .keys()
            .chain(held.keys())
            .find(|id| wanted.get(id) != held.get(id));
        let what = differ.map(|id| (id, wanted.get(id), held.get(id)));
        Err(format!(
            "after op {applied} the secondary is no prefix of the sequence: {what:?}"
        ))
    }
}
