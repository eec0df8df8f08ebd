//! Addresses that go with the primary, on a network with a user who has talked to them.

use std::fs::File;

use harness::{Network, PUBLIC, Wire, run_ip, talk, wait_until};

use crate::PATIENCE;
use crate::etcd::before_it_runs;
use crate::stage::{Machine, Stage, executable};

const V4: &str = "10.80.0.100";
const V6: &str = "fd80::100";

fn vips(addresses: &[&str]) -> String {
    let all = addresses.iter().map(|a| {
        format!(
            "<real_interface><virtual_addr addr=\"{a}\" where=\"one_side_alias\"/></real_interface>"
        )
    });
    let all: String = all
        .map(|v| format!("<interface name=\"public\">{v}</interface>"))
        .collect();
    format!("<vip><interface_list>{all}</interface_list></vip>")
}

/// Two nodes with these addresses, and the network on which they are.
fn stage(service: &str, addresses: &[&str]) -> (Stage, File) {
    let stage = Stage::with(service, |_| vips(addresses));
    let user = stage.network.public().unwrap();
    (stage, user)
}

/// Whether the node at this end has an address.
fn has(network: &Network, end: usize, address: &str) -> bool {
    let namespace = network.namespace(end).unwrap();
    let shown = run_ip(&namespace, "-o addr show dev public").unwrap();
    shown.contains(&format!(" {address}/"))
}

/// Where the user takes an address to be.
fn known(user: &File, address: &str) -> String {
    run_ip(user, &format!("neigh show {address} dev lan")).unwrap()
}

fn comes_to_know(user: &File, address: &str, end: usize) {
    let there = || known(user, address).contains(PUBLIC[end]);
    assert!(wait_until(PATIENCE, there), "{}", known(user, address));
}

/// How often everybody was told that the addresses are at this end: by questions and answers
/// of ARP, and by advertisements that nobody has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Told {
    questions: u32,
    answers: u32,
    advertisements: u32,
}

impl Told {
    fn hear(&mut self, frame: &[u8], end: usize) {
        let hardware = PUBLIC[end].split(':').map(|b| u8::from_str_radix(b, 16));
        let hardware: Vec<u8> = hardware.collect::<Result<_, _>>().unwrap();
        let v4 = V4.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let v6 = V6.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let kind = frame.get(12..14).unwrap_or_default();
        let of_arp = kind == [8, 6] && frame.len() >= 42 && frame[..6] == [0xff; 6];
        if of_arp && frame[22..28] == hardware && frame[28..32] == v4 && frame[38..42] == v4 {
            match frame[20..22] {
                [0, 1] => self.questions += 1,
                [0, 2] => self.answers += 1,
                _ => panic!("{frame:02x?}"),
            }
        }
        // ICMPv6, type 136.
        let advertises = kind == [0x86, 0xdd] && frame.len() >= 86 && frame[20] == 58;
        let all_nodes: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
        let to_all = advertises && frame[54] == 136 && frame[38..54] == all_nodes.octets();
        if to_all && frame[62..78] == v6 && frame[80..86] == hardware {
            assert_eq!(frame[21], 255, "hops: no router has passed it on");
            assert_eq!(
                frame[58], 0x20,
                "it replaces what is known, and nobody asked"
            );
            self.advertisements += 1;
        }
    }

    fn often(self) -> bool {
        self.questions >= 3 && self.answers >= 3 && self.advertisements >= 3
    }
}

fn says(machine: &Machine, text: &str) {
    let said = || machine.must(&["log", "-m", "vm"]).contains(text);
    assert!(wait_until(PATIENCE, said), "{}", machine.log());
}

#[test]
fn addresses_are_where_the_primary_is_and_users_are_told_when_they_move() {
    let (stage, user) = stage("isolation=\"wait\"", &[V4, V6]);
    let stage = stage.run();
    for address in [V4, V6] {
        assert!(has(&stage.network, 0, address) && !has(&stage.network, 1, address));
        talk(&user, address).unwrap();
        comes_to_know(&user, address, 0);
    }
    let wire = Wire::of(&user).unwrap();
    stage.b.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    for address in [V4, V6] {
        assert!(!has(&stage.network, 0, address) && has(&stage.network, 1, address));
        // The user asks nobody.
        comes_to_know(&user, address, 1);
    }
    let mut told = Told::default();
    let often = || {
        while let Some(frame) = wire.next() {
            told.hear(&frame, 1);
        }
        told.often()
    };
    assert!(wait_until(PATIENCE, often), "{told:?}");
    drop(wire);
    stage.a.wait("SECOND", "Ready");
    stage.b.must(&["stop"]);
    stage.b.wait("STOP", "NotReady");
    stage.a.wait("ALONE", "Ready");
    for address in [V4, V6] {
        assert!(has(&stage.network, 0, address) && !has(&stage.network, 1, address));
        comes_to_know(&user, address, 0);
    }
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    assert!(!has(&stage.network, 0, V4) && !has(&stage.network, 0, V6));
}

#[test]
fn the_application_finds_its_addresses_when_it_starts() {
    let (stage, _user) = stage("isolation=\"wait\"", &[V4, V6]);
    let seen = stage.a.home().join("seen");
    let look = format!(
        "#!/bin/sh\nip -o addr show dev public >>{}\n",
        seen.display()
    );
    let bin = stage.a.home().join("etc/modules/vm/bin");
    executable(&bin.join("transition"), &look);
    let stage = stage.run();
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.contains("inet 10.80.0.100/24 "), "{seen}");
    assert!(seen.contains("inet6 fd80::100/64 "), "{seen}");
    let mut own = seen.lines().filter(|l| l.contains("::100"));
    assert!(own.all(|l| !l.contains("tentative")), "{seen}");
    drop(stage);
}

#[test]
fn an_address_that_a_dead_node_has_left_behind_is_taken_over_and_removed_there_later() {
    let (stage, user) = stage("isolation=\"alone\"", &[V4, V6]);
    let mut stage = stage.run();
    talk(&user, V4).unwrap();
    comes_to_know(&user, V4, 0);
    // Its kernel lives on and answers for the address.
    stage.a.kill_everything();
    assert!(has(&stage.network, 0, V4));
    stage.b.wait("ALONE", "Ready");
    says(&stage.b, "it is taken over");
    comes_to_know(&user, V4, 1);
    stage.a.start_daemon();
    let gone = || !has(&stage.network, 0, V4) && !has(&stage.network, 0, V6);
    assert!(wait_until(PATIENCE, gone), "{}", stage.a.log());
    stage.a.wait("SECOND", "Ready");
    stage.b.works();
    assert!(has(&stage.network, 1, V4) && has(&stage.network, 1, V6));
    stage.assert_identical();
}

#[test]
fn an_address_stays_with_the_application_when_the_daemon_is_killed() {
    let (stage, _user) = stage("isolation=\"wait\"", &[V4]);
    let mut stage = stage.run();
    stage.a.kill_daemon();
    assert!(has(&stage.network, 0, V4));
    stage.a.start_daemon();
    stage.a.wait("PRIM", "Ready");
    assert!(has(&stage.network, 0, V4));
    assert_eq!(stage.a.starts(), 1);
    stage.a.must(&["stop"]);
    stage.a.wait("STOP", "NotReady");
    assert!(!has(&stage.network, 0, V4));
}

#[test]
fn an_address_that_a_stranger_has_is_not_set_and_the_stranger_is_named() {
    for address in [V4, V6] {
        let (stage, user) = stage("isolation=\"wait\" maxloop=\"0\"", &[address]);
        let bits = if address == V4 { "24" } else { "64 nodad" };
        run_ip(&user, &format!("addr add {address}/{bits} dev lan")).unwrap();
        stage.a.must(&["prim"]);
        stage.b.must(&["second"]);
        says(&stage.a, "belongs to another machine already");
        stage.a.wait("STOP", "NotReady");
        assert!(!has(&stage.network, 0, address));
        assert_eq!(stage.a.starts(), 0, "without its address it was started");
    }
}

#[test]
fn a_node_that_has_lost_its_right_has_no_address_while_its_application_stops() {
    let (stage, _witness) = before_it_runs("2s", &vips(&[V4, V6]));
    let user = stage.network.public().unwrap();
    for machine in [&stage.a, &stage.b] {
        let script = machine.home().join("etc/modules/vm/bin/stop_prim");
        executable(&script, "#!/bin/sh\nsleep 1000\n");
    }
    let stage = stage.run();
    talk(&user, V4).unwrap();
    comes_to_know(&user, V4, 0);
    stage.a.freeze(true);
    stage.b.wait("ALONE", "Ready");
    // Only what is between the nodes is cut: users reach both.
    stage.network.cut().unwrap();
    stage.a.freeze(false);
    let gone = || !has(&stage.network, 0, V4) && !has(&stage.network, 0, V6);
    assert!(wait_until(PATIENCE, gone), "{}", stage.a.log());
    says(&stage.a, "is removed: the peer is to serve");
    let log = stage.a.must(&["log", "-m", "vm"]);
    assert!(!log.contains("the application is stopped"), "{log}");
    comes_to_know(&user, V4, 1);
    assert!(has(&stage.network, 1, V4) && has(&stage.network, 1, V6));
}

#[test]
fn users_are_told_again_when_the_nodes_are_together_again_however_long_they_ran() {
    let once = vips(&[V4]).replace("<interface ", "<interface arpelapse=\"0\" ");
    let stage = Stage::with("isolation=\"wait\"", |_| once.clone());
    let user = stage.network.public().unwrap();
    let stage = stage.run();
    // Longer than what is announced without a reason of its own.
    let wire = Wire::of(&user).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
    while wire.next().is_some() {}
    stage.network.cut().unwrap();
    says(&stage.a, "no heartbeat");
    while wire.next().is_some() {}
    stage.network.heal().unwrap();
    says(&stage.a, "heard again");
    let mut told = Told::default();
    let again = || {
        while let Some(frame) = wire.next() {
            told.hear(&frame, 0);
        }
        told.questions >= 1 && told.answers >= 1
    };
    assert!(wait_until(PATIENCE, again), "{told:?}");
}

#[test]
fn users_are_told_again_and_again_as_often_as_is_configured() {
    // Besides at once, and after one second and three: those would not be enough.
    const MORE: u32 = 6;
    let often = vips(&[V4, V6]).replace("<interface ", "<interface arpinterval=\"1s\" ");
    let stage = Stage::with("isolation=\"wait\"", |_| often.clone());
    let user = stage.network.public().unwrap();
    let wire = Wire::of(&user).unwrap();
    let stage = stage.run();
    let mut told = Told::default();
    let again = || {
        while let Some(frame) = wire.next() {
            told.hear(&frame, 0);
        }
        told.questions >= MORE && told.answers >= MORE && told.advertisements >= MORE
    };
    assert!(wait_until(PATIENCE, again), "{told:?}");
    stage.a.works();
    // Whoever has them no more is silent.
    stage.b.must(&["swap"]);
    stage.b.wait("PRIM", "Ready");
    stage.a.wait("SECOND", "Ready");
    while wire.next().is_some() {}
    let (mut from_a, mut from_b) = (Told::default(), Told::default());
    let again = || {
        while let Some(frame) = wire.next() {
            from_a.hear(&frame, 0);
            from_b.hear(&frame, 1);
        }
        from_b.questions >= MORE && from_b.advertisements >= MORE
    };
    assert!(wait_until(PATIENCE, again), "{from_b:?}");
    assert_eq!(from_a, Told::default());
    stage.assert_identical();
}

#[test]
fn addresses_that_are_not_to_be_checked_are_set_whoever_has_them_and_left_alone_then() {
    let unchecked = vips(&[V4, V6]).replace("<virtual_addr ", "<virtual_addr check=\"off\" ");
    let unchecked = unchecked.replace("<interface ", "<interface check=\"off\" ");
    let stage = Stage::with("isolation=\"wait\" maxloop=\"0\"", |_| unchecked.clone());
    let user = stage.network.public().unwrap();
    for address in [format!("{V4}/24"), format!("{V6}/64 nodad")] {
        run_ip(&user, &format!("addr add {address} dev lan")).unwrap();
    }
    let stage = stage.run();
    assert!(has(&stage.network, 0, V4) && has(&stage.network, 0, V6));
    let end = stage.network.namespace(0).unwrap();
    run_ip(&end, &format!("addr del {V4}/24 dev public")).unwrap();
    run_ip(&end, "link set public down").unwrap();
    // Nobody looks at any of it.
    let state = stage.a.state();
    let resources = state["resources"].as_object();
    let named = |class: &str| resources.is_some_and(|r| r.keys().any(|k| k.starts_with(class)));
    assert!(!named("ip.") && !named("intf."), "{state}");
    for _ in 0..5 {
        stage.a.works();
    }
    assert!(stage.a.is("PRIM", "Ready"), "{}", stage.a.log());
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}
