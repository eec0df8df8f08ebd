//! A real etcd decides which of two separated nodes goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Network, process, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

use crate::PATIENCE;
use crate::stage::{Machine, Stage, kill};

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    own: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Issuer::new(params, key),
            own,
        }
    }

    /// A certificate for the addresses of the witness and its key: files below a directory.
    fn sign(&self, directory: &Path, name: &str) {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        let addresses = [0, 1].map(|end| SanType::IpAddress(Network::witness_address(end)));
        params.subject_alt_names.extend(addresses);
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let write = |end: &str, text: String| {
            std::fs::write(directory.join(format!("{name}.{end}")), text).unwrap();
        };
        write("pem", signed.pem());
        write("key", key.serialize_pem());
    }
}

/// A certificate authority, a certificate of its for the witness, and one for whoever asks it;
/// another one for the witness is of somebody else.
fn certificates(directory: &Path) {
    let authority = Authority::new("the one that is configured");
    std::fs::write(directory.join("ca.pem"), &authority.own).unwrap();
    authority.sign(directory, "server");
    authority.sign(directory, "node");
    Authority::new("another one").sign(directory, "stranger");
}

/// An etcd of one member on the third machine.
pub(crate) struct Witness {
    directory: PathBuf,
    network: File,
    process: Option<Child>,
    /// The name of its certificate.
    shows: &'static str,
    /// It answers only who shows a certificate.
    demands: bool,
}

impl Witness {
    /// The network of the machine on which it is.
    pub(crate) fn network(&self) -> &File {
        &self.network
    }
}

impl Witness {
    fn of(stage: &Stage) -> Witness {
        Witness {
            directory: stage.a.home().parent().unwrap().to_owned(),
            network: stage.network.witness().unwrap(),
            process: None,
            shows: "server",
            demands: false,
        }
    }

    pub(crate) fn start(&mut self) {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let log = File::create(self.directory.join("etcd.log")).unwrap();
        let ca = at("ca.pem");
        let demanded = ["--client-cert-auth", "--trusted-ca-file", &ca];
        let demanded = self.demands.then_some(demanded);
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
                &at(&format!("{}.pem", self.shows)),
                "--key-file",
                &at(&format!("{}.key", self.shows)),
            ])
            .args(demanded.iter().flatten())
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
    let (stage, mut witness) = configured(|end, _| {
        let endpoint = endpoint(end);
        (
            format!("endpoints=\"{endpoint}\" timeout=\"{timeout}\""),
            more.into(),
        )
    });
    witness.start();
    (stage, witness)
}

/// Where the node at this end finds the witness.
fn endpoint(end: usize) -> String {
    format!("https://{}:2379", Network::witness_address(end))
}

/// Two nodes whose module does not run yet, and a witness that does not; the node at an end has
/// these attributes of `etcd`, and these elements of the service. The directory is that of the
/// certificates.
fn configured(with: impl Fn(usize, &Path) -> (String, String)) -> (Stage, Witness) {
    let ends = std::cell::Cell::new(0);
    let stage = Stage::with("", |home| {
        let end = ends.replace(ends.get() + 1);
        let directory = home.parent().unwrap();
        if end == 0 {
            certificates(directory);
        }
        let (attributes, more) = with(end, directory);
        let ca = directory.join("ca.pem");
        format!("<etcd {attributes} ca=\"{}\"/>{more}", ca.display())
    });
    let witness = Witness::of(&stage);
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
    let mut witness = Witness::of(&stage);
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

/// B goes on without A, which is lost; and they come together again.
fn goes_on_without_a(stage: Stage) {
    let mut stage = stage;
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
fn one_endpoint_that_answers_is_enough_wherever_it_stands_among_those_that_do_not() {
    let (stage, mut witness) = configured(|end, _| {
        let here = endpoint(end);
        // One that says nothing, and one that refuses.
        let silent = here.replace(".3:", ".99:");
        let refuses = "https://127.0.0.1:9";
        let all = match end {
            0 => format!("{here},{silent},{refuses}"),
            _ => format!("{silent}, {refuses}, {here}"),
        };
        (
            format!("endpoints=\"{all}\" timeout=\"10s\""),
            String::new(),
        )
    });
    witness.start();
    let mut stage = stage.run();
    stage.a.kill_everything();
    goes_on_without_a(stage);
}

#[test]
fn a_witness_that_demands_a_certificate_answers_who_has_one() {
    let (stage, mut witness) = configured(|end, directory| {
        let file = |name: &str| directory.join(name).display().to_string();
        let (cert, key) = (file("node.pem"), file("node.key"));
        let endpoint = endpoint(end);
        (
            format!("endpoints=\"{endpoint}\" timeout=\"5s\" cert=\"{cert}\" key=\"{key}\""),
            String::new(),
        )
    });
    witness.demands = true;
    witness.start();
    let mut stage = stage.run();
    stage.a.kill_everything();
    goes_on_without_a(stage);
}

#[test]
fn a_witness_that_demands_a_certificate_lets_nobody_go_on_without_one() {
    let (stage, mut witness) = configured(|end, _| {
        let endpoint = endpoint(end);
        (
            format!("endpoints=\"{endpoint}\" timeout=\"5s\""),
            String::new(),
        )
    });
    witness.demands = true;
    witness.start();
    let mut stage = stage.run();
    stage.a.kill_everything();
    says(
        &stage.b,
        "the witness does not answer: etcd at 10.79.0.3:2379",
    );
    says(&stage.b, "received fatal alert");
    assert_eq!(stage.b.starts(), 0);
    // Until it is content without.
    witness.stop();
    witness.demands = false;
    witness.start();
    goes_on_without_a(stage);
}

#[test]
fn a_server_that_shows_a_certificate_of_somebody_else_is_not_believed_and_named() {
    let (stage, mut witness) = configured(|end, _| {
        let (here, refuses) = (endpoint(end), "https://127.0.0.1:9");
        (
            format!("endpoints=\"{here},{refuses}\" timeout=\"5s\""),
            String::new(),
        )
    });
    witness.shows = "stranger";
    witness.start();
    let mut stage = stage.run();
    stage.a.kill_everything();
    says(&stage.b, "the witness does not answer: etcd at ");
    // Each is named, with what it did.
    says(
        &stage.b,
        "etcd at 10.79.0.3:2379: invalid peer certificate: ",
    );
    says(&stage.b, "etcd at 127.0.0.1:9: ");
    assert_eq!(stage.b.starts(), 0);
    witness.stop();
    witness.shows = "server";
    witness.start();
    goes_on_without_a(stage);
}
