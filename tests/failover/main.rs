//! The controller: what it asks of a driver, and two real daemons that run modules.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod driver;
mod etcd;
mod modules;
mod pairing;
mod stage;
mod strangers;

use std::time::Duration;

/// How long something may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
