//! `twinfold`: the controller's command line. For now it has the demonstration and
//! the driver's own commands.

mod confcheck;
mod config;
mod demo;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A folder that lives on two machines.
#[derive(Debug, Parser)]
#[command(name = "twinfold", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a failover on this machine: two nodes, a kill, a promotion, a resync, a comparison.
    Demo(demo::Args),
    /// Check configuration files: every mistake with its place and what would be right.
    Confcheck(confcheck::Args),
    /// What the guest of `demo --vm` runs.
    #[command(hide = true)]
    DemoGuest {
        /// Which run it is.
        seed: u64,
    },
    /// The driver of one folder, as `twinfold-fs` (see `twinfold fs --help`).
    #[command(disable_help_flag = true)]
    Fs {
        /// Arguments of `twinfold-fs`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Fs { args } => {
            fs_driver::cli::main(std::iter::once(OsString::from("twinfold-fs")).chain(args))
        }
        Command::Demo(args) => ended("demo", demo::run(&args)),
        Command::Confcheck(args) => ended("confcheck", confcheck::run(&args)),
        Command::DemoGuest { seed } => ended(
            "demo-guest",
            demo::vm::guest::run(seed).map(|()| ExitCode::SUCCESS),
        ),
    }
}

fn ended(command: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("twinfold {command}: {e:#}");
        ExitCode::FAILURE
    })
}
