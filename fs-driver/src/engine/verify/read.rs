//! What this node has of what a question names: as a digest for the first look, in full
//! for the second. Both nodes read with the same code.

use std::io;

use twinfold_protocol::attr::Kind;
use twinfold_protocol::limits;
use twinfold_protocol::op::Name;
use twinfold_protocol::verify::{Digest, Facts, Found, HASH, Hash, Lead, Question};
use twinfold_protocol::wire::{VerifyAnswer, VerifyRequest, facts_bytes};

use super::super::Engine;
use crate::store::Node;

/// Bytes read at once.
const READ: usize = limits::VERIFY_CHUNK as usize;

fn cut(hash: blake3::Hash) -> Hash {
    let mut out = [0; HASH];
    out.copy_from_slice(&hash.as_bytes()[..HASH]);
    out
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Hash of a symbolic link's target or an attribute's value.
fn hash(bytes: &[u8]) -> Hash {
    cut(blake3::hash(bytes))
}

/// What one entry adds to the digest of a listing.
pub(super) fn entry_digest(name: &Name, lead: Lead) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    // No name has a NUL: the end of it is where it seems to be.
    match lead {
        Lead::Nothing => hasher.update(&[0, 0]),
        Lead::Foreign => hasher.update(&[0, 2]),
        Lead::Object(file) => hasher.update(&[0, 1]).update(&file.0.to_le_bytes()),
    };
    u128::from_le_bytes(cut(hasher.finalize()))
}

impl Engine {
    /// A digest of what a question names. Nothing is locked: it is as of some moment.
    pub(super) fn digest(&self, question: &Question) -> io::Result<Digest> {
        let file = match question {
            Question::Data { file, .. } | Question::Object { file } => *file,
            Question::Listing { directory } | Question::Name { directory, .. } => *directory,
        };
        match self.store.peek(file)? {
            Some(node) => self.digest_of(&node, question),
            None => Ok(Digest::Missing),
        }
    }

    /// The same for an object that is at hand.
    pub(super) fn digest_of(&self, node: &Node, question: &Question) -> io::Result<Digest> {
        let is = |kind| node.kind() == kind;
        Ok(match question {
            Question::Data { offset, length, .. } if is(Kind::Regular) => {
                Digest::Is(self.data_digest(node, *offset, *length)?)
            }
            Question::Object { .. } => {
                // The questions for its data follow, and are about the disk.
                if is(Kind::Regular) && node.size()? > 0 {
                    self.store.forget_cached(node, 0, 0)?;
                }
                Digest::Is(cut(blake3::hash(&facts_bytes(&self.facts(node)?))))
            }
            Question::Listing { directory } if is(Kind::Directory) => {
                let Some(directory) = self.store.peek(*directory)? else {
                    return Ok(Digest::Missing);
                };
                let handle = self.store.open_directory(directory)?;
                let (mut sum, mut from) = (0u128, 0);
                loop {
                    let (next, page) = self.store.visit_page(&handle, from, usize::MAX)?;
                    for entry in page {
                        sum = sum.wrapping_add(entry_digest(&entry.name, entry.lead));
                    }
                    if next == 0 {
                        break Digest::Is(sum.to_le_bytes());
                    }
                    from = next;
                }
            }
            Question::Name { name, .. } if is(Kind::Directory) => {
                let lead = self.store.lead(node, name)?;
                Digest::Is(entry_digest(name, lead).to_le_bytes())
            }
            // It is something else here than the asker thinks.
            _ => Digest::Missing,
        })
    }

    /// Zeros for nothing but zeros, which a hole is without being read.
    fn data_digest(&self, node: &Node, offset: u64, length: u64) -> io::Result<Hash> {
        let end = offset + length;
        let mut hasher: Option<blake3::Hasher> = None;
        let mut buffer = Vec::new();
        let mut at = offset;
        while at < end {
            if hasher.is_none() {
                let data = self.store.next_data(node, at)?.unwrap_or(end);
                if data >= end {
                    break;
                }
                at += data.saturating_sub(at) / READ as u64 * READ as u64;
            }
            let n = ((end - at) as usize).min(READ);
            self.read_padded(node, at, n, &mut buffer)?;
            if hasher.is_none() && !is_zero(&buffer) {
                // The zeros before it count as well.
                let mut begun = blake3::Hasher::new();
                let mut zeros = at - offset;
                while zeros > 0 {
                    let some = zeros.min(READ as u64);
                    begun.update(&[0; READ][..some as usize]);
                    zeros -= some;
                }
                hasher = Some(begun);
            }
            if let Some(hasher) = &mut hasher {
                hasher.update(&buffer);
            }
            at += n as u64;
        }
        Ok(hasher.map_or([0; HASH], |h| cut(h.finalize())))
    }

    /// Bytes of a file, with zeros beyond its end.
    fn read_padded(
        &self,
        node: &Node,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        buffer.resize(length, 0);
        let n = self.store.read(node, offset, buffer)?;
        buffer[n..].fill(0);
        Ok(())
    }

    /// What is here of what a question names, at this place in the order.
    pub(crate) fn found(&self, question: &Question) -> Found {
        let read = || {
            let file = match question {
                Question::Data { file, .. } | Question::Object { file } => *file,
                Question::Listing { directory } | Question::Name { directory, .. } => *directory,
            };
            match self.store.peek(file)? {
                Some(node) => self.found_of(&node, question),
                None => Ok(Found::Missing),
            }
        };
        match read() {
            Ok(Found::Missing) if matches!(question, Question::Name { .. }) => {
                Found::Name(Lead::Nothing)
            }
            Ok(found) => found,
            Err(e) => Found::Failed(e.to_string()),
        }
    }

    /// The same for an object that is at hand.
    pub(super) fn found_of(&self, node: &Node, question: &Question) -> io::Result<Found> {
        Ok(match question {
            Question::Data { offset, length, .. } if node.kind() == Kind::Regular => {
                self.blocks(node, *offset, *length)?
            }
            Question::Object { .. } => Found::Object(self.facts(node)?),
            Question::Name { name, .. } if node.kind() == Kind::Directory => {
                Found::Name(self.store.lead(node, name)?)
            }
            _ => Found::Missing,
        })
    }

    fn blocks(&self, node: &Node, offset: u64, length: u64) -> io::Result<Found> {
        let length = length.min(limits::VERIFY_CHUNK) as usize;
        self.store
            .forget_cached(node, offset, length.max(1) as u64)?;
        let mut buffer = Vec::new();
        self.read_padded(node, offset, length, &mut buffer)?;
        let mut hashes = Vec::with_capacity(length.div_ceil(limits::BLOCK as usize) * HASH);
        for block in buffer.chunks(limits::BLOCK as usize) {
            match is_zero(block) {
                true => hashes.extend_from_slice(&[0; HASH]),
                false => hashes.extend_from_slice(&hash(block)),
            }
        }
        Ok(Found::Blocks(hashes.into()))
    }

    fn facts(&self, node: &Node) -> io::Result<Facts> {
        let attributes = node.attributes()?;
        let mut xattrs: Vec<_> = self.store.xattrs(node)?;
        xattrs.sort();
        Ok(Facts {
            kind: attributes.kind,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            size: match attributes.kind {
                Kind::Regular => attributes.size,
                _ => 0,
            },
            modified: attributes.modified,
            target: match attributes.kind {
                Kind::Symlink => hash(&self.store.link_target(node)?),
                _ => [0; HASH],
            },
            xattrs: xattrs
                .into_iter()
                .map(|(name, value)| (name, hash(&value)))
                .collect(),
        })
    }

    /// The secondary's answer at the first look.
    pub(crate) fn verify_answer(&self, request: &VerifyRequest) -> VerifyAnswer {
        match request {
            VerifyRequest::Questions(questions) => {
                let digest = |question| match self.digest(question) {
                    Ok(digest) => digest,
                    Err(e) => Digest::Failed(e.to_string()),
                };
                VerifyAnswer::Digests(questions.iter().map(digest).collect())
            }
            VerifyRequest::Names { directory, from } => {
                let page = || -> io::Result<VerifyAnswer> {
                    let none = VerifyAnswer::Names {
                        next: 0,
                        entries: Vec::new(),
                    };
                    let Some(node) = self.store.peek(*directory)? else {
                        return Ok(none);
                    };
                    if node.kind() != Kind::Directory {
                        return Ok(none);
                    }
                    let handle = self.store.open_directory(node)?;
                    let most = limits::MAX_VERIFY_NAMES;
                    let (next, page) = self.store.visit_page(&handle, *from, most)?;
                    let entries = page.into_iter().map(|v| (v.name, v.lead)).collect();
                    Ok(VerifyAnswer::Names { next, entries })
                };
                page().unwrap_or_else(|e| VerifyAnswer::Failed {
                    reason: e.to_string(),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinfold_protocol::ids::FileId;

    #[test]
    fn an_entry_is_told_from_every_other() {
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        let all = [
            entry_digest(&name("a"), Lead::Foreign),
            entry_digest(&name("a"), Lead::Nothing),
            entry_digest(&name("a"), Lead::Object(FileId(7))),
            entry_digest(&name("a"), Lead::Object(FileId(8))),
            entry_digest(&name("b"), Lead::Object(FileId(7))),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one));
        }
    }
}
