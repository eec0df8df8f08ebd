//! Names that both nodes give to the same thing.

use std::fmt;

/// The persistent identity of a file system object, equal on both nodes and
/// never used twice (invariant 8: identity is an id, never a path).
///
/// The upper 24 bits are the *epoch* in which the id was given out, the lower 40
/// a counter. A node takes a new epoch each time it becomes primary, and the two
/// nodes' epochs differ in their lowest bit, so that even two nodes that both
/// went on alone never give one id to two objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl FileId {
    /// The replicated folder itself.
    pub const ROOT: FileId = FileId(1);
    /// Bits of the counter below the epoch.
    pub const COUNTER_BITS: u32 = 40;

    /// The id number `counter` of `epoch`.
    pub fn new(epoch: Epoch, counter: u64) -> FileId {
        debug_assert!(counter < 1 << Self::COUNTER_BITS);
        FileId((u64::from(epoch.0) << Self::COUNTER_BITS) | counter)
    }

    /// The epoch in which this id was given out.
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 >> Self::COUNTER_BITS) as u32)
    }

    /// The position of this id in its epoch.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.epoch().0, self.counter())
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.epoch().0, self.counter())
    }
}

/// A span of file ids given out by one node during one term as primary (24 bits).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch that no node ever takes: of ids that stand for nothing on the other copy.
    pub const SEED: Epoch = Epoch(0);
    /// Largest epoch a [`FileId`] can carry.
    pub const MAX: Epoch = Epoch((1 << 24) - 1);

    /// The next epoch after every epoch seen so far that `side` may use.
    pub fn next(seen: Epoch, side: Side) -> Option<Epoch> {
        let bit = side as u32;
        let next = (seen.0 + 1..=seen.0 + 2).find(|e| e & 1 == bit)?;
        (next <= Self::MAX.0).then_some(Epoch(next))
    }
}

/// Which of the two nodes a node is, settled by the order of their identities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Side {
    /// The node whose identity sorts first.
    Even = 0,
    /// The node whose identity sorts second.
    Odd = 1,
}

/// The number the primary gives an op. One total order per session, starting at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl $name {
            /// The value that stands for "none yet".
            pub const NONE: $name = $name(0);

            /// Whether this is a value other than [`Self::NONE`].
            pub fn is_some(self) -> bool {
                self.0 != 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                if self.is_some() {
                    write!(f, "{:08x}", (self.0 >> 96) as u32)
                } else {
                    f.write_str("none")
                }
            }
        }
    };
}

random_id! {
    /// The random id of a line of data history. A new one is made when a node
    /// goes on without its peer.
    Generation
}
random_id! {
    /// The random id of a module, given when its good copy is named and taken over by the other copy.
    ModuleId
}
random_id! {
    /// The random id of one replication session, from a handshake to the loss of the peer.
    /// Within it a broken connection may be resumed; across sessions never.
    SessionId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_id_keeps_epoch_and_counter() {
        let id = FileId::new(Epoch(7), 42);
        assert_eq!((id.epoch(), id.counter()), (Epoch(7), 42));
        assert_eq!(id.to_string(), "#7.42");
    }

    #[test]
    fn epochs_of_the_two_sides_never_meet() {
        for seen in 0..50 {
            let even = Epoch::next(Epoch(seen), Side::Even).unwrap();
            let odd = Epoch::next(Epoch(seen), Side::Odd).unwrap();
            assert_ne!(even, odd);
            assert!(even.0 > seen && odd.0 > seen);
        }
        assert_eq!(Epoch::next(Epoch::MAX, Side::Even), None);
    }
}
