//! Two nodes get to know each other: by a token that serves once, for a time.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use harness::{Scratch, process};

use crate::PATIENCE;

struct Homes {
    scratch: Scratch,
}

/// `cluster init` as it runs, and what it prints.
struct Init {
    child: Child,
    lines: Receiver<String>,
}

impl Homes {
    fn new() -> Homes {
        let homes = Homes {
            scratch: Scratch::new(),
        };
        let port = harness::free_addresses(["127.0.0.1"]).unwrap()[0].port();
        let etc = homes.at("a").join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::create_dir_all(homes.at("b").join("etc")).unwrap();
        let text = format!(
            "<cluster><lans port=\"{port}\"><lan name=\"net\"><node name=\"one\" addr=\"127.0.0.1\"/>\
             <node name=\"two\" addr=\"127.0.0.2\"/></lan></lans></cluster>"
        );
        std::fs::write(etc.join("cluster.xml"), text).unwrap();
        homes
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(process::program("controller").unwrap());
        command
            .arg("--home")
            .arg(self.at(name))
            .arg("cluster")
            .stdin(Stdio::null());
        command
    }

    /// Lets the other node join; returns with the token.
    fn init(&self, valid: &str) -> (Init, String) {
        let mut command = self.command("a");
        command.args(["init", "--node", "one", "--valid", valid]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process::start(command).unwrap();
        let (tell, lines) = channel();
        let said = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(said).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let init = Init { child, lines };
        let token = loop {
            let line = init.lines.recv_timeout(PATIENCE).unwrap();
            if let Some((_, token)) = line.split_once("tfj1-") {
                break format!("tfj1-{token}");
            }
        };
        (init, token)
    }

    fn join(&self, token: &str) -> Output {
        self.command("b").args(["join", token]).output().unwrap()
    }

    fn identity(&self, name: &str) -> String {
        let output = self.command(name).arg("identity").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Init {
    /// Its exit status and its complaints.
    fn ends(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

fn pair(home: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(home.join("etc/pair.json")).unwrap()).unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_token_makes_two_nodes_know_each_other_and_gives_both_one_configuration() {
    let homes = Homes::new();
    let (init, token) = homes.init("5");
    let joined = homes.join(&token);
    assert!(joined.status.success(), "{joined:?}");
    assert_eq!(init.ends().0, Some(0));
    let (a, b) = (pair(&homes.at("a")), pair(&homes.at("b")));
    assert_eq!((&a["node"], &b["node"]), (&"one".into(), &"two".into()));
    assert_eq!(a["peer_identity"], homes.identity("b").as_str());
    assert_eq!(b["peer_identity"], homes.identity("a").as_str());
    let text = |name: &str| std::fs::read(homes.at(name).join("etc/cluster.xml")).unwrap();
    assert_eq!(text("a"), text("b"));
    let again = complaint(&homes.join(&token));
    assert!(again.contains("has a peer already"), "{again}");
}

#[test]
fn a_token_serves_once_and_a_wrong_one_lets_nobody_in() {
    let homes = Homes::new();
    let (init, used) = homes.init("5");
    assert!(homes.join(&used).status.success());
    init.ends();
    for name in ["a", "b"] {
        std::fs::remove_file(homes.at(name).join("etc/pair.json")).unwrap();
    }
    let replayed = complaint(&homes.join(&used));
    assert!(replayed.contains("nobody listens"), "{replayed}");
    let (init, token) = homes.init("5");
    let replayed = complaint(&homes.join(&used));
    assert!(replayed.contains("refuses"), "{replayed}");
    assert!(!homes.at("b").join("etc/pair.json").exists());
    let mistyped = complaint(&homes.join(&token[..token.len() - 2]));
    assert!(mistyped.contains("token"), "{mistyped}");
    // The right one still serves.
    assert!(homes.join(&token).status.success());
    let (code, said) = init.ends();
    assert_eq!(code, Some(0));
    assert!(said.contains("not this token's secret"), "{said}");
}

#[test]
fn a_token_expires() {
    let homes = Homes::new();
    let (init, token) = homes.init("0");
    let (code, said) = init.ends();
    assert_eq!(code, Some(1));
    assert!(said.contains("expired"), "{said}");
    complaint(&homes.join(&token));
    assert!(!homes.at("a").join("etc/pair.json").exists());
}
