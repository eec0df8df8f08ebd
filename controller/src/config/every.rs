//! Every attribute of the schema is either read or named: no setting is quietly ignored.

use super::schema::{self, Attr, Kind, Rule, Support};
use super::{cluster, module};

/// An attribute and a value of it.
type Value = (&'static str, &'static str);

/// Where an element stands in a file that is right: the attributes come in place of `@`. Those
/// that it needs, or that others only count beside, are there by themselves.
struct Example {
    element: &'static str,
    parent: &'static str,
    inside: &'static str,
    /// What is in `<service>`, or nothing more than the example.
    service: bool,
    beside: &'static [Value],
}

const fn of(
    element: &'static str,
    parent: &'static str,
    inside: &'static str,
    beside: &'static [Value],
) -> Example {
    Example {
        element,
        parent,
        inside,
        service: true,
        beside,
    }
}

const fn whole(element: &'static str, inside: &'static str, beside: &'static [Value]) -> Example {
    Example {
        service: false,
        ..of(element, "", inside, beside)
    }
}

const VIP: &str = "<vip><interface_list><interface @><real_interface>\
                   <virtual_addr addr='192.0.2.9'/></real_interface></interface></interface_list></vip>";
const MAIL: &[Value] = &[
    ("mail", "a@b.org"),
    ("from", "a@b.org"),
    ("server", "s"),
    ("user", "u"),
    ("passwordfile", "/p"),
];

const EXAMPLES: &[Example] = &[
    whole(
        "lans",
        "<cluster><lans @><lan name='n'><node name='a' addr='192.0.2.7'/>\
         <node name='b' addr='192.0.2.8'/></lan></lans></cluster>",
        &[],
    ),
    whole(
        "lan",
        "<cluster><lans><lan @><node name='a' addr='192.0.2.7'/>\
         <node name='b' addr='192.0.2.8'/></lan></lans></cluster>",
        &[("name", "n")],
    ),
    whole(
        "node",
        "<cluster><lans><lan name='n'><node @/><node name='b' addr='192.0.2.8'/></lan></lans>\
         </cluster>",
        &[("name", "a"), ("addr", "192.0.2.7")],
    ),
    whole(
        "macro",
        "<safe><macro @/><service><rfs><replicated dir='/%x%%y%'/></rfs></service></safe>",
        &[("name", "x"), ("value", "v")],
    ),
    whole(
        "service",
        "<safe><service @><rfs><replicated dir='/vm'/></rfs></service></safe>",
        &[],
    ),
    of("heart", "", "<heart @/>", &[("timeout", "60s")]),
    of(
        "heartbeat",
        "",
        "<heart><heartbeat @/></heart>",
        &[("name", "n")],
    ),
    of("fence", "", "<fence @/>", &[("command", "/f")]),
    of("notify", "", "<notify @/>", MAIL),
    of("notify", "", "<notify @/>", &[("command", "/c")]),
    of(
        "etcd",
        "",
        "<etcd @/>",
        &[
            ("endpoints", "https://h:1"),
            ("ca", "/a"),
            ("cert", "/c"),
            ("key", "/k"),
        ],
    ),
    whole(
        "rfs",
        "<safe><service><rfs @><replicated dir='/vm'/></rfs></service></safe>",
        &[],
    ),
    whole(
        "replicated",
        "<safe><service><rfs><replicated @/></rfs></service></safe>",
        &[("dir", "/vm")],
    ),
    of("vip", "", "<vip @/>", &[]),
    of("interface", "", VIP, &[("name", "e")]),
    of(
        "virtual_addr",
        "",
        "<vip><virtual_addr @/></vip>",
        &[("addr", "192.0.2.9")],
    ),
    of("user", "", "<user @/>", &[]),
    of(
        "var",
        "",
        "<user><var @/></user>",
        &[("name", "n"), ("value", "v")],
    ),
    of("errd", "", "<errd @><proc name='p'/></errd>", &[]),
    of("proc", "", "<errd><proc @/></errd>", &[("name", "p")]),
    of(
        "tcp",
        "",
        "<check><tcp @><to addr='h' port='1'/></tcp></check>",
        &[("ident", "i")],
    ),
    of(
        "ping",
        "",
        "<check><ping @><to addr='h'/></ping></check>",
        &[("ident", "i")],
    ),
    of("intf", "", "<check><intf @/></check>", &[("ident", "i")]),
    of(
        "ip",
        "",
        "<check><ip @><to addr='192.0.2.9'/></ip></check>",
        &[("ident", "i")],
    ),
    of(
        "custom",
        "",
        "<check><custom @/></check>",
        &[("ident", "i"), ("exec", "e")],
    ),
    of(
        "module",
        "",
        "<check><module @/></check>",
        &[("name", "m"), ("ident", "i")],
    ),
    of(
        "splitbrain",
        "",
        "<check><splitbrain @/></check>",
        &[("ident", "i"), ("arg", "192.0.2.9")],
    ),
    of(
        "to",
        "tcp",
        "<check><tcp ident='i'><to @/></tcp></check>",
        &[("addr", "h"), ("port", "1")],
    ),
    of(
        "to",
        "ping",
        "<check><ping ident='i'><to @/></ping></check>",
        &[("addr", "h")],
    ),
    of("failover", "", "<failover @/>", &[]),
];

/// Two values that are right, of those whose kind says too little.
const VALUES: &[(&str, &str, [&str; 2])] = &[
    ("macro", "name", ["x", "y"]),
    ("notify", "mail", ["x@b.org", "y@b.org"]),
    ("notify", "from", ["x@b.org", "y@b.org"]),
    ("notify", "events", ["state", "error"]),
    ("virtual_addr", "netmask", ["24", "255.255.0.0"]),
    ("splitbrain", "arg", ["192.0.2.1", "192.0.2.2 192.0.2.3"]),
];

/// Two values of an attribute that are right; of what has one word only, that.
fn values(element: &str, attribute: &Attr) -> [&'static str; 2] {
    let own = VALUES
        .iter()
        .find(|(e, a, _)| (*e, *a) == (element, attribute.name));
    match (own, attribute.kind) {
        (Some((_, _, values)), _) => *values,
        (_, Kind::Text | Kind::Name) => ["x", "y"],
        (_, Kind::Switch) => ["on", "off"],
        (_, Kind::Millis | Kind::Seconds | Kind::Minutes | Kind::Hours) => ["7s", "8s"],
        (_, Kind::Number(..)) => ["20", "30"],
        (_, Kind::OneOf(words)) => [words[0], words[words.len() - 1]],
        (_, Kind::Address | Kind::Host) => ["192.0.2.1", "192.0.2.2"],
        (_, Kind::Path) => ["/x", "/y"],
    }
}

/// What is read of an example with one more value: all of it, and what is said of the attribute.
fn read(example: &Example, (name, value): (&str, &str)) -> (String, Vec<String>) {
    let beside = example.beside.iter().filter(|(n, _)| *n != name);
    let all: Vec<_> = beside
        .chain([&(name, value)])
        .map(|(n, v)| format!("{n}='{v}'"))
        .collect();
    let text = example.inside.replace('@', &all.join(" "));
    let text = match example.service {
        true => format!("<safe><service><rfs><replicated dir='/vm'/></rfs>{text}</service></safe>"),
        false => text,
    };
    let (read, found) = match text.starts_with("<cluster>") {
        true => {
            let (read, found) = cluster("f", &text);
            (format!("{read:?}"), found)
        }
        false => {
            let (read, found) = module("f", &text, |_| Some("other".into()));
            (format!("{read:?}"), found)
        }
    };
    let at = text.find(&format!("{name}='{value}'")).unwrap();
    let of_it = |m: &&super::Mistake| m.at == super::xml::place(&text, at);
    let said = found.mistakes.iter().chain(&found.notes).filter(of_it);
    let said = said.map(|m| m.text.clone()).collect();
    let mistakes: Vec<_> = found.mistakes.iter().map(ToString::to_string).collect();
    (format!("{read} {mistakes:?}"), said)
}

/// The example for an attribute of an element.
fn example(rule: &Rule, attribute: &Attr) -> &'static Example {
    let fits = |e: &&Example| {
        let place = e.parent.is_empty() || rule.parents.contains(&e.parent);
        // A command that is told has no mail's attributes, and a mail no command.
        let other = rule.name == "notify" && e.beside.len() > 1 && attribute.name == "command";
        e.element == rule.name && place && !other
    };
    let found = EXAMPLES.iter().find(fits);
    found.unwrap_or_else(|| panic!("<{}> has no example here: add one", rule.name))
}

#[test]
fn every_attribute_changes_what_is_read_or_is_named_as_not_supported_or_not_needed() {
    let mut ignored = Vec::new();
    for rule in schema::CLUSTER.iter().chain(schema::MODULE) {
        if matches!(rule.support, Support::No(_) | Support::Needless(_)) {
            // It is named as a whole.
            continue;
        }
        for attribute in rule.attributes {
            let what = format!("{} of <{}>", attribute.name, rule.name);
            let example = example(rule, attribute);
            let values = values(rule.name, attribute);
            let [first, second] = values.map(|value| read(example, (attribute.name, value)));
            let named = |said: &[String]| {
                let word = match attribute.support {
                    Support::No(_) => "not supported",
                    Support::Needless(_) => "not needed",
                    Support::Yes | Support::Own => "cannot be run yet",
                };
                said.iter().any(|text| text.contains(word))
            };
            let marked = matches!(attribute.support, Support::No(_) | Support::Needless(_));
            let is_named = named(&first.1) && named(&second.1);
            // Who can say one thing only says nothing.
            let reads = values[0] == values[1] || first.0 != second.0;
            match (marked, is_named, reads) {
                (true, true, _) | (false, true, _) | (false, _, true) => {}
                _ => ignored.push(format!("{what}: {first:?}")),
            }
        }
    }
    assert!(ignored.is_empty(), "{ignored:#?}");
}

#[test]
fn what_is_not_needed_has_to_say_what_is_usual() {
    for (inside, wrong) in [
        ("<user logging='none'/>", "logging=\"none\" is not userlog"),
        (
            "<vip><virtual_addr addr='192.0.2.9' where='alias'/></vip>",
            "where=\"alias\" is not one of one_side_alias, one_side",
        ),
    ] {
        let text =
            format!("<safe><service><rfs><replicated dir='/vm'/></rfs>{inside}</service></safe>");
        let (read, found) = module("f", &text, |_| None);
        let said: Vec<_> = found.mistakes.iter().map(|m| m.text.as_str()).collect();
        assert_eq!((read, said), (None, vec![wrong]));
    }
}
