//! The controller: the daemon that runs a node's modules, and the `twinfold` command line.
//!
//! ```text
//! cli ──> operate ──> api/client ═ Unix socket ═ api ──> runner (one a module)
//! daemon: cluster, config, versions, places               │  automaton (protocol)
//!                                                         ├─> driver   processes, their watch
//!                                                         ├─> scripts  the application
//!                                                         ├─> etcd     the witness
//!                                                         ├─> checkers what is looked at
//!                                                         ├─> mail     who is told
//!                                                         ├─> net      echoes, addresses
//!                                                         └─> peer     the other node's daemon
//! ```

mod api;
mod checkers;
pub mod cli;
mod cluster;
mod confcheck;
mod config;
mod daemon;
mod demo;
mod driver;
mod etcd;
mod force;
pub mod guest;
mod kinds;
mod log;
mod mail;
mod monitor;
mod net;
mod operate;
mod package;
mod peer;
mod places;
mod process;
mod runner;
mod screen;
mod scripts;
mod shutdown;
pub mod token;
mod versions;

pub use api::served;
