//! Everything a Linux program expects of a local file system works on the mount as on
//! a plain directory of the same file system, and ends identical on both nodes.
//!
//! The tests share one pair and take turns ([`area`]); those that change roles or
//! stop nodes have pairs of their own.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod area;
mod cache;
mod copy;
mod descriptors;
mod full;
mod io;
mod link;
mod list;
mod lock;
mod mmap;
mod names;
mod open;
mod owner;
mod rename;
mod secondary;
mod size;
mod special;
mod stop;
mod unlinked;
mod xattr;
