//! What `twinfold state` shows: a node, its networks and its modules on both nodes.
//!
//! Colours are those that operators of this field know: red is what is not ready, orange (the
//! terminal's yellow) what is on its way, green what is ready.

use std::fmt::Write;
use std::io::IsTerminal;

use crate::api::{NodeState, Resync};
use crate::config::ResourceState;
use crate::runner::ModuleState;

/// Characters of a progress bar between its brackets: with what stands beside it, it has room in
/// a line of 80.
const BAR: usize = 30;

/// When colours are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Colours {
    /// On a terminal, unless the environment has NO_COLOR or TERM=dumb.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Colours {
    /// What is painted with, on this process's output.
    pub(crate) fn paint(self) -> Paint {
        let asked = |name: &str| std::env::var_os(name).unwrap_or_default();
        Paint(match self {
            Colours::Always => true,
            Colours::Never => false,
            Colours::Auto => {
                std::io::stdout().is_terminal()
                    && asked("NO_COLOR").is_empty()
                    && asked("TERM") != "dumb"
            }
        })
    }
}

/// Whether colours are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self.0 {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    fn orange(self, text: &str) -> String {
        self.with("33", text)
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// A state in the colour of how far it is reached.
    fn state(self, state: &str, status: &str) -> String {
        let text = format!("{state} {status}");
        match status {
            "Ready" => self.green(&text),
            "Transient" => self.orange(&text),
            "NotReady" => self.red(&text),
            _ => text,
        }
    }

    fn current(self, yes: bool) -> String {
        match yes {
            true => "up to date".to_owned(),
            false => self.red("not up to date"),
        }
    }
}

/// A node with all its modules.
pub(crate) fn node(node: &NodeState, paint: Paint) -> String {
    let mut out = format!("node {}, peer {}\n", node.node, node.peer);
    if let Some(trouble) = &node.trouble {
        let _ = writeln!(out, "  {}", paint.red(trouble));
    }
    for network in &node.networks {
        let state = match (network.up, &network.trouble) {
            (true, _) => paint.green("heartbeats"),
            (false, Some(trouble)) => paint.red(&format!("lost: {trouble}")),
            (false, None) => paint.red("lost"),
        };
        let _ = writeln!(out, "  lan {}: {state}", network.name);
    }
    for one in &node.modules {
        out += &module(&node.node, &node.peer, one, paint);
    }
    for broken in &node.broken {
        let name = paint.bold(&broken.module);
        let what = paint.red("cannot be run");
        let _ = writeln!(out, "{name}: {what}: {}", broken.reason);
    }
    out
}

/// One module on both nodes.
pub(crate) fn module(node: &str, peer: &str, module: &ModuleState, paint: Paint) -> String {
    let mut out = format!(
        "{}: {node} {}, {} ({})\n",
        paint.bold(&module.module),
        paint.state(&module.state, &module.status),
        paint.current(module.up_to_date),
        module.reason
    );
    // Writing to a string does not fail.
    if let Some(percent) = module.percent {
        let _ = writeln!(out, "  {}", resync(percent, module.resync.as_ref()));
    }
    if let Some(trouble) = &module.trouble {
        let _ = writeln!(out, "  {}", paint.red(trouble));
    }
    if module.suspended {
        let text = paint.orange("checkers and rules are suspended");
        let _ = writeln!(out, "  {text}");
    }
    for (name, state) in &module.resources {
        let text = match state {
            ResourceState::Up => continue,
            ResourceState::Down => paint.red(state.text()),
            _ => paint.orange(state.text()),
        };
        let _ = writeln!(out, "  {name}: {text}");
    }
    if let Some(other) = &module.peer {
        // What was true once is in no colour of what is.
        let state = match other.silent {
            true => format!(
                "{}, was {} {}",
                paint.red("silent"),
                other.state,
                other.status
            ),
            false => paint.state(&other.state, &other.status),
        };
        let _ = writeln!(
            out,
            "  {peer} {state}, {} ({})",
            paint.current(other.up_to_date),
            other.reason
        );
    }
    out
}

/// How far a running resync is.
fn resync(percent: u8, told: Option<&Resync>) -> String {
    let phase = told.map_or(String::new(), |t| format!("{} ", t.phase));
    let mut out = format!("resync: {phase}{} {percent:>3} %", bar(percent));
    if let Some(told) = told {
        let _ = write!(out, ", {:.1} MB/s", told.rate as f64 / 1e6);
        if let Some(seconds) = told.seconds_left {
            let _ = write!(out, ", {} left", time(seconds));
        }
    }
    out
}

/// A bar that is full at 100, and not before.
fn bar(percent: u8) -> String {
    let full = BAR * usize::from(percent.min(100)) / 100;
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full))
}

/// So many seconds, in the two largest units that say something.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Broken, NetworkState};
    use crate::runner::PeerState;

    fn example() -> ModuleState {
        ModuleState {
            module: "vm".into(),
            state: "ALONE".into(),
            status: "Ready".into(),
            reason: "serves".into(),
            up_to_date: true,
            trouble: None,
            percent: Some(37),
            resync: Some(Resync {
                phase: "moving".into(),
                bytes: 5_000_000,
                rate: 12_340_000,
                seconds_left: Some(80),
            }),
            driver: Some(7),
            base: "/.vm.twinfold".into(),
            resources: [
                ("ip.up".to_owned(), ResourceState::Up),
                ("tcp.web".to_owned(), ResourceState::Down),
                ("custom.x".to_owned(), ResourceState::Unknown),
            ]
            .into(),
            suspended: false,
            needs: Vec::new(),
            ending: false,
            peer: Some(PeerState {
                state: "SECOND".into(),
                status: "Transient".into(),
                reason: "is brought up".into(),
                up_to_date: false,
                silent: false,
            }),
        }
    }

    #[test]
    fn a_module_is_shown_on_both_nodes_with_its_resync_and_what_is_not_up() {
        assert_eq!(
            module("a", "b", &example(), Paint(false)),
            "vm: a ALONE Ready, up to date (serves)\n\
             \x20 resync: moving [###########...................]  37 %, 12.3 MB/s, 1 min 20 s left\n\
             \x20 custom.x: unknown\n\
             \x20 tcp.web: down\n\
             \x20 b SECOND Transient, not up to date (is brought up)\n"
        );
    }

    #[test]
    fn colours_are_those_of_the_field_and_change_nothing_else() {
        let painted = module("a", "b", &example(), Paint(true));
        for part in [
            "\x1b[32mALONE Ready\x1b[0m",
            "\x1b[33mSECOND Transient\x1b[0m",
            "\x1b[31mnot up to date\x1b[0m",
            "\x1b[31mdown\x1b[0m",
            "\x1b[33munknown\x1b[0m",
        ] {
            assert!(painted.contains(part), "{part:?} in {painted:?}");
        }
        let stopped = ModuleState {
            state: "STOP".into(),
            status: "NotReady".into(),
            ..example()
        };
        let text = module("a", "b", &stopped, Paint(true));
        assert!(text.contains("\x1b[31mSTOP NotReady\x1b[0m"), "{text:?}");
        let mut plain = painted;
        for code in ["0", "1", "31", "32", "33"] {
            plain = plain.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(plain, module("a", "b", &example(), Paint(false)));
    }

    #[test]
    fn what_a_silent_peer_was_is_in_no_colour_of_what_is() {
        let mut silent = example();
        if let Some(peer) = &mut silent.peer {
            peer.silent = true;
        }
        let text = module("a", "b", &silent, Paint(true));
        let shown = "  b \x1b[31msilent\x1b[0m, was SECOND Transient, ";
        assert!(text.contains(shown), "{text:?}");
    }

    #[test]
    fn a_node_is_shown_with_its_networks_and_what_cannot_be_run() {
        let lan = |name: &str, up, trouble: Option<&str>| NetworkState {
            name: name.into(),
            up,
            quiet_ms: 0,
            heard: 1,
            trouble: trouble.map(str::to_owned),
        };
        let state = NodeState {
            node: "a".into(),
            peer: "b".into(),
            trouble: Some("cluster.xml differs".into()),
            networks: vec![lan("net", true, None), lan("flow", false, Some("no route"))],
            modules: Vec::new(),
            broken: vec![Broken {
                module: "db".into(),
                reason: "no folder".into(),
            }],
        };
        assert_eq!(
            node(&state, Paint(false)),
            "node a, peer b\n  cluster.xml differs\n  lan net: heartbeats\n  lan flow: lost: no route\n\
             db: cannot be run: no folder\n"
        );
        let painted = node(&state, Paint(true));
        assert!(
            painted.contains("\x1b[31mlost: no route\x1b[0m"),
            "{painted:?}"
        );
        assert!(painted.contains("\x1b[32mheartbeats\x1b[0m"), "{painted:?}");
    }

    #[test]
    fn a_bar_is_empty_at_the_beginning_and_full_only_at_the_end() {
        assert_eq!(bar(0), format!("[{}]", ".".repeat(BAR)));
        assert_eq!(bar(37), "[###########...................]");
        assert!(bar(99).ends_with(".]"));
        assert_eq!(bar(100), format!("[{}]", "#".repeat(BAR)));
        assert_eq!(bar(255), bar(100));
    }

    #[test]
    fn a_resync_of_which_only_the_percent_is_known_has_a_bar_all_the_same() {
        assert_eq!(resync(0, None), format!("resync: {}   0 %", bar(0)));
        let told = Resync {
            phase: "flushing".into(),
            bytes: 0,
            rate: 0,
            seconds_left: None,
        };
        let text = resync(99, Some(&told));
        assert!(text.ends_with(" 99 %, 0.0 MB/s"), "{text}");
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (7384, "2 h 3 min"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }
}
