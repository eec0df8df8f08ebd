//! The clocks, read in one place.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use twinfold_protocol::time::{Instant, Timestamp};

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    // Never zero: that is the moment before all others.
    Instant(start.elapsed().as_nanos() as u64 + 1)
}

/// The wall clock, in seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    u64::try_from(wall().secs).unwrap_or(0)
}

/// A moment, given in seconds since 1970, as people read it.
pub(crate) fn utc(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(t) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        Err(_) => format!("{seconds} s after 1970"),
    }
}

/// The wall clock.
pub(crate) fn wall() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(d) => Timestamp {
            secs: d.as_secs() as i64,
            nanos: d.subsec_nanos(),
        },
        Err(_) => Timestamp::default(),
    }
}
