//! Modules ready to use, made by `module install`, on two real daemons.

mod kvm;
mod libvirt;
mod libvirtd;
mod mirror;
mod postgresql;

use harness::wait_until;
use serde_json::Value;

use crate::PATIENCE;
use crate::stage::{Machine, Stage};

/// The module's name, and its folder's.
const NAME: &str = "db";

/// A pair with a module of this kind, configured on both nodes from one of them and running:
/// A is PRIM, B is SECOND. `prepare` puts into A's folder, before it is one, what is there then.
/// `own` are the values of options that each machine has for itself, as macros.
fn running(kind: &str, options: &[&str], own: &[(&str, &str)], prepare: impl Fn(&Stage)) -> Stage {
    let stage = Stage::new("isolation=\"wait\"");
    let folder = stage.a.home().join(NAME);
    std::fs::create_dir(&folder).unwrap();
    prepare(&stage);
    stage.make_folders(NAME, 10);
    let folder = format!("FOLDER={}", folder.display());
    let install = [&["module", "install", kind, NAME, &folder], options].concat();
    let said = stage.a.must(&install);
    assert!(said.contains("twinfold config -m db"), "{said}");
    let (code, _, said) = stage.a.cli(&install);
    assert!(code == 1 && said.contains("is there already"), "{said}");
    let made = stage.a.home().join("etc/modules").join(NAME);
    let xml = made.join("userconfig.xml");
    stage.a.must(&["confcheck", &xml.display().to_string()]);
    // The two machines of a test have one file system: the folders have different paths. And
    // what is looked at every ten seconds is looked at more often.
    let own = [&[("FOLDER", "%HOME_OF_TEST%/db")], own].concat();
    for (name, value) in own {
        let text = std::fs::read_to_string(&xml).unwrap();
        let line = format!("<macro name=\"{name}\"");
        let lines: Vec<_> = text.lines().filter(|l| !l.contains(&line)).collect();
        std::fs::write(&xml, lines.join("\n")).unwrap();
        edit(&xml, &format!("%{name}%"), value);
    }
    edit(
        &xml,
        "</service>",
        "<failover handle_time=\"300ms\"/></service>",
    );
    for script in std::fs::read_dir(made.join("bin")).unwrap() {
        let path = script.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("check_")
        {
            edit(&path, "sleep 10\n", "sleep 1\n");
        }
    }
    stage.a.must(&["config", "-m", NAME]);
    stage.a.must(&["prim", "-m", NAME]);
    stage.b.must(&["second", "-m", NAME]);
    wait(&stage.a, "PRIM");
    wait(&stage.b, "SECOND");
    stage
}

fn edit(path: &std::path::Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

fn wait(machine: &Machine, state: &str) {
    let (code, _, err) = machine.cli(&[
        "waitstate",
        "-m",
        NAME,
        state,
        "--status",
        "Ready",
        "--timeout",
        "120",
    ]);
    assert_eq!(code, 0, "{err}\n{}\n{}", machine.log(), said(machine));
}

/// What the module's scripts and its events said.
fn said(machine: &Machine) -> String {
    let log = machine.home().join("log").join(NAME);
    let read = |name: &str| std::fs::read_to_string(log.join(name)).unwrap_or_default();
    format!(
        "--- application\n{}\n--- events\n{}",
        read("application.log"),
        read("events.log")
    )
}

/// What a resource of the module is.
fn resource(machine: &Machine, name: &str) -> Value {
    let (_, out, _) = machine.cli(&["state", "-m", NAME, "--json"]);
    let state: Value = serde_json::from_str(&out).unwrap_or_default();
    state["resources"][name].clone()
}

fn becomes(machine: &Machine, name: &str, state: &str) {
    let is = || resource(machine, name) == state;
    assert!(wait_until(PATIENCE, is), "{name}: {}", said(machine));
}
