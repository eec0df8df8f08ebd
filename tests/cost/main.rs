//! What a resync costs: only what changed is moved, whatever the size of the files and
//! the number of them (promise 6). Counted twice: as the nodes tell it, and as bytes on
//! the network between them.
//!
//! The sizes are small enough for every run; `TWINFOLD_COST_GIB=100 TWINFOLD_COST_MIB=64
//! TWINFOLD_COST_FILES=1000000 TWINFOLD_COST_MOVED_MIB=1024` makes them those that are promised.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod again;
mod crash;
mod image;
#[allow(dead_code, reason = "the network tests need more of it")]
#[path = "../network/relay.rs"]
mod relay;
mod running;
mod seed;
mod stage;
mod tree;
