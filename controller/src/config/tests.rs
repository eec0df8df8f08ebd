use std::time::Duration;

use super::{Around, Findings, Way, cluster, module, module_in};

fn said(found: &Findings) -> Vec<String> {
    found.mistakes.iter().map(ToString::to_string).collect()
}

fn none(_: &str) -> Option<String> {
    None
}

const GOOD: &str = r#"<!DOCTYPE safe>
<safe>
  <macro name="VM" value="vm1"/>
  <service mode="mirror" boot="on" defaultprim="alone" maxloop="3" loop_interval="24" failover="on">
    <heart timeout="30000">
      <heartbeat name="default"/>
    </heart>
    <rfs async="second" acl="on" nbrei="3" namespacepolicy="4">
      <replicated dir="/data/%VM%" mode="read_only"/>
    </rfs>
    <vip>
      <interface_list>
        <interface check="on" arpreroute="on">
          <real_interface>
            <virtual_addr addr="192.0.2.10" where="one_side_alias" netmask="255.255.255.0"/>
          </real_interface>
        </interface>
      </interface_list>
    </vip>
    <user nicestoptimeout="300" forcestoptimeout="300" logging="userlog">
      <var name="VM_NAME" value="%VM%"/>
    </user>
    <errd polltimer="10s"><proc name="qemu" argregex=".*%VM%.*" class="prim" action="restart"/></errd>
    <check>
      <tcp ident="web" when="prim"><to addr="192.0.2.10" port="80" interval="10s" timeout="5s"/></tcp>
      <ping ident="router"><to addr="192.0.2.1"/></ping>
    </check>
    <failover extends="yes"><![CDATA[
      web_down: if (tcp.web == down) then restart;
      ip_failure: if (ip.* == down) then stop;
    ]]></failover>
  </service>
</safe>
"#;

#[test]
fn a_configuration_as_this_field_writes_it_is_read() {
    let (read, found) = module("userconfig.xml", GOOD, none);
    assert_eq!(said(&found), [""; 0]);
    let read = read.unwrap();
    assert_eq!(read.folders, ["/data/vm1"]);
    assert_eq!(read.heart.lans, ["default"]);
    assert_eq!(read.heart.timeout, Duration::from_secs(30));
    assert_eq!(read.service.loop_interval, Duration::from_secs(86_400));
    assert_eq!(read.service.defaultprim, None);
    assert_eq!(read.addresses[0].prefix, Some(24));
    assert_eq!(read.variables, [("VM_NAME".to_owned(), "vm1".to_owned())]);
    let checkers: Vec<_> = read
        .checkers
        .iter()
        .map(|c| (c.resource(), c.action.as_str()))
        .collect();
    let expected = [
        ("tcp.web", "restart"),
        ("ping.router", "wait"),
        ("proc.qemu", "restart"),
        ("ip.192.0.2.10", "stopstart"),
    ];
    assert_eq!(
        checkers,
        expected.map(|(name, action)| (name.to_owned(), action))
    );
    assert_eq!(read.checkers[2].interval, Duration::from_secs(10));
    assert_eq!(read.handle_time, Duration::from_secs(15));
    let labels: Vec<_> = read.rules.iter().map(|r| r.label.as_str()).collect();
    assert_eq!(
        labels,
        [
            "interface_failure",
            "module_failure",
            "t_web",
            "p_router",
            "proc_qemu",
            "web_down",
            "ip_failure"
        ]
    );
    // What has no meaning here is named, not ignored.
    for name in [
        "acl",
        "nbrei",
        "namespacepolicy",
        "mode",
        "arpreroute",
        "where",
        "logging",
    ] {
        let text = format!("{name} is not needed: ");
        let named = found.notes.iter().any(|n| n.text.starts_with(&text));
        assert!(named, "{name}: {:?}", found.notes);
    }
}

/// What a configuration of this field may hold and the daemon does not run.
#[test]
fn what_is_not_run_is_a_mistake_with_its_place_and_what_to_do_instead() {
    let text = GOOD
        .replace(
            "<heart timeout=\"30000\">\n      <heartbeat name=\"default\"/>",
            "<heart port=\"8888\" pulse=\"700\" timeout=\"30000\" permanent_arp=\"on\">\n      \
             <heartbeat name=\"default\" ident=\"flow\" pulse=\"1s\" timeout=\"9s\"/>",
        )
        .replace(
            "logging=\"userlog\"",
            "logging=\"userlog\" userlogsize=\"2048\"",
        )
        .replace("</rfs>", "<replicated dir=\"/other\"/></rfs>")
        .replace(
            "<proc name=\"qemu\"",
            "<proc name=\"qemu\" service=\"spooler\"",
        )
        .replace(
            "</check>",
            "<module name=\"db\"><to addr=\"192.0.2.3\" port=\"9010\"/></module></check>",
        )
        .replace("defaultprim=\"alone\"", "defaultprim=\"three\"");
    let around = Around {
        file: "cluster.xml".into(),
        lans: vec!["net".into(), "other".into()],
        nodes: vec!["one".into(), "two".into()],
    };
    let (read, found) = module_in("f", &text, none, Some(&around));
    assert_eq!(read, None);
    // Each where it stands in the file.
    let place = |part: &str| {
        let at = super::xml::place(&text, text.find(part).unwrap_or_else(|| panic!("{part}")));
        format!("f:{}:{}: ", at.line, at.column)
    };
    let said = said(&found);
    let expected = [
        (
            "<service",
            "defaultprim=\"three\" is none of the nodes one and two",
        ),
        (
            "port=\"8888\"",
            "port is not supported: heartbeats of all modules go to <lans port=...>",
        ),
        ("permanent_arp", "permanent_arp is not supported: "),
        (
            "<heartbeat",
            "cluster.xml has no lan \"default\"; there are net, other",
        ),
        (
            "ident=\"flow\"",
            "ident is not supported: the networks of the replication are those of --listen",
        ),
        (
            "pulse=\"1s\"",
            "pulse is not supported: all networks have the same times",
        ),
        (
            "timeout=\"9s\"",
            "timeout is not supported: all networks have the same times",
        ),
        (
            "<replicated dir=\"/other\"",
            "a module has one folder: make another module for this one",
        ),
        ("userlogsize", "userlogsize is not supported: "),
        (
            "service=\"spooler\"",
            "service is not supported: a process is known by its program: use name,",
        ),
        (
            "<to addr=\"192.0.2.3\"",
            "<to> is not supported: both modules run on these two nodes",
        ),
    ];
    for (part, what) in expected {
        let start = place(part) + what;
        assert!(
            said.iter().any(|t| t.starts_with(&start)),
            "{start}: {said:#?}"
        );
    }
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    let around = Around {
        lans: vec!["default".into()],
        ..around
    };
    let (read, found) = module_in("f", GOOD, none, Some(&around));
    assert!(read.is_some(), "{:?}", found.mistakes);
}

#[test]
fn the_defaults_find_a_dead_node_in_three_seconds() {
    let text = "<safe><service><rfs><replicated dir='/d'/></rfs></service></safe>";
    let read = module("f", text, none).0.unwrap();
    assert_eq!(read.heart.pulse, Duration::from_millis(200));
    assert_eq!(read.heart.timeout, Duration::from_secs(3));
    assert_eq!(
        (read.service.boot, read.service.failover),
        (super::Boot::Off, true)
    );
    assert_eq!(read.rules.len(), 3);
}

/// What every module has.
const RFS: &str = "<rfs><replicated dir='/d'/></rfs>";

/// Each mistake alone: what the file says, and where.
#[test]
fn each_mistake_is_told_with_its_place_and_what_would_be_right() {
    let mut differ = Vec::new();
    let service = |inside: &str| {
        let rfs = if inside.contains("<rfs") { "" } else { RFS };
        format!("<safe>\n<service>{inside}{rfs}</service>\n</safe>")
    };
    for (text, expected) in [
        (
            "<save/>".to_owned(),
            "f:1:1: the file begins with <save> instead of <safe>",
        ),
        ("<safe/>".into(), "f:1:1: <safe> needs <service>"),
        (
            "<safe><service/></safe>".into(),
            "f:1:7: <service> needs <rfs> with a <replicated dir=...>",
        ),
        (
            service("<hart/>"),
            "f:2:10: <hart> is not known in <service>; did you mean heart?",
        ),
        (
            service("<to addr='a'/>"),
            "f:2:10: <to> stands in <service>; it belongs in <tcp> or <ping> or <ip>",
        ),
        (
            service("<heart/><heart/>"),
            "f:2:18: <heart> stands twice in <service>; once is right",
        ),
        (
            service("<heart puls='1'/>"),
            "f:2:17: <heart> has no attribute puls; did you mean pulse?",
        ),
        (
            service("<heart timeout='fast'/>"),
            "f:2:17: timeout=\"fast\" is not a time: a number with d, h, m, s, ms or us (without one it counts in milliseconds)",
        ),
        (
            service("<heart timeout='300ms'/>"),
            "f:2:10: the timeout (300ms) holds less than 3 pulses (200ms)",
        ),
        (
            service("<errd><proc name='a' atleast='-1'/></errd>"),
            "f:2:31: atleast=\"-1\" is not a whole number from 0 to 100000",
        ),
        (
            service("<heart pulse='19ms' timeout='3s'/>"),
            "f:2:17: pulse=\"19ms\" is too short: 20ms is the shortest",
        ),
        (
            service("<heart pulse='2s' timeout='3s'/>"),
            "f:2:10: the timeout (3s) holds less than 3 pulses (2s)",
        ),
        (
            service("<heart><heartbeat name='net' pulse='1s'/></heart>"),
            "f:2:39: pulse is not supported: all networks have the same times, and a node lives \
             while it is heard on one of them: say it in <heart>",
        ),
        (
            service("<heart><heartbeat name='net' timeout='1s'/></heart>"),
            "f:2:39: timeout is not supported: all networks have the same times, and a node lives \
             while it is heard on one of them: say it in <heart>",
        ),
        (
            service("<vip><virtual_addr addr='1.2.3'/></vip>"),
            "f:2:29: addr=\"1.2.3\" is not an IPv4 or IPv6 address",
        ),
        (
            service("<vip><virtual_addr addr='1.2.3.4' netmask='255.0.255.0'/></vip>"),
            "f:2:15: netmask is neither a number of bits nor a mask like 255.255.255.0",
        ),
        (
            service("<vip><virtual_addr/></vip>"),
            "f:2:15: <virtual_addr> needs the attribute addr",
        ),
        (
            service("<rfs/>"),
            "f:2:10: <rfs> needs one <replicated dir=...>",
        ),
        (
            service("<rfs><replicated dir='d'/></rfs>"),
            "f:2:27: dir=\"d\" is not an absolute path without ..",
        ),
        (
            service("<rfs><replicated dir='/a/../b'/></rfs>"),
            "f:2:27: dir=\"/a/../b\" is not an absolute path without ..",
        ),
        (
            service("<rfs><replicated dir='/a'/><replicated dir='/a/b'/></rfs>"),
            "f:2:37: a module has one folder: make another module for this one",
        ),
        (
            service("<rfs syncat='0 4 * * *'><replicated dir='/a'/></rfs>"),
            "f:2:15: syncat is not supported: replication is always synchronous; a resync at a time of day is not",
        ),
        (
            service("<vhost/>"),
            "f:2:10: <vhost> is not supported: host names are not faked for the application; use a virtual address",
        ),
        (
            service("<rfs><replicated dir='/a'><notreplicated path='x'/></replicated></rfs>"),
            "f:2:36: <notreplicated> is not supported: everything in a folder is replicated; keep what shall not be outside of it",
        ),
        (
            service("<check><tcp ident='a'><to addr='b'/></tcp></check>"),
            "f:2:32: <to> of <tcp> needs the attribute port",
        ),
        (
            service("<check><ping ident='a'/></check>"),
            "f:2:17: <ping> needs <to addr=...>",
        ),
        (
            service("<check><splitbrain ident='a' arg='router'/></check>"),
            "f:2:17: arg holds \"router\", which is no IPv4 or IPv6 address: an isolated node cannot look a name up",
        ),
        (
            service("<fence command='/x'/><check><splitbrain ident='a' arg='::1'/></check>"),
            "f:2:38: <splitbrain> and <fence> cannot be combined: one of them decides",
        ),
        (
            service("<errd><proc name='a' argregex='('/></errd>"),
            "f:2:16: argregex: regex parse error:\n    (\n    ^\nerror: unclosed group",
        ),
        (
            service("<check><ip ident='a'><to addr='host'/></ip></check>"),
            "f:2:17: <to> of <ip> needs an IPv4 or IPv6 address",
        ),
        (
            service("<check><custom ident='a'/></check>"),
            "f:2:17: <custom> needs the attribute exec",
        ),
        (
            service("<heart>text</heart>"),
            "f:2:17: <heart> holds no text",
        ),
        (
            service("<user starttimeout='0'/>"),
            "f:2:10: starttimeout must be longer than nothing, as 600s",
        ),
        (
            service("<user><var name='a' value='%NO%'/></user>"),
            "f:2:30: the macro %NO% is not defined: add <macro name=\"NO\" value=.../> or a variable of the environment",
        ),
        (
            service("<failover>\n x: if (a.b == up) then go;</failover>"),
            "f:3:25: \"go\" is no action; there are stop, stopstart, wait, restart, swap",
        ),
        (
            format!("<safe><service mode='farm'>{RFS}</service></safe>"),
            "f:1:7: mode=\"farm\" is not supported: twinfold replicates (mirror)",
        ),
        (
            format!("<safe><service failover='maybe'>{RFS}</service></safe>"),
            "f:1:16: failover=\"maybe\" is not on or off",
        ),
        (
            format!("<safe><service boot='now'>{RFS}</service></safe>"),
            "f:1:16: boot=\"now\" is not one of on, off, auto, ignore",
        ),
        (
            format!("<safe><service automatic_reboot='on'>{RFS}</service></safe>"),
            "f:1:16: automatic_reboot is not supported: twinfold does not reboot a node; use a watchdog of the operating system",
        ),
    ] {
        let (read, found) = module("f", &text, none);
        assert_eq!(read, None, "{text}");
        if said(&found) != [expected] {
            differ.push((text, said(&found), expected));
        }
    }
    assert!(differ.is_empty(), "{differ:#?}");
}

#[test]
fn all_mistakes_come_at_once_in_the_order_of_the_file() {
    let text =
        "<safe>\n<servise/>\n<service mod='x'>\n<heart timeout='x'/>\n<rfs/></service></safe>";
    let lines: Vec<_> = module("f", text, none)
        .1
        .mistakes
        .iter()
        .map(|m| m.at.line)
        .collect();
    assert_eq!(lines, [2, 3, 4, 5]);
}

#[test]
fn macros_come_from_the_file_first_and_then_from_the_environment() {
    let text = "<safe><macro name='A' value='/a'/><service><rfs>\
                <replicated dir='%A%%B%'/></rfs></service></safe>";
    let variable = |name: &str| Some(format!("/env-{name}"));
    let read = module("f", text, variable).0.unwrap();
    assert_eq!(read.folders, ["/a/env-B"]);
}

const CLUSTER: &str = r#"<cluster>
  <lans port="4800">
    <lan name="default">
      <node name="one" addr="192.0.2.1"/>
      <node name="two" addr="192.0.2.2"/>
    </lan>
    <lan name="private" command="off">
      <node name="two" addr="10.0.0.2"/>
      <node name="one" addr="10.0.0.1" laddr="172.16.0.1"/>
    </lan>
  </lans>
</cluster>"#;

#[test]
fn a_cluster_has_two_nodes_on_each_of_its_networks() {
    let (read, found) = cluster("cluster.xml", CLUSTER);
    assert_eq!(said(&found), [""; 0]);
    let read = read.unwrap();
    assert_eq!((read.port, read.lans.len()), (4800, 2));
    assert_eq!((read.lans[0].command, read.lans[1].command), (true, false));
    for (from, to, expected) in [
        (
            "<lan name=\"private\"",
            "<lan name=\"default\"",
            "7:5: there is another lan with the name default",
        ),
        (
            "<node name=\"two\" addr=\"10.0.0.2\"/>",
            "",
            "7:5: <lan> has two nodes of different names; here are 1",
        ),
        (
            "name=\"two\" addr=\"10",
            "name=\"three\" addr=\"10",
            "7:5: the nodes of lan private are not those of default",
        ),
        (
            "192.0.2.2",
            "192.0.2.1",
            "3:5: both nodes have the same address",
        ),
        (
            "192.0.2.2",
            "192.0.2.2/24",
            "5:24: addr=\"192.0.2.2/24\" is not an address or a host name",
        ),
    ] {
        let text = CLUSTER.replacen(from, to, 1);
        let (read, found) = cluster("f", &text);
        assert!(
            said(&found).contains(&format!("f:{expected}")),
            "{:?}",
            said(&found)
        );
        assert_eq!(read, None);
    }
}

#[test]
fn how_a_folder_is_replicated_is_said_with_the_units_that_are_known() {
    let text = |rfs: &str| {
        format!("<safe><service><rfs {rfs}><replicated dir=\"/vm\"/></rfs></service></safe>")
    };
    let read = |rfs: &str| module("f", &text(rfs), none).0.unwrap().replication;
    assert_eq!(read(""), super::Replication::default());
    let all = read("async=\"none\" reiallowedbw=\"1000\" sendtimeout=\"30\" checkpoint=\"1m\"");
    assert_eq!(all.ack, Some(fs_driver::state::Ack::Disk));
    assert_eq!(all.limit, Some(1_024_000));
    assert_eq!(
        (all.patience_ms, all.checkpoint_s),
        (Some(30_000), Some(60))
    );
    assert_eq!(
        read("ack=\"flush\"").ack,
        Some(fs_driver::state::Ack::Flush)
    );
    let (both, found) = module("f", &text("ack=\"disk\" async=\"none\""), none);
    assert_eq!(both, None);
    assert!(found.mistakes[0].to_string().contains("say the same"));
}

#[test]
fn who_decides_a_separation_has_its_time_and_there_is_one_of_them() {
    let text = "<safe><service boot=\"on\" isolation=\"wait\"><heart timeout=\"3s\"/>\
                <fence command=\"/bin/fence\"/><rfs><replicated dir=\"/vm\"/></rfs></service></safe>";
    let read = module("f", text, none).0.unwrap();
    assert_eq!(read.fence.unwrap().timeout, Duration::from_secs(60));
    let text = "<safe><service><etcd endpoints=\"https://x:1\" ca=\"/ca\"/>\
                <rfs><replicated dir=\"/vm\"/></rfs></service></safe>";
    let read = module("f", text, none).0.unwrap();
    assert_eq!(read.etcd.unwrap().timeout, Duration::from_secs(5));
    let text = "<safe><service><etcd endpoints=\"x\"/><fence command=\"/f\"/></service></safe>";
    let said = said(&module("f", text, none).1);
    assert!(
        said.iter().any(|s| s.contains("cannot be combined")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|s| s.contains("endpoints and ca")),
        "{said:?}"
    );
}

#[test]
fn commands_that_are_told_name_kinds_of_events_that_exist() {
    let text = "<safe><service><rfs><replicated dir=\"/vm\"/></rfs>\
                <notify command=\"/a\"/><notify command=\"/b\" events=\"peer, driver\"/>\
                </service></safe>";
    let (read, found) = module("f", text, none);
    let read = read.unwrap_or_else(|| panic!("{:?}", found.mistakes));
    assert_eq!(read.notify[0].events, ["state", "error"]);
    assert_eq!(read.notify[1].events, ["peer", "driver"]);
    let text = text
        .replace("peer, driver", "pear")
        .replace("command=\"/a\"", "");
    let (_, found) = module("f", &text, none);
    let said: Vec<_> = found.mistakes.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|m| m.contains("\"pear\" is none of")),
        "{said:?}"
    );
    assert!(
        said.iter()
            .any(|m| m.contains("either the attribute command or")),
        "{said:?}"
    );
}

#[test]
fn a_mail_has_addresses_a_server_and_no_password() {
    let text = "<safe><service><rfs><replicated dir=\"/vm\"/></rfs>\
                <notify mail=\"a@example.org, b@example.org\" from=\"t@example.org\" \
                server=\"mail.example.org\" user=\"t\" passwordfile=\"/secret\"/>\
                </service></safe>";
    let (read, found) = module("f", text, none);
    let read = read.unwrap_or_else(|| panic!("{:?}", found.mistakes));
    let Way::Mail(mail) = &read.notify[0].way else {
        panic!("{:?}", read.notify)
    };
    assert_eq!(mail.to.len(), 2);
    assert_eq!(mail.port, 587);
    assert_eq!(read.notify[0].events, ["state", "error"]);
    for (right, wrong, says) in [
        ("b@example.org", "b@", "\"b@\" is no mail address"),
        (" from=\"t@example.org\"", "", "needs the attribute from"),
        (
            " server=\"mail.example.org\"",
            "",
            "needs the attribute server",
        ),
        (" user=\"t\"", "", "user and passwordfile go together"),
        (
            "<notify",
            "<notify command=\"/a\"",
            "either the attribute command or",
        ),
        (
            "mail=\"a@example.org, b@example.org\"",
            "command=\"/a\"",
            "from is for mail=",
        ),
        (
            "passwordfile=\"/secret\"",
            "password=\"secret\"",
            "password",
        ),
    ] {
        let (read, found) = module("f", &text.replacen(right, wrong, 1), none);
        let said: Vec<_> = found.mistakes.iter().map(ToString::to_string).collect();
        assert!(
            read.is_none() && said.iter().any(|m| m.contains(says)),
            "{said:?}"
        );
    }
}

#[test]
fn scripts_have_their_time_unless_configured() {
    let text = |user: &str| {
        format!("<safe><service>{user}<rfs><replicated dir=\"/vm\"/></rfs></service></safe>")
    };
    let read = |user: &str| {
        let read = module("f", &text(user), none).0.unwrap();
        let [nice, force] = read.stop_timeouts;
        [read.start_timeout, nice, force].map(|time| time.as_secs())
    };
    assert_eq!(read(""), [600, 300, 300]);
    assert_eq!(read("<user/>"), [600, 300, 300]);
    let user = "<user starttimeout=\"2h\" nicestoptimeout=\"5m\" forcestoptimeout=\"7\"/>";
    assert_eq!(read(user), [7200, 300, 7]);
}
