//! What looks at things while a module runs: a thread for each checker, which tells the
//! module what state its resource is in.

mod custom;
mod processes;

use std::io::{ErrorKind, PipeReader, PipeWriter};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use crate::config::{Checker, Probe, ResourceState};
use crate::net::{netlink, ping, vips::Vips};
use crate::peer::Hub;
use crate::process::{Process, timespec};
use crate::scripts::Scripts;

/// What a checker found: the state, and why it is not up.
pub(crate) type Found = (ResourceState, Option<String>);

/// What checkers of a module need to know.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    pub(crate) module: String,
    pub(crate) hub: Arc<Hub>,
    pub(crate) vips: Arc<Vips>,
    pub(crate) scripts: Scripts,
}

/// A checker at work; it ends when this goes.
#[derive(Debug)]
pub(crate) struct Running(#[expect(dead_code, reason = "the thread sees its end")] PipeWriter);

/// What a checker's thread sees of that.
struct End(PipeReader);

impl End {
    fn new() -> Result<(Running, End)> {
        let (seen, running) = std::io::pipe().context("there is no pipe for a checker")?;
        Ok((Running(running), End(seen)))
    }

    /// Waits so long; true when the checker is to end.
    fn comes(&self, pause: Duration) -> bool {
        self.wait(None, Some(pause))
    }

    /// Waits until a process has ended; true when the checker is to end before that.
    fn comes_before(&self, process: &Process) -> bool {
        self.wait(Some(process), None)
    }

    fn wait(&self, process: Option<&Process>, most: Option<Duration>) -> bool {
        let until = most.map(|most| Instant::now() + most);
        loop {
            let left = until.map(timespec);
            let mut ends = vec![PollFd::new(&self.0, PollFlags::IN)];
            ends.extend(process.map(|p| PollFd::new(p, PollFlags::IN)));
            match poll(&mut ends, left.as_ref()) {
                Ok(0) => return false,
                Ok(_) => return !ends[0].revents().is_empty(),
                Err(rustix::io::Errno::INTR) => {}
                // Who cannot wait must not look all the time.
                Err(_) => return true,
            }
        }
    }
}

/// Starts a checker; `tell` gets what it finds, and is gone when it returns false.
pub(crate) fn start(
    checker: Checker,
    around: Surroundings,
    tell: impl Fn(Found) -> bool + Send + 'static,
) -> Result<Running> {
    let (running, end) = End::new()?;
    let resource = checker.resource();
    std::thread::Builder::new()
        .name(format!("check {}", checker.ident))
        .spawn(move || {
            // What a start script has started may be about to begin only.
            let first = match checker.probe {
                Probe::Process(_) => checker.interval,
                _ => Duration::ZERO,
            };
            if end.comes(checker.start_after + first) {
                return;
            }
            match &checker.probe {
                Probe::Custom { exec, arg } => {
                    custom::run(&checker, exec, arg.as_deref(), &around, &end, &tell);
                }
                _ => look_again(&checker, &around, &end, &tell),
            }
        })
        .with_context(|| format!("cannot start the checker {resource}"))?;
    Ok(running)
}

fn look_again(checker: &Checker, around: &Surroundings, end: &End, tell: &impl Fn(Found) -> bool) {
    loop {
        let found = match look(checker, around) {
            Ok(()) => (ResourceState::Up, None),
            Err(error) => {
                // Who has no name was not asked, nor who is not answered for.
                let asked = !error.is::<Nameless>() && !error.is::<netlink::Unanswered>();
                let state = match !asked {
                    true => ResourceState::Unknown,
                    false => ResourceState::Down,
                };
                (state, Some(format!("{error:#}")))
            }
        };
        if !tell(found) || end.comes(checker.interval) {
            return;
        }
    }
}

/// One look. An error says why it is down.
fn look(checker: &Checker, around: &Surroundings) -> Result<()> {
    match &checker.probe {
        Probe::Tcp { host, port } => tcp(host, *port, checker.timeout),
        Probe::Ping { host } => {
            let address = resolve(host, 0)?.next().context("it has no address")?.ip();
            let answers = ping::ping(address, checker.timeout)?;
            ensure!(answers, "{host} does not answer");
            Ok(())
        }
        Probe::Interface(name) => interface(name),
        Probe::Address(address) => around.vips.is_only_here(*address),
        Probe::Process(processes) => processes::check(processes),
        Probe::Module(name) => {
            ensure!(*name != around.module, "a module cannot wait for itself");
            around.hub.serving(name, checker.timeout).map(drop)
        }
        Probe::Custom { .. } => Ok(()),
    }
}

fn resolve(host: &str, port: u16) -> Result<std::vec::IntoIter<std::net::SocketAddr>> {
    (host, port)
        .to_socket_addrs()
        .with_context(|| Nameless(host.to_owned()))
}

/// The name service does not tell where a host is.
#[derive(Debug)]
struct Nameless(String);

impl std::fmt::Display for Nameless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is not found", self.0)
    }
}

/// Connects to one of the addresses.
fn tcp(host: &str, port: u16, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    let mut last = None;
    for address in resolve(host, port)? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            // Two that call each other at once are connected (RFC 9293, 3.5), and a local port
            // of the kernel's choice may be the very one that is called: nobody listens there.
            Ok(stream) if is_own_call(&stream) => last = Some(ErrorKind::ConnectionRefused.into()),
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("no connection to {host} port {port}")),
        None => bail!("no connection to {host} port {port} in time"),
    }
}

/// Whether a connection leads to itself. One whose ends cannot be told is none any more.
fn is_own_call(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(here), Ok(there)) => here == there,
        _ => false,
    }
}

fn interface(name: &str) -> Result<()> {
    let all = netlink::look()?;
    let link = match name.parse::<IpAddr>() {
        Ok(address) => {
            let mut having = all.having(address);
            let index = having.next().map(|a| a.index);
            index.and_then(|i| all.link(i))
        }
        Err(_) => all.named(name),
    };
    let link = link.with_context(|| format!("there is no interface {name}"))?;
    ensure!(link.up, "{} is down", link.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::SocketAddr;

    /// A port that nobody else gets, and that refuses a call until it listens.
    fn held_port() -> (Socket, u16) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        (socket, port)
    }

    #[test]
    fn a_checker_sees_its_end_and_that_of_its_program() {
        let (running, end) = End::new().unwrap();
        assert!(!end.comes(Duration::ZERO));
        let program = |program: &str| std::process::Command::new(program).arg("1000").spawn();
        let mut ended = program("true").unwrap();
        assert!(!end.comes_before(&Process::of(ended.id()).unwrap()));
        ended.wait().unwrap();
        let mut lasting = program("sleep").unwrap();
        let process = Process::of(lasting.id()).unwrap();
        drop(running);
        assert!(end.comes_before(&process) && end.comes(Duration::from_secs(60)));
        lasting.kill().unwrap();
        lasting.wait().unwrap();
    }

    #[test]
    fn a_port_is_up_when_somebody_listens() {
        let soon = Duration::from_secs(20);
        let (socket, port) = held_port();
        let error = tcp("127.0.0.1", port, soon).unwrap_err();
        assert!(format!("{error:#}").contains("refused"), "{error:#}");
        socket.listen(8).unwrap();
        tcp("127.0.0.1", port, soon).unwrap();
        tcp("localhost", port, soon).unwrap();
        tcp("name.invalid", 1, soon).unwrap_err();
    }

    #[test]
    fn a_call_that_has_reached_itself_is_no_port_that_is_up() {
        let (socket, port) = held_port();
        let itself: SocketAddr = ([127, 0, 0, 1], port).into();
        socket.connect(&itself.into()).unwrap();
        assert!(is_own_call(&socket.into()));
        let (socket, port) = held_port();
        socket.listen(8).unwrap();
        let called = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(!is_own_call(&called));
    }

    #[test]
    fn an_interface_is_found_by_its_name_and_by_its_address() {
        interface("lo").unwrap();
        interface("127.0.0.1").unwrap();
        let error = interface("none0").unwrap_err();
        assert_eq!(error.to_string(), "there is no interface none0");
        interface("240.0.0.1").unwrap_err();
    }
}
