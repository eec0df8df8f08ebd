//! Who settles which of two separated nodes goes on: a fence command, or an etcd cluster.

use std::time::Duration;

use serde::Serialize;

use super::xml::Element;
use super::{Findings, duration, time};

/// A command that ends the peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Fence {
    pub(crate) command: String,
    #[serde(serialize_with = "time")]
    pub(crate) timeout: Duration,
}

/// An etcd cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Etcd {
    /// As `https://HOST:PORT`, separated by commas.
    pub(crate) endpoints: String,
    /// The certificates that sign the servers'.
    pub(crate) ca: String,
    /// This node's certificate and key.
    pub(crate) cert: Option<String>,
    pub(crate) key: Option<String>,
    /// How long all endpoints together may take.
    #[serde(serialize_with = "time")]
    pub(crate) timeout: Duration,
}

/// How long an etcd cluster may take unless configured: an election of its own takes a second or
/// two.
const ETCD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a fence command may take unless configured: a machine is not off at once.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn read_etcd(file: &str, service: &Element, found: &mut Findings) -> Option<Etcd> {
    let etcd = service.child("etcd")?;
    if service.child("fence").is_some() {
        let text = "<fence> and <etcd> cannot be combined: one of them decides".into();
        found.wrong(file, etcd.at, text);
    }
    if etcd.get("cert").is_some() != etcd.get("key").is_some() {
        found.wrong(file, etcd.at, "cert and key belong together".into());
    }
    let [Some(endpoints), Some(ca)] = ["endpoints", "ca"].map(|name| etcd.get(name)) else {
        let text = "<etcd> needs the attributes endpoints and ca".into();
        found.wrong(file, etcd.at, text);
        return None;
    };
    Some(Etcd {
        endpoints: endpoints.to_owned(),
        ca: ca.to_owned(),
        cert: etcd.get("cert").map(str::to_owned),
        key: etcd.get("key").map(str::to_owned),
        timeout: duration(Some(etcd), "timeout", Duration::from_secs(1), ETCD_TIMEOUT),
    })
}

pub(super) fn read_fence(file: &str, service: &Element, found: &mut Findings) -> Option<Fence> {
    let fence = service.child("fence")?;
    let Some(command) = fence.get("command") else {
        found.wrong(file, fence.at, "<fence> needs the attribute command".into());
        return None;
    };
    Some(Fence {
        command: command.to_owned(),
        timeout: duration(
            Some(fence),
            "timeout",
            Duration::from_secs(1),
            FENCE_TIMEOUT,
        ),
    })
}
