//! Where this machine is found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Entries of the kernel's list that are looked at, at most.
const MOST: usize = 256;

/// All addresses of this machine but those of loopback, and those that count on one network
/// only (`getifaddrs(3)`).
pub(super) fn own() -> Vec<IpAddr> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call writes one pointer, to a list that is freed below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    for _ in 0..MOST {
        // SAFETY: it is null or an entry of the list, which is not freed yet.
        let Some(entry) = (unsafe { next.as_ref() }) else {
            break;
        };
        // SAFETY: an entry's address is null or valid as long as the list.
        let address = unsafe { ip(entry.ifa_addr) };
        found.extend(address.filter(is_of_use));
        next = entry.ifa_next;
    }
    // SAFETY: it was made above and is not used any more.
    unsafe { libc::freeifaddrs(list) };
    found
}

fn is_of_use(address: &IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !local
}

/// # Safety
///
/// `address` must be null or point to a socket address as large as its family says.
unsafe fn ip(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as promised by the caller.
    let family = unsafe { address.as_ref() }?.sa_family;
    match i32::from(family) {
        libc::AF_INET => {
            // SAFETY: this family has this type.
            let four = unsafe { &*address.cast::<libc::sockaddr_in>() };
            Some(Ipv4Addr::from(u32::from_be(four.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: this family has this type.
            let six = unsafe { &*address.cast::<libc::sockaddr_in6>() };
            Some(Ipv6Addr::from(six.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_another_machine_can_use_are_told() {
        let of_use = |text: &str| is_of_use(&text.parse().unwrap());
        assert!(of_use("10.0.0.1") && of_use("fd00::1"));
        assert!(!of_use("127.0.0.1") && !of_use("::1"));
        assert!(!of_use("169.254.0.1") && !of_use("fe80::1"));
    }
}
