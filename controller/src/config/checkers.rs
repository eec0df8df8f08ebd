//! `<check>`, `<errd>`: what is looked at, and the rules that follow from it.

use std::net::IpAddr;
use std::time::Duration;

use regex::Regex;
use serde::Serialize;

use super::rules::{Action, Expr, ResourceState, Rule};
use super::xml::Element;
use super::{Findings, VirtualAddress, duration, number, time};

/// Something that is looked at and sets a resource.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Checker {
    pub(crate) class: String,
    pub(crate) ident: String,
    pub(crate) when: When,
    pub(crate) action: String,
    pub(crate) probe: Probe,
    #[serde(serialize_with = "time")]
    pub(crate) interval: Duration,
    #[serde(serialize_with = "time")]
    pub(crate) timeout: Duration,
    /// Before the first look.
    #[serde(serialize_with = "time")]
    pub(crate) start_after: Duration,
}

impl Checker {
    /// The name of its resource.
    pub(crate) fn resource(&self) -> String {
        format!("{}.{}", self.class, self.ident)
    }
}

/// In which states of the module it looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum When {
    /// Always, from before the start to the stop.
    Pre,
    /// While the application runs here.
    Prim,
    /// While this node follows.
    Second,
    /// Both.
    Both,
    /// While this node follows, or serves alone.
    Sec,
}

/// What is looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Probe {
    /// Somebody accepts connections there.
    Tcp { host: String, port: u16 },
    /// A machine answers echoes.
    Ping { host: String },
    /// An interface, by its name or an address of it, is up.
    Interface(String),
    /// A virtual address is set here, and nowhere else.
    Address(IpAddr),
    /// So many processes run.
    Process(Processes),
    /// Another module of the two nodes serves, on whichever of them.
    Module(String),
    /// A program says.
    Custom { exec: String, arg: Option<String> },
}

/// Which processes, and how many.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Processes {
    /// The name of their program, unless an expression says more.
    pub(crate) name: String,
    pub(crate) name_like: Option<String>,
    pub(crate) arguments_like: Option<String>,
    pub(crate) at_least: u64,
    pub(crate) at_most: Option<u64>,
}

/// How often is looked, and how long an answer may take, unless configured.
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often processes are counted.
const POLL: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

fn when(element: &Element, default: When) -> When {
    match element.get("when").or(element.get("class")) {
        Some("pre") => When::Pre,
        Some("prim") => When::Prim,
        Some("second") => When::Second,
        Some("both") => When::Both,
        Some("sec") => When::Sec,
        _ => default,
    }
}

pub(super) fn read(
    file: &str,
    service: &Element,
    addresses: &[VirtualAddress],
    found: &mut Findings,
) -> Vec<Checker> {
    let mut all: Vec<Checker> = Vec::new();
    let errd = service.child("errd");
    let poll = duration(errd, "polltimer", SECOND, POLL);
    let checks = service.child("check").into_iter().flat_map(|c| &c.children);
    let processes = errd.into_iter().flat_map(|e| e.all("proc"));
    for element in checks.chain(processes) {
        let Some(probe) = probe(file, element, found) else {
            continue;
        };
        let ident = element
            .get("ident")
            .or(element.get("name"))
            .unwrap_or_default();
        if all
            .iter()
            .any(|c| c.class == element.name && c.ident == ident)
        {
            let text = format!("there is another <{}> with the name {ident}", element.name);
            found.wrong(file, element.at, text);
        }
        let (default, action) = match element.name.as_str() {
            "ping" | "intf" | "module" => (When::Pre, "wait"),
            "ip" | "proc" => (When::Prim, "stopstart"),
            "tcp" => (When::Prim, "restart"),
            _ => (When::Pre, "noaction"),
        };
        let to = element.child("to");
        all.push(Checker {
            class: element.name.clone(),
            ident: ident.to_owned(),
            when: when(element, default),
            action: element.get("action").unwrap_or(action).to_owned(),
            probe,
            interval: match element.name.as_str() {
                "proc" => poll,
                "module" => SECOND,
                _ => duration(to, "interval", SECOND, INTERVAL),
            }
            .max(SECOND),
            timeout: duration(to, "timeout", SECOND, TIMEOUT),
            start_after: duration(Some(element), "start_after", SECOND, Duration::ZERO),
        });
    }
    of_addresses(addresses, &mut all);
    all
}

/// Virtual addresses and their interfaces are looked at without being told.
fn of_addresses(addresses: &[VirtualAddress], all: &mut Vec<Checker>) {
    for vip in addresses {
        let interface = vip.interface.clone().filter(|_| vip.check_interface);
        let interface = interface.map(|i| ("intf", i.clone(), Probe::Interface(i)));
        let address = vip.check.then_some(vip.address);
        let address = address.map(|a| ("ip", a.to_string(), Probe::Address(a)));
        for (class, ident, probe) in interface.into_iter().chain(address) {
            if all.iter().any(|c| c.class == class && c.ident == ident) {
                continue;
            }
            let (when, action) = match class {
                "ip" => (When::Prim, "stopstart"),
                _ => (When::Pre, "wait"),
            };
            all.push(Checker {
                class: class.to_owned(),
                ident,
                when,
                action: action.to_owned(),
                probe,
                interval: INTERVAL,
                timeout: TIMEOUT,
                start_after: Duration::ZERO,
            });
        }
    }
}

/// `None`: it is none of these, or there is a mistake in it.
fn probe(file: &str, element: &Element, found: &mut Findings) -> Option<Probe> {
    let to = element.child("to");
    let host = to.and_then(|t| t.get("addr")).map(str::to_owned);
    if to.is_none() && matches!(element.name.as_str(), "tcp" | "ping" | "ip") {
        let text = format!("<{}> needs <to addr=...>", element.name);
        found.wrong(file, element.at, text);
        return None;
    }
    match element.name.as_str() {
        "tcp" => {
            let to = to?;
            if to.get("port").is_none() {
                found.wrong(file, to.at, "<to> of <tcp> needs the attribute port".into());
            }
            Some(Probe::Tcp {
                host: host?,
                port: to.get("port")?.parse().ok()?,
            })
        }
        "ping" => Some(Probe::Ping { host: host? }),
        "intf" => {
            let name = element.get("local").or(element.get("ident"));
            Some(Probe::Interface(name?.to_owned()))
        }
        "ip" => match host?.parse() {
            Ok(address) => Some(Probe::Address(address)),
            Err(_) => {
                let text = "<to> of <ip> needs an IPv4 or IPv6 address".into();
                found.wrong(file, element.at, text);
                None
            }
        },
        "module" => Some(Probe::Module(element.get("name")?.to_owned())),
        "custom" => Some(Probe::Custom {
            exec: element.get("exec")?.to_owned(),
            arg: element.get("arg").map(str::to_owned),
        }),
        "proc" => {
            for name in ["nameregex", "argregex"] {
                if let Some(Err(error)) = element.get(name).map(Regex::new) {
                    found.wrong(file, element.at, format!("{name}: {error}"));
                }
            }
            Some(Probe::Process(Processes {
                name: element.get("name")?.to_owned(),
                name_like: element.get("nameregex").map(str::to_owned),
                arguments_like: element.get("argregex").map(str::to_owned),
                at_least: number(Some(element), "atleast", 1),
                at_most: element.get("atmax").and_then(|n| n.parse().ok()),
            }))
        }
        _ => None,
    }
}

/// The rules of checkers with an action of their own: `t_web: if (tcp.web == down) then restart;`.
/// What the built-in rules say of a class anyway is not said again.
pub(super) fn rules(checkers: &[Checker]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for checker in checkers {
        let prefix = match checker.class.as_str() {
            "tcp" => "t",
            "ping" => "p",
            "custom" => "c",
            other => other,
        };
        let action = match checker.action.as_str() {
            "restart" => Action::Restart,
            "stopstart" => Action::Stopstart,
            "stop" => Action::Stop,
            "wait" => Action::Wait,
            "swap" => Action::Swap,
            _ => continue,
        };
        if matches!(
            (checker.class.as_str(), action),
            ("intf" | "module", Action::Wait) | ("ip", Action::Stopstart)
        ) {
            continue;
        }
        rules.push(Rule {
            label: format!("{prefix}_{}", checker.ident),
            when: Expr::Is {
                remote: false,
                class: checker.class.clone(),
                id: checker.ident.clone(),
                state: ResourceState::Down,
            },
            action,
        });
    }
    rules
}
