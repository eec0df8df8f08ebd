//! What two daemons know of each other, and what follows from it.

use super::*;
use fs_driver::link::Identity;
use twinfold_protocol::automaton::{Arbiter, Automaton, Config, Copy, Isolation};
use twinfold_protocol::ids::Side;

pub(crate) fn hub() -> Arc<Hub> {
    let identity = Identity::generate().unwrap();
    let peer_identity = Identity::generate().unwrap().fingerprint();
    let lan = |name: &str| crate::cluster::Lan {
        name: name.into(),
        here: "127.0.0.1:1".parse().unwrap(),
        there: "127.0.0.1:2".parse().unwrap(),
        command: false,
    };
    Hub::new(
        Cluster {
            node: "a".into(),
            peer: "b".into(),
            identity,
            peer_identity,
            side: Side::Even,
            lans: vec![lan("fast"), lan("slow")],
            meaning: Meaning::default(),
        },
        1,
    )
}

/// What the peer's kernel answered last on this network.
pub(crate) fn answered(hub: &Hub, lan: usize, answer: Answer) {
    hub.answers(lan, answer);
}

fn view(reason: &str) -> WireView {
    let config = Config {
        side: Side::Even,
        arbiter: Arbiter::None,
        isolation: Isolation::Wait,
        failover: true,
        default_prim: None,
        rules: 0,
    };
    let copy = Copy {
        state: Default::default(),
        was: None,
        shared: false,
        current: false,
        session: None,
        recent: false,
    };
    WireView::new(
        &Automaton::new(config, copy, None).view(),
        reason.into(),
        None,
    )
}

#[test]
fn what_a_slower_network_brings_later_does_not_count() {
    let hub = hub();
    hub.learn("vm".into(), 1, 5, view("new"));
    hub.learn("vm".into(), 1, 4, view("old"));
    assert_eq!(hub.told("vm").unwrap().reason, "new");
    hub.learn("vm".into(), 2, 1, view("after a restart"));
    hub.learn("vm".into(), 1, 6, view("from before the restart"));
    assert_eq!(hub.told("vm").unwrap().reason, "after a restart");
}

#[test]
fn a_daemon_that_lives_and_does_not_run_a_module_is_silent_about_it() {
    let hub = hub();
    let (to, _told) = std::sync::mpsc::channel();
    hub.follow("vm", to);
    hub.learn("vm".into(), 1, 5, view("of its first run"));
    let works = |modules: &[&str]| {
        let modules: Vec<_> = modules.iter().map(|m| (*m).to_owned()).collect();
        hub.learn_works(&modules);
        hub.listened.fetch_add(1000, Ordering::AcqRel);
    };
    works(&["db", "vm"]);
    works(&["db", "vm"]);
    works(&["db"]);
    works(&["db"]);
    assert_eq!(hub.idle("vm"), Duration::from_secs(3));
    assert_eq!(hub.idle("db"), Duration::from_secs(1));
    works(&["db", "vm"]);
    assert_eq!(hub.idle("vm"), Duration::from_secs(1));
    // Its second run: nothing is known, until it says something.
    hub.begins(1);
    assert!(hub.told("vm").is_some());
    hub.begins(2);
    assert!(hub.told("vm").is_none());
    hub.learn("vm".into(), 2, 1, view("of its second run"));
    hub.begins(2);
    assert!(hub.told("vm").is_some());
}

#[test]
fn a_module_that_begins_late_has_not_been_silent() {
    let hub = hub();
    hub.listened.fetch_add(90_000, Ordering::AcqRel);
    // Nobody here had a use for this.
    hub.learn_works(&["vm".into()]);
    hub.follow("vm", std::sync::mpsc::channel().0);
    assert_eq!(hub.idle("vm"), Duration::ZERO);
    hub.listened.fetch_add(4000, Ordering::AcqRel);
    assert_eq!(hub.idle("vm"), Duration::from_secs(4));
}

#[test]
fn a_module_works_while_its_thread_comes_round() {
    let hub = hub();
    let mut known = Vec::new();
    assert!(!hub.working(&mut known));
    let later = Duration::from_secs(3600);
    hub.works("vm", Instant::now() + later);
    assert!(hub.working(&mut known));
    assert_eq!(known, ["vm"], "it sleeps");
    hub.works("vm", Instant::now());
    assert!(!hub.working(&mut known));
    assert_eq!(known, ["vm"]);
    hub.works("vm", Instant::now().checked_sub(WORKS).unwrap());
    assert!(hub.working(&mut known));
    assert_eq!(known, [""; 0]);
}

#[test]
fn the_daemon_beats_as_often_as_the_module_wants_that_wants_it_most() {
    let hub = hub();
    let every = || *hub.pulse.borrow();
    let millis = Duration::from_millis;
    assert_eq!(every(), millis(200));
    hub.beats("vm", Some(millis(700)));
    assert_eq!(every(), millis(700), "nobody wants it more often");
    let mut told = hub.pulse.subscribe();
    hub.beats("db", Some(millis(50)));
    assert_eq!(every(), millis(50));
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    hub.beats("db", Some(millis(50)));
    hub.beats("vm", Some(millis(600)));
    assert!(!told.has_changed().unwrap(), "it is as it was");
    // Whatever a configuration says.
    hub.beats("vm", Some(Duration::ZERO));
    assert_eq!(every(), MIN_PULSE);
    hub.unfollow("vm");
    assert_eq!(every(), millis(50));
    hub.unfollow("db");
    assert_eq!(every(), millis(200));
}

#[test]
fn a_peer_that_beats_rarely_is_waited_for_and_one_that_does_often_is_missed_soon() {
    let hub = hub();
    let missed = |quiet: [u64; 2]| quiet.map(|q| hub.was_missed(q));
    let up = |quiet| {
        hub.lans[0].quiet.store(quiet, Ordering::Release);
        hub.networks()[0].up
    };
    assert!(!up(0), "nothing was heard yet");
    hub.heard(0);
    assert_eq!(missed([399, 400]), [false, true]);
    assert_eq!(hub.stale(), Duration::from_millis(1200));
    assert_eq!(hub.step(), Duration::from_millis(50));
    assert!(up(999) && !up(1000));
    hub.peer_beats(2000);
    assert_eq!(missed([3999, 4000]), [false, true]);
    assert_eq!(hub.stale(), Duration::from_millis(4800));
    assert_eq!(hub.least_silence(), Duration::from_millis(6000));
    assert_eq!(hub.step(), Duration::from_millis(50));
    assert!(up(5999) && !up(6000));
    hub.peer_beats(0);
    assert_eq!(missed([39, 40]), [false, true]);
    assert_eq!(hub.step(), Duration::from_millis(5));
    assert!(up(999) && !up(1000));
    // What a peer says is only what it says.
    hub.peer_beats(u64::MAX);
    assert!(hub.stale() < Duration::from_secs(3 * 3600));
    hub.beats("vm", Some(Duration::from_millis(40)));
    assert_eq!(
        hub.step(),
        Duration::from_millis(10),
        "it listens as often as it speaks"
    );
}

#[test]
fn modules_that_sleep_look_when_a_peer_is_heard_again() {
    let hub = hub();
    let [(to, looks), (other, sleeps)] = [(); 2].map(|()| std::sync::mpsc::channel());
    hub.follow("vm", to);
    hub.follow("db", other);
    let both = |lan: usize| {
        hub.heard(lan);
        [&looks, &sleeps].map(|inputs| {
            let all = inputs.try_iter();
            all.filter(|input| matches!(input, Input::Look)).count()
        })
    };
    assert_eq!(both(0), [0, 0], "nothing was missing");
    let missed = 2 * PULSE.as_millis() as u64;
    hub.lans[0].quiet.store(missed - 1, Ordering::Release);
    assert!(hub.is_heard(&["fast".into()]));
    hub.lans[0].quiet.store(missed, Ordering::Release);
    assert!(!hub.is_heard(&["fast".into()]));
    assert_eq!(both(0), [1, 1]);
    assert_eq!(hub.quiet(&["fast".into()]), Duration::ZERO);
    // The peer's daemon lives, and does not run one of them.
    let all = ["db".to_owned(), "vm".to_owned()];
    hub.learn_works(&all);
    hub.listened.fetch_add(missed, Ordering::AcqRel);
    hub.learn_works(&all[1..]);
    assert_eq!(both(0), [1, 0]);
    hub.listened.fetch_add(missed, Ordering::AcqRel);
    hub.learn_works(&all[1..]);
    assert_eq!(both(0), [1, 0], "the same ones as before");
    // Nor was it told anything new of the other one.
    hub.learn("db".into(), 1, 5, view("said"));
    assert_eq!(both(0), [0, 0], "it was told");
    hub.listened.fetch_add(missed, Ordering::AcqRel);
    hub.learn("db".into(), 1, 5, view("said"));
    assert_eq!(both(0), [0, 1]);
}

#[test]
fn a_module_that_follows_late_is_told_what_was_said() {
    let hub = hub();
    hub.learn("vm".into(), 1, 5, view("said"));
    let (to, told) = std::sync::mpsc::channel();
    hub.follow("vm", to);
    assert!(matches!(told.try_recv(), Ok(Input::Peer(v)) if v.reason == "said"));
}

#[test]
fn a_module_serves_on_the_node_that_says_so_and_is_heard() {
    let hub = hub();
    let soon = Duration::from_secs(5);
    let error = |hub: &Hub| hub.serving("db", soon).unwrap_err().to_string();
    assert_eq!(error(&hub), "there is no module db");
    let mut here = view("here");
    hub.tell("db", here.clone());
    assert_eq!(error(&hub), "db is STOP NotReady on a");
    let mut there = view("there");
    (there.state, there.status) = (StateName::Prim, StatusName::Transient);
    hub.learn("db".into(), 1, 1, there.clone());
    assert_eq!(
        error(&hub),
        "db is STOP NotReady on a and PRIM Transient on b"
    );
    there.status = StatusName::Ready;
    hub.learn("db".into(), 1, 2, there);
    assert_eq!(hub.serving("db", soon).unwrap(), "b");
    for lan in &hub.lans {
        lan.quiet.store(5000, Ordering::Release);
    }
    assert_eq!(error(&hub), "db is STOP NotReady on a");
    (here.state, here.status) = (StateName::Alone, StatusName::Ready);
    hub.tell("db", here);
    assert_eq!(hub.serving("db", soon).unwrap(), "a");
}

#[test]
fn a_peer_refuses_when_it_does_on_all_networks_on_which_it_could_be_heard() {
    let hub = hub();
    let silence = Duration::from_secs(3);
    let (to, told) = std::sync::mpsc::channel();
    hub.follow("vm", to);
    assert!(!hub.refuses(&[], silence), "nobody was asked");
    let slow = hub.talks(1, true);
    hub.answers(0, Answer::Refused);
    hub.answers(0, Answer::Refused);
    assert!(matches!(told.try_recv(), Ok(Input::Refused)));
    assert!(told.try_recv().is_err(), "it is told once");
    // A network that only one of the two knows of decides for those that listen to it alone.
    assert!(!hub.refuses(&[], silence));
    assert!(hub.refuses(&["fast".into()], silence));
    // A call that was under way when the line began.
    hub.answers(1, Answer::Refused);
    assert!(!hub.refuses(&[], silence));
    drop(slow);
    assert!(!hub.refuses(&[], silence), "it may come back there");
    hub.lans[1].quiet.store(3000, Ordering::Release);
    assert!(hub.refuses(&[], silence));
    hub.lans[1].quiet.store(0, Ordering::Release);
    hub.answers(1, Answer::Refused);
    assert!(hub.refuses(&[], silence));
    hub.answers(1, Answer::Nothing);
    assert!(!hub.refuses(&[], silence));
    hub.answers(1, Answer::Open);
    assert!(!hub.refuses(&[], silence));
    let _fast = hub.talks(0, true);
    assert!(!hub.refuses(&["fast".into()], silence));
}

#[test]
fn one_network_with_heartbeats_is_enough() {
    let hub = hub();
    hub.lans[0].quiet.store(9000, Ordering::Release);
    assert_eq!(hub.quiet(&[]), Duration::ZERO);
    assert_eq!(hub.quiet(&["fast".into()]), Duration::from_secs(9));
    hub.tell("vm", view("1"));
    hub.tell("db", view("2"));
    hub.tell("vm", view("3"));
    let newer: Vec<_> = hub.newer(1).into_iter().map(|(m, n, _)| (m, n)).collect();
    assert_eq!(newer, [("db".into(), 2), ("vm".into(), 3)]);
}
