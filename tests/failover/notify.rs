//! Commands that are told what happens.

use harness::wait_until;

use crate::PATIENCE;
use crate::stage::{Stage, executable};

/// Notes what it is told, and hangs.
const HANGS: &str = r#"#!/bin/sh
echo "$TWINFOLD_NODE $TWINFOLD_MODULE $1: $2" >>"$HOME_OF_TEST/told"
sleep 1000
"#;

/// Fails.
const FAILS: &str = "#!/bin/sh\necho \"$1\" >>\"$HOME_OF_TEST/failed\"\nexit 1\n";

#[test]
fn a_command_that_hangs_is_told_every_state_in_order_and_the_module_does_not_wait_for_it() {
    let stage = Stage::with("isolation=\"wait\"", |home| {
        let (hangs, fails) = (home.join("hangs.sh"), home.join("fails.sh"));
        executable(&hangs, HANGS);
        executable(&fails, FAILS);
        format!(
            "<notify command=\"{}\" events=\"state\" timeout=\"2s\"/>\
             <notify command=\"{}\" events=\"command, error\"/>",
            hangs.display(),
            fails.display()
        )
    })
    .run();
    let read = |name: &str| std::fs::read_to_string(stage.a.home().join(name)).unwrap_or_default();
    let told = || read("told").contains("a vm state: PRIM Ready: serving");
    assert!(wait_until(PATIENCE, told), "{}", read("told"));
    let lines: Vec<_> = stage
        .a
        .must(&["log", "-m", "vm"])
        .lines()
        .filter_map(|line| Some(line.split_once(" a vm state: ")?.1.to_owned()))
        .collect();
    let told = read("told");
    let told: Vec<_> = told.lines().collect();
    for (line, told) in lines.iter().zip(&told) {
        assert_eq!(format!("a vm state: {line}"), **told);
    }
    assert_eq!(read("failed"), "command\n");
    stage.a.works();
    assert_eq!((stage.a.starts(), stage.b.starts()), (1, 0));
    stage.assert_identical();
}
