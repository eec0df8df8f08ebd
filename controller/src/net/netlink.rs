//! This node's interfaces and their addresses.
//!
//! The kernel answers while it holds a lock that a network driver in trouble may keep for long:
//! each question is asked on a thread of its own, and has a deadline.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SendError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// It is switched on, and there is somebody at the other end of the cable.
    pub(crate) up: bool,
    /// Its hardware address, if addresses are looked for by hardware on it.
    pub(crate) hardware: Option<[u8; 6]>,
}

/// An address of an interface.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    /// Somebody else has it, the kernel says.
    pub(crate) duplicate: bool,
    message: AddressMessage,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interfaces {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
}

impl Interfaces {
    pub(crate) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    /// Whether an interface of this machine has this hardware address. Several of them in one
    /// network answer for each other's addresses (`arp_ignore`, ip-sysctl).
    pub(crate) fn is_own(&self, hardware: [u8; 6]) -> bool {
        self.links.iter().any(|l| l.hardware == Some(hardware))
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|l| l.name == name)
    }

    /// Where an address is set.
    pub(crate) fn having(&self, address: IpAddr) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.address == address)
    }

    /// The address in whose network another one lies: the one of the smallest such network.
    pub(crate) fn beside(&self, address: IpAddr) -> Option<&Address> {
        let near = |a: &&Address| a.address != address && within(address, a.address, a.prefix);
        self.addresses.iter().filter(near).max_by_key(|a| a.prefix)
    }
}

/// Whether an address lies in the network of another.
pub(crate) fn within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let cut = |bits: u128, width: u32| match u32::from(prefix) {
        0 => 0,
        prefix => bits >> width.saturating_sub(prefix),
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            let [a, n] = [a, n].map(|x| cut(u32::from(x).into(), 32));
            // A single address is no network.
            prefix < 32 && a == n
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            let [a, n] = [a, n].map(|x| cut(u128::from(x), 128));
            prefix < 128 && a == n
        }
        _ => false,
    }
}

/// How long the kernel may take: it answers within a millisecond or two.
const ANSWER: Duration = Duration::from_secs(2);

/// Questions without an answer, at most: each keeps a thread.
const MAX_OPEN: usize = 32;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// The kernel does not answer: nothing is known.
#[derive(Debug)]
pub(crate) struct Unanswered;

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "the kernel does not answer for its interfaces: a network driver keeps it waiting",
        )
    }
}

impl std::error::Error for Unanswered {}

/// Asks the kernel, in time.
fn with<T: Send + 'static, F: Future<Output = Result<T>>>(
    ask: impl FnOnce(Handle) -> F + Send + 'static,
) -> Result<T> {
    in_time(&OPEN, ANSWER, move || asked(ask), |_| {})
}

/// Asks the kernel; the connection lives as long as the question.
fn asked<T, F: Future<Output = Result<T>>>(ask: impl FnOnce(Handle) -> F) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("no connection to the kernel's netlink")?;
        tokio::spawn(connection);
        ask(handle).await
    })
}

/// Asks on a thread of its own, which is left to itself when that takes too long, and is one of
/// those that `open` counts; `late` gets the answer that nobody waits for any more.
fn in_time<T: Send + 'static>(
    open: &'static AtomicUsize,
    patience: Duration,
    ask: impl FnOnce() -> Result<T> + Send + 'static,
    late: impl FnOnce(T) + Send + 'static,
) -> Result<T> {
    if open.fetch_add(1, Ordering::AcqRel) >= MAX_OPEN {
        open.fetch_sub(1, Ordering::AcqRel);
        bail!(Unanswered);
    }
    let (tell, told) = channel();
    let asked = std::thread::Builder::new()
        .name("netlink".into())
        .spawn(move || {
            if let Err(SendError(Ok(answer))) = tell.send(ask()) {
                late(answer);
            }
            open.fetch_sub(1, Ordering::AcqRel);
        });
    if let Err(error) = asked {
        open.fetch_sub(1, Ordering::AcqRel);
        return Err(error).context("no thread can be started");
    }
    match told.recv_timeout(patience) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => bail!(Unanswered),
        Err(RecvTimeoutError::Disconnected) => bail!("the question to the kernel failed"),
    }
}

/// What there is now.
pub(crate) fn look() -> Result<Interfaces> {
    with(|handle| async move {
        let mut all = Interfaces::default();
        let mut links = handle.link().get().execute();
        while let Some(message) = links.try_next().await.context("no list of interfaces")? {
            all.links.push(link(&message.header, &message.attributes));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.context("no list of addresses")? {
            all.addresses.extend(address(message));
        }
        Ok(all)
    })
}

fn link(header: &rtnetlink::packet_route::link::LinkHeader, attributes: &[LinkAttribute]) -> Link {
    let mut link = Link {
        index: header.index,
        name: String::new(),
        up: header.flags.contains(LinkFlags::Up | LinkFlags::Running),
        hardware: None,
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes)
                if !header
                    .flags
                    .intersects(LinkFlags::Noarp | LinkFlags::Loopback) =>
            {
                link.hardware = bytes.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    link
}

fn address(message: AddressMessage) -> Option<Address> {
    let mut own = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            // Where both are there, `Address` is the other end of a line.
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => own = own.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        address: own?,
        prefix: message.header.prefix_len,
        duplicate: flags.contains(AddressFlags::Dadfailed),
        message,
    })
}

/// Sets an address. The kernel need not find out whether somebody has it. One that is set only
/// after this has failed is removed again.
pub(crate) fn add(index: u32, address: IpAddr, prefix: u8) -> Result<()> {
    let set = move |handle: Handle| async move {
        let mut request = handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            let nodad = AddressAttribute::Flags(AddressFlags::Nodad);
            message.attributes.push(nodad);
        }
        Ok(request.execute().await?)
    };
    let late = move |()| {
        let undone = look().and_then(|all| {
            let mut here = all.having(address).filter(|a| a.index == index);
            here.try_for_each(remove)
        });
        if let Err(error) = undone {
            tracing::error!("{address} was set too late: {error:#}");
        }
    };
    in_time(&OPEN, ANSWER, move || asked(set), late)
        .with_context(|| format!("{address} cannot be set"))
}

/// Removes one that was seen.
pub(crate) fn remove(address: &Address) -> Result<()> {
    let message = address.message.clone();
    with(|handle| async move { Ok(handle.address().del(message).execute().await?) })
        .with_context(|| format!("{} cannot be removed", address.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interfaces_of_this_machine_are_seen() {
        let all = look().unwrap();
        let lo = all.named("lo").unwrap();
        assert_eq!((lo.hardware, all.link(lo.index)), (None, Some(lo)));
        let local = "127.0.0.1".parse().unwrap();
        assert!(all.having(local).all(|a| a.prefix == 8));
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_not_waited_for_and_costs_so_many_threads() {
        static MINE: AtomicUsize = AtomicUsize::new(0);
        let (release, held) = channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let (tell_late, late) = channel();
        let ask = || {
            let (held, tell_late) = (held.clone(), tell_late.clone());
            let work = move || {
                let _ = held.lock().map(|held| held.recv());
                Ok(7)
            };
            in_time(&MINE, Duration::from_millis(1), work, move |answer| {
                tell_late.send(answer).unwrap();
            })
        };
        for _ in 0..MAX_OPEN + 8 {
            let error = ask().unwrap_err();
            assert!(error.is::<Unanswered>(), "{error:#}");
        }
        let open = MINE.load(Ordering::Acquire);
        drop(release);
        // Each of those that were asked has its answer undone.
        drop(tell_late);
        let late: Vec<i32> = late.iter().collect();
        assert!((1..=MAX_OPEN).contains(&late.len()) && late.iter().all(|l| *l == 7));
        assert!(open <= MAX_OPEN, "{open}");
        in_time(&MINE, Duration::from_secs(20), || Ok(()), |()| {}).unwrap();
    }

    #[test]
    fn an_address_lies_in_a_network_by_its_first_bits() {
        let check =
            |a: &str, n: &str, prefix| within(a.parse().unwrap(), n.parse().unwrap(), prefix);
        assert!(check("10.0.0.9", "10.0.0.1", 24));
        assert!(!check("10.0.1.9", "10.0.0.1", 24));
        assert!(check("10.0.1.9", "10.0.0.1", 23));
        assert!(!check("10.0.0.1", "10.0.0.1", 32));
        assert!(check("fd80::9", "fd80::1", 64));
        assert!(!check("fd80:0:0:1::9", "fd80::1", 64));
        assert!(check("1.2.3.4", "9.9.9.9", 0));
        assert!(!check("1.2.3.4", "fd80::1", 0));
    }
}
