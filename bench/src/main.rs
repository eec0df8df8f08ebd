//! `twinfold-bench`: what a replicated folder costs, against its floors.
//!
//! All systems are measured side by side in one run, in turns, and only ratios of
//! medians within the run are reported: the machine may be shared and noisy.

mod figures;
mod floors;
mod pair;
mod resync;
mod stats;
mod workload;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures a replicated folder against its floors, on this machine.
#[derive(Debug, Parser)]
#[command(name = "twinfold-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The first figures: writes and reads against plain pass-through and bare QUIC.
    Figures {
        /// Rounds; each measures every system once, in turn.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Milliseconds per measurement.
        #[arg(long, default_value_t = 700)]
        millis: u64,
        /// Directory for both nodes, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
        /// Only the figures whose name contains this.
        #[arg(long)]
        only: Option<String>,
    },
    /// How fast a resync moves what changed, against one bare QUIC stream.
    Resync {
        /// Rounds; each measures both, in turn.
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Milliseconds of the bare stream in each round.
        #[arg(long, default_value_t = 1500)]
        millis: u64,
        /// MiB of the file that changes.
        #[arg(long, default_value_t = 512)]
        mib: u64,
        /// Directory for both nodes, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
    },
    /// Used by `figures`: a driver of its own process.
    #[command(hide = true, disable_help_flag = true)]
    Fs {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Used by `figures`: the answering end of the bare QUIC floor.
    #[command(hide = true)]
    QuicServer {
        /// Directory with the floor's keys and settings.
        dir: PathBuf,
    },
    /// Used by `figures`: the plain pass-through file system.
    #[command(hide = true)]
    PassThrough {
        /// The real directory.
        source: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fs { args } => {
            return fs_driver::cli::main(
                std::iter::once(OsString::from("twinfold-fs")).chain(args),
            );
        }
        Command::QuicServer { dir } => floors::quic::serve(&dir),
        Command::PassThrough { source, mount } => floors::pass_through::run(&source, &mount),
        Command::Resync {
            rounds,
            millis,
            mib,
            dir,
        } => resync::run(&resync::Options {
            rounds,
            millis,
            mib,
            dir,
        }),
        Command::Figures {
            rounds,
            millis,
            dir,
            json,
            only,
        } => figures::run(&figures::Options {
            rounds,
            millis,
            dir,
            json,
            only,
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("twinfold-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}
