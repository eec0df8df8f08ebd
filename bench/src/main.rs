//! `twinfold-bench`: what a replicated folder costs, against its floors.
//!
//! All systems are measured side by side in one run, in turns, and only ratios of
//! medians within the run are reported: the machine may be shared and noisy.

mod floors;
mod guests;
mod interrupt;
mod load;
mod memory;
mod peer;
mod process;
mod report;
mod resync;
mod run;
mod stats;
mod systems;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Measures a replicated folder against its floors, on this machine or between two.
#[derive(Debug, Parser)]
#[command(name = "twinfold-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The longest time to serve: a week.
const MOST_MINUTES: u64 = 7 * 24 * 60;

#[derive(Debug, Subcommand)]
enum Command {
    /// All workloads on everything that runs here: a table, JSON and a page.
    ///
    /// Between two machines: type `twinfold-bench serve` on the other one, which prints what to
    /// type here.
    Run(Box<RunArgs>),
    /// Be the other machine of `run --peer`, which measures: prints what to type there.
    ///
    /// Starts what the other machine asks for, ends and removes it when that is done or gone.
    Serve {
        /// Where the other machine finds this one; the ports behind are used, too.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4850")]
        listen: SocketAddr,
        /// Everything ends after so many minutes, whatever is under way.
        #[arg(long, default_value_t = 720, value_parser = clap::value_parser!(u64).range(1..=MOST_MINUTES))]
        minutes: u64,
        /// Directory for the folders of all secondaries, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
    },
    /// The memory of the drivers of a large folder: many files, a large image, a resync.
    ///
    /// Exits with 1 when a driver has held too much.
    Memory {
        #[command(flatten)]
        size: memory::Size,
        /// The most that a driver may hold, in MiB.
        #[arg(long, default_value_t = memory::TARGET)]
        at_most_mib: u64,
        /// Directory for both nodes, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
    },
    /// Compare two reports (JSON): exits with 1 when something has become worse.
    ///
    /// Costs over their floors are compared, each a ratio within its own run, and only
    /// where neither run's quartiles reach into the other's.
    Compare {
        /// The report before.
        old: PathBuf,
        /// The report after.
        new: PathBuf,
        /// What does not count as a change, in percent.
        #[arg(long, default_value_t = 5.0)]
        tolerance: f64,
    },
    /// Show a report (JSON) as a table, and write its page anew.
    Show {
        /// The report.
        report: PathBuf,
    },
    /// How fast a resync moves what changed, against one bare QUIC stream: quinn as it comes, and
    /// with the driver's sockets and settings.
    ///
    /// Exits with 1 when it is too slow beside the first.
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
        /// The least part of the speed of quinn's stream that it shall have.
        #[arg(long, default_value_t = 0.7)]
        at_least: f64,
        /// Directory for both nodes, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
    },
    /// Beside DRBD: two emulated machines with a Linux kernel of their own, in each a disk for
    /// twinfold and one for DRBD, and `run` between them.
    ///
    /// Needs qemu-system-x86, e2fsprogs, iproute2, drbd-utils and a kernel with the module drbd.
    /// The processor is emulated, which costs what works in user space most: only ratios within
    /// this run mean something.
    Drbd(guests::Options),
    /// Used by `drbd`: the first process of an emulated machine.
    #[command(hide = true)]
    Guest(guests::inside::Options),
    /// Used by `run`: a driver of its own process.
    #[command(hide = true, disable_help_flag = true)]
    Fs {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Used by `run`: the answering end of the bare QUIC floor.
    #[command(hide = true)]
    QuicServer {
        /// Directory with the floor's keys and settings.
        dir: PathBuf,
        /// Whose sockets and settings of QUIC it uses.
        tuning: floors::quic::Tuning,
    },
    /// Used by `run`: the answering end of the bare TCP floor.
    #[command(hide = true)]
    TcpServer {
        /// Where it listens.
        address: SocketAddr,
        /// The file with the bytes that a connection has to begin with.
        key: PathBuf,
    },
    /// Used by `run`: the plain pass-through file system.
    #[command(hide = true)]
    PassThrough {
        /// The real directory.
        source: PathBuf,
        /// The mount point.
        mount: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Rounds; each measures everything once, in turn.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Milliseconds per measurement.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// MiB of the files that are read and written.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    file_mib: u64,
    /// MiB that a resync moves while a load is measured.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
    resync_mib: u64,
    /// Steps per second of open loops [default: half of what twinfold can do]
    #[arg(long)]
    rate: Option<f64>,
    /// Only the workloads whose name contains one of these, with commas between them.
    #[arg(long)]
    only: Option<String>,
    /// Systems to leave out, with commas between them.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<systems::System>,
    /// Another build of this program: its drivers are measured side by side with this one's.
    #[arg(long, conflicts_with = "peer")]
    beside: Option<PathBuf>,
    /// A directory on a mounted DRBD device, in protocol C with a peer: measured as well.
    #[arg(long, value_name = "DIR")]
    drbd: Option<PathBuf>,
    /// The other machine: the secondaries and the answering ends of QUIC and TCP run there.
    #[arg(long, value_name = "HOST:PORT", requires = "token")]
    peer: Option<String>,
    /// What `serve` has printed on the other machine.
    #[arg(
        long,
        requires = "peer",
        value_parser = |text: &str| peer::Token::parse(text).map_err(|e| e.to_string()),
        env = "TWINFOLD_BENCH_TOKEN",
        hide_env_values = true
    )]
    token: Option<peer::Token>,
    /// Measure although the program on the other machine is of another commit.
    #[arg(long, requires = "peer")]
    different_commits: bool,
    /// Measure the memory of the drivers of a large folder as well, with both nodes here. It
    /// takes some minutes.
    #[arg(long)]
    memory: bool,
    /// Files in the large folder.
    #[arg(long, default_value_t = 1_000_000, requires = "memory")]
    memory_files: u64,
    /// Size of its image, which is mostly holes, in GiB.
    #[arg(long, default_value_t = 100, requires = "memory",
          value_parser = clap::value_parser!(u64).range(1..))]
    memory_image_gib: u64,
    /// Writes of 4 KiB anywhere in the image, and as many while the secondary is away.
    #[arg(long, default_value_t = 100_000, requires = "memory")]
    memory_writes: u64,
    /// Directory for the folders of all systems, on a local file system.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Directory for report.json and report.html.
    #[arg(long, default_value = "bench-report")]
    out: PathBuf,
}

impl RunArgs {
    fn options(self) -> run::Options {
        let large = memory::Size {
            files: self.memory_files,
            image_gib: self.memory_image_gib,
            writes: self.memory_writes,
        };
        run::Options {
            flags: report::model::Flags {
                rounds: self.rounds,
                millis: self.millis,
                file_mib: self.file_mib,
                resync_mib: self.resync_mib,
                only: self.only,
                skip: self.skip,
                beside: self.beside,
                large: self.memory.then_some(large),
                peer: self.peer,
                drbd: self.drbd,
            },
            rate: self.rate,
            dir: self.dir,
            out: self.out,
            token: self.token,
            different_commits: self.different_commits,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fs { args } => {
            return fs_driver::cli::main(
                std::iter::once(OsString::from("twinfold-fs")).chain(args),
            );
        }
        Command::Drbd(options) => return exit(guests::run(&options)),
        Command::Guest(options) => guests::inside::run(&options),
        Command::QuicServer { dir, tuning } => floors::quic::serve(&dir, tuning),
        Command::PassThrough { source, mount } => floors::pass_through::run(&source, &mount),
        Command::Serve {
            listen,
            minutes,
            dir,
        } => peer::serve(&peer::Options {
            listen,
            dir,
            time: Duration::from_secs(minutes * 60),
        }),
        Command::Memory {
            size,
            at_most_mib,
            dir,
        } => {
            return exit(memory::run(&memory::Options {
                size,
                at_most: at_most_mib,
                dir,
            }));
        }
        Command::Resync {
            rounds,
            millis,
            mib,
            at_least,
            dir,
        } => {
            return exit(resync::run(&resync::Options {
                rounds,
                millis,
                mib,
                at_least,
                dir,
            }));
        }
        Command::TcpServer { address, key } => floors::tcp::serve(address, &key),
        Command::Show { report } => show(&report),
        Command::Compare {
            old,
            new,
            tolerance,
        } => return exit(report::compare::run(&old, &new, tolerance)),
        Command::Run(args) => return exit(run::run(&args.options())),
    };
    exit(result.map(|()| ExitCode::SUCCESS))
}

/// What the program ends with: 2 for an error.
fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|e| {
        eprintln!("twinfold-bench: {e:#}");
        ExitCode::from(2)
    })
}

fn show(path: &std::path::Path) -> anyhow::Result<()> {
    let report = report::load(path)?;
    print!("{}", report::show(&report));
    let page = report::save(&report, path.parent().unwrap_or(path))?;
    println!("\n{}", page.display());
    Ok(())
}
