//! Arbitrary bytes against every decoder of the wire format.

#![no_main]
#![allow(
    clippy::disallowed_types,
    reason = "the fuzzer's macro opens a file for its debug output"
)]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use twinfold_protocol::op::Payload;

mod canonical;

// The first byte says how large the pieces are in which the rest arrives. The rest
// is taken for one frame without its length word, and for a stream of frames.
fuzz_target!(|data: &[u8]| {
    let Some((size, data)) = data.split_first() else {
        return;
    };
    let pieces = || {
        data.chunks(usize::from(*size) + 1)
            .map(Bytes::copy_from_slice)
    };
    let mut body = Payload::default();
    pieces().for_each(|piece| body.push(piece));
    canonical::check_frame(&body);
    let _ = canonical::check_stream(pieces());
});
