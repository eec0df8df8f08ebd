//! The driver of a replicated folder.
//!
//! ```text
//! application ─▶ adapter ─▶ vfs ─▶ engine ─▶ store          (and intents, before it)
//!                                    │
//!                                    └────▶ link ══ QUIC ══▶ link ─▶ engine (standby) ─▶ store
//! ```
//!
//! The adapter decodes and decides nothing; [`vfs`] gives a call its meaning;
//! [`engine`] gives it its place in the order, its durability and its answer;
//! [`store`] is the real directory. Nothing above the adapter and beside the store
//! knows which operating system this is.

pub mod adapter;
pub mod archive;
mod bell;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod engine;
pub mod error;
pub mod link;
#[cfg(unix)]
mod mounts;
mod polling;
pub mod setup;
pub mod state;
pub mod store;
mod tasks;
pub mod vfs;
