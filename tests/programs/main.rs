//! Real programs on the mount: a database, an archive, a build, a virtual disk. The
//! primary's driver is killed while they work, they go on from what the other node
//! has, the dead node returns, and both copies are identical. What a program was told
//! is done is recorded outside the folder and looked for on the survivor.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod compile;
mod git;
mod postgres;
mod qcow2;
mod sqlite;
