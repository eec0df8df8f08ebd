//! The settings of one replicated folder, `state/module.toml`, written by `init`
//! and by the controller (`<rfs>`), readable and editable by hand while the driver is stopped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use twinfold_protocol::limits;
use twinfold_protocol::primary::{AckMode, Config};

/// The lowest limit for a resync, in bytes per second: at less, one piece takes so long that
/// it would never end.
const MIN_LIMIT: u64 = 16 << 10;

/// Reads a rate: bytes per second, `K`, `M` or `G` behind it for 1024 times as many, or
/// `none`.
pub fn parse_limit(text: &str) -> Result<Option<u64>, String> {
    if text == "none" {
        return Ok(None);
    }
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    let bytes = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is no rate: give bytes per second, as 50M, or none"))?;
    match bytes < MIN_LIMIT {
        true => Err(format!("at least {MIN_LIMIT} bytes per second, or none")),
        false => Ok(Some(bytes)),
    }
}

/// What an acknowledgement means.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The secondary has the write on stable storage.
    Disk,
    /// The secondary has applied the write (page cache).
    Memory,
    /// Writes return after the local apply; fsync waits for both disks.
    Flush,
}

impl From<Ack> for AckMode {
    fn from(ack: Ack) -> AckMode {
        match ack {
            Ack::Disk => AckMode::Disk,
            Ack::Memory => AckMode::Memory,
            Ack::Flush => AckMode::Flush,
        }
    }
}

/// What a primary does when its peer is lost and no controller decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnPeerLoss {
    /// Go on alone. Without a witness both nodes may do so when only the network is cut.
    Alone,
    /// Hold writes until `go-alone` or the peer's return.
    Hold,
}

/// The settings of one replicated folder.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The module's name, the same on both nodes.
    pub name: String,
    /// The path the application uses.
    pub mount: PathBuf,
    /// Addresses (one a network) on which this node accepts its peer.
    pub listen: Vec<SocketAddr>,
    /// The peer's addresses, tried in turn.
    pub peer: Vec<SocketAddr>,
    /// The peer's identity, as `identity` prints it there.
    pub peer_id: String,
    /// What an acknowledgement means.
    pub ack: Ack,
    /// What happens when the peer is lost and nobody else decides.
    pub on_peer_loss: OnPeerLoss,
    /// Milliseconds without any progress after which the peer is dropped.
    pub stall_ms: u64,
    /// Milliseconds one op may wait for the peer.
    pub op_ms: u64,
    /// Milliseconds one sync may wait for the peer's disk.
    pub sync_ms: u64,
    /// Milliseconds during which a broken connection is resumed before anybody is asked.
    pub bridge_ms: u64,
    /// Seconds between durability checkpoints while there is something to flush.
    pub checkpoint_s: u64,
    /// Days for which archives of given-up copies are kept; 0 for ever.
    pub archive_days: u64,
    /// Bytes of all archives, beyond which the oldest go, but never the newest; 0 without limit.
    pub archive_bytes: u64,
    /// Bytes that a resync may read or move in a second; no limit if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resync_limit: Option<u64>,
}

impl Settings {
    /// Settings with the defaults for everything that has one.
    pub fn new(name: &str, mount: &Path, peer_id: &str) -> Settings {
        Settings {
            name: name.to_owned(),
            mount: mount.to_owned(),
            listen: Vec::new(),
            peer: Vec::new(),
            peer_id: peer_id.to_owned(),
            ack: Ack::Memory,
            on_peer_loss: OnPeerLoss::Hold,
            stall_ms: 2000,
            op_ms: 10_000,
            sync_ms: 20_000,
            bridge_ms: 500,
            checkpoint_s: 10,
            archive_days: 30,
            archive_bytes: 0,
            resync_limit: None,
        }
    }

    fn path(state: &Path) -> PathBuf {
        state.join("module.toml")
    }

    /// Reads the settings below a state directory.
    pub fn load(state: &Path) -> Result<Settings> {
        let path = Settings::path(state);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let settings: Settings =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        settings
            .check()
            .with_context(|| format!("in {}", path.display()))?;
        Ok(settings)
    }

    /// Checks and writes the settings.
    pub fn save(&self, state: &Path) -> Result<()> {
        self.check()?;
        let path = Settings::path(state);
        super::replace(&path, toml::to_string_pretty(self)?.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn check(&self) -> Result<()> {
        if self.name.is_empty() || self.name.len() > limits::MAX_MODULE_NAME {
            bail!(
                "the module name must have 1 to {} bytes",
                limits::MAX_MODULE_NAME
            );
        }
        if self.listen.is_empty() {
            bail!("at least one address to listen on is needed (--listen ADDRESS:PORT)");
        }
        if self.peer.is_empty() {
            bail!("at least one address of the peer is needed (--peer ADDRESS:PORT)");
        }
        if self.stall_ms == 0 || self.op_ms == 0 || self.sync_ms == 0 || self.checkpoint_s == 0 {
            bail!("deadlines and intervals must be longer than zero");
        }
        if self.resync_limit.is_some_and(|limit| limit < MIN_LIMIT) {
            bail!("a resync may not be limited to less than {MIN_LIMIT} bytes in a second");
        }
        if self.stall_ms > self.op_ms || self.op_ms > self.sync_ms {
            bail!("deadlines must grow: stall_ms <= op_ms <= sync_ms");
        }
        crate::link::Fingerprint::parse(&self.peer_id)
            .context("the peer's identity is not valid")?;
        Ok(())
    }

    /// The deadlines for the state machine.
    pub fn config(&self) -> Config {
        Config {
            mode: self.ack.into(),
            stall: Duration::from_millis(self.stall_ms),
            op: Duration::from_millis(self.op_ms),
            sync: Duration::from_millis(self.sync_ms),
            bridge: Duration::from_millis(self.bridge_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_units_and_nonsense_is_told() {
        assert_eq!(parse_limit("none"), Ok(None));
        assert_eq!(parse_limit("50M"), Ok(Some(50 << 20)));
        assert_eq!(parse_limit("100000"), Ok(Some(100_000)));
        assert_eq!(parse_limit("2G"), Ok(Some(2 << 30)));
        for wrong in ["", "M", "-1M", "50MB", "1K", "0", "99999999999G"] {
            let told = parse_limit(wrong).unwrap_err();
            assert!(told.contains("none"), "{wrong}: {told}");
        }
    }
}
