//! The machine that serves: lets in whoever knows the token, one run at a time, and cleans up
//! behind each, however it ends.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fs_driver::link::Identity;

use super::addresses;
use super::host::Host;
use super::line::{self, Line};
use super::ports::PORTS;
use super::token::Token;
use super::words::{Answer, Hello, Request, SILENCE, STEP};
use crate::interrupt;
use crate::report::Machine;

/// How often it is looked whether this is to end.
const LOOK: Duration = Duration::from_millis(100);

/// How long may pass between a connection and its first word: strangers stand in line.
const MEET: Duration = Duration::from_secs(5);

/// What `serve` was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) dir: PathBuf,
    /// After so long everything ends, whatever is under way.
    pub(crate) time: Duration,
}

/// Serves until it is interrupted or its time is over.
pub(crate) fn serve(options: &Options) -> Result<()> {
    interrupt::catch();
    let identity = Identity::generate()?;
    let token = Token::new(identity.fingerprint());
    let listener = TcpListener::bind(options.listen)
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let at = listener.local_addr()?;
    let dir = options
        .dir
        .join(format!("twinfold-bench.{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    tell(options, at, &token)?;
    let (tell, admitted) = mpsc::sync_channel(1);
    let door = Door {
        tls: line::accepting(&identity)?,
        token,
        dir: dir.clone(),
        busy: Arc::default(),
    };
    let busy = door.busy.clone();
    std::thread::spawn(move || door.keep(&listener, &tell));
    let until = Instant::now() + options.time;
    let served = (0..).try_for_each(|n: u64| {
        let mut line = loop {
            check(until)?;
            match admitted.recv_timeout(LOOK) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("nobody is let in any more"),
            }
        };
        session(&mut line, &dir.join(n.to_string()), until)?;
        busy.store(false, Ordering::SeqCst);
        Ok(())
    });
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    match served {
        Err(error) if error.is::<Over>() => {
            println!("ended: {error}");
            Ok(())
        }
        other => other,
    }
}

/// Why it ends in order.
#[derive(Debug)]
struct Over(&'static str);

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Over {}

fn check(until: Instant) -> Result<()> {
    if interrupt::check().is_err() {
        bail!(Over("interrupted"));
    }
    if Instant::now() > until {
        bail!(Over("the time is over"));
    }
    Ok(())
}

/// Says what is to be typed on the other machine.
fn tell(options: &Options, at: SocketAddr, token: &Token) -> Result<()> {
    let minutes = options.time.as_secs() / 60;
    let mut addresses = match at.ip().is_unspecified() {
        true => addresses::own(),
        false => vec![at.ip()],
    };
    addresses.retain(|a| a.is_ipv4() == at.is_ipv4());
    println!("On the machine that shall measure, as root, type:\n");
    if addresses.is_empty() {
        addresses.push(at.ip());
    }
    for (n, ip) in addresses.iter().enumerate() {
        let address = SocketAddr::new(*ip, at.port());
        let or = if n > 0 { "or\n" } else { "" };
        println!(
            "{or}  twinfold-bench run --peer {address} --token {}",
            token.show()
        );
    }
    let (first, last) = (at.port(), u32::from(at.port()) + u32::from(PORTS));
    println!(
        "\nA firewall between them has to let TCP and UDP pass to the ports {first} to {last} of \
         both.\nThe token counts until this ends: by Ctrl-C, or in {minutes} minutes."
    );
    Ok(std::io::stdout().flush()?)
}

/// Who is let in.
struct Door {
    tls: Arc<rustls::ServerConfig>,
    token: Token,
    dir: PathBuf,
    /// A run is under way.
    busy: Arc<AtomicBool>,
}

impl Door {
    /// Lets in one run at a time.
    fn keep(&self, listener: &TcpListener, admit: &SyncSender<Line>) {
        loop {
            let (tcp, from) = match listener.accept() {
                Ok(new) => new,
                Err(error) => {
                    eprintln!("nobody can be let in: {error}");
                    std::thread::sleep(LOOK);
                    continue;
                }
            };
            match self.meet(tcp) {
                Ok(line) => {
                    println!("{from} measures");
                    if admit.send(line).is_err() {
                        return;
                    }
                }
                Err(error) => eprintln!("{from} was refused: {error:#}"),
            }
        }
    }

    /// A line to somebody who knows the token, which counts as a run from now on.
    fn meet(&self, tcp: TcpStream) -> Result<Line> {
        let mut line = Line::accept(&self.tls, tcp, MEET)?;
        let hello: Hello = line.receive(MEET)?;
        let refused = match self.token.knows(&hello.secret) {
            false => Some("that is not the token that was printed here"),
            true if self.busy.swap(true, Ordering::SeqCst) => Some("another run is under way here"),
            true => None,
        };
        if let Some(why) = refused {
            line.send(&Answer::Refused { why: why.into() }, MEET)?;
            bail!(why);
        }
        let machine = Box::new(Machine::here(&self.dir));
        let welcome = line.send(&Answer::Welcome { machine }, MEET);
        if welcome.is_err() {
            self.busy.store(false, Ordering::SeqCst);
        }
        welcome.map(|()| line)
    }
}

/// One run, to its end; fails when this is to end altogether, or cannot clean up.
fn session(line: &mut Line, dir: &Path, until: Instant) -> Result<()> {
    let (here, from) = line.ends()?;
    // An IPv4 address may have come in over a socket for both.
    let mut host = Host::new(dir, here.ip().to_canonical(), here.port())?;
    let ended = serve_run(line, &mut host, until, SILENCE);
    // Also where a run has left in order: nothing may stay.
    let cleaned = host.end();
    match ended {
        Ok(()) => println!("{from} is done; everything of it is removed"),
        Err(error) if error.is::<Over>() => return cleaned.and(Err(error)),
        Err(error) => println!("{from} is gone ({error:#}); everything of it is removed"),
    }
    cleaned
}

/// Carries out what is asked for; fails when nothing has been for so long as `silence`.
fn serve_run(line: &mut Line, host: &mut Host, until: Instant, silence: Duration) -> Result<()> {
    loop {
        let heard = Instant::now();
        while !line.has_come(LOOK)? {
            check(until)?;
            ensure!(heard.elapsed() < silence, "it has not said a word for long");
        }
        check(until)?;
        let request: Request = line.receive(STEP)?;
        let leaves = matches!(request, Request::Leave);
        let answer = host.answer(request);
        line.send(&answer, STEP)?;
        if leaves {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Peer;
    use super::*;

    /// A door on loopback, its address, and the lines that it lets in.
    fn door(token: Token, identity: &Identity) -> (String, mpsc::Receiver<Line>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let door = Door {
            tls: line::accepting(identity).unwrap(),
            token,
            dir: "/".into(),
            busy: Arc::default(),
        };
        let (tell, admitted) = mpsc::sync_channel(1);
        std::thread::spawn(move || door.keep(&listener, &tell));
        (at, admitted)
    }

    #[test]
    fn only_who_knows_the_token_is_let_in_and_one_at_a_time() {
        let identity = Identity::generate().unwrap();
        let token = Token::new(identity.fingerprint());
        let (at, admitted) = door(token.clone(), &identity);
        let refused = |token: &Token| format!("{:#}", Peer::connect(&at, token).unwrap_err());
        let said = refused(&Token::new(identity.fingerprint()));
        assert!(said.contains("not the token that was printed"), "{said}");
        let other = Identity::generate().unwrap();
        let said = refused(&Token::new(other.fingerprint()));
        assert!(said.contains("is not what printed the token"), "{said}");
        assert!(admitted.try_recv().is_err());
        let peer = Peer::connect(&at, &token).unwrap();
        assert!(!peer.machine.kernel.is_empty());
        admitted.recv_timeout(MEET).unwrap();
        let said = refused(&token);
        assert!(said.contains("another run is under way"), "{said}");
        assert!(admitted.try_recv().is_err());
    }

    #[test]
    fn who_says_nothing_counts_as_gone() {
        let identity = Identity::generate().unwrap();
        let token = Token::new(identity.fingerprint());
        let (at, admitted) = door(token.clone(), &identity);
        let to = at.parse().unwrap();
        let mut dialled = Line::dial(to, &token, &identity, STEP).unwrap();
        let secret = token.secret();
        dialled.send(&Hello { secret }, STEP).unwrap();
        let welcome: Answer = dialled.receive(STEP).unwrap();
        assert!(matches!(welcome, Answer::Welcome { .. }), "{welcome:?}");
        let mut line = admitted.recv_timeout(MEET).unwrap();
        let place = tempfile::tempdir().unwrap();
        let ip = to.ip();
        let mut host = Host::new(&place.path().join("run"), ip, to.port()).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let silence = Duration::from_millis(50);
        let ended = serve_run(&mut line, &mut host, until, silence).unwrap_err();
        assert!(ended.to_string().contains("has not said a word"), "{ended}");
        drop(dialled);
        let ended = serve_run(&mut line, &mut host, until, SILENCE).unwrap_err();
        assert!(ended.to_string().contains("has ended"), "{ended}");
    }

    #[test]
    fn its_time_is_limited_and_nothing_stays() {
        let place = tempfile::tempdir().unwrap();
        serve(&Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            dir: place.path().to_owned(),
            time: Duration::ZERO,
        })
        .unwrap();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
