//! Bare TCP between two processes, without keys: the same requests, answers and stream
//! as through QUIC.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::quic::{ANSWER, PIECE};
use crate::load::{Measured, Tally};

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(15);

/// Answers one client after the other: the first four bytes of a connection say how
/// large its requests are; size zero: reads to the end, then answers once.
pub(crate) fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    for connection in listener.incoming() {
        // A client that goes away ends its connection, not the server.
        if let Err(error) = answer(connection?) {
            eprintln!("a client went away: {error}");
        }
    }
    Ok(())
}

fn answer(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut word = [0; 4];
    connection.read_exact(&mut word)?;
    let size = u32::from_le_bytes(word) as usize;
    if size == 0 {
        let mut piece = vec![0; PIECE];
        while connection.read(&mut piece)? > 0 {}
        return connection.write_all(&[7; ANSWER]);
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
fn connect(port: u16, size: usize) -> Result<TcpStream> {
    let until = Instant::now() + PATIENCE;
    let mut connection = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(connection) => break connection,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e).context("the TCP floor's server does not answer"),
        }
    };
    connection.set_nodelay(true)?;
    connection.write_all(&(size as u32).to_le_bytes())?;
    Ok(connection)
}

/// Requests of `size` bytes, one after the other.
pub(crate) fn round_trips(port: u16, size: usize, time: Duration) -> Result<Measured> {
    let mut connection = connect(port, size)?;
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
pub(crate) fn stream(port: u16, time: Duration) -> Result<Measured> {
    let mut connection = connect(port, 0)?;
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
