//! A TCP port beside the link's, of the same number, at which nothing is said: the kernel lets
//! callers in there for as long as this process lives, and refuses them from the moment at which it
//! has ended, however it did. So the other node's controller can tell a process that is no more
//! from one that is slow, which QUIC cannot before its timeout.
//!
//! Each address is held by a thread of its own, so that callers never come between the link and
//! its work.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

/// Pause before an address is tried again: it may come later, with its network.
const RETRY: Duration = Duration::from_secs(1);

/// Pause between two callers: whoever calls as fast as he can costs no more than that.
const PAUSE: Duration = Duration::from_millis(5);

/// The ports of this process.
#[derive(Debug)]
pub struct Presence {
    /// Addresses that are not held yet.
    missing: Arc<AtomicUsize>,
}

impl Presence {
    /// Holds these addresses until the process ends, each as soon as it can; `held` is called when
    /// one is.
    pub fn hold(
        addresses: &[SocketAddr],
        held: impl Fn() + Clone + Send + 'static,
    ) -> Result<Presence> {
        let missing = Arc::new(AtomicUsize::new(addresses.len()));
        for address in addresses {
            let (address, missing, held) = (*address, missing.clone(), held.clone());
            std::thread::Builder::new()
                .name("presence".into())
                .spawn(move || hold(address, &missing, held))
                .context("cannot start the thread that holds a port")?;
        }
        Ok(Presence { missing })
    }

    /// Whether all of them are held.
    pub fn is_complete(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
}

fn hold(address: SocketAddr, missing: &AtomicUsize, held: impl Fn()) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address) {
            Ok(listener) => break listener,
            Err(error) if !said => {
                said = true;
                tracing::warn!(
                    %address, %error,
                    "this TCP port cannot be held: should all processes of this node die, its \
                     peer notices by their silence alone"
                );
            }
            Err(_) => {}
        }
        std::thread::sleep(RETRY);
    };
    missing.fetch_sub(1, Ordering::AcqRel);
    held();
    loop {
        // Nothing is said to whoever comes, and what cannot be taken waits.
        drop(listener.accept());
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn until(what: impl Fn() -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while !what() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }

    #[test]
    fn whoever_calls_is_let_in_however_many_called_before() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let presence = Presence::hold(&[address], || ()).unwrap();
        assert!(until(|| presence.is_complete()));
        // More than a kernel lets wait.
        for _ in 0..300 {
            TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        }
    }

    #[test]
    fn a_port_that_another_process_has_is_held_as_soon_as_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let presence = Presence::hold(&[address], || ()).unwrap();
        std::thread::sleep(2 * PAUSE);
        assert!(!presence.is_complete());
        drop(taken);
        assert!(until(|| presence.is_complete()));
        TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    }
}
