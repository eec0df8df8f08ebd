//! Figures for Prometheus, in its text format (version 0.0.4).
//!
//! Each is made when it is asked for. Counters begin anew with the process that counts: those
//! of a module with its driver.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fs_driver::control::{self, Request};
use fs_driver::store::Layout;
use serde_json::Value;

use super::{NodeState, Resync, node_state, refuse};
use crate::daemon::Node;

const STATES: [&str; 5] = ["STOP", "WAIT", "ALONE", "PRIM", "SECOND"];
const STATUSES: [&str; 3] = ["NotReady", "Transient", "Ready"];

/// Figures of a driver: its name in the driver's status, whether it only grows, its name here
/// and what it is.
const OF_DRIVERS: [(&str, bool, &str, &str); 8] = [
    (
        "in_flight_ops",
        false,
        "in_flight_ops",
        "Ops on their way to the peer.",
    ),
    (
        "in_flight_bytes",
        false,
        "in_flight_bytes",
        "Bytes of file data on their way to the peer.",
    ),
    (
        "dirty_objects",
        false,
        "dirty_objects",
        "Objects that a resync would move.",
    ),
    (
        "dirty_bytes",
        false,
        "dirty_bytes",
        "Bytes of file data that a resync would move.",
    ),
    (
        "suspect_objects",
        false,
        "suspect_objects",
        "Objects that a resync would compare.",
    ),
    (
        "applied_ops",
        true,
        "applied_ops_total",
        "Ops applied here for the peer.",
    ),
    (
        "applied_bytes",
        true,
        "applied_bytes_total",
        "Bytes of file data in them.",
    ),
    (
        "received_bytes",
        true,
        "resync_received_bytes_total",
        "Bytes of file data received by resyncs.",
    ),
];

/// The text, family by family: all samples of one stand together.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, grows: bool, help: &str) {
        let kind = if grows { "counter" } else { "gauge" };
        // Writing to a string does not fail.
        let _ = writeln!(
            self.0,
            "# HELP twinfold_{name} {help}\n# TYPE twinfold_{name} {kind}"
        );
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(k, v)| format!("{k}=\"{}\"", escaped(v)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "twinfold_{name}{labels} {value}");
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn text(node: &NodeState, drivers: &[(String, Value)]) -> String {
    let mut out = Text::default();
    out.family("info", false, "This node and its release.");
    let version = env!("CARGO_PKG_VERSION");
    out.sample(
        "info",
        &[
            ("node", &node.node),
            ("peer", &node.peer),
            ("version", version),
        ],
        1,
    );
    out.family("network_up", false, "Heartbeats arrive over this network.");
    for n in &node.networks {
        out.sample("network_up", &[("network", &n.name)], u8::from(n.up));
    }
    out.family(
        "network_heard_total",
        true,
        "Heartbeats, and what else was heard over this network, since the daemon's start.",
    );
    for n in &node.networks {
        out.sample("network_heard_total", &[("network", &n.name)], n.heard);
    }
    out.family(
        "network_quiet_seconds",
        false,
        "Since the last heartbeat over this network.",
    );
    for n in &node.networks {
        let quiet = n.quiet_ms as f64 / 1000.0;
        out.sample("network_quiet_seconds", &[("network", &n.name)], quiet);
    }
    out.family(
        "module_state",
        false,
        "1 for the state that the module has on this node.",
    );
    for m in &node.modules {
        for state in STATES {
            let is = u8::from(m.state == state);
            out.sample(
                "module_state",
                &[("module", &m.module), ("state", state)],
                is,
            );
        }
    }
    out.family(
        "module_status",
        false,
        "1 for how far that state is reached.",
    );
    for m in &node.modules {
        for status in STATUSES {
            let is = u8::from(m.status == status);
            out.sample(
                "module_status",
                &[("module", &m.module), ("status", status)],
                is,
            );
        }
    }
    out.family(
        "module_up_to_date",
        false,
        "This node's copy holds every acknowledged write.",
    );
    for m in &node.modules {
        out.sample(
            "module_up_to_date",
            &[("module", &m.module)],
            u8::from(m.up_to_date),
        );
    }
    out.family(
        "module_trouble",
        false,
        "The driver says that something is wrong.",
    );
    for m in &node.modules {
        out.sample(
            "module_trouble",
            &[("module", &m.module)],
            u8::from(m.trouble.is_some()),
        );
    }
    out.family(
        "module_peer_silent",
        false,
        "Nothing is heard of the module on the peer.",
    );
    for m in &node.modules {
        let silent = m.peer.as_ref().is_none_or(|p| p.silent);
        out.sample(
            "module_peer_silent",
            &[("module", &m.module)],
            u8::from(silent),
        );
    }
    out.family("module_resync_ratio", false, "How far a running resync is.");
    for m in &node.modules {
        if let Some(percent) = m.percent {
            let ratio = f64::from(percent) / 100.0;
            out.sample("module_resync_ratio", &[("module", &m.module)], ratio);
        }
    }
    let resyncs: Vec<_> = drivers
        .iter()
        .filter_map(|(module, status)| Some((module, Resync::of(status)?)))
        .collect();
    out.family(
        "resync_bytes_per_second",
        false,
        "Bytes that a running resync compares or moves in a second, of late.",
    );
    for (module, resync) in &resyncs {
        out.sample(
            "resync_bytes_per_second",
            &[("module", module)],
            resync.rate,
        );
    }
    out.family(
        "resync_seconds_left",
        false,
        "Until the phase of a running resync ends at this rate.",
    );
    for (module, resync) in &resyncs {
        if let Some(seconds) = resync.seconds_left {
            out.sample("resync_seconds_left", &[("module", module)], seconds);
        }
    }
    out.family("module_broken", false, "The module cannot be run.");
    for b in &node.broken {
        out.sample("module_broken", &[("module", &b.module)], 1);
    }
    for (key, grows, name, help) in OF_DRIVERS {
        out.family(name, grows, help);
        for (module, status) in drivers {
            if let Some(value) = status[key].as_u64() {
                out.sample(name, &[("module", module)], value);
            }
        }
    }
    out.0
}

/// Figures for Prometheus.
#[utoipa::path(
    get,
    path = "/api/v1/metrics",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(node): State<Arc<Node>>) -> Response {
    let state = node_state(&node);
    let look = move || {
        let running = state.modules.iter().filter(|m| m.driver.is_some());
        let drivers: Vec<_> = running
            .filter_map(|m| {
                let layout = Layout::new(PathBuf::from(&m.base));
                // One that does not answer has no figures.
                let status = control::ask(&layout, Request::Status).ok()??;
                Some((m.module.clone(), status))
            })
            .collect();
        text(&state, &drivers)
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(text) => {
            let kind = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
            (StatusCode::OK, kind, text).into_response()
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Broken, NetworkState};

    #[test]
    fn every_sample_stands_behind_what_it_is_and_labels_are_escaped() {
        let node = NodeState {
            node: "a".into(),
            peer: "b".into(),
            trouble: None,
            networks: vec![NetworkState {
                name: "net \"1\"".into(),
                up: true,
                quiet_ms: 1500,
                heard: 12,
                trouble: None,
            }],
            modules: Vec::new(),
            broken: vec![Broken {
                module: "x\\y".into(),
                reason: "wrong".into(),
            }],
        };
        let status = serde_json::json!({"dirty_bytes": 4096, "applied_ops": 7, "resync": {
            "phase": "moving", "moved_bytes": 1, "rate": 2e6, "seconds_left": 9.0,
        }});
        let text = text(&node, &[("vm".into(), status)]);
        for line in [
            "twinfold_network_up{network=\"net \\\"1\\\"\"} 1",
            "twinfold_network_heard_total{network=\"net \\\"1\\\"\"} 12",
            "twinfold_network_quiet_seconds{network=\"net \\\"1\\\"\"} 1.5",
            "twinfold_module_broken{module=\"x\\\\y\"} 1",
            "twinfold_dirty_bytes{module=\"vm\"} 4096",
            "twinfold_resync_bytes_per_second{module=\"vm\"} 2000000",
            "twinfold_resync_seconds_left{module=\"vm\"} 9",
            "# TYPE twinfold_applied_ops_total counter",
            "twinfold_applied_ops_total{module=\"vm\"} 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("in_flight_ops{"),
            "what was not told has no sample"
        );
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(family), "{line}"),
            }
        }
    }
}
