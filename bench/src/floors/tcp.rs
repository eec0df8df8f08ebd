//! Bare TCP between two processes, without keys: the same requests, answers and stream
//! as through QUIC. What is sent says nothing. A connection begins with bytes that only the two
//! ends know; whoever begins with others is let go.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use twinfold_controller::token::hex;

use super::quic::{ANSWER, PIECE};
use crate::load::{Measured, Tally};

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a connection may stand still.
const STILL: Duration = Duration::from_secs(30);

/// How long a client may take to say what a connection begins with.
const BEGIN: Duration = Duration::from_secs(5);

/// Bytes that a connection begins with.
const KEY: usize = 32;

/// Where the server is found, and the bytes that it expects first.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) key: String,
}

/// Bytes for a connection to begin with, as text.
pub(crate) fn key() -> String {
    hex(&rand::random::<[u8; KEY / 2]>())
}

/// Writes the bytes for a server below `dir` into a file that only root can read.
pub(crate) fn keep(key: &str, dir: &Path) -> Result<PathBuf> {
    ensure!(key.len() == KEY, "a connection begins with {KEY} bytes");
    let path = dir.join("tcp.key");
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(key.as_bytes())?;
    Ok(path)
}

/// Answers one client after the other: the first bytes of a connection are those in the file,
/// the next four say how large its requests are; size zero: reads to the end, then answers once.
pub(crate) fn serve(address: SocketAddr, key: &Path) -> Result<()> {
    let key = std::fs::read(key)?;
    let listener = TcpListener::bind(address)?;
    for connection in listener.incoming() {
        // A client that goes away ends its connection, not the server.
        if let Err(error) = answer(connection?, &key) {
            eprintln!("a client went away: {error}");
        }
    }
    Ok(())
}

fn answer(mut connection: TcpStream, key: &[u8]) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(BEGIN))?;
    let mut begin = vec![0; key.len()];
    connection.read_exact(&mut begin)?;
    // Compared by hashes, so that the time it takes tells nothing.
    if blake3::hash(&begin) != blake3::hash(key) {
        return Err(std::io::Error::other("it does not know the key"));
    }
    connection.set_read_timeout(Some(STILL))?;
    connection.set_write_timeout(Some(STILL))?;
    let mut word = [0; 4];
    connection.read_exact(&mut word)?;
    let size = u32::from_le_bytes(word) as usize;
    if size == 0 {
        let mut piece = vec![0; PIECE];
        while connection.read(&mut piece)? > 0 {}
        return connection.write_all(&[7; ANSWER]);
    }
    if size > PIECE {
        return Err(std::io::Error::other("its requests are too large"));
    }
    let mut request = vec![0; size];
    loop {
        match connection.read_exact(&mut request) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        connection.write_all(&[7; ANSWER])?;
    }
}

/// Connects to the server, which may still be starting, and says the size.
fn connect(server: &Server, size: usize) -> Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    let mut connection = loop {
        let left = until.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&server.address, left.max(BEGIN)) {
            Ok(connection) => break connection,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e).context("the TCP floor's server does not answer"),
        }
    };
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(STILL))?;
    connection.set_write_timeout(Some(STILL))?;
    connection.write_all(server.key.as_bytes())?;
    connection.write_all(&(size as u32).to_le_bytes())?;
    Ok(connection)
}

/// Requests of `size` bytes, one after the other.
pub(crate) fn round_trips(server: &Server, size: usize, time: Duration) -> Result<Measured> {
    let mut connection = connect(server, size)?;
    let (request, mut answer) = (vec![0x33; size], [0; ANSWER]);
    let mut tally = Tally::begin()?;
    while tally.elapsed() < time {
        let asked = Instant::now();
        connection.write_all(&request)?;
        connection.read_exact(&mut answer)?;
        tally.step(asked, size);
    }
    Ok(tally.end())
}

/// Pieces of 1 MiB, received to the last byte.
pub(crate) fn stream(server: &Server, time: Duration) -> Result<Measured> {
    let mut connection = connect(server, 0)?;
    let piece = vec![0x33; PIECE];
    let mut tally = Tally::begin()?;
    while tally.elapsed() < time {
        let begin = Instant::now();
        connection.write_all(&piece)?;
        tally.step(begin, piece.len());
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    let mut answer = [0; ANSWER];
    connection.read_exact(&mut answer)?;
    Ok(tally.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_begins_with_other_bytes_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let own = key();
        let expected = own.clone().into_bytes();
        let serving = std::thread::spawn(move || {
            let one = || answer(listener.accept().unwrap().0, &expected);
            [one(), one()]
        });
        let ask = |key: String| {
            let server = Server { address, key };
            // So long that a busy machine lets it do one at least.
            round_trips(&server, 4096, Duration::from_millis(300))
        };
        assert!(ask(key()).is_err());
        assert!(ask(own).unwrap().ops > 0);
        let [stranger, known] = serving.join().unwrap();
        let told = stranger.unwrap_err().to_string();
        assert!(told.contains("does not know the key"), "{told}");
        known.unwrap();
    }

    #[test]
    fn the_key_is_for_root_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = keep(&key(), dir.path()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(keep("short", dir.path()).is_err());
    }
}
