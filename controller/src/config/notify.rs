//! Who is told what happens to a module: a command, or somebody by mail.

use std::time::Duration;

use lettre::Address;
use serde::Serialize;

use super::xml::Element;
use super::{Findings, duration, number, time};

/// Kinds of events, as the event log has them.
const KINDS: [&str; 6] = ["state", "command", "script", "driver", "peer", "error"];

/// What is told unless configured.
const USUAL: &str = "state,error";

/// How long the command, or the mail server, may take unless configured: a mail server may be slow.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where a mail server takes mail of those who log in (RFC 6409).
const SUBMISSION: u64 = 587;

/// Attributes that only a mail has.
const OF_MAIL: [&str; 6] = ["from", "server", "port", "user", "passwordfile", "ca"];

/// What is told of events of some kinds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Notify {
    #[serde(flatten)]
    pub(crate) way: Way,
    pub(crate) events: Vec<String>,
    #[serde(serialize_with = "time")]
    pub(crate) timeout: Duration,
}

/// How it is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// A command is run for each event.
    Command(String),
    /// A mail is sent.
    Mail(Mail),
}

/// A mail, by SMTP and never without TLS. The password is not here, but in a file of root's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Mail {
    pub(crate) to: Vec<Address>,
    pub(crate) from: Address,
    pub(crate) server: String,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<String>,
    /// Who has signed the server's certificate; nothing: one of those the system believes.
    pub(crate) ca: Option<String>,
}

pub(super) fn read(file: &str, service: &Element, found: &mut Findings) -> Vec<Notify> {
    let mut all = Vec::new();
    for element in service.all("notify") {
        let way = match (element.get("command"), element.get("mail")) {
            (Some(command), None) => command_of(element, command),
            (None, Some(to)) => mail_of(element, to).map(Way::Mail),
            _ => Err("<notify> needs either the attribute command or the attribute mail".into()),
        };
        let events = element
            .get("events")
            .unwrap_or(USUAL)
            .split(',')
            .map(str::trim);
        let events: Vec<_> = events.map(str::to_owned).collect();
        for event in events.iter().filter(|e| !KINDS.contains(&e.as_str())) {
            let text = format!("events={event:?} is none of {}", KINDS.join(", "));
            found.wrong(file, element.at, text);
        }
        match way {
            Ok(way) => all.push(Notify {
                way,
                events,
                timeout: duration(Some(element), "timeout", Duration::from_secs(1), TIMEOUT),
            }),
            Err(text) => found.wrong(file, element.at, text),
        }
    }
    all
}

fn command_of(element: &Element, command: &str) -> Result<Way, String> {
    match OF_MAIL.iter().find(|name| element.get(name).is_some()) {
        Some(name) => Err(format!(
            "the attribute {name} is for mail=, not for command="
        )),
        None => Ok(Way::Command(command.to_owned())),
    }
}

fn mail_of(element: &Element, to: &str) -> Result<Mail, String> {
    let address = |text: &str| {
        let text = text.trim();
        text.parse::<Address>()
            .map_err(|error| format!("{text:?} is no mail address: {error}"))
    };
    let needed = |name: &str| {
        let given = element.get(name);
        given.ok_or_else(|| format!("<notify mail=...> needs the attribute {name}"))
    };
    let own = |name: &str| element.get(name).map(str::to_owned);
    let (user, password_file) = (own("user"), own("passwordfile"));
    if user.is_some() != password_file.is_some() {
        return Err("<notify mail=...>: user and passwordfile go together".into());
    }
    Ok(Mail {
        to: to.split(',').map(address).collect::<Result<_, _>>()?,
        from: address(needed("from")?)?,
        server: needed("server")?.to_owned(),
        port: number(Some(element), "port", SUBMISSION) as u16,
        user,
        password_file,
        ca: own("ca"),
    })
}
