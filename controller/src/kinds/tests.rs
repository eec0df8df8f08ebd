//! What the kinds in the tree are, and what is made of them.

use std::path::PathBuf;
use std::process::Command;

use super::*;

/// Options with which each kind can be installed, whatever this machine has.
fn options(kind: &str) -> Vec<String> {
    let own: &[&str] = match kind {
        "mirror" => &["SERVICES=nginx \"php\" & more"],
        "kvm" => &["STOP=save", "VIA=qemu"],
        "postgresql" => &["OPTIONS=-c listen_addresses='*'"],
        _ => panic!("no test knows {kind}"),
    };
    let all = own.iter().map(|o| (*o).to_owned());
    all.chain(["FOLDER=/srv/x".to_owned()]).collect()
}

fn tree() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/modules"))
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn every_file_of_the_tree_is_in_the_program() {
    let mut kinds: Vec<_> = KINDS.iter().map(|k| k.name).collect();
    kinds.sort_unstable();
    assert_eq!(names(tree()), kinds);
    for kind in KINDS {
        let mut scripts: Vec<_> = kind.scripts.iter().map(|s| s.name).collect();
        scripts.sort_unstable();
        let directory = tree().join(kind.name);
        assert_eq!(names(directory.join("bin")), scripts, "{}", kind.name);
        assert_eq!(
            names(directory.clone()),
            ["README.md", "bin", "userconfig.xml"]
        );
        for script in kind.scripts {
            let path = directory.join("bin").join(script.name);
            let mode = std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o111 != 0, script.executable, "{}", script.name);
            assert_eq!(script.text.starts_with("#!/bin/sh\n"), script.executable);
        }
    }
}

#[test]
fn every_script_is_one_that_a_shell_can_read() {
    for kind in KINDS {
        for script in kind.scripts {
            let path = tree().join(kind.name).join("bin").join(script.name);
            let output = Command::new("sh").arg("-n").arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{said}");
        }
    }
}

#[test]
fn what_is_installed_passes_confcheck_with_a_word_on_separations_alone_and_says_what_was_chosen() {
    for kind in KINDS {
        let chosen = chosen(kind, &options(kind.name)).unwrap();
        let text = kind.render("db", &chosen);
        let (read, found) = config::module("userconfig.xml", &text, |_| None);
        assert!(found.mistakes.is_empty(), "{}: {found:?}", kind.name);
        let notes: Vec<_> = found.notes.iter().map(|n| n.text.as_str()).collect();
        let [promise] = notes[..] else {
            panic!("{}: {notes:?}", kind.name)
        };
        assert!(promise.contains("isolation=\""), "{promise}");
        let read = read.unwrap();
        assert_eq!(read.folders, ["/srv/x"]);
        for (name, value) in &read.variables {
            if let Some(wanted) = chosen.get(name) {
                assert_eq!(value, wanted);
            }
            assert!(!value.contains('%'), "{name}: {value}");
        }
        // A variable nobody reads, or one that nobody sets, is a mistake in the kind.
        let scripts: String = kind.scripts.iter().map(|s| s.text).collect();
        for (name, _) in &read.variables {
            assert!(
                scripts.contains(&format!("${name}")),
                "{}: {name}",
                kind.name
            );
        }
        for choice in kind.choices() {
            let used = text.matches(&format!("%{}%", choice.name)).count();
            assert!(used > 0, "{}: {} is used nowhere", kind.name, choice.name);
        }
    }
}

#[test]
fn a_module_is_made_once_and_only_of_options_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::new(Some(dir.path()));
    let tools = tempfile::tempdir().unwrap();
    let path = tools.path().as_os_str();
    let refused = |kind: &str, module: &str, options: &[&str]| {
        let options: Vec<_> = options.iter().map(|o| (*o).to_owned()).collect();
        let error = install(&places, path, kind, module, &options).unwrap_err();
        assert!(!places.modules().exists(), "{error:#}");
        format!("{error:#}")
    };
    let good = ["FOLDER=/srv/web", "SERVICES=nginx"];
    assert!(refused("mirror", "web", &good).contains("there is no systemctl"));
    let systemctl = tools.path().join("systemctl");
    std::fs::write(&systemctl, "").unwrap();
    assert!(refused("mirror", "web", &good).contains("there is no systemctl"));
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refused("mirr", "web", &good).contains("there are mirror, "));
    assert!(refused("mirror", "../web", &good).contains("no name of a module"));
    assert!(refused("mirror", "web", &good[..1]).contains("SERVICES=..."));
    assert!(refused("mirror", "web", &["FOLDER=", "SERVICES=x"]).contains("FOLDER=..."));
    let with = |more| [&good[..], &[more]].concat();
    assert!(refused("mirror", "web", &with("SERVICE=x")).contains("no option \"SERVICE\""));
    assert!(refused("mirror", "web", &with("FOLDER=/x")).contains("twice"));
    assert!(refused("mirror", "web", &with("x")).contains("no NAME=VALUE"));
    assert!(refused("mirror", "web", &with("ISOLATION=a\nb")).contains("no text"));
    let wrong = refused("mirror", "web", &with("ISOLATION=never"));
    assert!(
        wrong.contains("isolation=\"never\" is not one of alone, wait"),
        "{wrong}"
    );
    let wrong = refused("mirror", "web", &["FOLDER=srv", "SERVICES=nginx"]);
    assert!(wrong.contains("absolute path"), "{wrong}");

    let good = good.map(str::to_owned);
    let said = install(&places, path, "mirror", "web", &good).unwrap();
    assert!(said.contains("twinfold config -m web"), "{said}");
    let made = places.modules().join("web");
    assert_eq!(names(made.clone()), ["README.md", "bin", "userconfig.xml"]);
    let bundle = crate::versions::Bundle::read(&made).unwrap();
    bundle.check().unwrap();
    std::fs::write(made.join("bin/start_prim"), "mine").unwrap();
    let error = install(&places, path, "mirror", "web", &good).unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    assert_eq!(std::fs::read(made.join("bin/start_prim")).unwrap(), b"mine");
}

#[test]
fn what_a_kind_needs_is_looked_for_on_this_node() {
    let tools = tempfile::tempdir().unwrap();
    let program = |name: &str| {
        let path = tools.path().join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let check = |kind: &str, given: &[(&str, &str)]| {
        let given = given
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let mut chosen: Chosen = given.collect();
        needs::check(kind, &mut chosen, tools.path().as_os_str()).map(|_| chosen)
    };
    let error = check("kvm", &[]).unwrap_err();
    assert!(error.to_string().contains("neither virsh nor"), "{error}");
    program("emulator");
    let chosen = check("kvm", &[("QEMU", "emulator")]).unwrap();
    assert_eq!(chosen["VIA"], "qemu");
    check("kvm", &[("VIA", "libvirt")]).unwrap_err();
    program("virsh");
    assert_eq!(check("kvm", &[]).unwrap()["VIA"], "libvirt");
    for wrong in [
        ("VIA", "xen"),
        ("STOP", "of"),
        ("FORCE_STOP", "powerdown"),
        ("AGENT_TIMEOUT", "1m"),
    ] {
        let error = check("kvm", &[wrong]).unwrap_err();
        assert!(error.to_string().contains(wrong.1), "{error}");
    }
    let here = tools.path().to_str().unwrap();
    let error = check("postgresql", &[("PG_BIN", here)]).unwrap_err();
    assert!(error.to_string().contains(here), "{error}");
    program("pg_ctl");
    check("postgresql", &[("PG_BIN", here)]).unwrap();
    // Whatever this machine has, it is one with the program.
    let chosen = check("postgresql", &[]).unwrap();
    assert!(Path::new(&chosen["PG_BIN"]).join("pg_ctl").exists());
}
