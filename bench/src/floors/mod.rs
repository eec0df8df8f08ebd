//! What physics and the parts we build on allow: the floors.

pub(crate) mod pass_through;
pub(crate) mod quic;
pub(crate) mod tcp;
