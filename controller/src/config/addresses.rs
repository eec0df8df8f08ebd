//! `<vip>`: the addresses that go with the primary.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::xml::Element;
use super::{Findings, duration, switch, time};

/// An address that goes with the primary.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct VirtualAddress {
    pub(crate) address: IpAddr,
    pub(crate) prefix: Option<u8>,
    pub(crate) interface: Option<String>,
    pub(crate) check: bool,
    /// The interface is watched as well.
    pub(crate) check_interface: bool,
    /// How often it is announced again, and for how long after it was set.
    #[serde(serialize_with = "time")]
    pub(crate) announce_every: Duration,
    #[serde(serialize_with = "time")]
    pub(crate) announce_for: Duration,
}

/// How often an address is announced again unless configured, and for how long: what has not
/// heard of it by then asks.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(60);
const ANNOUNCE_FOR: Duration = Duration::from_secs(1200);

pub(super) fn read(file: &str, service: &Element, found: &mut Findings) -> Vec<VirtualAddress> {
    let mut all: Vec<VirtualAddress> = Vec::new();
    let mut open: Vec<(&Element, Option<&Element>)> = service
        .child("vip")
        .into_iter()
        .map(|v| (v, None))
        .collect();
    while let Some((element, interface)) = open.pop() {
        let interface = match element.name.as_str() {
            "interface" => Some(element),
            _ => interface,
        };
        if element.name == "virtual_addr" {
            let Some(address) = element.get("addr").and_then(|a| a.parse::<IpAddr>().ok()) else {
                continue;
            };
            let prefix = element.get("netmask").map(|mask| prefix_of(mask, address));
            if prefix == Some(None) {
                let text =
                    "netmask is neither a number of bits nor a mask like 255.255.255.0".into();
                found.wrong(file, element.at, text);
            }
            if all.iter().any(|a| a.address == address) {
                found.wrong(file, element.at, format!("{address} is there twice"));
            }
            let second = Duration::from_secs(1);
            let every = duration(interface, "arpinterval", second, ANNOUNCE_EVERY);
            if let (Some(interface), true) = (interface, every < second) {
                let text = "arpinterval is shorter than 1s".into();
                found.wrong(file, interface.at, text);
            }
            all.push(VirtualAddress {
                address,
                prefix: prefix.flatten(),
                interface: interface.and_then(|i| i.get("name")).map(str::to_owned),
                check: switch(Some(element), "check", true),
                check_interface: interface.is_some() && switch(interface, "check", true),
                announce_every: every.max(second),
                announce_for: duration(interface, "arpelapse", second, ANNOUNCE_FOR),
            });
        }
        open.extend(element.children.iter().map(|c| (c, interface)));
    }
    all.sort_by_key(|a| a.address);
    all
}

/// The bits of a network mask, as a number or in four parts.
fn prefix_of(mask: &str, address: IpAddr) -> Option<u8> {
    let most = if address.is_ipv4() { 32 } else { 128 };
    if let Ok(bits) = mask.parse::<u8>() {
        return (bits <= most).then_some(bits);
    }
    let bits = u32::from(mask.parse::<std::net::Ipv4Addr>().ok()?);
    let ones = bits.leading_ones();
    (bits.count_ones() == ones && address.is_ipv4()).then_some(ones as u8)
}
