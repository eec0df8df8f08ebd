//! Whether an address answers an ICMP echo.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

/// An echo that is not answered for so long is sent again: one lost packet says nothing.
const AGAIN: Duration = Duration::from_millis(500);

/// Longest answer that is looked at, in bytes: an IPv4 header with options, and an echo.
const MAX_ANSWER: usize = 256;

/// What tells the echoes of this process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The echo request of both protocols: type, code, checksum, identifier and number.
fn request(v4: bool, mark: [u8; 4]) -> [u8; 8] {
    let kind = if v4 { 8 } else { 128 };
    let mut packet = [kind, 0, 0, 0, mark[0], mark[1], mark[2], mark[3]];
    // The kernel adds that of IPv6, which covers the addresses.
    if v4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The checksum of the Internet's protocols.
fn checksum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2);
    let mut sum: u32 = pairs
        .map(|p| u32::from(p[0]) << 8 | p.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whether a packet that was received answers the request with this mark.
fn answers(v4: bool, packet: &[u8], mark: [u8; 4]) -> bool {
    // A raw socket of IPv4 sees the header of the network layer, one of IPv6 does not.
    let header = match (v4, packet.first()) {
        (true, Some(first)) => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let kind = if v4 { 0 } else { 129 };
    let echo = packet.get(header..header + 8);
    echo.is_some_and(|e| e[0] == kind && e[4..8] == mark)
}

/// Whether the address answers within this time. An error: it cannot be asked from here.
pub(crate) fn ping(address: IpAddr, patience: Duration) -> Result<bool> {
    let v4 = address.is_ipv4();
    let (domain, protocol) = match v4 {
        true => (Domain::IPV4, Protocol::ICMPV4),
        false => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("no socket for echoes")?;
    let mark = (NUMBER.fetch_add(1, Ordering::Relaxed) ^ std::process::id() << 16).to_be_bytes();
    let packet = request(v4, mark);
    let to = SocketAddr::new(address, 0).into();
    let until = Instant::now() + patience;
    let mut refused = None;
    while Instant::now() < until {
        let next = (Instant::now() + AGAIN).min(until);
        // Without a route it may have one in a moment.
        refused = socket.send_to(&packet, &to).err();
        while let Some(left) = next.checked_duration_since(Instant::now())
            && !left.is_zero()
        {
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [MaybeUninit::<u8>::uninit(); MAX_ANSWER];
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    // SAFETY: the kernel has written that many bytes of the buffer.
                    let packet =
                        unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), length) };
                    let from = from.as_socket().map(|f| f.ip());
                    if from == Some(address) && answers(v4, packet, mark) {
                        return Ok(true);
                    }
                }
                Err(e) if silent(&e) => {}
                Err(e) => return Err(e).context("no answers can be received"),
            }
        }
    }
    match refused {
        Some(error) => Err(error).with_context(|| format!("{address} cannot be reached")),
        None => Ok(false),
    }
}

fn silent(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The first of the addresses that answers within this time; all are asked at once.
pub(crate) fn first(addresses: &[IpAddr], patience: Duration) -> Result<IpAddr> {
    let (to, told) = std::sync::mpsc::channel();
    for address in addresses.iter().copied() {
        let to = to.clone();
        std::thread::Builder::new()
            .name("ping".into())
            .spawn(move || to.send((address, ping(address, patience))))
            .context("no thread can be started")?;
    }
    drop(to);
    let mut wrong = Vec::new();
    for (address, result) in told {
        match result {
            Ok(true) => return Ok(address),
            Ok(false) => wrong.push(format!("{address} does not answer")),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    bail!("{}", wrong.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers_in_both_protocols_and_nobody_where_nobody_is() {
        let soon = Duration::from_secs(20);
        assert!(ping("127.0.0.1".parse().unwrap(), soon).unwrap());
        // Where there is IPv6 at all.
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            assert!(ping("::1".parse().unwrap(), soon).unwrap());
        }
        let nobody: IpAddr = "240.0.0.1".parse().unwrap();
        assert!(!ping(nobody, Duration::from_millis(200)).unwrap_or(false));
        let found = first(&[nobody, "127.0.0.2".parse().unwrap()], soon).unwrap();
        assert_eq!(found.to_string(), "127.0.0.2");
        let error = first(&[nobody], Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("240.0.0.1"), "{error}");
    }

    #[test]
    fn an_echo_is_as_the_standard_has_it_and_only_its_own_answer_counts() {
        let packet = request(true, [0x12, 0x34, 0, 1]);
        assert_eq!(packet, [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1]);
        assert_eq!(checksum(&packet), 0);
        let mut answer = vec![0x45; 20];
        answer.extend([0, 0, 0, 0, 0x12, 0x34, 0, 1]);
        assert!(answers(true, &answer, [0x12, 0x34, 0, 1]));
        assert!(!answers(true, &answer, [0x12, 0x34, 0, 2]));
        assert!(!answers(true, &answer[..24], [0x12, 0x34, 0, 1]));
        answer[20] = 8;
        assert!(!answers(true, &answer, [0x12, 0x34, 0, 1]), "a request");
    }
}
