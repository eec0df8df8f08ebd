//! The configuration: `cluster.xml` for both nodes, `userconfig.xml` for each module.
//!
//! Every mistake in a file is reported, all at once, with its line and column and what
//! would be right. A configuration with a mistake is not used, not even in part.

mod addresses;
mod arbiter;
mod check;
mod checkers;
#[cfg(test)]
mod every;
mod file;
mod macros;
mod notify;
mod replication;
mod rules;
mod schema;
#[cfg(test)]
mod tests;
mod units;
mod xml;

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

pub(crate) use addresses::VirtualAddress;
pub(crate) use arbiter::{Etcd, Fence, Splitbrain};
pub(crate) use check::Findings;
pub(crate) use checkers::{Checker, Probe, Processes, When};
pub(crate) use file::text;
pub(crate) use notify::{Mail, Notify, Way};
pub(crate) use replication::Replication;
pub(crate) use rules::{Action, Expr, ResourceState, Rule};
use xml::Element;
pub(crate) use xml::Mistake;

/// `cluster.xml`: the nodes, and the networks between them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Cluster {
    pub(crate) port: u16,
    pub(crate) lans: Vec<Lan>,
}

/// One network between the nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Lan {
    pub(crate) name: String,
    /// Commands to the other node go over it.
    pub(crate) command: bool,
    pub(crate) nodes: Vec<NodeAddress>,
}

/// Where a node is on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct NodeAddress {
    pub(crate) name: String,
    /// As the other node reaches it.
    pub(crate) address: String,
    /// Its own address behind a translation of addresses.
    pub(crate) local: Option<IpAddr>,
}

/// `userconfig.xml`: one module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Module {
    pub(crate) service: Service,
    pub(crate) heart: Heart,
    pub(crate) folders: Vec<String>,
    pub(crate) replication: Replication,
    pub(crate) addresses: Vec<VirtualAddress>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) checkers: Vec<Checker>,
    pub(crate) rules: Vec<Rule>,
    /// How long what a rule asks for has to hold before it is done.
    #[serde(serialize_with = "time")]
    pub(crate) handle_time: Duration,
    /// What ends the peer before this node goes on without it.
    pub(crate) fence: Option<Fence>,
    pub(crate) notify: Vec<Notify>,
    /// Who gives the right to go on without the peer to one of the nodes.
    pub(crate) etcd: Option<Etcd>,
    /// What has to be reached by who goes on.
    pub(crate) splitbrain: Option<Splitbrain>,
    /// How long a stop script may take, in order and then by force.
    #[serde(skip)]
    pub(crate) stop_timeouts: [Duration; 2],
    /// How long every other script of the application may take.
    #[serde(skip)]
    pub(crate) start_timeout: Duration,
}

impl Module {
    /// The modules without which this one does not run.
    pub(crate) fn needs(&self) -> Vec<String> {
        let all = self.checkers.iter().filter_map(|c| match &c.probe {
            Probe::Module(name) => Some(name.clone()),
            _ => None,
        });
        all.collect()
    }
}

/// Whether a module starts when its node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Boot {
    /// Yes.
    On,
    /// No.
    Off,
    /// If it was to run before.
    Auto,
}

/// How a module behaves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Service {
    pub(crate) boot: Boot,
    #[serde(serialize_with = "time")]
    pub(crate) boot_delay: Duration,
    pub(crate) failover: bool,
    /// The node that shall be primary when both are up to date; none: whoever is.
    pub(crate) defaultprim: Option<String>,
    pub(crate) maxloop: u64,
    #[serde(serialize_with = "time")]
    pub(crate) loop_interval: Duration,
    pub(crate) isolation_alone: bool,
    /// A copy that was equal to the peer's less long ago may go on without it after a boot.
    #[serde(serialize_with = "time")]
    pub(crate) syncdelta: Duration,
}

/// How the nodes hear of each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Heart {
    /// How often a node says that it lives, at least: the daemons, which share their lines, follow
    /// the module that asks for the shortest one.
    #[serde(serialize_with = "time")]
    pub(crate) pulse: Duration,
    /// A node that was not heard for so long is taken for dead.
    #[serde(serialize_with = "time")]
    pub(crate) timeout: Duration,
    /// The networks it uses; all if none is named.
    pub(crate) lans: Vec<String>,
}

fn time<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&units::show(*time))
}

/// The pulse and timeout of heartbeats unless configured: a dead node is known to be dead
/// after three seconds, and fifteen lost pulses are no accident.
pub(crate) const PULSE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(3);

/// How long a stop script may take unless configured.
const STOP_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a start script may take unless configured: a database may have to recover.
const START_TIMEOUT: Duration = Duration::from_secs(600);

/// How long what a rule asks for has to hold unless configured: what passes by itself is
/// no reason to stop an application.
const HANDLE_TIME: Duration = Duration::from_secs(15);

/// Heartbeats in one timeout, at least: fewer would let single lost packets count.
pub(crate) const MIN_PULSES: u32 = 3;

/// The shortest pulse that can be had: with a shorter one a node would do little else, and a thread
/// that the kernel lets wait for a moment would look like a dead one.
pub(crate) const MIN_PULSE: Duration = Duration::from_millis(20);

/// The nodes of a cluster.
const NODES: usize = 2;

/// The controller's port unless configured.
const PORT: u16 = 4800;

fn switch(element: Option<&Element>, name: &str, default: bool) -> bool {
    element
        .and_then(|e| e.get(name))
        .and_then(units::switch)
        .unwrap_or(default)
}

fn number(element: Option<&Element>, name: &str, default: u64) -> u64 {
    element
        .and_then(|e| e.get(name))
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn duration(element: Option<&Element>, name: &str, unit: Duration, default: Duration) -> Duration {
    element
        .and_then(|e| e.get(name))
        .and_then(|v| units::time(v, unit))
        .unwrap_or(default)
}

/// Reads `cluster.xml`. Nothing comes back when there are mistakes.
pub(crate) fn cluster(file: &str, text: &str) -> (Option<Cluster>, Findings) {
    let mut found = Findings::default();
    let root = match xml::parse(file, text) {
        Ok(root) => root,
        Err(mistakes) => {
            found.mistakes = mistakes;
            return (None, found);
        }
    };
    check::check(file, schema::CLUSTER, &root, &mut found);
    let lans = root.child("lans");
    let mut all: Vec<Lan> = Vec::new();
    if root.name != "cluster" {
        return (None, found);
    }
    let Some(element) = lans else {
        let text = "<cluster> needs <lans> with at least one <lan>".into();
        found.wrong(file, root.at, text);
        return (None, found);
    };
    for lan in element.all("lan") {
        let name = lan.get("name").unwrap_or_default().to_owned();
        if all.iter().any(|l| l.name == name) {
            found.wrong(
                file,
                lan.at,
                format!("there is another lan with the name {name}"),
            );
        }
        let nodes: Vec<_> = lan
            .all("node")
            .map(|node| NodeAddress {
                name: node.get("name").unwrap_or_default().to_owned(),
                address: node.get("addr").unwrap_or_default().to_owned(),
                local: node.get("laddr").and_then(|a| a.parse().ok()),
            })
            .collect();
        if nodes.len() != NODES || nodes.windows(2).any(|w| w[0].name == w[1].name) {
            let text = format!(
                "<lan> has two nodes of different names; here are {}",
                nodes.len()
            );
            found.wrong(file, lan.at, text);
        }
        if nodes
            .windows(2)
            .any(|w| w[0].address == w[1].address && w[0].local == w[1].local)
        {
            found.wrong(file, lan.at, "both nodes have the same address".into());
        }
        all.push(Lan {
            name,
            command: switch(Some(lan), "command", all.is_empty()),
            nodes,
        });
    }
    if all.is_empty() {
        found.wrong(file, element.at, "<lans> needs at least one <lan>".into());
    }
    let names = |lan: &Lan| {
        let mut names: Vec<_> = lan.nodes.iter().map(|n| n.name.clone()).collect();
        names.sort();
        names
    };
    for (lan, at) in all.iter().zip(element.all("lan")).skip(1) {
        if names(lan) != names(&all[0]) {
            let text = format!(
                "the nodes of lan {} are not those of {}",
                lan.name, all[0].name
            );
            found.wrong(file, at.at, text);
        }
    }
    found.sort();
    let cluster = found.mistakes.is_empty().then(|| Cluster {
        port: number(lans, "port", PORT.into()) as u16,
        lans: all,
    });
    (cluster, found)
}

/// What a module names of `cluster.xml`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Around {
    /// The file.
    pub(crate) file: String,
    pub(crate) lans: Vec<String>,
    pub(crate) nodes: Vec<String>,
}

impl Around {
    pub(crate) fn new(file: &str, cluster: &Cluster) -> Around {
        let nodes = cluster.lans.first().map(|lan| &lan.nodes);
        Around {
            file: file.to_owned(),
            lans: cluster.lans.iter().map(|lan| lan.name.clone()).collect(),
            nodes: nodes
                .into_iter()
                .flatten()
                .map(|node| node.name.clone())
                .collect(),
        }
    }
}

/// Reads `userconfig.xml` by itself: see [`module_in`].
pub(crate) fn module(
    file: &str,
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> (Option<Module>, Findings) {
    module_in(file, text, variable, None)
}

/// Reads `userconfig.xml`, in a cluster if that is known; `variable` is the environment, for
/// macros that are not defined in the file. Nothing comes back when there are mistakes; what the
/// daemon does not run is one, here and nowhere else.
pub(crate) fn module_in(
    file: &str,
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
    around: Option<&Around>,
) -> (Option<Module>, Findings) {
    let mut found = Findings::default();
    let mut root = match xml::parse(file, text) {
        Ok(root) => root,
        Err(mistakes) => {
            found.mistakes = mistakes;
            return (None, found);
        }
    };
    macros::expand(file, &mut root, variable, &mut found);
    check::check(file, schema::MODULE, &root, &mut found);
    let module = match root.name.as_str() {
        "safe" => read_module(file, &root, around, &mut found),
        _ => None,
    };
    found.sort();
    (found.mistakes.is_empty().then_some(module).flatten(), found)
}

fn read_module(
    file: &str,
    root: &Element,
    around: Option<&Around>,
    found: &mut Findings,
) -> Option<Module> {
    let Some(service) = root.child("service") else {
        found.wrong(file, root.at, "<safe> needs <service>".into());
        return None;
    };
    if let Some(mode @ ("farm" | "light")) = service.get("mode") {
        let text = format!("mode=\"{mode}\" is not supported: twinfold replicates (mirror)");
        found.wrong(file, service.at, text);
    }
    if let Some(around) = around {
        fits(file, service, around, found);
    }
    let heart = read_heart(file, service, found);
    let rfs = service.child("rfs");
    let folders: Vec<String> = rfs
        .into_iter()
        .flat_map(|r| r.all("replicated"))
        .filter_map(|r| r.get("dir").map(str::to_owned))
        .collect();
    match rfs {
        None => {
            let text = "<service> needs <rfs> with a <replicated dir=...>".into();
            found.wrong(file, service.at, text);
        }
        Some(rfs) if folders.is_empty() => {
            let text = "<rfs> needs one <replicated dir=...>".into();
            found.wrong(file, rfs.at, text);
        }
        Some(rfs) => {
            for another in rfs.all("replicated").skip(1) {
                let text = "a module has one folder: make another module for this one".into();
                found.wrong(file, another.at, text);
            }
        }
    }
    let addresses = addresses::read(file, service, found);
    let checkers = checkers::read(file, service, &addresses, found);
    let rules = read_rules(file, service, &checkers, found);
    let user = service.child("user");
    Some(Module {
        service: Service {
            boot: match service.get("boot") {
                Some("on") => Boot::On,
                Some("auto") => Boot::Auto,
                _ => Boot::Off,
            },
            boot_delay: duration(
                Some(service),
                "boot_delay",
                Duration::from_secs(1),
                Duration::ZERO,
            ),
            failover: switch(Some(service), "failover", true),
            defaultprim: service
                .get("defaultprim")
                .filter(|n| !matches!(*n, "alone" | "lastprim"))
                .map(str::to_owned),
            maxloop: number(Some(service), "maxloop", 3),
            loop_interval: duration(
                Some(service),
                "loop_interval",
                Duration::from_secs(3600),
                Duration::from_secs(86_400),
            ),
            isolation_alone: arbiter::read_isolation(file, service, found),
            syncdelta: duration(rfs, "syncdelta", Duration::from_secs(60), Duration::ZERO),
        },
        heart,
        folders,
        replication: replication::read(file, rfs, found),
        addresses,
        variables: user
            .into_iter()
            .flat_map(|u| u.all("var"))
            .filter_map(|v| Some((v.get("name")?.to_owned(), v.get("value")?.to_owned())))
            .collect(),
        checkers,
        handle_time: duration(
            service.child("failover"),
            "handle_time",
            Duration::from_millis(1),
            HANDLE_TIME,
        ),
        fence: arbiter::read_fence(file, service, found),
        notify: notify::read(file, service, found),
        etcd: arbiter::read_etcd(file, service, found),
        splitbrain: arbiter::read_splitbrain(file, service, found),
        stop_timeouts: ["nicestoptimeout", "forcestoptimeout"]
            .map(|name| duration(user, name, Duration::from_secs(1), STOP_TIMEOUT)),
        start_timeout: read_start_timeout(file, user, found),
        rules,
    })
}

/// What a module names has to be in the cluster.
fn fits(file: &str, service: &Element, around: &Around, found: &mut Findings) {
    let heart = service.child("heart").into_iter();
    for beat in heart.flat_map(|h| h.all("heartbeat")) {
        let name = beat.get("name").unwrap_or_default();
        if !around.lans.iter().any(|lan| lan == name) {
            let (cluster, lans) = (&around.file, around.lans.join(", "));
            let text = format!("{cluster} has no lan {name:?}; there are {lans}");
            found.wrong(file, beat.at, text);
        }
    }
    let default = service.get("defaultprim");
    if let Some(name) = default.filter(|n| !matches!(*n, "alone" | "lastprim"))
        && !around.nodes.iter().any(|node| node == name)
    {
        let nodes = around.nodes.join(" and ");
        let text = format!("defaultprim={name:?} is none of the nodes {nodes}");
        found.wrong(file, service.at, text);
    }
}

fn read_start_timeout(file: &str, user: Option<&Element>, found: &mut Findings) -> Duration {
    let time = duration(user, "starttimeout", Duration::from_secs(1), START_TIMEOUT);
    if let Some(user) = user.filter(|_| time.is_zero()) {
        let text = "starttimeout must be longer than nothing, as 600s".into();
        found.wrong(file, user.at, text);
    }
    time
}

fn read_heart(file: &str, service: &Element, found: &mut Findings) -> Heart {
    let heart = service.child("heart");
    let millis = Duration::from_millis(1);
    let pulse = duration(heart, "pulse", millis, PULSE);
    let timeout = duration(heart, "timeout", millis, TIMEOUT);
    let attributes = heart.into_iter().flat_map(|h| &h.attributes);
    let own = attributes.into_iter().find(|a| a.name == "pulse");
    if let Some(own) = own.filter(|_| pulse < MIN_PULSE) {
        let text = format!(
            "pulse=\"{}\" is too short: {} is the shortest",
            own.value,
            units::show(MIN_PULSE)
        );
        found.wrong(file, own.at, text);
    } else if let Some(heart) = heart
        && timeout < pulse.saturating_mul(MIN_PULSES)
    {
        let text = format!(
            "the timeout ({}) holds less than {MIN_PULSES} pulses ({})",
            units::show(timeout),
            units::show(pulse)
        );
        found.wrong(file, heart.at, text);
    }
    Heart {
        pulse,
        timeout,
        lans: heart
            .into_iter()
            .flat_map(|h| h.all("heartbeat"))
            .filter_map(|h| h.get("name").map(str::to_owned))
            .collect(),
    }
}

fn read_rules(
    file: &str,
    service: &Element,
    checkers: &[Checker],
    found: &mut Findings,
) -> Vec<Rule> {
    let failover = service.child("failover");
    let mut rules = Vec::new();
    if switch(failover, "extends", true) {
        let place = xml::Place { line: 1, column: 1 };
        rules = rules::parse("built-in", place, rules::BUILT_IN, found);
    }
    rules.extend(checkers::rules(checkers));
    if let Some(failover) = failover {
        let own = rules::parse(file, failover.text_at, &failover.text, found);
        // A rule of one's own replaces a built-in one, or a checker's, of the same label.
        rules.retain(|r| own.iter().all(|o| o.label != r.label));
        rules.extend(own);
    }
    rules
}
