//! The command line of the driver.

mod archive;
mod show;
mod verify;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use twinfold_protocol::handshake::Role;
use twinfold_protocol::ids::Side;

use crate::control::{self, Request};
use crate::daemon::{self, Start};
use crate::link::{Fingerprint, Identity};
use crate::setup;
use crate::state::{Ack, OnPeerLoss, Settings, parse_limit};
use crate::store::Layout;

/// Where a node's key lies unless told otherwise.
const IDENTITY: &str = "/etc/twinfold";

/// Replicates a folder to a second machine: every write is on both before it is
/// acknowledged.
///
/// The way to a replicated folder, as root:
///
///   1. On both machines:  twinfold-fs identity
///   2. On the machine with the data:
///      twinfold-fs init /vm --good-copy --listen 10.0.0.1:4810 --peer 10.0.0.2:4810 --peer-id TF1-OF-THE-OTHER
///      twinfold-fs primary /vm
///   3. On the other machine, with an empty /vm:
///      twinfold-fs init /vm --from-peer --listen 10.0.0.2:4810 --peer 10.0.0.1:4810 --peer-id TF1-OF-THE-FIRST
///      twinfold-fs secondary /vm
///   4. See how it goes:   twinfold-fs status /vm
#[derive(Debug, Parser)]
#[command(name = "twinfold-fs", version, verbatim_doc_comment)]
struct Cli {
    /// What is logged: error, warn, info, debug, trace, or a filter as of the
    /// tracing crate; the variable TWINFOLD_LOG does the same.
    #[arg(long, global = true, default_value = "info", env = "TWINFOLD_LOG")]
    log: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Folder {
    /// The folder: the path the application uses.
    path: PathBuf,

    /// Where the folder's private parts lie, if not in .NAME.twinfold beside it.
    #[arg(long)]
    base: Option<PathBuf>,
}

impl Folder {
    fn mount(&self) -> Result<PathBuf> {
        setup::absolute(&self.path)
    }

    fn layout(&self) -> Result<Layout> {
        Ok(Layout::new(match &self.base {
            Some(base) => setup::absolute(base)?,
            None => setup::default_base(&self.mount()?)?,
        }))
    }
}

#[derive(Debug, Args)]
struct Key {
    /// The directory that holds this node's key.
    #[arg(long, default_value = IDENTITY, value_name = "DIRECTORY")]
    identity: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this node's key, if it has none, and print what the peer must be told.
    Identity(Key),
    /// Make a replicated folder out of a directory.
    Init(Box<InitArgs>),
    /// Run the folder as primary: writable, shipping every change. Stays in the foreground.
    Primary {
        #[command(flatten)]
        folder: Folder,
        #[command(flatten)]
        key: Key,
        /// Also with a copy that may lack acknowledged writes of its peer. They are then lost.
        #[arg(long)]
        force: bool,
        /// A controller decides what happens when the peer is lost.
        #[arg(long, hide = true)]
        controlled: bool,
        /// The peer's controller sees at the TCP ports beside the link's whether this process lives.
        #[arg(long, hide = true)]
        present: bool,
    },
    /// Run the folder as secondary: read-only, following the primary. Stays in the foreground.
    Secondary {
        #[command(flatten)]
        folder: Folder,
        #[command(flatten)]
        key: Key,
        /// Although the file with this copy's history is damaged or newer: the copy is
        /// compared with the peer's as a whole and becomes what the peer has.
        #[arg(long)]
        history_unknown: bool,
        /// A controller decides what happens when the peer is lost.
        #[arg(long, hide = true)]
        controlled: bool,
        /// The peer's controller sees at the TCP ports beside the link's whether this process lives.
        #[arg(long, hide = true)]
        present: bool,
    },
    /// Show the folder's state.
    Status {
        #[command(flatten)]
        folder: Folder,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make this secondary primary, when its primary is gone.
    Promote {
        #[command(flatten)]
        folder: Folder,
        /// Also with a copy that may lack acknowledged writes. They are then lost.
        #[arg(long)]
        force: bool,
    },
    /// Make this primary secondary, when the application is stopped.
    Demote {
        #[command(flatten)]
        folder: Folder,
        /// Also while something on the mount is open for writing, or although a verify found that
        /// the peer's copy differs.
        #[arg(long)]
        force: bool,
    },
    /// Let a primary that lost its peer go on alone. Be sure that the peer does not.
    GoAlone(Folder),
    /// Give up this secondary's copy: it becomes equal to the primary's. What it has changed
    /// by itself is kept in an archive first.
    Resync {
        #[command(flatten)]
        folder: Folder,
        /// Say that the data of this copy may be overwritten.
        #[arg(long, required = true)]
        discard_this_copy: bool,
        /// Keep nothing of it. What only this copy has is then lost.
        #[arg(long)]
        without_archive: bool,
    },
    /// What was kept of copies before they were overwritten.
    Archive {
        #[command(subcommand)]
        what: archive::Command,
    },
    /// Compare the two copies while the application works; run it on the primary.
    ///
    /// Everything is read and hashed on both nodes, data and attributes. What differs is
    /// named, with its bytes. Exits with 0 when the copies are equal, with 1 when something
    /// differed, also if it was repaired, and with 2 when not everything could be compared.
    Verify {
        #[command(flatten)]
        folder: Folder,
        /// Move what differs from this node to the secondary. This node's copy is taken
        /// as the right one.
        #[arg(long)]
        repair: bool,
        /// Read at most so many bytes a second on each node; k, M and G are understood.
        #[arg(long, value_name = "BYTES/S", value_parser = verify::rate)]
        limit: Option<u64>,
        /// Print one JSON object at the end.
        #[arg(long)]
        json: bool,
    },
    /// Limit what a resync reads and moves in a second; until the driver ends.
    Limit {
        #[command(flatten)]
        folder: Folder,
        /// Bytes per second, as 50M, or none.
        #[arg(value_name = "RATE", value_parser = parse_rate)]
        rate: Rate,
    },
    /// Flush both nodes now, so that a later resync has less to look at.
    Checkpoint(Folder),
    /// Stop the driver and unmount.
    Stop(Folder),
    /// Give the directory back as it was, with the data as it is now.
    Deinit {
        #[command(flatten)]
        folder: Folder,
        /// Also when this copy is not up to date.
        #[arg(long)]
        force: bool,
    },
}

/// Bytes per second; none: no limit.
#[derive(Clone, Copy, Debug)]
struct Rate(Option<u64>);

fn parse_rate(text: &str) -> Result<Rate, String> {
    parse_limit(text).map(Rate)
}

#[derive(Debug, Args)]
struct InitArgs {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    key: Key,
    /// The folder's name, the same on both machines; the last part of the path if not given.
    #[arg(long)]
    name: Option<String>,
    /// This machine's data is what shall be replicated.
    #[arg(
        long,
        conflicts_with = "from_peer",
        required_unless_present = "from_peer"
    )]
    good_copy: bool,
    /// The data comes from the peer; the directory must be empty, unless it is a seed.
    #[arg(long)]
    from_peer: bool,
    /// What is in the directory is a copy of the peer's data, made in another way: only what
    /// differs is moved. What the peer does not have is removed.
    #[arg(long, requires = "from_peer")]
    seed: bool,
    /// Accept the peer here; repeat for each network.
    #[arg(long, required = true, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// The peer is there; repeat for each network, the fastest first.
    #[arg(long, required = true, value_name = "ADDRESS:PORT")]
    peer: Vec<SocketAddr>,
    /// What `identity` printed on the peer.
    #[arg(long, value_name = "TF1-...")]
    peer_id: String,
    /// What an acknowledgement means.
    #[arg(long, value_enum, default_value = "memory")]
    ack: Ack,
    /// What a primary does when its peer is lost and no controller decides.
    #[arg(long, value_enum, default_value = "hold")]
    on_peer_loss: OnPeerLoss,
    /// Drop a peer that makes no progress for so many milliseconds.
    #[arg(long)]
    stall_ms: Option<u64>,
    /// Drop a peer that leaves one write waiting for so many milliseconds.
    #[arg(long)]
    op_ms: Option<u64>,
    /// Drop a peer whose disk does not complete a sync in so many milliseconds.
    #[arg(long)]
    sync_ms: Option<u64>,
    /// Bridge a broken connection for so many milliseconds.
    #[arg(long)]
    bridge_ms: Option<u64>,
    /// Seconds between durability checkpoints.
    #[arg(long)]
    checkpoint_s: Option<u64>,
    /// Keep archives of given-up copies for so many days; 0 for ever.
    #[arg(long)]
    archive_days: Option<u64>,
    /// Drop the oldest archives beyond so many bytes, but never the newest; 0 without limit.
    #[arg(long)]
    archive_bytes: Option<u64>,
    /// Limit what a resync reads and moves in a second: bytes, as 50M.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    resync_limit: Option<Rate>,
}

/// The command line, for what is made from it: manual pages and completions.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Parses, runs, reports: 0 done, 1 failed, 2 not understood (`verify` has codes of its own).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .try_init();
    match run(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("twinfold-fs: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// From now on a fault of this program's own ends it, in whichever thread it is. A driver
/// that goes on without one of its threads hangs, while it looks well to its controller and
/// to its peer; one that is gone is dealt with.
fn end_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |fault| {
        tell(fault);
        eprintln!("twinfold-fs: ends here, for that is a fault of its own");
        std::process::abort();
    }));
}

fn run_node(folder: &Folder, key: &Key, start: Start) -> Result<()> {
    end_on_panic();
    daemon::run(folder.layout()?, &key.identity, start)
}

fn run(command: Command) -> Result<ExitCode> {
    let done = match command {
        Command::Identity(key) => {
            let identity = Identity::load_or_create(&key.identity)?;
            println!("{}", identity.fingerprint());
            Ok(())
        }
        Command::Init(args) => init(&args),
        Command::Primary {
            folder,
            key,
            force,
            controlled,
            present,
        } => {
            let start = Start {
                role: Role::Primary,
                force,
                history_unknown: false,
                controlled,
                present,
            };
            run_node(&folder, &key, start)
        }
        Command::Secondary {
            folder,
            key,
            history_unknown,
            controlled,
            present,
        } => {
            let start = Start {
                role: Role::Secondary,
                force: false,
                history_unknown,
                controlled,
                present,
            };
            run_node(&folder, &key, start)
        }
        Command::Status { folder, json } => {
            let status = control::ask(&folder.layout()?, Request::Status)?
                .context("the driver told no state")?;
            if json {
                println!("{status}");
            } else {
                print!("{}", show::status(&status));
            }
            Ok(())
        }
        Command::Promote { folder, force } => tell(&folder, Request::Promote { force }),
        Command::Demote { folder, force } => tell(&folder, Request::Demote { force }),
        Command::GoAlone(folder) => tell(&folder, Request::GoAlone),
        Command::Resync {
            folder,
            without_archive,
            ..
        } => tell(&folder, Request::Discard { without_archive }),
        Command::Archive { what } => archive::run(what),
        Command::Verify {
            folder,
            repair,
            limit,
            json,
        } => return Ok(verify::run(folder.layout(), repair, limit, json)),
        Command::Limit { folder, rate } => tell(
            &folder,
            Request::Limit {
                bytes_per_second: rate.0,
            },
        ),
        Command::Checkpoint(folder) => tell(&folder, Request::Checkpoint),
        Command::Stop(folder) => {
            let layout = folder.layout()?;
            control::ask(&layout, Request::Stop)?;
            control::wait_until_gone(&layout)
        }
        Command::Deinit { folder, force } => {
            let given = setup::deinit(&folder.layout()?, force)?;
            println!(
                "{} is an ordinary directory again, with {} objects in it",
                folder.mount()?.display(),
                given.objects
            );
            if let Some(path) = given.aside {
                println!(
                    "what a resync had taken out of its place, and not put anywhere, is in {}",
                    path.display()
                );
            }
            if let Some(path) = given.archives {
                println!(
                    "what was kept of copies that were given up is in {}",
                    path.display()
                );
            }
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn tell(folder: &Folder, request: Request) -> Result<()> {
    control::ask(&folder.layout()?, request).map(drop)
}

fn init(args: &InitArgs) -> Result<()> {
    let mount = args.folder.mount()?;
    let identity = Identity::load(&args.key.identity)?;
    let peer = Fingerprint::parse(&args.peer_id).context("--peer-id")?;
    anyhow::ensure!(
        identity.fingerprint() != peer,
        "--peer-id is this node's own identity: give the one that `identity` prints on the peer"
    );
    let name = match &args.name {
        Some(name) => name.clone(),
        None => mount
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
    };
    let mut settings = Settings::new(&name, &mount, &args.peer_id);
    settings.listen.clone_from(&args.listen);
    settings.peer.clone_from(&args.peer);
    settings.ack = args.ack;
    settings.on_peer_loss = args.on_peer_loss;
    settings.resync_limit = args.resync_limit.and_then(|rate| rate.0);
    let fields = [
        (args.stall_ms, &mut settings.stall_ms),
        (args.op_ms, &mut settings.op_ms),
        (args.sync_ms, &mut settings.sync_ms),
        (args.bridge_ms, &mut settings.bridge_ms),
        (args.checkpoint_s, &mut settings.checkpoint_s),
        (args.archive_days, &mut settings.archive_days),
        (args.archive_bytes, &mut settings.archive_bytes),
    ];
    for (given, field) in fields {
        if let Some(given) = given {
            *field = given;
        }
    }
    let wanted = setup::Init {
        base: args.folder.layout()?.base,
        good_copy: args.good_copy,
        seed: args.seed,
        side: match identity.fingerprint() < peer {
            true => Side::Even,
            false => Side::Odd,
        },
        settings,
    };
    let taken = setup::init(&wanted, |n| eprintln!("{n} objects taken over ..."))?;
    let next = if args.good_copy {
        "primary"
    } else {
        "secondary"
    };
    println!(
        "{} is a replicated folder with {taken} objects; start it with: twinfold-fs {next} {}",
        mount.display(),
        mount.display()
    );
    if args.on_peer_loss == OnPeerLoss::Alone {
        println!(
            "warning: when the network between the two nodes is cut, both may go on \
             (--on-peer-loss alone, no witness); their copies then differ, and one is given up"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_fault_in_any_thread_ends_a_driver() {
        const FAULTY: &str = "TWINFOLD_TEST_FAULTY";
        if std::env::var_os(FAULTY).is_some() {
            // There is no such folder; it is a driver's program all the same.
            main(["twinfold-fs", "primary", "/nonexistent"].map(OsString::from));
            std::thread::spawn(|| panic!("a fault, on purpose"));
            std::thread::sleep(Duration::from_secs(60));
            return;
        }
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cli::tests::a_fault_in_any_thread_ends_a_driver"])
            .arg("--nocapture")
            .env(FAULTY, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&done.stderr);
        assert!(told.contains("a fault, on purpose"), "{told}");
        assert_eq!(done.status.code(), None, "it ended by itself: {told}");
    }
}
