//! The Debian package: built, and installed, used and removed on two machines that have
//! nothing but Debian's minimal system and systemd.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod booted;
mod root;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Network, Scratch, process, wait_until};

use crate::root::{Machine, must};

/// How long something may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const START: &str = "#!/bin/sh\necho started >>/srv/application\n";
const STOP: &str = "#!/bin/sh\necho stopped >>/srv/application\n";

/// Packs the programs that the tests use.
fn build(directory: &Path) -> PathBuf {
    let programs = directory.join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    for (ours, name) in [("controller", "twinfold"), ("node", "twinfold-fs")] {
        let program = process::program(ours).unwrap();
        std::os::unix::fs::symlink(program, programs.join(name)).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/deb");
    must(
        Command::new(script)
            .arg("--binaries")
            .arg(&programs)
            .arg(directory),
    );
    let mut all = std::fs::read_dir(directory).unwrap();
    all.find_map(|e| Some(e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "deb")))
        .unwrap()
}

/// Two machines with the package in `/srv`.
fn machines(scratch: &Scratch) -> (Network, [Machine; 2]) {
    let package = build(scratch.path());
    let network = Network::new().unwrap();
    let machines = ["one", "two"].map(|name| {
        let end = usize::from(name == "two");
        Machine::new(&scratch.path().join(name), network.namespace(end).unwrap())
    });
    for machine in &machines {
        std::fs::hard_link(&package, machine.path("srv/twinfold.deb")).unwrap();
    }
    (network, machines)
}

fn install(machine: &Machine) -> String {
    machine.must("dpkg --force-unsafe-io --install /srv/twinfold.deb")
}

fn remove(machine: &Machine, how: &str) -> String {
    machine.must(&format!("dpkg --force-unsafe-io --{how} twinfold"))
}

/// Everything is there that the package promises.
fn assert_complete(machine: &Machine) {
    let units = machine.path("usr/lib/systemd/system");
    let mut starts = 0;
    for unit in std::fs::read_dir(&units).unwrap() {
        let text = std::fs::read_to_string(unit.unwrap().path()).unwrap();
        for line in text.lines().filter(|l| l.starts_with("Exec")) {
            let program = line.split(['=', ' ']).nth(1).unwrap();
            let ours = program.starts_with("/usr/bin/twinfold");
            assert!(!ours || machine.path(&program[1..]).is_file(), "{line}");
            starts += usize::from(ours);
        }
    }
    assert!(starts >= 5, "{starts}");
    let man = "usr/share/man/man1";
    for page in ["twinfold", "twinfold-waitstate", "twinfold-fs-init"] {
        let page = format!("{man}/{page}.1.gz");
        let text = machine.must(&format!("zcat /{page}"));
        assert!(text.contains("\n.SH DESCRIPTION\n"), "{page}: {text}");
    }
    // Every command has a page, and no page is of `help`.
    let listed = machine.must("twinfold --help; twinfold-fs --help");
    let commands = listed.lines().filter_map(|l| l.strip_prefix("  "));
    let commands = commands.filter(|l| l.starts_with(|c: char| c.is_ascii_lowercase()));
    let mut pages = 0;
    for name in commands.filter_map(|l| l.split_whitespace().next()) {
        let page = |program| {
            machine
                .path(&format!("{man}/{program}-{name}.1.gz"))
                .is_file()
        };
        assert!(
            name == "help" || page("twinfold") || page("twinfold-fs"),
            "{name}"
        );
        pages += 1;
    }
    assert!(pages > 30, "{listed}");
    assert!(!machine.path(&format!("{man}/twinfold-help.1.gz")).exists());
    for program in ["twinfold", "twinfold-fs"] {
        let completed = format!(
            ". /usr/share/bash-completion/completions/{program}; COMP_WORDS=({program} sta); \
             COMP_CWORD=1; set -- $(complete -p {program}); while [ $1 != -F ]; do shift; done; \
             $2 {program} sta {program}; echo \"${{COMPREPLY[@]}}\""
        );
        let completed = machine.must(&format!("bash -c '{completed}'"));
        let known = completed.split_whitespace().any(|w| w.starts_with("sta"));
        assert!(known, "{program}: {completed}");
    }
    for file in [
        "usr/share/zsh/vendor-completions/_twinfold",
        "usr/share/zsh/vendor-completions/_twinfold-fs",
        "usr/share/fish/vendor_completions.d/twinfold.fish",
        "usr/share/fish/vendor_completions.d/twinfold-fs.fish",
    ] {
        assert!(machine.path(file).is_file(), "{file}");
    }
    machine.read("usr/share/doc/twinfold/controller/SCRIPTS.md");
    let copyright = machine.read("usr/share/doc/twinfold/copyright");
    for part in ["License: MIT or Apache-2.0", "\n quinn ", "\n fuser "] {
        assert!(copyright.contains(part), "{part}: {copyright}");
    }
    machine.must("zcat /usr/share/doc/twinfold/licences.gz | grep -q '^quinn-'");
    machine.must("twinfold confcheck /etc/twinfold/*.xml.example");
    let mode = machine.must("stat -c %a /etc/twinfold");
    assert_eq!(mode, "700\n", "keys lie there");
}

/// Whether a unit starts with the machine.
fn starts_at_boot(machine: &Machine, unit: &str) -> bool {
    let link = format!("etc/systemd/system/multi-user.target.wants/{unit}");
    machine.path(&link).is_symlink()
}

/// The two get to know each other as the README says.
fn pair(one: &Machine, two: &Machine) {
    let example = one.read("etc/twinfold/cluster.xml.example");
    let ours = example
        .replace("192.0.2.1", "10.77.0.1")
        .replace("192.0.2.2", "10.77.0.2");
    one.write("etc/twinfold/cluster.xml", &ours);
    let mut init = one.command("exec twinfold cluster init --node one");
    init.stdout(Stdio::piped());
    let mut init = process::start(init).unwrap();
    let lines = BufReader::new(init.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let join = lines
        .find(|l| l.starts_with("twinfold cluster join"))
        .unwrap();
    let told = two.must(&join);
    assert!(told.contains("this is two, its peer is one"), "{told}");
    let rest: Vec<_> = lines.collect();
    assert!(rest.join(" ").contains("two has joined"), "{rest:?}");
    assert!(init.wait().unwrap().success());
}

/// How a daemon is started where no systemd runs.
const DAEMON: &str = "twinfold daemon </dev/null >/var/log/daemon.log 2>&1 &";

/// A module with a folder, from the example, runs on both; the first one is primary.
fn run_module(one: &Machine, two: &Machine, daemon: &str) {
    let both = [(one, "--good-copy"), (two, "--from-peer")];
    let identities = both.map(|(m, _)| m.must("twinfold cluster identity"));
    for (n, (machine, copy)) in both.into_iter().enumerate() {
        machine.must(&format!(
            "mkdir /srv/data && twinfold fs init /srv/data {copy} --name data \
             --listen 10.77.0.{}:4810 --peer 10.77.0.{}:4810 --peer-id {}",
            n + 1,
            2 - n,
            identities[1 - n]
        ));
        machine.must(daemon);
        let up = || machine.output("twinfold state").status.success();
        assert!(wait_until(PATIENCE, up), "the daemon does not answer");
    }
    let module = "etc/twinfold/modules/data";
    let example = one.read("etc/twinfold/userconfig.xml.example");
    one.write(&format!("{module}/userconfig.xml"), &example);
    one.write(&format!("{module}/bin/start_prim"), START);
    one.write(&format!("{module}/bin/stop_prim"), STOP);
    one.must(&format!("chmod +x /{module}/bin/*"));
    one.must("twinfold config -m data");
    one.must("twinfold prim -m data");
    two.must("twinfold second -m data");
    is(one, "PRIM");
    is(two, "SECOND");
}

fn is(machine: &Machine, state: &str) {
    machine.must(&format!(
        "twinfold waitstate -m data {state} --status Ready --timeout 60"
    ));
}

#[test]
fn the_package_pairs_and_serves_and_leaves_the_data_when_it_is_removed() {
    let scratch = Scratch::new();
    let (_network, [one, two]) = machines(&scratch);
    for machine in [&one, &two] {
        let told = install(machine);
        assert!(told.contains("twinfold cluster init"), "{told}");
    }
    assert_complete(&one);
    for unit in ["twinfold.service", "twinfold-modules.service"] {
        assert!(starts_at_boot(&one, unit), "{unit}");
    }
    pair(&one, &two);
    run_module(&one, &two, DAEMON);
    one.must("echo kept >/srv/data/file");
    two.must("grep kept /srv/data/file");

    // An upgrade touches nothing that runs, and nothing that was configured.
    one.must("echo '#mine' >>/etc/twinfold/environment");
    let told = install(&one);
    assert!(!told.contains("cluster init"), "{told}");
    is(&one, "PRIM");
    assert_eq!(one.read("srv/application"), "started\n");
    assert!(one.read("etc/twinfold/environment").contains("#mine"));

    // Removed where it serves: the application is stopped in order, the other one goes on.
    let told = remove(&one, "remove");
    let data = "module data: the files of /srv/data are in /srv/.data.twinfold/data";
    assert!(told.contains(data), "{told}");
    assert_eq!(one.read("srv/application"), "started\nstopped\n");
    assert!(!one.path("usr/bin/twinfold-fs").is_file());
    assert_eq!(one.read("srv/.data.twinfold/data/file"), "kept\n");
    is(&two, "ALONE");
    assert_eq!(two.read("srv/application"), "started\n");

    // Installed again it is who it was, and has what it had.
    let key = std::fs::read(one.path("etc/twinfold/node.key")).unwrap();
    assert!(!key.is_empty());
    let told = install(&one);
    assert!(!told.contains("cluster init"), "{told}");
    let now = std::fs::read(one.path("etc/twinfold/node.key")).unwrap();
    assert_eq!(now, key);
    one.must("twinfold confinfo -m data");
}

#[test]
fn a_purge_takes_keys_and_configuration_and_no_folder_s_data() {
    let scratch = Scratch::new();
    let (_network, [one, two]) = machines(&scratch);
    for machine in [&one, &two] {
        install(machine);
        machine.must("twinfold cluster identity");
    }
    // Two folders in places that are the package's own: one beside its store, and one with
    // its store elsewhere.
    let id = two.must("twinfold cluster identity");
    let folder = |path: &str, more: &str| {
        one.must(&format!(
            "mkdir -p {path} && echo mine >{path}/file && twinfold fs init {path} --good-copy \
             --listen 10.77.0.1:4810 --peer 10.77.0.2:4810 --peer-id {more} {id}"
        ));
    };
    folder("/srv/data", "");
    one.must("mkdir -p /srv/in-lib /srv/in-log");
    for (place, folder) in [
        ("/var/lib/twinfold", "in-lib"),
        ("/var/log/twinfold", "in-log"),
    ] {
        // The layers of this root are no file system for a store.
        one.must(&format!(
            "mkdir -p {place} && mount --bind /srv/{folder} {place}"
        ));
    }
    folder("/var/lib/twinfold/vm", "");
    folder("/var/log/twinfold/vm", "");
    one.must("mv /var/log/twinfold/.vm.twinfold /var/log/twinfold/store");
    two.must("mkdir -p /var/lib/twinfold/data && echo >/var/lib/twinfold/run");

    let told = remove(&one, "purge");
    assert!(!one.path("etc/twinfold").exists(), "{told}");
    assert!(!starts_at_boot(&one, "twinfold.service"));
    for kept in [
        "srv/.data.twinfold/data/file",
        "srv/in-lib/.vm.twinfold/data/file",
        "srv/in-log/store/data/file",
    ] {
        assert_eq!(one.read(kept), "mine\n", "{kept}: {told}");
    }
    assert!(told.contains("/var/lib/twinfold/.vm.twinfold"), "{told}");
    assert!(told.contains("/var/log/twinfold/store"), "{told}");
    let told = remove(&two, "purge");
    for gone in ["etc/twinfold", "var/lib/twinfold", "usr/bin/twinfold"] {
        let there = two.output(&format!("test -e /{gone}")).status.success();
        assert!(!there, "{gone}: {told}");
    }
}
