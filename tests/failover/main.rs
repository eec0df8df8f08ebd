//! The controller: what it asks of a driver, and two real daemons that run modules.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod api;
mod boot;
mod busy;
mod checkers;
mod config;
mod demo;
mod disks;
mod driver;
mod etcd;
mod hostile;
mod isolation;
mod killed;
mod mail;
mod modules;
mod notify;
mod outages;
mod pairing;
mod ready;
mod scripts;
mod shown;
mod splitbrain;
mod stage;
mod strangers;
mod timings;
mod vip;
mod wishes;

use std::time::Duration;

/// How long something may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
