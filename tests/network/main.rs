//! Several networks, outages, frozen nodes, bad weather, and what each mode of
//! acknowledgement promises. Every acknowledged write is noted by the test that made it,
//! and looked for afterwards.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod frozen;
mod modes;
mod outages;
#[allow(dead_code, reason = "the cost tests count what it carries")]
mod relay;
mod rounds;
mod slow;
mod stage;
// What a peer is made of that says exactly what a test wants.
#[allow(dead_code, reason = "the hostile tests need more of it")]
#[path = "../hostile/wire.rs"]
mod wire;
mod writers;
