//! Ports behind the one of the control line, so that an operator can tell a firewall which.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Result, bail};

/// So many ports behind the control line's are used, for UDP and TCP.
pub(crate) const PORTS: u16 = 19;

/// The next ones.
#[derive(Debug)]
pub(super) struct Ports {
    ip: IpAddr,
    first: u16,
    used: u16,
}

impl Ports {
    pub(super) fn behind(ip: IpAddr, control: u16) -> Ports {
        Ports {
            ip,
            first: control.saturating_add(1),
            used: 0,
        }
    }

    /// The next one that `open` can be done on.
    fn next(&mut self, open: impl Fn(SocketAddr) -> bool) -> Result<SocketAddr> {
        while self.used < PORTS {
            let port = self.first.checked_add(self.used);
            self.used += 1;
            let address = port.map(|port| SocketAddr::new(self.ip, port));
            if let Some(address) = address.filter(|a| open(*a)) {
                return Ok(address);
            }
        }
        let last = u32::from(self.first) + u32::from(PORTS) - 1;
        bail!(
            "no port of {} from {} to {last} is free",
            self.ip,
            self.first
        )
    }

    pub(super) fn udp(&mut self) -> Result<SocketAddr> {
        self.next(|address| UdpSocket::bind(address).is_ok())
    }

    pub(super) fn tcp(&mut self) -> Result<SocketAddr> {
        self.next(|address| TcpListener::bind(address).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_left_out_and_none_is_given_twice() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let taken = UdpSocket::bind((ip, 0)).unwrap();
        let taken = taken.local_addr().unwrap().port();
        let mut ports = Ports::behind(ip, taken.saturating_sub(2));
        let mut given = Vec::new();
        while let Ok(address) = ports.udp() {
            given.push(address.port());
        }
        assert!(!given.is_empty() && given.len() < usize::from(PORTS));
        assert!(!given.contains(&taken) && given.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn the_last_ports_of_all_are_no_more_than_there_are() {
        let mut ports = Ports::behind(IpAddr::from([127, 0, 0, 1]), u16::MAX);
        ports.used = 1;
        let told = ports.tcp().unwrap_err().to_string();
        assert!(told.contains("no port of 127.0.0.1"), "{told}");
    }
}
