//! What the tests share: nodes as real processes, comparison of copies, clean-up.
//!
//! ```text
//! /var/tmp/twinfold-tests.PID.N/     one pair; gone when the pair is dropped
//!   a/vm   a/.vm.twinfold   a/id   a.log      node A: mount, store, key, what it said
//!   b/...                                     node B
//! ```
//!
//! Tests that change nothing but files of their own may share one pair ([`shared()`]).
//! The nodes die with the test process, however it ends; what a killed run leaves
//! behind is removed by the next one.

pub mod app;
mod boot;
mod compare;
mod dice;
mod disk;
mod effects;
mod failover;
pub mod faulty;
pub mod guest;
pub mod ledger;
mod network;
mod node;
mod pair;
pub mod process;
pub mod program;
mod shared;
mod space;
pub mod tools;
mod turn;

pub use boot::another as another_boot;
pub use compare::{Scope, Tree, differences, names, read_quietly};
pub use dice::Dice;
pub use effects::Effects;
pub use network::{Network, PUBLIC, Wire, enter, inside, run_ip, talk};
pub use node::{Node, Role};
pub use pair::{Options, Pair, free_addresses};
pub use process::{Scratch, leave_root, wait_until};
pub use program::Program;
pub use shared::{Shared, shared};
