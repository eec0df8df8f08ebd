//! Arbitrary values of what a verify sends.

use proptest::collection::vec;
use proptest::prelude::*;
use twinfold_protocol::limits;
use twinfold_protocol::op::Op;
use twinfold_protocol::verify::{Digest, Facts, Found, HASH, Hash, Lead, Question};
use twinfold_protocol::wire::{VerifyAnswer, VerifyRequest};

use super::{file, kind, mode, name, offset, some_bytes, text, time};

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; HASH]>()
}

fn data(most: u64) -> impl Strategy<Value = Question> {
    let block = 0..=(limits::MAX_OFFSET - most) / limits::BLOCK;
    (file(), block, 0..=most).prop_map(|(file, block, length)| Question::Data {
        file,
        offset: block * limits::BLOCK,
        length,
    })
}

fn ordered() -> impl Strategy<Value = Question> {
    prop_oneof![
        data(limits::VERIFY_CHUNK),
        file().prop_map(|file| Question::Object { file }),
        (file(), name()).prop_map(|(directory, name)| Question::Name { directory, name }),
    ]
}

pub(super) fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        ordered().prop_map(|question| Op::Verify { question }),
        ordered().prop_map(|question| Op::Differs { question }),
    ]
}

fn lead() -> impl Strategy<Value = Lead> {
    prop_oneof![
        Just(Lead::Nothing),
        file().prop_map(Lead::Object),
        Just(Lead::Foreign),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let owner = (any::<u32>(), any::<u32>());
    let xattrs = vec((some_bytes(limits::MAX_XATTR_NAME), hash()), 0..4);
    (kind(), mode(), owner, offset(), time(), hash(), xattrs).prop_map(
        |(kind, mode, (uid, gid), size, modified, target, xattrs)| Facts {
            kind,
            mode,
            uid,
            gid,
            size,
            modified,
            target,
            xattrs,
        },
    )
}

pub(super) fn found() -> impl Strategy<Value = Found> {
    prop_oneof![
        Just(Found::Missing),
        vec(hash(), 0..64).prop_map(|hashes| Found::Blocks(hashes.concat().into())),
        facts().prop_map(Found::Object),
        lead().prop_map(Found::Name),
        text(40).prop_map(Found::Failed),
    ]
}

pub(super) fn any_request() -> impl Strategy<Value = VerifyRequest> {
    let question = prop_oneof![
        data(limits::MAX_VERIFY_BYTES / 10),
        ordered(),
        file().prop_map(|directory| Question::Listing { directory }),
    ];
    prop_oneof![
        vec(question, 0..10).prop_map(VerifyRequest::Questions),
        (file(), any::<u64>())
            .prop_map(|(directory, from)| VerifyRequest::Names { directory, from }),
    ]
}

pub(super) fn any_answer() -> impl Strategy<Value = VerifyAnswer> {
    let digest = prop_oneof![
        Just(Digest::Missing),
        hash().prop_map(Digest::Is),
        text(40).prop_map(Digest::Failed),
    ];
    prop_oneof![
        vec(digest, 0..20).prop_map(VerifyAnswer::Digests),
        (any::<u64>(), vec((name(), lead()), 0..20))
            .prop_map(|(next, entries)| VerifyAnswer::Names { next, entries }),
        text(40).prop_map(|reason| VerifyAnswer::Failed { reason }),
    ]
}
