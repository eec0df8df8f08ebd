//! Messages between the two machines: JSON behind its length, through TLS over TCP. Sending
//! and receiving have a deadline each, for the whole message.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fs_driver::link::{Identity, SERVER_NAME, open_config, pinned_configs};
use rustls::{ClientConnection, Connection, ServerConnection, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::token::Token;

/// The protocol's name in TLS: raised when the messages change.
const PROTOCOL: &[u8] = b"twinfold-bench/1";

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 64 << 10;

/// A socket whose reads and writes end at a deadline, however slowly bytes come.
#[derive(Debug)]
struct Timed {
    tcp: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(self.left()?))?;
        self.tcp.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.left()?))?;
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to the other machine.
#[derive(Debug)]
pub(super) struct Line {
    tls: Connection,
    socket: Timed,
}

impl Read for Line {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            Connection::Client(tls) => Stream::new(tls, &mut self.socket).read(bytes),
            Connection::Server(tls) => Stream::new(tls, &mut self.socket).read(bytes),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Connection::Client(tls) => Stream::new(tls, &mut self.socket).write(bytes),
            Connection::Server(tls) => Stream::new(tls, &mut self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Connection::Client(tls) => Stream::new(tls, &mut self.socket).flush(),
            Connection::Server(tls) => Stream::new(tls, &mut self.socket).flush(),
        }
    }
}

/// How connections are accepted: from anybody who has a key, until it has said what it knows.
pub(super) fn accepting(identity: &Identity) -> Result<Arc<rustls::ServerConfig>> {
    Ok(Arc::new(open_config(identity, PROTOCOL)?))
}

impl Line {
    fn new(tls: Connection, tcp: TcpStream) -> Result<Line> {
        tcp.set_nonblocking(false)?;
        tcp.set_nodelay(true)?;
        let until = Instant::now();
        let socket = Timed { tcp, until };
        Ok(Line { tls, socket })
    }

    /// Dials the machine that printed the token, and no other one.
    pub(super) fn dial(
        to: SocketAddr,
        token: &Token,
        identity: &Identity,
        patience: Duration,
    ) -> Result<Line> {
        let (_, tls) = pinned_configs(identity, token.identity, PROTOCOL)?;
        let name = SERVER_NAME.try_into().context("the name is one")?;
        let tls = ClientConnection::new(Arc::new(tls), name)?;
        let tcp = TcpStream::connect_timeout(&to, patience)
            .with_context(|| format!("nobody listens at {to}: does `serve` still run there?"))?;
        let mut line = Line::new(Connection::Client(tls), tcp)?;
        line.shake(patience)
            .with_context(|| format!("{to} is not what printed the token"))?;
        Ok(line)
    }

    /// The other end of it.
    pub(super) fn accept(
        tls: &Arc<rustls::ServerConfig>,
        tcp: TcpStream,
        patience: Duration,
    ) -> Result<Line> {
        let tls = ServerConnection::new(tls.clone())?;
        let mut line = Line::new(Connection::Server(tls), tcp)?;
        line.shake(patience).context("no handshake")?;
        Ok(line)
    }

    fn shake(&mut self, patience: Duration) -> io::Result<()> {
        self.socket.until = Instant::now() + patience;
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.socket)?;
        }
        Ok(())
    }

    pub(super) fn send(&mut self, message: &impl Serialize, patience: Duration) -> Result<()> {
        self.socket.until = Instant::now() + patience;
        let body = serde_json::to_vec(message)?;
        ensure!(body.len() <= MAX_MESSAGE, "the message is too long");
        let mut whole = (body.len() as u32).to_le_bytes().to_vec();
        whole.extend(body);
        self.write_all(&whole)?;
        Ok(self.flush()?)
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<T> {
        self.socket.until = Instant::now() + patience;
        let mut length = [0; 4];
        self.read_exact(&mut length).map_err(plain)?;
        let length = u32::from_le_bytes(length) as usize;
        ensure!(
            length <= MAX_MESSAGE,
            "a message of {length} bytes is too long"
        );
        let mut body = vec![0; length];
        self.read_exact(&mut body).map_err(plain)?;
        serde_json::from_slice(&body).context("a message is not understood")
    }

    /// Waits for a moment at most; whether something has come, if only the end.
    pub(super) fn has_come(&self, moment: Duration) -> io::Result<bool> {
        self.socket.tcp.set_read_timeout(Some(moment))?;
        match self.socket.tcp.peek(&mut [0]) {
            Ok(_) => Ok(true),
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
                io::ErrorKind::Interrupted => Ok(false),
                _ => Err(e),
            },
        }
    }

    /// The addresses of this end and of the other one.
    pub(super) fn ends(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let tcp = &self.socket.tcp;
        Ok((tcp.local_addr()?, tcp.peer_addr()?))
    }
}

/// What an error means to a person.
fn plain(error: io::Error) -> io::Error {
    let text = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time",
        io::ErrorKind::UnexpectedEof => "the connection has ended",
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}
