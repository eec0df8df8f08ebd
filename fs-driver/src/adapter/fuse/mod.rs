//! The FUSE adapter (Linux, `/dev/fuse`).

mod calls;
mod convert;
mod mount;

pub use calls::{negotiate, open_flags};
pub use mount::{Mounted, mount, session, unmount_stale};

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use crate::vfs::{Trust, Vfs};

/// How long the kernel trusts names and attributes while this node is primary.
pub const TRUST: Duration = Duration::from_secs(1);

thread_local! {
    /// Where reads land before they are handed to the kernel.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The callbacks of one mount.
#[derive(Debug)]
pub(super) struct Adapter {
    vfs: Arc<Vfs>,
}

impl Adapter {
    fn ttl(&self) -> Duration {
        match self.vfs.trust() {
            Trust::Long => TRUST,
            Trust::Never => Duration::ZERO,
        }
    }
}
