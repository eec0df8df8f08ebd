//! What the writers write: data that says itself what it is.
//!
//! Everything begins with a [`Stamp`] (run, writer, sequence number, place) and goes
//! on with bytes that only this stamp gives (BLAKE3's output stream). A reader needs
//! no copy of what was written: it takes the stamp, makes the bytes again, and sees
//! a torn, foreign or misplaced piece at once.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// Bytes of a stamp.
pub(crate) const STAMP: usize = 40;

const MAGIC: [u8; 8] = *b"twinfold";

/// Where a piece of data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    /// The run of the demonstration.
    pub(crate) seed: u64,
    /// Which writer.
    pub(crate) writer: u64,
    /// The writer's own count.
    pub(crate) seq: u64,
    /// The block in its file, or the number of the file.
    pub(crate) place: u64,
}

/// What is wrong with a piece of data, seen without any record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bad {
    /// Nothing but zeros.
    Blank,
    /// It does not begin with a stamp.
    NoStamp,
    /// It begins with a stamp, but the rest is not what belongs to it.
    Torn,
}

impl Stamp {
    fn encode(self) -> [u8; STAMP] {
        let mut out = [0; STAMP];
        out[..8].copy_from_slice(&MAGIC);
        let fields = [self.seed, self.writer, self.seq, self.place];
        for (field, at) in fields.iter().zip((8..).step_by(8)) {
            out[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    fn decode(data: &[u8]) -> Option<Stamp> {
        let field = |at: usize| {
            let bytes = data.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        (data.get(..8)? == MAGIC).then_some(())?;
        Some(Stamp {
            seed: field(8)?,
            writer: field(16)?,
            seq: field(24)?,
            place: field(32)?,
        })
    }

    /// Fills a buffer of at least [`STAMP`] bytes.
    pub(crate) fn fill(self, out: &mut [u8]) {
        let stamp = self.encode();
        let (head, body) = out.split_at_mut(STAMP);
        head.copy_from_slice(&stamp);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&stamp);
        hasher.finalize_xof().fill(body);
    }

    /// Whose data this is, if it is whole.
    pub(crate) fn of(data: &[u8]) -> Result<Stamp, Bad> {
        let Some(stamp) = Stamp::decode(data) else {
            return Err(match data.iter().all(|b| *b == 0) {
                true => Bad::Blank,
                false => Bad::NoStamp,
            });
        };
        let mut expected = vec![0; data.len()];
        stamp.fill(&mut expected);
        match expected == data {
            true => Ok(stamp),
            false => Err(Bad::Torn),
        }
    }

    /// The file with this stamp: 40 to about 12,000 bytes.
    pub(crate) fn file(self) -> Vec<u8> {
        let mut out = vec![0; STAMP + (self.hash() % 12_000) as usize];
        self.fill(&mut out);
        out
    }

    /// The line of a log with this stamp, 60 to about 300 bytes.
    pub(crate) fn line(self) -> Vec<u8> {
        let hash = self.hash();
        let filler = "twinfold ".repeat(1 + (hash % 25) as usize);
        let line = format!(
            "{:016x} {} {:08} {filler}{hash:016x}\n",
            self.seed, self.writer, self.seq
        );
        line.into_bytes()
    }

    fn hash(self) -> u64 {
        let hash = blake3::hash(&self.encode());
        hash.as_bytes()
            .iter()
            .take(8)
            .fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_stamp_and_every_damage() {
        let stamp = Stamp {
            seed: 1,
            writer: 2,
            seq: 3,
            place: 4,
        };
        let mut block = [0; BLOCK];
        assert_eq!(Stamp::of(&block), Err(Bad::Blank));
        stamp.fill(&mut block);
        assert_eq!(Stamp::of(&block), Ok(stamp));
        for at in [8, 39, 40, 511, 512, BLOCK - 1] {
            let mut torn = block;
            torn[at] ^= 1;
            assert_eq!(Stamp::of(&torn), Err(Bad::Torn), "byte {at}");
        }
        let mut half = block;
        half[2048..].fill(0);
        assert_eq!(Stamp::of(&half), Err(Bad::Torn));
        block[0] = 0;
        assert_eq!(Stamp::of(&block), Err(Bad::NoStamp));
        assert_eq!(Stamp::of(b"short"), Err(Bad::NoStamp));
        assert_eq!(Stamp::of(&stamp.file()), Ok(stamp));
        assert_ne!(stamp.line(), Stamp { seq: 4, ..stamp }.line());
    }
}
