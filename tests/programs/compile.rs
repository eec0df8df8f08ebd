//! A build with make: killed in the middle, it goes on on the other node where it was,
//! for the times of sources and objects are in their order there too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use harness::program::{PATIENCE, Program, require, run};
use harness::{Pair, leave_root, wait_until};

/// The user who builds; it needs no name.
const USER: u32 = 4243;

/// Source files.
const PARTS: u32 = 40;

/// Objects that are complete when the primary is killed.
const BEFORE: usize = 8;

/// Every result gets its name when it is complete, as compilers and linkers do not do
/// themselves, and is told of after that.
const MAKEFILE: &str = "\
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\tcc -o $@.new $(OBJECTS)
\tmv $@.new $@
\t@echo complete $@
%.o: %.c sum.h
\tcc -O1 -c -o $@.new $<
\tmv $@.new $@
\t@echo complete $@
";

fn part(n: u32, factor: u32) -> String {
    format!(
        "#include <stdio.h>\n#include <string.h>\n#include \"sum.h\"\n\
         unsigned part_{n}(unsigned x) {{ char text[32]; \
         snprintf(text, sizeof text, \"%u\", x); return {factor} * x + strlen(text); }}\n"
    )
}

/// What the program built from all parts prints.
fn expected(factor: impl Fn(u32) -> u32) -> String {
    let sum = (0..PARTS).fold(1u32, |x, n| {
        factor(n)
            .wrapping_mul(x)
            .wrapping_add(x.to_string().len() as u32)
    });
    sum.to_string()
}

fn write_sources(directory: &Path) {
    let list = |line: fn(u32) -> String| (0..PARTS).map(line).collect::<String>();
    let sum = list(|n| format!("unsigned part_{n}(unsigned x);\n"));
    let calls = list(|n| format!("x = part_{n}(x);\n"));
    let main = format!(
        "#include <stdio.h>\n#include \"sum.h\"\n\
         int main(void) {{ unsigned x = 1;\n{calls}printf(\"%u\\n\", x); return 0; }}\n"
    );
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        chown(path, Some(USER), Some(USER)).unwrap();
    };
    write("Makefile", MAKEFILE);
    write("sum.h", &sum);
    write("main.c", &main);
    for n in 0..PARTS {
        write(&format!("part_{n}.c"), &part(n, 3));
    }
}

fn make(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("make");
    leave_root(&mut command, USER)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .env_remove("MAKEFLAGS");
    command
}

/// The results a build has told of so far.
fn complete(said: &str) -> BTreeSet<String> {
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole
        .lines()
        .filter_map(|line| line.strip_prefix("complete "))
        .map(str::to_owned)
        .collect()
}

fn result(directory: &Path) -> String {
    let mut command = Command::new(directory.join("program"));
    leave_root(&mut command, USER);
    run(command).trim().to_owned()
}

#[test]
fn a_build_killed_in_the_middle_goes_on_where_it_was() {
    require("make", "make", &[]);
    require("cc", "gcc libc6-dev", &[]);
    let mut pair = Pair::new();
    let here = pair.on_a("build");
    fs::create_dir(&here).unwrap();
    chown(&here, Some(USER), Some(USER)).unwrap();
    write_sources(&here);

    let mut build = Program::start(make(&here, &["-j2"]));
    let far = wait_until(PATIENCE, || {
        complete(&build.said()).len() >= BEFORE || !build.is_running()
    });
    assert!(
        far && build.is_running(),
        "the build ended early: {}",
        build.complained()
    );
    pair.fail_over();
    assert!(!build.wait(PATIENCE).success(), "make noticed nothing");
    let before = complete(&build.said());
    let all = PARTS as usize + 2;
    assert!(before.len() < all, "there was nothing left to build");

    // What was complete is not built again, everything else is.
    let here = pair.on_b("build");
    let after = complete(&run(make(&here, &["-j2"])));
    let twice: Vec<_> = before.intersection(&after).collect();
    assert!(twice.is_empty(), "built twice: {twice:?}");
    // One that was complete may not have been told of any more.
    let untold = all - before.len() - after.len();
    assert!(untold <= 2, "{untold} results were not built at all");
    assert_eq!(result(&here), expected(|_| 3));

    // An incremental build while the dead node returns.
    fs::write(here.join("part_7.c"), part(7, 5)).unwrap();
    let build = Program::start(make(&here, &[]));
    pair.bring_back();
    let built: Vec<_> = complete(&build.finish()).into_iter().collect();
    assert_eq!(built, ["part_7.o", "program"]);
    assert_eq!(result(&here), expected(|n| if n == 7 { 5 } else { 3 }));
    pair.assert_identical();

    // And on the node that returned, after a second failover: nothing is left to do.
    pair.fail_over();
    let here = pair.on_a("build");
    run(make(&here, &["--question"]));
    assert_eq!(result(&here), expected(|n| if n == 7 { 5 } else { 3 }));
    pair.bring_back();
    pair.assert_identical();
}
