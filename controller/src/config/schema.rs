//! Which elements and attributes there are, where they may stand and what they may say.
//!
//! Names, units and defaults are those that operators of this field know where those are
//! good. What is twinfold's own is marked [`Support::Own`]; what an existing configuration
//! may hold and twinfold does not do is [`Support::No`], with the reason and what to do instead;
//! what has no meaning here is [`Support::Needless`]. So all of it is named and nothing quietly
//! ignored: each other attribute changes what is read, which a test shows of every one (`every`).

/// What an attribute may say.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Anything.
    Text,
    /// Anything but nothing.
    Name,
    /// `on` or `off`.
    Switch,
    /// A time; without a unit in milliseconds.
    Millis,
    /// A time; without a unit in seconds.
    Seconds,
    /// A time; without a unit in minutes.
    Minutes,
    /// A time; without a unit in hours.
    Hours,
    /// A whole number from the first to the second.
    Number(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An IPv4 or IPv6 address.
    Address,
    /// An address or a host name.
    Host,
    /// An absolute path.
    Path,
}

/// Whether twinfold does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Support {
    /// Yes.
    Yes,
    /// Yes, and only twinfold knows it.
    Own,
    /// It has no meaning here and may stand, with a value of its kind: the reason why nothing is
    /// lost.
    Needless(&'static str),
    /// No: what is missing, or what to do instead.
    No(&'static str),
}

/// An attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attr {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) support: Support,
}

/// An element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    /// What it may stand in.
    pub(super) parents: &'static [&'static str],
    /// It may stand there more than once.
    pub(super) many: bool,
    /// It holds text.
    pub(super) text: bool,
    pub(super) support: Support,
    pub(super) attributes: &'static [Attr],
}

const fn a(name: &'static str, kind: Kind) -> Attr {
    Attr {
        name,
        kind,
        required: false,
        support: Support::Yes,
    }
}

const fn must(name: &'static str, kind: Kind) -> Attr {
    Attr {
        name,
        kind,
        required: true,
        support: Support::Yes,
    }
}

const fn own(name: &'static str, kind: Kind) -> Attr {
    Attr {
        name,
        kind,
        required: false,
        support: Support::Own,
    }
}

const fn needless(name: &'static str, why: &'static str) -> Attr {
    Attr {
        name,
        kind: Kind::Text,
        required: false,
        support: Support::Needless(why),
    }
}

/// One that is not needed as long as it says one of these words.
const fn usual(name: &'static str, words: &'static [&'static str], why: &'static str) -> Attr {
    Attr {
        kind: Kind::OneOf(words),
        ..needless(name, why)
    }
}

const fn no(name: &'static str, why: &'static str) -> Attr {
    Attr {
        name,
        kind: Kind::Text,
        required: false,
        support: Support::No(why),
    }
}

const fn rule(
    name: &'static str,
    parents: &'static [&'static str],
    attributes: &'static [Attr],
) -> Rule {
    Rule {
        name,
        parents,
        many: false,
        text: false,
        support: Support::Yes,
        attributes,
    }
}

const fn many(
    name: &'static str,
    parents: &'static [&'static str],
    attributes: &'static [Attr],
) -> Rule {
    Rule {
        many: true,
        ..rule(name, parents, attributes)
    }
}

const fn unsupported(
    name: &'static str,
    parents: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule {
        many: true,
        text: true,
        support: Support::No(why),
        ..rule(name, parents, &[])
    }
}

const WHEN: Kind = Kind::OneOf(&["pre", "prim", "second", "both"]);
const ACTION: Kind = Kind::OneOf(&["noaction", "restart", "stopstart", "stop", "wait", "swap"]);

/// Why a cluster has no times of its own.
const MODULES_OWN: &str = "when a silent node counts as lost is said by <heart> of each module";

/// What is said of load balancing.
const NO_FARM: &str = "load balancing (farm) is not part of twinfold";

/// `cluster.xml`.
pub(super) const CLUSTER: &[Rule] = &[
    rule("cluster", &[], &[]),
    rule(
        "lans",
        &["cluster"],
        &[
            // The one behind it is used as well.
            a("port", Kind::Number(1, 65_534)),
            needless("pulse", MODULES_OWN),
            needless("mlost_count", MODULES_OWN),
            needless("slost_count", MODULES_OWN),
        ],
    ),
    many(
        "lan",
        &["lans"],
        &[must("name", Kind::Name), a("command", Kind::Switch)],
    ),
    many(
        "node",
        &["lan"],
        &[
            must("name", Kind::Name),
            must("addr", Kind::Host),
            a("laddr", Kind::Address),
        ],
    ),
];

/// Why a network has no times of its own.
const ONE_HEART: &str = "all networks have the same times, and a node lives while it is heard on one \
    of them: say it in <heart>";

/// `userconfig.xml`.
pub(super) const MODULE: &[Rule] = &[
    rule("safe", &[], &[]),
    many(
        "macro",
        &["safe"],
        &[must("name", Kind::Name), must("value", Kind::Text)],
    ),
    rule(
        "service",
        &["safe"],
        &[
            a("mode", Kind::OneOf(&["mirror", "farm", "light"])),
            a("boot", Kind::OneOf(&["on", "off", "auto", "ignore"])),
            a("boot_delay", Kind::Seconds),
            a("failover", Kind::Switch),
            a("defaultprim", Kind::Name),
            a("maxloop", Kind::Number(0, 1000)),
            a("loop_interval", Kind::Hours),
            no(
                "automatic_reboot",
                "twinfold does not reboot a node; use a watchdog of the operating system",
            ),
            own("isolation", Kind::OneOf(&["alone", "wait"])),
        ],
    ),
    rule(
        "heart",
        &["service"],
        &[
            no(
                "port",
                "heartbeats of all modules go to <lans port=...> of cluster.xml; leave it out",
            ),
            a("pulse", Kind::Millis),
            a("timeout", Kind::Millis),
            no(
                "permanent_arp",
                "no address of the peer is kept for ever; leave it out",
            ),
        ],
    ),
    many(
        "heartbeat",
        &["heart"],
        &[
            must("name", Kind::Name),
            no(
                "ident",
                "the networks of the replication are those of --listen and --peer of \
                 `twinfold fs init`; leave it out",
            ),
            no("pulse", ONE_HEART),
            no("timeout", ONE_HEART),
        ],
    ),
    rule(
        "fence",
        &["service"],
        &[own("command", Kind::Path), own("timeout", Kind::Seconds)],
    ),
    many(
        "notify",
        &["service"],
        &[
            own("command", Kind::Path),
            own("mail", Kind::Name),
            own("from", Kind::Name),
            own("server", Kind::Host),
            own("port", Kind::Number(1, 65_535)),
            own("user", Kind::Name),
            own("passwordfile", Kind::Path),
            own("ca", Kind::Path),
            own("events", Kind::Name),
            own("timeout", Kind::Seconds),
        ],
    ),
    rule(
        "etcd",
        &["service"],
        &[
            own("endpoints", Kind::Name),
            own("ca", Kind::Path),
            own("cert", Kind::Path),
            own("key", Kind::Path),
            own("timeout", Kind::Seconds),
        ],
    ),
    rule(
        "rfs",
        &["service"],
        &[
            a("async", Kind::OneOf(&["second", "none"])),
            own("ack", Kind::OneOf(&["disk", "memory", "flush"])),
            a("syncdelta", Kind::Minutes),
            a("reiallowedbw", Kind::Number(16, u64::MAX)),
            a("sendtimeout", Kind::Seconds),
            own("checkpoint", Kind::Seconds),
            needless("acl", "access control lists are always replicated"),
            needless("packetsize", "QUIC finds the size of its packets"),
            needless("reipacketsize", "a resync moves 4 KiB blocks in runs"),
            needless("ruzone_blocksize", "changes are known to 4 KiB blocks"),
            needless(
                "namespacepolicy",
                "changes of names are always known exactly",
            ),
            needless("nbrei", "one ordered stream is enough for a resync"),
            needless("reitimeout", "a resync is watched by its progress"),
            needless("reicommit", "a resync is flushed at its end"),
            needless("reidetail", "`state` and the log tell each resync"),
            needless("allocthreshold", "holes stay holes on both nodes"),
            needless("nbremconn", "one QUIC connection carries all streams"),
            needless("checktime", "the driver is watched by its progress"),
            needless("checkintv", "the driver is watched by its progress"),
            needless("nfsbox_options", "there is no NFS below"),
            needless(
                "mountover",
                "the folder is always mounted over the directory",
            ),
            needless(
                "mountoversuffix",
                "the store lies in .NAME.twinfold beside the folder",
            ),
            needless("iotimeout", "the driver's own deadlines are shorter"),
            needless("locktimeout", "nothing is locked across the network"),
            needless("roflags", "the mount of a secondary is read-only"),
            no(
                "scripts",
                "scripts of the replication are not called; use transition",
            ),
            no(
                "syncat",
                "replication is always synchronous; a resync at a time of day is not",
            ),
        ],
    ),
    many(
        "replicated",
        &["rfs"],
        &[
            must("dir", Kind::Path),
            usual(
                "mode",
                &["read_only"],
                "the folder is always read-only on a secondary",
            ),
        ],
    ),
    unsupported(
        "notreplicated",
        &["replicated"],
        "everything in a folder is replicated; keep what shall not be outside of it",
    ),
    Rule {
        support: Support::Needless("nothing has to be checked in the folder before it is used"),
        ..many("tocheck", &["replicated"], &[a("path", Kind::Text)])
    },
    rule(
        "vip",
        &["service"],
        &[needless("tcpreset", "connections end with their node")],
    ),
    rule("interface_list", &["vip"], &[]),
    many(
        "interface",
        &["interface_list", "vip"],
        &[
            a("check", Kind::Switch),
            a("name", Kind::Name),
            needless("arpreroute", "addresses are always announced again"),
            a("arpinterval", Kind::Seconds),
            a("arpelapse", Kind::Seconds),
        ],
    ),
    rule("real_interface", &["interface"], &[]),
    many(
        "virtual_addr",
        &["real_interface", "interface", "vip"],
        &[
            must("addr", Kind::Address),
            usual(
                "where",
                &["one_side_alias", "one_side"],
                "an address is always that of the primary alone",
            ),
            a("check", Kind::Switch),
            a("netmask", Kind::Text),
            needless("connections", "connections are not counted"),
        ],
    ),
    unsupported("virtual_interface", &["interface"], NO_FARM),
    unsupported("farm", &["service"], NO_FARM),
    rule(
        "user",
        &["service"],
        &[
            a("nicestoptimeout", Kind::Seconds),
            a("forcestoptimeout", Kind::Seconds),
            own("starttimeout", Kind::Seconds),
            usual(
                "logging",
                &["userlog"],
                "what scripts print is always kept, in the application log",
            ),
            no(
                "userlogsize",
                "the application log of a run is kept up to 16 MiB, those of the last ten runs; \
                 leave it out",
            ),
        ],
    ),
    many(
        "var",
        &["user"],
        &[must("name", Kind::Name), must("value", Kind::Text)],
    ),
    unsupported(
        "vhost",
        &["service"],
        "host names are not faked for the application; use a virtual address",
    ),
    rule("errd", &["service"], &[a("polltimer", Kind::Seconds)]),
    many(
        "proc",
        &["errd"],
        &[
            must("name", Kind::Name),
            a("nameregex", Kind::Name),
            a("argregex", Kind::Name),
            no(
                "service",
                "a process is known by its program: use name, nameregex or argregex",
            ),
            a("atleast", Kind::Number(0, 100_000)),
            a("atmax", Kind::Number(0, 100_000)),
            a("start_after", Kind::Seconds),
            a(
                "class",
                Kind::OneOf(&["prim", "both", "pre", "second", "sec"]),
            ),
            a("action", ACTION),
        ],
    ),
    rule("check", &["service"], &[]),
    many(
        "tcp",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("when", WHEN),
            a("action", ACTION),
        ],
    ),
    many(
        "ping",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("when", WHEN),
            a("action", ACTION),
        ],
    ),
    many(
        "intf",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("when", WHEN),
            a("action", ACTION),
            a("local", Kind::Name),
        ],
    ),
    many(
        "ip",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("when", WHEN),
            a("action", ACTION),
        ],
    ),
    many(
        "custom",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("when", WHEN),
            must("exec", Kind::Name),
            a("arg", Kind::Text),
            a("action", ACTION),
        ],
    ),
    many(
        "module",
        &["check"],
        &[must("name", Kind::Name), a("ident", Kind::Name)],
    ),
    many(
        "splitbrain",
        &["check"],
        &[
            must("ident", Kind::Name),
            a("exec", Kind::OneOf(&["ping"])),
            must("arg", Kind::Name),
        ],
    ),
    many(
        "to",
        &["tcp"],
        &[
            must("addr", Kind::Host),
            a("port", Kind::Number(1, 65_535)),
            a("interval", Kind::Seconds),
            a("timeout", Kind::Seconds),
        ],
    ),
    many(
        "to",
        &["ping", "ip"],
        &[
            must("addr", Kind::Host),
            a("interval", Kind::Seconds),
            a("timeout", Kind::Seconds),
        ],
    ),
    unsupported(
        "to",
        &["module"],
        "both modules run on these two nodes, which know of each other; leave it out",
    ),
    Rule {
        text: true,
        ..rule(
            "failover",
            &["service"],
            &[
                a("extends", Kind::Switch),
                needless("period", "rules are looked at whenever something changes"),
                a("handle_time", Kind::Millis),
            ],
        )
    },
];

/// The rule of an element below a parent.
pub(super) fn find(rules: &[Rule], name: &str, parent: Option<&str>) -> Option<Rule> {
    rules
        .iter()
        .find(|r| {
            r.name == name
                && match parent {
                    Some(parent) => r.parents.contains(&parent),
                    None => r.parents.is_empty(),
                }
        })
        .copied()
}
