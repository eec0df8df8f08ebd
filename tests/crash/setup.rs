//! Crashes while a directory becomes a replicated folder, and while it is given back.

use std::fs;
use std::path::Path;

use harness::{Dice, Role};

use crate::look::{self, Look};
use crate::plan;
use crate::stage::{Crash, Stage};

/// What is crashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Init,
    Deinit,
}

const COMMANDS: &[Command] = &[Command::Init, Command::Deinit];

/// Objects of all kinds, on the disk.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    for n in 0..12u8 {
        fs::write(root.join(format!("d/{n}")), vec![n; 900 * usize::from(n)]).unwrap();
    }
    fs::write(root.join("d/e/f"), b"deep").unwrap();
    fs::hard_link(root.join("d/3"), root.join("link")).unwrap();
    std::os::unix::fs::symlink("d/3", root.join("symlink")).unwrap();
    let _ = rustix::fs::syncfs(fs::File::open(root).unwrap());
}

fn assert_is(wanted: &Look, root: &Path) {
    let wrong = look::differences(wanted, &look::look(root).unwrap());
    assert!(
        wrong.is_empty(),
        "{}:\n{}",
        root.display(),
        wrong.join("\n")
    );
}

/// Nothing of twinfold is left in an ordinary directory.
fn assert_without_ids(root: &Path) {
    let mut value = [0; 8];
    for path in look::look(root).unwrap().keys() {
        let left = rustix::fs::lgetxattr(root.join(path), "trusted.twinfold", &mut value[..]);
        assert_eq!(left, Err(rustix::io::Errno::NODATA), "{path:?}");
    }
}

fn point(stage: &mut Stage, command: Command, data: &Look, steps: u64, seed: u64) -> bool {
    let mount = stage.mount();
    let path = mount.display().to_string();
    let init: Vec<String> = stage
        .pair
        .init_arguments(0)
        .iter()
        .map(|a| (*a).to_owned())
        .collect();
    let init: Vec<&str> = init.iter().map(String::as_str).collect();
    let deinit = vec!["deinit", path.as_str()];
    let arguments = match command {
        Command::Init => &init,
        Command::Deinit => {
            stage.pair.a.run(&init).unwrap();
            &deinit
        }
    };
    let victims = [(0, steps)];
    match stage.crash {
        Crash::Power => stage.arm(&victims),
        Crash::Kill => stage.pair.a.kill_after(steps),
    }
    stage.pair.a.begin(arguments).unwrap();
    let came = stage.await_end(0);
    stage.fall(&victims, Dice::new(seed).draw());
    match command {
        Command::Init => {
            if let Err(e) = stage.pair.a.run(&init) {
                let e = format!("{e:#}");
                assert!(e.contains("is a replicated folder already"), "{e}");
            }
            stage.start(0, Role::Primary).unwrap();
            assert_is(data, &mount);
            stage.pair.a.stop().unwrap();
            stage.pair.a.run(&deinit).unwrap();
        }
        Command::Deinit => {
            if let Err(e) = stage.pair.a.run(&deinit) {
                let e = format!("{e:#}");
                assert!(e.contains("there is nothing to give back"), "{e}");
            }
        }
    }
    assert_is(data, &mount);
    assert_without_ids(&mount);
    assert!(!stage.pair.a.layout().base.exists());
    came
}

fn run(test: &str, crash: Crash) {
    let mut stage = Stage::stopped(crash, "memory");
    let mount = stage.mount();
    stage
        .pair
        .a
        .run(&["deinit", &mount.display().to_string()])
        .unwrap();
    fill(&mount);
    let data = look::look(&mount).unwrap();
    plan::run(test, COMMANDS, 40, |command, steps, seed| {
        point(&mut stage, *command, &data, steps, seed)
    });
}

#[test]
fn a_power_cut_in_init_or_deinit_leaves_a_folder_that_the_same_command_completes() {
    run("setup power", Crash::Power);
}

#[test]
fn a_kill_in_init_or_deinit_leaves_a_folder_that_the_same_command_completes() {
    run("setup kill", Crash::Kill);
}
