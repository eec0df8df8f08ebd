//! `twinfold-bench`: what a replicated folder costs, against its floors.
//!
//! All systems are measured side by side in one run, in turns, and only ratios of
//! medians within the run are reported: the machine may be shared and noisy.

mod floors;
mod load;
mod memory;
mod process;
mod report;
mod resync;
mod run;
mod stats;
mod systems;

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
    /// All workloads on everything that runs here: a table, JSON and a page.
    Run {
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
        /// Directory for the folders of all systems, on a local file system.
        #[arg(long, default_value = "/var/tmp")]
        dir: PathBuf,
        /// Directory for report.json and report.html.
        #[arg(long, default_value = "bench-report")]
        out: PathBuf,
    },
    /// The memory of the drivers of a large folder: many files, a large image, a resync.
    Memory {
        /// Files in the folder.
        #[arg(long, default_value_t = 1_000_000)]
        files: u64,
        /// Size of an image that is mostly holes, in GiB.
        #[arg(long, default_value_t = 100)]
        image_gib: u64,
        /// Writes of 4 KiB anywhere in the image, and as many while the secondary is away.
        #[arg(long, default_value_t = 100_000)]
        writes: u64,
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
    },
    /// Used by `run`: the answering end of the bare TCP floor.
    #[command(hide = true)]
    TcpServer {
        /// The port on loopback.
        port: u16,
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

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Fs { args } => {
            return fs_driver::cli::main(
                std::iter::once(OsString::from("twinfold-fs")).chain(args),
            );
        }
        Command::QuicServer { dir } => floors::quic::serve(&dir),
        Command::PassThrough { source, mount } => floors::pass_through::run(&source, &mount),
        Command::Memory {
            files,
            image_gib,
            writes,
            dir,
        } => memory::run(&memory::Options {
            files,
            image_gib,
            writes,
            dir,
        }),
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
        Command::TcpServer { port } => floors::tcp::serve(port),
        Command::Show { report } => show(&report),
        Command::Compare {
            old,
            new,
            tolerance,
        } => return exit(report::compare::run(&old, &new, tolerance)),
        Command::Run {
            rounds,
            millis,
            file_mib,
            resync_mib,
            rate,
            only,
            skip,
            dir,
            out,
        } => {
            return exit(run::run(&run::Options {
                flags: report::model::Flags {
                    rounds,
                    millis,
                    file_mib,
                    resync_mib,
                    only,
                    skip,
                },
                rate,
                dir,
                out,
            }));
        }
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
