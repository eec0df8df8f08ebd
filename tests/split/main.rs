//! Both nodes went on alone: what they are told, and how one copy is given up.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod kept;
mod removed;
mod stage;
mod strangers;
mod told;
