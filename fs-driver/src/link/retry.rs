//! How long a secondary waits before it dials again, and what it says of what went wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use quinn::ConnectionError;

/// Pause between two rounds over the peer's addresses.
pub(super) const RETRY: Duration = Duration::from_millis(100);

/// The same after the primary refused this copy: nothing changes that fast. But one that has
/// only lost its line is not kept out for so long, see [`after_refusal`].
pub(super) const RETRY_REFUSED: Duration = Duration::from_secs(1);

/// The longest pause after this copy failed to apply what it was sent, again and again.
pub(super) const RETRY_FAILED: Duration = Duration::from_secs(30);

/// The pause after a refusal. A primary that believes the old connection to be alive refuses to
/// resume the session; it notices within `stall`, and then waits for its peer no longer than its
/// `bridge_ms`, which may be shorter than [`RETRY_REFUSED`]. So a copy that was up to date until
/// it lost its line comes again at once, for as long as that may be the reason.
pub(super) fn after_refusal(
    only_the_line_broke: bool,
    refused_for: Duration,
    stall: Duration,
) -> Duration {
    match only_the_line_broke && refused_for < stall {
        true => RETRY,
        false => RETRY_REFUSED,
    }
}

/// What went wrong since this copy was up to date, each said once.
#[derive(Default)]
pub(super) struct Said(BTreeSet<String>);

impl Said {
    /// Reasons that are remembered, at most.
    const MOST: usize = 16;

    pub(super) fn is_new(&mut self, reason: &str) -> bool {
        if self.0.len() >= Said::MOST {
            self.0.clear();
        }
        self.0.insert(reason.to_owned())
    }
}

/// What to tell the operator when one of the two does not accept the other's key.
pub(super) fn refused_key(error: &anyhow::Error) -> Option<String> {
    /// Codes of failed TLS handshakes (RFC 9001, 4.8): an alert above this number.
    const CRYPTO: std::ops::Range<u64> = 0x100..0x200;
    let (who, code) = error.chain().find_map(|e| match e.downcast_ref()? {
        ConnectionError::TransportError(e) => Some(("this node refuses", e.code)),
        ConnectionError::ConnectionClosed(e) => Some(("the peer refuses", e.error_code)),
        _ => None,
    })?;
    CRYPTO.contains(&u64::from(code)).then(|| {
        format!(
            "{who} the other's key or protocol ({code}): compare what `identity` prints on each \
             node with the --peer-id given to the other"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_only_lost_its_line_comes_again_while_its_primary_may_not_know_it_yet() {
        let settings = crate::state::Settings::new("vm", std::path::Path::new("/vm"), "tf1-x");
        let stall = Duration::from_millis(settings.stall_ms);
        let bridge = Duration::from_millis(settings.bridge_ms);
        for refused in [Duration::ZERO, stall * 3 / 4] {
            assert!(after_refusal(true, refused, stall) * 2 < bridge);
            assert_eq!(after_refusal(false, refused, stall), RETRY_REFUSED);
        }
        assert_eq!(
            after_refusal(true, stall, stall),
            RETRY_REFUSED,
            "for another reason"
        );
    }
}
