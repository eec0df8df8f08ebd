//! `<rfs>`: how the folder is replicated, as far as an operator says so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_driver::state::{Ack, Settings};
use serde::Serialize;

use super::check::Findings;
use super::units;
use super::xml::Element;

/// What a limit is given in: KB/s, as `reiallowedbw` always was.
const LIMIT_UNIT: u64 = 1024;

/// Settings of the driver; what is not said stays as `init` made it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct Replication {
    /// What an acknowledgement means.
    pub(crate) ack: Option<Ack>,
    /// Bytes that a resync may read or move in a second.
    pub(crate) limit: Option<u64>,
    /// How long an op or a sync may wait for the peer, in milliseconds.
    pub(crate) patience_ms: Option<u64>,
    /// Seconds between checkpoints.
    pub(crate) checkpoint_s: Option<u64>,
}

pub(super) fn read(file: &str, rfs: Option<&Element>, found: &mut Findings) -> Replication {
    let Some(rfs) = rfs else {
        return Replication::default();
    };
    let words = (rfs.get("ack"), rfs.get("async"));
    if let (Some(ack), Some(other)) = words {
        let text = format!("ack=\"{ack}\" and async=\"{other}\" say the same thing: leave one out");
        found.wrong(file, rfs.at, text);
    }
    let ack = match words {
        (Some("disk"), _) | (None, Some("none")) => Some(Ack::Disk),
        (Some("memory"), _) | (None, Some("second")) => Some(Ack::Memory),
        (Some("flush"), _) => Some(Ack::Flush),
        _ => None,
    };
    let time = |name: &str| {
        let text = rfs.get(name)?;
        let time = units::time(text, Duration::from_secs(1))?;
        Some(time).filter(|t| !t.is_zero())
    };
    Replication {
        ack,
        limit: rfs
            .get("reiallowedbw")
            .and_then(|v| v.parse::<u64>().ok())
            .map(|v| v.saturating_mul(LIMIT_UNIT)),
        patience_ms: time("sendtimeout").map(|t| t.as_millis() as u64),
        checkpoint_s: time("checkpoint").map(|t| t.as_secs().max(1)),
    }
}

impl Replication {
    /// Puts it into the settings of the folder whose driver does not run.
    pub(crate) fn write(&self, state: &Path) -> Result<()> {
        let before = Settings::load(state)?;
        let mut settings = before.clone();
        settings.ack = self.ack.unwrap_or(settings.ack);
        settings.resync_limit = self.limit.or(settings.resync_limit);
        settings.checkpoint_s = self.checkpoint_s.unwrap_or(settings.checkpoint_s);
        if let Some(patience) = self.patience_ms {
            settings.op_ms = patience;
            settings.sync_ms = patience;
            settings.stall_ms = settings.stall_ms.min(patience);
        }
        match settings == before {
            true => Ok(()),
            false => settings
                .save(state)
                .context("the settings of <rfs> cannot be used"),
        }
    }
}
