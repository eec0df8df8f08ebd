//! The command line of `twinfold`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{cluster, confcheck, daemon, demo, operate, runner};

/// A folder that lives on two machines.
#[derive(Debug, Parser)]
#[command(name = "twinfold", version)]
struct Cli {
    /// Everything of the node lies below this directory, instead of in /etc, /var and /run.
    #[arg(long, global = true, env = "TWINFOLD_HOME", hide = true)]
    home: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all modules of this node, until a signal comes. Drivers and applications outlive it.
    Daemon,
    /// The two nodes: who this one is, and who its peer.
    Cluster(cluster::Args),
    /// Run a module: as primary or secondary, as the facts say.
    Start(operate::Which),
    /// Stop a module: its application, then its driver.
    Stop(operate::Which),
    /// Stop a module without waiting for the application's goodwill.
    Forcestop(operate::Which),
    /// Stop and start the application only.
    Restart(operate::Which),
    /// Stop a module and start it again.
    Stopstart(operate::Which),
    /// Run a module as primary: this node's copy is the good one.
    Prim(operate::Which),
    /// Run a module as primary whatever the peer has. Writes that only the peer has are lost.
    Primforce(operate::Which),
    /// Run a module as secondary, to begin with.
    Second(operate::Which),
    /// Exchange the roles.
    Swap(operate::Which),
    /// Show the state of all modules, or of one; the exit status of one is 0 STOP, 1 WAIT,
    /// 2 ALONE, 3 PRIM, 4 SECOND.
    State(operate::Show),
    /// Wait until a module is in a state.
    Waitstate(operate::Wait),
    /// Show what happened to a module, and why.
    Log(operate::Log),
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

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let home = cli.home.as_deref();
    let api = operate::Api::new(home);
    let command = |name, which: &operate::Which, command| ended(name, api.command(which, command));
    use runner::Command as Do;
    match cli.command {
        Command::Daemon => ended("daemon", daemon::run(home)),
        Command::Cluster(args) => ended("cluster", cluster::run(&args, home)),
        Command::Start(which) => command("start", &which, Do::Start),
        Command::Stop(which) => command("stop", &which, Do::Stop),
        Command::Forcestop(which) => command("forcestop", &which, Do::Forcestop),
        Command::Restart(which) => command("restart", &which, Do::Restart),
        Command::Stopstart(which) => command("stopstart", &which, Do::Stopstart),
        Command::Prim(which) => command("prim", &which, Do::Prim),
        Command::Primforce(which) => command("primforce", &which, Do::Primforce),
        Command::Second(which) => command("second", &which, Do::Second),
        Command::Swap(which) => command("swap", &which, Do::Swap),
        Command::State(show) => ended("state", api.state(&show)),
        Command::Waitstate(wait) => ended("waitstate", api.wait(&wait)),
        Command::Log(log) => ended("log", api.log(&log)),
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
