//! A real etcd decides which of two separated nodes goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{Network, process, wait_until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::PATIENCE;
use crate::stage::{Machine, Stage};

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
struct Witness {
    directory: PathBuf,
    network: File,
    process: Option<Child>,
}

impl Witness {
    fn start(&mut self) {
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

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Two nodes that work, and the witness of both.
fn with_etcd() -> (Stage, Witness) {
    let ends = std::cell::Cell::new(0);
    let stage = Stage::with("", |home| {
        let end = ends.replace(ends.get() + 1);
        let directory = home.parent().unwrap();
        if end == 0 {
            certificates(directory);
        }
        format!(
            "<etcd endpoints=\"https://{}:2379\" ca=\"{}\" timeout=\"2s\"/>",
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
    (stage.run(), witness)
}

fn says(machine: &Machine, text: &str) {
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
