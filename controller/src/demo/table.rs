//! The result, as a table and as JSON.

use std::fmt;

use serde::Serialize;

/// Bytes moved at most, for each byte changed.
const MOVED_AT_MOST: f64 = 1.2;

/// What the demonstration has shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// Operations that succeeded on either mount.
    pub(crate) acknowledged: u64,
    /// Of these, those not found where they must be.
    pub(crate) lost: u64,
    /// From the power cut until the application was started on the other node.
    pub(crate) started_ms: u64,
    /// From the power cut to the first write that succeeded on the other node.
    pub(crate) writable_ms: u64,
    /// Bytes of data changed while one node was away.
    pub(crate) bytes_changed: u64,
    /// Bytes of data the resync moved.
    pub(crate) bytes_moved: u64,
    /// From the start of the old primary until both copies were equal.
    pub(crate) resync_ms: u64,
    /// From the last write on one node to the first one on the other, in a swap.
    pub(crate) swap_ms: u64,
    /// Objects in the folder that were compared.
    pub(crate) compared_objects: u64,
    /// Both copies are equal in all.
    pub(crate) identical: bool,
    /// All of it.
    pub(crate) seconds: f64,
}

impl Outcome {
    /// Nothing lost, nothing different, no more moved than promised.
    pub(crate) fn is_good(&self) -> bool {
        self.lost == 0 && self.identical && self.moved_little()
    }

    fn moved_little(&self) -> bool {
        self.bytes_moved as f64 <= self.bytes_changed as f64 * MOVED_AT_MOST
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let factor = self.bytes_moved as f64 / self.bytes_changed.max(1) as f64;
        row(
            f,
            "operations acknowledged",
            &grouped(self.acknowledged),
            "",
        )?;
        row(
            f,
            "acknowledged writes lost",
            &grouped(self.lost),
            bad(self.lost > 0),
        )?;
        let started = grouped(self.started_ms);
        row(f, "application started after, ms", &started, "")?;
        row(
            f,
            "writable again after, ms",
            &grouped(self.writable_ms),
            "",
        )?;
        row(
            f,
            "bytes changed meanwhile",
            &grouped(self.bytes_changed),
            "",
        )?;
        row(
            f,
            "bytes moved by the resync",
            &grouped(self.bytes_moved),
            &format!("   x {factor:.3}{}", bad(!self.moved_little())),
        )?;
        row(f, "resync, ms", &grouped(self.resync_ms), "")?;
        row(f, "swap, ms without a write", &grouped(self.swap_ms), "")?;
        let identical = match self.identical {
            true => "yes",
            false => "no",
        };
        row(f, "copies identical", identical, bad(!self.identical))?;
        row(f, "duration, s", &format!("{:.1}", self.seconds), "")
    }
}

/// One row of a table.
pub(crate) fn row(f: &mut fmt::Formatter<'_>, what: &str, value: &str, note: &str) -> fmt::Result {
    writeln!(f, "  {what:<32}{value:>16}{note}")
}

/// The note beside what must not be.
pub(crate) fn bad(is_bad: bool) -> &'static str {
    if is_bad { "   <-- must not be" } else { "" }
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict() {
        let good = Outcome {
            acknowledged: 100_000,
            lost: 0,
            started_ms: 11,
            writable_ms: 12,
            bytes_changed: 1_000_000,
            bytes_moved: 1_200_000,
            resync_ms: 800,
            swap_ms: 40,
            compared_objects: 10,
            identical: true,
            seconds: 1.0,
        };
        assert!(good.is_good());
        assert!(!good.to_string().contains("must not be"));
        for bad in [
            Outcome {
                lost: 1,
                ..good.clone()
            },
            Outcome {
                bytes_moved: 1_200_001,
                ..good.clone()
            },
            Outcome {
                identical: false,
                ..good.clone()
            },
        ] {
            assert!(!bad.is_good());
            assert_eq!(bad.to_string().matches("must not be").count(), 1);
        }
    }

    #[test]
    fn digits_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(n), text);
        }
    }
}
