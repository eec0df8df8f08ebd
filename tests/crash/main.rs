//! Every point at which a node can go down, while a short workload runs: what was
//! acknowledged is there afterwards, and both copies are equal.
//!
//! Two kinds of points are counted, each from the moment the workload begins. A *power
//! cut* comes when the node's disk has done so many requests: the disk stops there, the
//! process goes on until it needs it and is then killed, and of what the disk was not told
//! to flush any part is kept, lost or torn, as the seed says ([`harness::faulty`]). A
//! *kill* comes in front of the n-th effect of the process: a system call that changes a
//! file, a name or an attribute, syncs, sends to the peer or answers the application
//! ([`harness::Effects`]); its page cache stays.
//!
//! The crash happens to a real pair in the middle of its work, so the node that survives
//! has just the state that belongs to the moment: its memory, its page cache, what it had
//! received. One pair lives through one crash after the other; what earlier recoveries
//! left in it is part of the test. The workload runs again, in a new directory, for each
//! number of steps, until it ends before the crash comes.
//!
//! The record ([`record`]) is a plain directory on which every acknowledged call is
//! repeated. A call that was begun and not acknowledged may be there or not, alike on both;
//! what part of it a crash may leave is in [`model`]. In mode `flush` the secondary's copy
//! is one behind some call, not before the last sync. After a power cut of both nodes what
//! was synced must be there, and of the rest any part.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

mod acts;
mod bare;
mod cases;
mod giveup;
mod live;
mod look;
mod model;
mod plan;
mod record;
mod scenes;
mod setup;
mod stage;
mod takeover;
