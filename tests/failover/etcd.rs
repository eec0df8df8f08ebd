//! A real etcd decides which of two separated nodes goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Network, process, wait_until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::PATIENCE;
use crate::stage::{Machine, Stage, kill};

/// A certificate authority and a certificate of its for the addresses of the witness: files
/// below a directory.
fn certificates(directory: &Path) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    let addresses = [0, 1].map(|end| SanType::IpAddress(Network::witness_address(end)));
    params.subject_alt_names.extend(addresses);
    let key = KeyPair::generate().unwrap();
    let server = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(directory.join("server.pem"), server.pem()).unwrap();
    std::fs::write(directory.join("server.key"), key.serialize_pem()).unwrap();
}

/// An etcd of one member on the third machine.
pub(crate) struct Witness {
    directory: PathBuf,
    network: File,
    process: Option<Child>,
}

impl Witness {
    /// The network of the machine on which it is.
    pub(crate) fn network(&self) -> &File {
        &self.network
    }
}

impl Witness {
    pub(crate) fn start(&mut self) {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let log = File::create(self.directory.join("etcd.log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args([
                "--data-dir",
                &at("data"),
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
            ])
            .args(["--listen-client-urls", "https://0.0.0.0:2379"])
            .args(["--advertise-client-urls", "https://127.0.0.1:2379"])
            .args([
                "--cert-file",
                &at("server.pem"),
                "--key-file",
                &at("server.key"),
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        harness::enter(&mut command, &self.network).unwrap();
        self.process = Some(process::start(command).expect("etcd, of the package etcd-server"));
        let ready = || {
            let said = std::fs::read_to_string(self.directory.join("etcd.log"));
            said.is_ok_and(|s| s.contains("ready to serve client requests"))
        };
        assert!(wait_until(PATIENCE, ready), "{}", self.said());
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.directory.join("etcd.log")).unwrap_or_default()
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Witness {
    /// It answers nothing, and then everything.
    fn freeze(&self, on: bool) {
        let pid = self.process.as_ref().unwrap().id() as i32;
        kill(pid, if on { libc::SIGSTOP } else { libc::SIGCONT });
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two nodes that work, and the witness of both.
pub(crate) fn with_etcd() -> (Stage, Witness) {
    with_etcd_that_may_take("2s")
}

fn with_etcd_that_may_take(timeout: &str) -> (Stage, Witness) {
    let (stage, witness) = before_it_runs(timeout, "");
    (stage.run(), witness)
}

/// Two nodes whose module does not run yet, with more elements of the service.
pub(crate) fn before_it_runs(timeout: &str, more: &str) -> (Stage, Witness) {
    let ends = std::cell::Cell::new(0);
    let stage = Stage::with("", |home| {
        let end = ends.replace(ends.get() + 1);
        let directory = home.parent().unwrap();
        if end == 0 {
            certificates(directory);
        }
        format!(
            "<etcd endpoints=\"https://{}:2379\" ca=\"{}\" timeout=\"{timeout}\"/>{more}",
            Network::witness_address(end),
            directory.join("ca.pem").display()
        )
    });
    let mut witness = Witness {
        directory: stage.a.home().parent().unwrap().to_owned(),
        network: stage.network.witness().unwrap(),
        process: None,
    };
    witness.start();
    (stage, witness)
}

pub(crate) fn says(machine: &Machine, text: &str) {
    let said = || machine.must(&["log", "-m", "vm"]).contains(text);
    assert!(wait_until(PATIENCE, said), "{}", machine.log());
}

#[test]
fn a_secondary_whose_primary_lost_its_power_asks_the_witness_and_goes_on() {
    let (mut stage, _witness) = with_etcd();
    stage.a.kill_everything();
    stage.b.wait("ALONE", "Ready");
    says(&stage.b, "the witness lets this node go on");
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.a.start_daemon();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn while_the_witness_is_down_nobody_goes_on_and_then_somebody_does() {
    let (mut stage, mut witness) = with_etcd();
    witness.stop();
    stage.b.kill_everything();
    says(&stage.a, "the witness does not answer");
    let held = stage.a.acked();
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        stage.a.acked() <= held + 1,
        "it is alone, and may not go on"
    );
    witness.start();
    stage.a.wait("ALONE", "Ready");
    stage.a.works();
    assert_eq!(stage.a.starts(), 1, "the application only waited");
    stage.b.start_daemon();
    stage.b.wait("SECOND", "Ready");
    stage.assert_identical();
}

#[test]
fn a_primary_that_was_frozen_and_is_denied_gives_way_at_once_although_its_application_waits() {
    let (stage, _witness) = with_etcd();
    stage.a.freeze(true);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    stage.network.cut().unwrap();
    stage.a.freeze(false);
    // Its application waits in a call that nobody may answer with success.
    says(&stage.a, "the witness has let the peer go on");
    stage.a.wait("WAIT", "NotReady");
    says(&stage.a, "the application is stopped");
    // It may note when it is thawed what it was told before, and nothing that is lost.
    stage.b.assert_found_all_of(&stage.a);
    stage.b.works();
    stage.network.heal().unwrap();
    stage.a.wait("SECOND", "Ready");
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn a_primary_that_was_frozen_and_finds_the_peer_serving_gives_way_at_once() {
    let (stage, _witness) = with_etcd();
    stage.a.freeze(true);
    stage.b.wait("ALONE", "Ready");
    stage.b.assert_found_all_of(&stage.a);
    let acked = stage.a.acked();
    stage.a.freeze(false);
    stage.a.wait("SECOND", "Ready");
    assert!(stage.a.acked() <= acked + 1, "it acknowledged what is lost");
    stage.b.wait("PRIM", "Ready");
    stage.b.works();
    stage.assert_identical();
}

#[test]
fn of_two_separated_nodes_exactly_one_goes_on() {
    let (stage, _witness) = with_etcd();
    stage.network.cut().unwrap();
    let alone = |machine: &Machine| machine.is("ALONE", "Ready");
    let one = || alone(&stage.a) != alone(&stage.b);
    assert!(
        wait_until(PATIENCE, one),
        "{}{}",
        stage.a.log(),
        stage.b.log()
    );
    let (winner, loser) = match alone(&stage.a) {
        true => (&stage.a, &stage.b),
        false => (&stage.b, &stage.a),
    };
    winner.works();
    says(loser, "the witness has let the peer go on");
    let before = loser.acked();
    for _ in 0..3 {
        winner.works();
    }
    assert_eq!(loser.acked(), before, "both went on");
    if winner.home() == stage.b.home() {
        stage.b.assert_found_all_of(&stage.a);
    }
    stage.network.heal().unwrap();
    winner.wait("PRIM", "Ready");
    loser.wait("SECOND", "Ready");
    winner.works();
    stage.assert_identical();
}

#[test]
fn what_the_witness_granted_in_vain_does_not_decide_the_next_separation() {
    let (mut stage, witness) = with_etcd_that_may_take("60s");
    witness.freeze(true);
    stage.network.cut().unwrap();
    for machine in [&stage.a, &stage.b] {
        says(machine, "isolated; the arbiter has not answered");
    }
    // The answers come when the nodes are together again.
    stage.network.heal().unwrap();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    witness.freeze(false);
    for machine in [&stage.a, &stage.b] {
        says(machine, "the witness decides anew next time");
    }
    let granted = [&stage.a, &stage.b].map(|machine| {
        let log = machine.must(&["log", "-m", "vm"]);
        log.contains("the witness lets this node go on")
    });
    assert_eq!(granted.iter().filter(|g| **g).count(), 1);
    assert_eq!(
        (stage.a.starts(), stage.b.starts()),
        (1, 0),
        "nobody went on"
    );
    // The one that got it in vain is lost.
    let (first, second) = match granted[0] {
        true => (&mut stage.a, &mut stage.b),
        false => (&mut stage.b, &mut stage.a),
    };
    first.kill_everything();
    second.wait("ALONE", "Ready");
    second.works();
    first.start_daemon();
    first.wait("SECOND", "Ready");
    second.wait("PRIM", "Ready");
    stage.assert_identical();
}

#[test]
fn a_witness_that_only_one_node_knows_lets_nobody_go_on() {
    let with = |home: &Path| match home.ends_with("a") {
        true => {
            let directory = home.parent().unwrap();
            certificates(directory);
            format!(
                "<etcd endpoints=\"https://{}:2379\" ca=\"{}\" timeout=\"2s\"/>",
                Network::witness_address(0),
                directory.join("ca.pem").display()
            )
        }
        false => String::new(),
    };
    let stage = Stage::with("isolation=\"alone\"", with);
    let mut witness = Witness {
        directory: stage.a.home().parent().unwrap().to_owned(),
        network: stage.network.witness().unwrap(),
        process: None,
    };
    witness.start();
    let stage = stage.run();
    for machine in [&stage.a, &stage.b] {
        let shown = machine.must(&["state"]);
        assert!(shown.contains("different rules"), "{shown}");
    }
    stage.network.cut().unwrap();
    for machine in [&stage.a, &stage.b] {
        says(machine, "not known to have the same arbiter");
    }
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.network.heal().unwrap();
    stage.a.wait("PRIM", "Ready");
    stage.b.wait("SECOND", "Ready");
    stage.a.works();
    stage.assert_identical();
}
