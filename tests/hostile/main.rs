//! A stranger is let in by neither node, and a peer with the right key that breaks
//! the protocol is dropped with the reason; in both cases nothing is changed that it
//! had no right to change, and the honest peer is served afterwards.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod burst;
mod frames;
mod impostor;
mod ops;
mod primary;
mod secondary;
mod stage;
mod strangers;
mod wire;
