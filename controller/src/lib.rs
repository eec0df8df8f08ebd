//! The controller: the daemon that runs a node's modules, and the `twinfold` command line.
//!
//! ```text
//! cli ──> operate ──> api/client ═ Unix socket ═ api ──> runner (one a module)
//! daemon: cluster, config, places                         │  automaton (protocol)
//!                                                         ├─> driver   processes, their watch
//!                                                         ├─> scripts  the application
//!                                                         ├─> etcd     the witness
//!                                                         └─> peer     the other node's daemon
//! ```

mod api;
pub mod cli;
mod cluster;
mod confcheck;
mod config;
mod daemon;
mod demo;
mod driver;
mod etcd;
pub mod guest;
mod operate;
mod peer;
mod places;
mod runner;
mod scripts;
