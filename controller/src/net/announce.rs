//! Who has an address: the question whether somebody has it, and the word to all that it is
//! here. ARP for IPv4 (RFC 5227), neighbour advertisements for IPv6 (RFC 4861).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::netlink::Link;

/// Who hears everything.
const ALL: [u8; 6] = [0xff; 6];

/// The kind of frame that carries ARP.
const ARP: u16 = 0x0806;

/// Length of an ARP frame without its padding.
const FRAME: usize = 42;

/// How often is asked whether somebody has an address, and how long an answer may take: a
/// machine on the same wire answers within a millisecond.
const QUESTIONS: usize = 3;
const ANSWER: Duration = Duration::from_millis(100);

/// A hardware address as it is written.
pub(crate) fn show(hardware: [u8; 6]) -> String {
    hardware.map(|b| format!("{b:02x}")).join(":")
}

/// And as it is read.
pub(crate) fn read(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|b| u8::from_str_radix(b, 16).ok());
    bytes.collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// An ARP frame to all.
fn frame(operation: u8, hardware: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> [u8; FRAME] {
    let mut out = [0; FRAME];
    out[..6].copy_from_slice(&ALL);
    out[6..12].copy_from_slice(&hardware);
    out[12..14].copy_from_slice(&ARP.to_be_bytes());
    // Ethernet, IPv4, and the lengths of their addresses.
    out[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    out[21] = operation;
    out[22..28].copy_from_slice(&hardware);
    out[28..32].copy_from_slice(&sender.octets());
    out[38..42].copy_from_slice(&target.octets());
    out
}

/// The hardware address that a frame claims for an address.
fn claims(frame: &[u8], address: Ipv4Addr) -> Option<[u8; 6]> {
    let arp = frame.len() >= FRAME && frame[12..14] == ARP.to_be_bytes();
    let told = arp && frame[28..32] == address.octets();
    told.then(|| frame[22..28].try_into().ok()).flatten()
}

fn arp_socket(link: &Link) -> io::Result<Socket> {
    let protocol = ARP.to_be();
    let socket = Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(protocol))),
    )?;
    // SAFETY: the storage is larger than a link-layer address, which is written whole.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as libc::sa_family_t;
            to.sll_protocol = protocol;
            to.sll_ifindex = link.index as i32;
            storage.cast::<libc::sockaddr_ll>().write(to);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket)
}

/// Who else has this address on the network of an interface. Nobody is asked where there is
/// nobody to ask by hardware.
pub(crate) fn holder(link: &Link, address: IpAddr) -> Result<Option<[u8; 6]>> {
    let Some(hardware) = link.hardware else {
        return Ok(None);
    };
    let other = match address {
        IpAddr::V4(address) => {
            // From nobody: what others remember of the address stays as it is.
            let question = frame(1, hardware, Ipv4Addr::UNSPECIFIED, address);
            arp_socket(link).and_then(|socket| {
                let send = || socket.send(&question);
                asked(&socket, send, |heard| claims(heard, address))
            })
        }
        IpAddr::V6(address) => neighbour_socket(link).and_then(|socket| {
            // Those whose address ends so listen there.
            let mut group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).octets();
            group[13..].copy_from_slice(&address.octets()[13..]);
            let to = SocketAddrV6::new(group.into(), 0, 0, link.index).into();
            let question = solicitation(hardware, address);
            let send = || socket.send_to(&question, &to);
            asked(&socket, send, |heard| advertises(heard, address))
        }),
    };
    let other = other.with_context(|| format!("cannot ask on {} who has {address}", link.name))?;
    Ok(other.filter(|o| *o != hardware))
}

/// Asks until there is an answer, or there is none.
fn asked(
    socket: &Socket,
    send: impl Fn() -> io::Result<usize>,
    answer: impl Fn(&[u8]) -> Option<[u8; 6]>,
) -> io::Result<Option<[u8; 6]>> {
    for _ in 0..QUESTIONS {
        send()?;
        let until = Instant::now() + ANSWER;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && !left.is_zero()
        {
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            // SAFETY: the kernel has written that many bytes of the buffer.
            let heard = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), length) };
            if let Some(other) = answer(heard) {
                return Ok(Some(other));
            }
        }
    }
    Ok(None)
}

/// Tells everybody on an interface's network that an address is here.
pub(crate) fn announce(link: &Link, address: IpAddr) -> Result<()> {
    let Some(hardware) = link.hardware else {
        return Ok(());
    };
    match address {
        IpAddr::V4(address) => announce_v4(link, hardware, address),
        IpAddr::V6(address) => announce_v6(link, hardware, address),
    }
    .with_context(|| format!("cannot announce {address} on {}", link.name))
}

fn announce_v4(link: &Link, hardware: [u8; 6], address: Ipv4Addr) -> io::Result<()> {
    let socket = arp_socket(link)?;
    // Some take note of questions only, some of answers only.
    for operation in [1, 2] {
        socket.send(&frame(operation, hardware, address, address))?;
    }
    Ok(())
}

/// An advertisement that nobody has asked for, which replaces what is known.
fn advertisement(hardware: [u8; 6], address: Ipv6Addr) -> [u8; 32] {
    let mut out = [0; 32];
    out[0] = 136;
    out[4] = 0x20;
    out[8..24].copy_from_slice(&address.octets());
    // The target's hardware address, in units of eight bytes.
    out[24..26].copy_from_slice(&[2, 1]);
    out[26..].copy_from_slice(&hardware);
    out
}

/// The question who has an address, from who asks: it is not answered otherwise.
fn solicitation(hardware: [u8; 6], address: Ipv6Addr) -> [u8; 32] {
    let mut out = [0; 32];
    out[0] = 135;
    out[8..24].copy_from_slice(&address.octets());
    out[24..26].copy_from_slice(&[1, 1]);
    out[26..].copy_from_slice(&hardware);
    out
}

/// The hardware address that an advertisement names for an address.
fn advertises(packet: &[u8], address: Ipv6Addr) -> Option<[u8; 6]> {
    let told = packet.len() >= 24 && packet[0] == 136 && packet[8..24] == address.octets();
    let mut options = packet.get(24..).filter(|_| told)?;
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        if kind == 2 && length == 8 {
            return options.get(2..8)?.try_into().ok();
        }
        // An option without a length has no end.
        options = options.get(length..).filter(|_| length > 0)?;
    }
    None
}

fn neighbour_socket(link: &Link) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    // Others take only what no router has passed on.
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(link.index)?;
    Ok(socket)
}

fn announce_v6(link: &Link, hardware: [u8; 6], address: Ipv6Addr) -> io::Result<()> {
    let socket = neighbour_socket(link)?;
    socket.bind(&SocketAddrV6::new(address, 0, 0, link.index).into())?;
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SocketAddrV6::new(all_nodes, 0, 0, link.index).into();
    socket.send_to(&advertisement(hardware, address), &to)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_the_standards_have_them() {
        let me = [2, 0, 0, 0, 0, 7];
        let address = Ipv4Addr::new(10, 0, 0, 9);
        let told = frame(1, me, address, address);
        let expected = [
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0,
            0, 0, 7, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9,
        ];
        assert_eq!(told, expected);
        assert_eq!(claims(&told, address), Some(me));
        assert_eq!(claims(&told, Ipv4Addr::new(10, 0, 0, 8)), None);
        assert_eq!(claims(&told[..40], address), None);
        let asked = frame(1, me, Ipv4Addr::UNSPECIFIED, address);
        assert_eq!(claims(&asked, address), None, "who asks has it not");

        let told = advertisement(me, "fd80::9".parse().unwrap());
        assert_eq!(told[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(told[8..10], [0xfd, 0x80]);
        assert_eq!(told[23..], [9, 2, 1, 2, 0, 0, 0, 0, 7]);
        let address = "fd80::9".parse().unwrap();
        assert_eq!(advertises(&told, address), Some(me));
        assert_eq!(advertises(&told, "fd80::8".parse().unwrap()), None);
        assert_eq!(advertises(&told[..24], address), None);
        assert_eq!(advertises(&told[..31], address), None);
        let mut endless = told;
        endless[24..26].copy_from_slice(&[1, 0]);
        assert_eq!(advertises(&endless, address), None);
        let asked = solicitation(me, address);
        assert_eq!(asked[..9], [135, 0, 0, 0, 0, 0, 0, 0, 0xfd]);
        assert_eq!(asked[23..], [9, 1, 1, 2, 0, 0, 0, 0, 7]);
        assert_eq!(show(me), "02:00:00:00:00:07");
        assert_eq!(read(&show(me)), Some(me));
        assert_eq!(read("02:00:00:00:00"), None);
    }
}
