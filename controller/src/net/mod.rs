//! The networks around a node: who answers there, and its addresses in them.

pub(crate) mod announce;
pub(crate) mod hardware;
pub(crate) mod netlink;
pub(crate) mod ping;
pub(crate) mod vips;
