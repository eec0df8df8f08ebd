//! The other machine, on which the secondaries and the answering ends of the wires run.
//!
//! ```text
//! twinfold-bench run --peer B (machine A)               twinfold-bench serve (machine B)
//!   the load, primaries, floors of folders                prints a token
//!        ------- TLS, B pinned by the token, {"secret"} ------>  one run at a time
//!        ------- prepare, start, stop, usage, ... ------------>  host: drivers, servers
//!        ======= QUIC with keys made for the run =============>  secondaries
//!   its end, a word too little or the deadline             everything ended and removed
//! ```

mod addresses;
mod host;
mod line;
mod ports;
mod serve;
mod token;
mod words;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fs_driver::link::Identity;
use fs_driver::state::Ack;

use crate::floors::{quic, tcp};
use crate::process::Usage;
use crate::report::Machine;
use crate::stats::Estimate;
use crate::systems::System;
use line::Line;
use ports::Ports;
pub(crate) use serve::{Options, serve};
pub(crate) use token::Token;
use words::{Answer, BEAT, Hello, Request, STEP, With};

/// Questions of which the round trip's median is.
const TRIPS: usize = 50;

/// What is said of an answer to another question.
const OTHER: &str = "the other machine answered something else";

/// The other machine.
#[derive(Debug)]
pub(crate) struct Peer {
    line: Mutex<Line>,
    /// Why it is not there any more.
    lost: Mutex<Option<String>>,
    ports: Mutex<Ports>,
    pub(crate) address: SocketAddr,
    pub(crate) machine: Machine,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    /// Makes the acquaintance of what listens at `to` and printed `token`.
    pub(crate) fn connect(to: &str, token: &Token) -> Result<Arc<Peer>> {
        let addresses = to
            .to_socket_addrs()
            .with_context(|| format!("{to} is no address: HOST:PORT, as `serve` prints it"))?;
        let identity = Identity::generate()?;
        let mut failed = None;
        for address in addresses {
            match Line::dial(address, token, &identity, STEP) {
                Ok(line) => return Peer::welcomed(line, token),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => bail!("{to} has no address"),
        }
    }

    fn welcomed(mut line: Line, token: &Token) -> Result<Arc<Peer>> {
        let (here, address) = line.ends()?;
        let secret = token.secret();
        line.send(&Hello { secret }, STEP)?;
        let machine = match line.receive(STEP)? {
            Answer::Welcome { machine } => *machine,
            Answer::Refused { why } => bail!("{address} refuses: {why}"),
            _ => bail!(OTHER),
        };
        let peer = Arc::new(Peer {
            line: Mutex::new(line),
            lost: Mutex::new(None),
            ports: Mutex::new(Ports::behind(here.ip(), address.port())),
            address,
            machine,
        });
        let weak = Arc::downgrade(&peer);
        std::thread::spawn(move || beat(&weak));
        Ok(peer)
    }

    /// Asks, and is answered in time; or the other machine counts as lost.
    fn ask(&self, request: &Request) -> Result<Answer> {
        let mut line = lock(&self.line);
        self.check()?;
        let mut answered = || {
            line.send(request, STEP)?;
            line.receive(request.patience())
        };
        match answered() {
            Ok(Answer::Refused { why }) => bail!("the other machine refuses: {why}"),
            Ok(answer) => Ok(answer),
            Err(error) => {
                *lock(&self.lost) = Some(format!("{error:#}"));
                self.check()?;
                bail!(error)
            }
        }
    }

    fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => bail!(OTHER),
        }
    }

    /// Fails when it is not there any more.
    pub(crate) fn check(&self) -> Result<()> {
        match lock(&self.lost).as_deref() {
            Some(why) => bail!("the other machine is lost: {why}"),
            None => Ok(()),
        }
    }

    /// The median of some round trips of this line, in microseconds.
    pub(crate) fn round_trip(&self) -> Result<f64> {
        let mut trips = Vec::new();
        for _ in 0..TRIPS {
            let asked = Instant::now();
            self.done(&Request::Beat)?;
            trips.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        Ok(Estimate::of(&trips).context("no round trips")?.median)
    }

    /// Flushes the file system of its folders.
    pub(crate) fn flush(&self) -> Result<()> {
        self.done(&Request::Flush)
    }

    /// An address on this machine that the other one reaches.
    pub(crate) fn free_address(&self) -> Result<SocketAddr> {
        lock(&self.ports).udp()
    }

    /// Chooses a place for the other end of a system: its identity and its address.
    pub(crate) fn prepare(&self, system: System) -> Result<(String, SocketAddr)> {
        match self.ask(&Request::Prepare { system })? {
            Answer::Prepared { id, address } => Ok((id, address)),
            _ => bail!(OTHER),
        }
    }

    /// Starts the secondary of the primary at `address`.
    pub(crate) fn start_secondary(
        &self,
        system: System,
        id: String,
        address: SocketAddr,
        ack: Ack,
    ) -> Result<()> {
        let with = With::Primary { id, address, ack };
        self.done(&Request::Start { system, with })
    }

    /// Stops the secondary of a system in order.
    pub(crate) fn stop_secondary(&self, system: System) -> Result<()> {
        self.done(&Request::Stop { system })
    }

    /// Starts it again.
    pub(crate) fn start_again(&self, system: System) -> Result<()> {
        self.done(&Request::StartAgain { system })
    }

    /// Starts the answering end of QUIC; the asking one is made in `client`.
    pub(crate) fn start_quic(&self, client: &Path) -> Result<()> {
        let system = System::Quic;
        let (there_id, there) = self.prepare(system)?;
        let (id, address) = (quic::identity(client)?, self.free_address()?);
        quic::settle(client, address, &there_id, there)?;
        let with = With::Quic { id, address };
        self.done(&Request::Start { system, with })
    }

    /// Starts the answering end of TCP.
    pub(crate) fn start_tcp(&self) -> Result<tcp::Server> {
        let system = System::Tcp;
        let (_, address) = self.prepare(system)?;
        let key = tcp::key();
        let with = With::Tcp { key: key.clone() };
        self.done(&Request::Start { system, with })?;
        Ok(tcp::Server { address, key })
    }

    /// What the processes of a system there have used.
    pub(crate) fn usage(&self, system: System) -> Result<Vec<Usage>> {
        match self.ask(&Request::Usage { system })? {
            Answer::Usage(all) => Ok(all),
            _ => bail!(OTHER),
        }
    }

    /// Everything there is ended and removed.
    pub(crate) fn leave(&self) -> Result<()> {
        self.done(&Request::Leave)?;
        *lock(&self.lost) = Some("the run is over".into());
        Ok(())
    }
}

/// Says now and then that this machine is there, and notices when the other one is not.
fn beat(peer: &Weak<Peer>) {
    loop {
        std::thread::sleep(BEAT);
        match peer.upgrade().map(|peer| peer.done(&Request::Beat)) {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}
