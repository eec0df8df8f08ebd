//! Who settles which of two separated nodes goes on: a fence command, an etcd cluster, or
//! addresses that the one that goes on can reach; or nobody. What each of them promises is noted
//! where it is configured.

use std::net::IpAddr;
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

/// Addresses of which a node that goes on without its peer has to reach one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Splitbrain {
    pub(crate) ident: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// How long an etcd cluster may take unless configured: an election of its own takes a second or
/// two.
const ETCD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a fence command may take unless configured: a machine is not off at once.
const FENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it may take. Without any time nobody would ever have the right to go on.
fn limit(file: &str, element: &Element, unless: Duration, found: &mut Findings) -> Duration {
    let limit = duration(Some(element), "timeout", Duration::from_secs(1), unless);
    if limit.is_zero() {
        let text = "timeout must be longer than nothing, as 5s".into();
        found.wrong(file, element.at, text);
    }
    limit
}

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
    let timeout = limit(file, etcd, ETCD_TIMEOUT, found);
    found.note(
        file,
        etcd.at,
        "etcd gives the right to go on to one of two separated nodes, never to both; while it \
         cannot be asked, neither goes on"
            .into(),
    );
    Some(Etcd {
        endpoints: endpoints.to_owned(),
        ca: ca.to_owned(),
        cert: etcd.get("cert").map(str::to_owned),
        key: etcd.get("key").map(str::to_owned),
        timeout,
    })
}

pub(super) fn read_splitbrain(
    file: &str,
    service: &Element,
    found: &mut Findings,
) -> Option<Splitbrain> {
    let mut all = service
        .child("check")
        .into_iter()
        .flat_map(|c| c.all("splitbrain"));
    let element = all.next()?;
    if let Some(other) = all.next() {
        let text = "one <splitbrain> is enough: its arg takes several addresses".into();
        found.wrong(file, other.at, text);
    }
    for decides in ["fence", "etcd"] {
        if service.child(decides).is_some() {
            let text =
                format!("<splitbrain> and <{decides}> cannot be combined: one of them decides");
            found.wrong(file, element.at, text);
        }
    }
    let names = element.get("arg").unwrap_or_default();
    let mut addresses = Vec::new();
    for name in names.split([',', ';', ' ']).filter(|n| !n.is_empty()) {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                let text = format!(
                    "arg holds {name:?}, which is no IPv4 or IPv6 address: an isolated node \
                     cannot look a name up"
                );
                found.wrong(file, element.at, text);
            }
        }
    }
    found.note(
        file,
        element.at,
        "both nodes may reach the witness, and both then go on, when only the network between \
         them is cut; <etcd> and <fence> keep that from happening"
            .into(),
    );
    Some(Splitbrain {
        ident: element.get("ident").unwrap_or_default().to_owned(),
        addresses,
    })
}

/// Whether both separated nodes may go on where nobody settles it.
pub(super) fn read_isolation(file: &str, service: &Element, found: &mut Findings) -> bool {
    let said = service.get("isolation");
    let alone = said != Some("wait");
    let mut checks = service.child("check").into_iter();
    let witness = checks.any(|c| c.child("splitbrain").is_some());
    if witness || ["fence", "etcd"].iter().any(|e| service.child(e).is_some()) {
        return alone;
    }
    let mut attributes = service.attributes.iter();
    let at = attributes.find(|a| a.name == "isolation");
    let usual = if said.is_none() { ", the default" } else { "" };
    let text = match alone {
        true => format!(
            "WARNING: isolation=\"alone\"{usual}: both nodes go on when they do not hear each other \
             any more, also if only the network is cut. What one of them wrote meanwhile is then \
             given up, and kept in its archive. <etcd> or <fence> keep that from happening; \
             isolation=\"wait\" too, but no node goes on by itself when the other one dies"
        ),
        false => "isolation=\"wait\": a node that does not hear the other one any more holds its \
                  writes and waits until it does, or for your `primforce`, also if the other one is \
                  dead. Never do both go on by themselves; <etcd> or <fence> let one of them do so"
            .into(),
    };
    found.note(file, at.map_or(service.at, |a| a.at), text);
    alone
}

pub(super) fn read_fence(file: &str, service: &Element, found: &mut Findings) -> Option<Fence> {
    let fence = service.child("fence")?;
    let Some(command) = fence.get("command") else {
        found.wrong(file, fence.at, "<fence> needs the attribute command".into());
        return None;
    };
    found.note(
        file,
        fence.at,
        "a node goes on without a silent peer only when this command has ended it (exit status 0); \
         until then it holds its writes and tries again. If only the network is cut, both nodes may \
         end each other: let one of them wait first"
            .into(),
    );
    Some(Fence {
        command: command.to_owned(),
        timeout: limit(file, fence, FENCE_TIMEOUT, found),
    })
}

#[cfg(test)]
mod tests {
    use super::super::module;

    #[test]
    fn an_arbiter_has_some_time_to_answer() {
        for arbiter in [
            "<fence command=\"/f\" timeout=\"0\"/>",
            "<etcd endpoints=\"https://x:1\" ca=\"/ca\" timeout=\"0s\"/>",
        ] {
            let text = format!(
                "<safe><service>{arbiter}<rfs><replicated dir=\"/vm\"/></rfs></service></safe>"
            );
            let (_, found) = module("f", &text, |_| None);
            let said: Vec<_> = found.mistakes.iter().map(ToString::to_string).collect();
            assert!(
                said.iter().any(|s| s.contains("longer than nothing")),
                "{said:?}"
            );
        }
    }

    #[test]
    fn what_is_promised_when_the_nodes_are_separated_is_said_where_it_is_configured() {
        for (service, inside, place, says) in [
            (
                "",
                "",
                "f:1:7: ",
                "isolation=\"alone\", the default: both nodes go on",
            ),
            (
                " isolation='alone'",
                "",
                "f:1:16: ",
                "isolation=\"alone\": both nodes go on",
            ),
            (" isolation='wait'", "", "f:1:16: ", "Never do both go on"),
            (
                "",
                "<fence command='/f'/>",
                "f:1:16: ",
                "only when this command has ended it",
            ),
            (
                " isolation='wait'",
                "<etcd endpoints='https://h:1' ca='/a'/>",
                "f:1:33: ",
                "to one of two separated nodes, never to both",
            ),
            (
                "",
                "<check><splitbrain ident='w' arg='192.0.2.1'/></check>",
                "f:1:23: ",
                "both nodes may reach the witness",
            ),
        ] {
            let text = format!(
                "<safe><service{service}>{inside}<rfs><replicated dir='/d'/></rfs></service></safe>"
            );
            let (read, found) = module("f", &text, |_| None);
            assert!(read.is_some(), "{:?}", found.mistakes);
            let notes: Vec<_> = found.notes.iter().map(ToString::to_string).collect();
            let [note] = &notes[..] else {
                panic!("{text}: {notes:?}")
            };
            assert!(
                note.starts_with(place) && note.contains(says),
                "{text}: {note}"
            );
            let warns = note.contains("WARNING");
            assert_eq!(warns, note.contains("=\"alone\""), "{note}");
        }
    }
}
