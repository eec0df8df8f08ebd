//! What a `cluster.xml` says, in a form that two nodes can compare.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::config;

/// Networks that are compared one by one, at most, and letters of their names: all goes to the peer
/// in a frame. Of more it is only told whether anything differs.
const MAX_LANS: usize = 64;
const MAX_NAME: usize = 100;

/// What a `cluster.xml` says, however it is written and ordered: hashes that are equal on both nodes,
/// or the files differ.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Meaning {
    /// Of all of it.
    all: String,
    /// Of each network, by name.
    lans: BTreeMap<String, String>,
}

/// Parts do not run into each other: each is hashed with its length.
fn hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

impl Meaning {
    pub(crate) fn of(cluster: &config::Cluster) -> Meaning {
        let lan = |lan: &config::Lan| {
            let mut nodes: Vec<_> = lan.nodes.iter().collect();
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            let command = lan.command.to_string();
            let local: Vec<_> = nodes
                .iter()
                .map(|n| n.local.map(|l| l.to_string()).unwrap_or_default())
                .collect();
            let mut parts = vec![lan.name.as_str(), &command];
            for (node, local) in nodes.iter().zip(&local) {
                parts.extend([node.name.as_str(), &node.address, local]);
            }
            (lan.name.clone(), hash(&parts))
        };
        let mut lans: BTreeMap<_, _> = cluster.lans.iter().map(lan).collect();
        let port = cluster.port.to_string();
        let mut parts = vec![port.as_str()];
        parts.extend(lans.values().map(String::as_str));
        let all = hash(&parts);
        if lans.len() > MAX_LANS || lans.keys().any(|name| name.chars().count() > MAX_NAME) {
            lans.clear();
        }
        Meaning { all, lans }
    }

    /// What the other node's says differently, and what is to be done about it.
    pub(crate) fn differs(&self, other: &Meaning, peer: &str) -> Option<String> {
        if self.all == other.all {
            return None;
        }
        let mut what = String::new();
        let names = self.lans.keys().chain(other.lans.keys());
        let names: std::collections::BTreeSet<_> = names.take(2 * MAX_LANS).collect();
        for name in names {
            let name_shown = name.escape_debug();
            let place = match (self.lans.get(name), other.lans.get(name)) {
                (Some(here), Some(there)) if here == there => continue,
                (Some(_), Some(_)) => "is different",
                (Some(_), None) => "is only here",
                (None, _) => "is only there",
            };
            // Writing to a text does not fail.
            let _ = write!(what, "lan {name_shown} {place}, ");
        }
        let what = match what.strip_suffix(", ") {
            Some(what) if !self.lans.is_empty() && !other.lans.is_empty() => what,
            _ => "not in one lan alone, or in its port",
        };
        Some(format!(
            "cluster.xml is not the same here and on {peer} ({what}): make both equal, then restart \
             the daemon of each node whose file was changed (modules run on meanwhile)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(text: &str) -> Meaning {
        let (cluster, found) = config::cluster("cluster.xml", text);
        Meaning::of(&cluster.unwrap_or_else(|| panic!("{:?}", found.mistakes)))
    }

    const TEXT: &str = r#"<cluster><lans port="4800">
        <lan name="net"><node name="a" addr="192.0.2.1"/><node name="b" addr="192.0.2.2"/></lan>
        <lan name="fast"><node name="a" addr="10.0.0.1"/><node name="b" addr="10.0.0.2"/></lan>
        </lans></cluster>"#;

    #[test]
    fn how_it_is_written_makes_no_difference() {
        let other = r#"<!-- moved --><cluster>
        <lans>
          <lan name='fast' command='off'>
            <node addr='10.0.0.2' name='b'/><node name='a' addr='10.0.0.1'/></lan>
          <lan name='net' command='yes'>
            <node name='b' addr='192.0.2.2'/><node name='a' addr='192.0.2.1'/></lan>
        </lans></cluster>"#;
        assert_eq!(meaning(TEXT), meaning(other));
        assert_eq!(meaning(TEXT).differs(&meaning(other), "b"), None);
    }

    #[test]
    fn what_differs_is_named_on_both_nodes_with_what_to_do() {
        for (from, to, here, there) in [
            ("4800", "4801", "port", "port"),
            (
                "10.0.0.2",
                "10.0.0.3",
                "lan fast is different",
                "lan fast is different",
            ),
            (
                "\"fast\"",
                "\"slow\"",
                "lan slow is only there",
                "lan fast is only there",
            ),
            (
                "<lan name=\"fast\">",
                "<lan name=\"fast\" command=\"on\">",
                "lan fast is",
                "lan fast is",
            ),
            (
                "addr=\"192.0.2.1\"",
                "addr=\"192.0.2.1\" laddr=\"10.1.1.1\"",
                "lan net is",
                "lan net is",
            ),
        ] {
            let (one, other) = (meaning(TEXT), meaning(&TEXT.replacen(from, to, 1)));
            for (said, right) in [
                (one.differs(&other, "b").unwrap(), here),
                (other.differs(&one, "b").unwrap(), there),
            ] {
                assert!(
                    said.contains(right) && said.contains("on b"),
                    "{to}: {said}"
                );
                assert!(said.contains("restart the daemon"), "{said}");
            }
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["a"]), hash(&["a", ""]));
    }

    #[test]
    fn however_many_networks_there_are_it_fits_into_a_frame_and_is_compared() {
        let many = |count: usize| {
            let lans: String = (0..count)
                .map(|n| {
                    format!(
                        "<lan name=\"{n:0>100}\"><node name=\"a\" addr=\"10.0.0.1\"/>\
                         <node name=\"b\" addr=\"10.0.0.2\"/></lan>"
                    )
                })
                .collect();
            meaning(&format!("<cluster><lans>{lans}</lans></cluster>"))
        };
        for count in [64, 65, 500] {
            let length = serde_json::to_vec(&many(count)).unwrap().len();
            assert!(length < 10_000, "{length}");
            let said = many(count).differs(&many(count + 1), "b").unwrap();
            assert!(said.contains("is not the same"), "{said}");
        }
        let said = many(63).differs(&many(64), "b").unwrap();
        assert!(said.contains("63 is only there"), "{said}");
    }
}
