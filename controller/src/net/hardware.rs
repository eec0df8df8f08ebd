//! The hardware addresses of this node's interfaces, as its peer is told them.
//!
//! A module's thread tells the peer how the module is, and waits for nothing: what it says of the
//! interfaces is what another thread saw last.

use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use super::netlink;
use super::vips::MAX_HARDWARE;

/// Interfaces come and go: how often is looked.
const LOOK: Duration = Duration::from_secs(1);

static SEEN: Mutex<Vec<[u8; 6]>> = Mutex::new(Vec::new());

static WATCH: Once = Once::new();

/// Who is told that something is different; false: nobody is there any more.
type Tell = Box<dyn Fn() -> bool + Send>;

static TOLD: Mutex<Vec<Tell>> = Mutex::new(Vec::new());

/// What was seen last.
pub(crate) fn seen() -> Vec<[u8; 6]> {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Calls this when something is different, until it returns false.
pub(crate) fn tell(tell: impl Fn() -> bool + Send + 'static) {
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.push(Box::new(tell));
}

/// From now on they are looked at, as long as the process lives. Waits for the first look.
pub(crate) fn watch() {
    WATCH.call_once(|| {
        look();
        let work = || {
            loop {
                std::thread::sleep(LOOK);
                look();
            }
        };
        let spawned = std::thread::Builder::new()
            .name("hardware".into())
            .spawn(work);
        if let Err(error) = spawned {
            tracing::error!(%error, "interfaces that come are not seen");
        }
    });
}

fn look() {
    match netlink::look() {
        Ok(all) => {
            let mut now: Vec<_> = all.links.iter().filter_map(|l| l.hardware).collect();
            now.truncate(MAX_HARDWARE);
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *seen, now.clone());
            drop(seen);
            if before != now {
                let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
                told.retain(|tell| tell());
            }
        }
        // What was seen before is the best that is known.
        Err(error) => tracing::warn!("{error:#}"),
    }
}
