//! The command line of `twinfold`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    cluster, confcheck, daemon, demo, force, kinds, log, monitor, operate, package, runner,
};

/// A folder that lives on two machines.
#[derive(Debug, Parser)]
#[command(name = "twinfold", version)]
struct Cli {
    /// Everything of the node lies below this directory, instead of in /etc, /var and /run.
    #[arg(long, global = true, env = "TWINFOLD_HOME", hide = true)]
    home: Option<PathBuf>,

    /// Run the command on this node of the pair, or on both: -H NODE, -H '*'.
    #[arg(short = 'H', long = "on", global = true, value_name = "NODE")]
    on: Option<String>,

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
    /// Run a module as primary whatever the peer has, also with a copy that is not up to date.
    /// Writes that only the peer has are lost to the application: they go into an archive there
    /// when the peer follows.
    Primforce(force::Force),
    /// Run a module as secondary, to begin with; with `fullsync` everything in its copy is
    /// compared with the primary's, with `discard` it is given up if both nodes went on.
    Second(operate::Second),
    /// Stop all modules of this node, as for its shutdown, and wait until they are stopped. One
    /// that another one needs, by a checker, stops after it.
    Shutdown(crate::shutdown::Shutdown),
    /// Whether a module starts when its node does: on or off, whatever the configuration says.
    Boot(operate::AtBoot),
    /// Exchange the roles.
    Swap(operate::Which),
    /// Apply what is edited on this node (/etc/twinfold/modules/MODULE) to both nodes.
    Config(operate::Which),
    /// Take a module away from both nodes; its folders stay.
    Deconfig(operate::Which),
    /// Show which configuration of a module is applied.
    Confinfo(operate::Which),
    /// Show the state of all modules, or of one; the exit status of one is 0 STOP, 1 WAIT,
    /// 2 ALONE, 3 PRIM, 4 SECOND.
    State(operate::Show),
    /// Wait until a module is in a state.
    Waitstate(operate::Wait),
    /// Say what state a resource is in, as checkers of one's own do.
    Set(operate::Set),
    /// Suspend checkers and rules for maintenance (off), or resume them (on).
    Checker(operate::Checker),
    /// Show what happened to a module, and why; or what its application printed.
    Log(log::Log),
    /// Put how a node stands, what is configured and what happened into a zip archive, for
    /// whoever looks for a mistake. Keys, scripts and values of variables are not in it.
    Snapshot(operate::Put),
    /// Print the node's figures as Prometheus reads them.
    Metrics,
    /// Show a failover on this machine: two nodes are paired and configured, the power of one is
    /// cut, the other one takes over, the first one comes back, roles are swapped, copies compared.
    Demo(demo::Args),
    /// Modules ready to use: which kinds there are, and making one.
    Module(kinds::Args),
    /// Check configuration files: every mistake with its place and what would be right.
    Confcheck(confcheck::Args),
    /// What a package of the programs needs of them.
    #[command(hide = true)]
    Package(package::Args),
    /// What scripts of a virtual machine say to QEMU.
    #[command(hide = true)]
    Monitor(monitor::Args),
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

impl Command {
    /// Whether it is a command to a daemon, and so to that of any node.
    fn goes_to_nodes(&self) -> bool {
        !matches!(
            self,
            Command::Daemon
                | Command::Cluster(_)
                | Command::Demo(_)
                | Command::Monitor(_)
                | Command::Confcheck(_)
                | Command::Package(_)
                | Command::DemoGuest { .. }
                | Command::Fs { .. }
        )
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let home = cli.home.as_deref();
    let on = cli.on.as_deref();
    let each = |name, run: &dyn Fn(&operate::Api) -> anyhow::Result<ExitCode>| {
        ended(name, operate::on_each(home, on, run))
    };
    let command = |name, which: &operate::Which, command| {
        each(name, &|api: &operate::Api| api.command(which, command))
    };
    if on.is_some() && !cli.command.goes_to_nodes() {
        eprintln!("twinfold: this command concerns this machine only: -H is not for it");
        return ExitCode::FAILURE;
    }
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
        Command::Primforce(force) => each("primforce", &|api| api.primforce(&force)),
        Command::Second(second) => command("second", &second.which, second.command()),
        Command::Shutdown(how) => each("shutdown", &|api| api.shutdown(&how)),
        Command::Boot(boot) => command("boot", &boot.which, boot.command()),
        Command::Swap(which) => command("swap", &which, Do::Swap),
        Command::Snapshot(put) => each("snapshot", &|api| api.snapshot(&put)),
        Command::Metrics => each("metrics", &|api| api.metrics()),
        Command::Config(which) => each("config", &|api| api.config(&which)),
        Command::Deconfig(which) => each("deconfig", &|api| api.deconfig(&which)),
        Command::Confinfo(which) => each("confinfo", &|api| api.confinfo(&which)),
        Command::State(show) => ended("state", operate::state(home, on, &show)),
        Command::Waitstate(wait) => each("waitstate", &|api| api.wait(&wait)),
        Command::Set(set) => each("set", &|api| api.set(&set)),
        Command::Checker(checker) => command("checker", &checker.which, checker.command()),
        Command::Log(log) => ended("log", log::log(home, on, &log)),
        Command::Package(args) => {
            let programs = [Cli::command(), fs_driver::cli::command()];
            ended("package", package::run(&args, home, programs))
        }
        Command::Fs { args } => {
            fs_driver::cli::main(std::iter::once(OsString::from("twinfold-fs")).chain(args))
        }
        Command::Demo(args) => ended("demo", demo::run(&args)),
        Command::Monitor(args) => ended("monitor", monitor::run(&args)),
        Command::Module(args) => ended("module", kinds::run(&args, home, on)),
        Command::Confcheck(args) => ended("confcheck", confcheck::run(&args, home)),
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
