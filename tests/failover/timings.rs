//! How long it takes until the other node's application begins, how long one is stopped when
//! roles are exchanged, and what two idle daemons and their drivers cost. Nothing is asserted about that: it is
//! measured when asked for, and printed with the load of the machine.
//!
//! ```text
//! TWINFOLD_TIMINGS=10 cargo test --test failover -- --nocapture --test-threads=1 timings
//! ```
//!
//! `TWINFOLD_TIMINGS` is the number of rounds; without it each is gone through once, and the
//! daemons are looked at for some seconds instead of a minute. `TWINFOLD_WAY` is a part of the
//! name of the ways in which a primary is lost that are measured (all of them without it).
//! `TWINFOLD_MODULES` is the number of modules that run and fail over together. With
//! `TWINFOLD_REST` they only rest, for so many seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::wait_until;
use serde_json::Value;

use crate::PATIENCE;
use crate::etcd::{Witness, before_it_runs};
use crate::stage::{Machine, START, STOP, Stage, executable, write};

/// Longest wait for what many modules do together.
const TOGETHER: Duration = Duration::from_secs(400);

/// How long the heartbeats may be missing, as the modules of these tests have it.
const TIMEOUT: &str = "3s";

/// Whatever takes longer than the timeout and some time on a busy machine is shown with the
/// events that led to it, in milliseconds.
const SLOW: f64 = 5000.0;

fn number(name: &str, without: usize) -> usize {
    std::env::var(name).map_or(without, |n| n.parse().unwrap())
}

fn rounds() -> usize {
    number("TWINFOLD_TIMINGS", 1)
}

/// Milliseconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
        * 1e3
}

/// When a script came to a place, as it noted it: in milliseconds since 1970.
fn noted(machine: &Machine, what: &str) -> f64 {
    let text = std::fs::read_to_string(machine.home().join(what)).unwrap_or_default();
    text.trim().parse::<f64>().unwrap_or(0.0) / 1e6
}

fn comes_to(machine: &Machine, what: &str, after: f64) -> f64 {
    let there = || noted(machine, what) > after;
    assert!(wait_until(PATIENCE, there), "{what}: {}", machine.log());
    noted(machine, what)
}

/// What was measured, in milliseconds.
struct Figures {
    what: &'static str,
    values: Vec<f64>,
}

impl Figures {
    fn of(what: &'static str) -> Figures {
        Figures {
            what,
            values: Vec::new(),
        }
    }

    fn print(&self) {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, most) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        let all: Vec<_> = self.values.iter().map(|v| format!("{v:.0}")).collect();
        println!(
            "{:<64} median {median:6.0} ms, most {most:6.0} ms  ({}) load {}",
            self.what,
            all.join(" "),
            load()
        );
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A script that notes when it begins and ends.
fn timed(name: &str, script: &str) -> String {
    let note = |what: &str| format!("date +%s%N >\"$HOME_OF_TEST/{name}.{what}\"");
    let rest = script.strip_prefix("#!/bin/sh\n").unwrap();
    format!(
        "#!/bin/sh\n{}\ntrap '{}' EXIT\n{rest}",
        note("begun"),
        note("ended")
    )
}

/// Two nodes with a witness, whose scripts note the time.
fn stage() -> (Stage, Witness) {
    let (stage, witness) = before_it_runs("2s", "");
    for machine in [&stage.a, &stage.b] {
        let bin = machine.home().join("etc/modules/vm/bin");
        executable(&bin.join("start_prim"), &timed("start", START));
        executable(&bin.join("stop_prim"), &timed("stop", STOP));
    }
    (stage.run(), witness)
}

/// What happens to the primary is done and, when the other one serves, made good; how long that
/// one's application took to begin.
fn measure(
    what: &'static str,
    stage: &mut Stage,
    happens: impl Fn(&mut Stage, usize),
    made_good: impl Fn(&mut Stage, usize),
) {
    if std::env::var("TWINFOLD_WAY").is_ok_and(|way| !what.contains(&way)) {
        return;
    }
    let mut figures = Figures::of(what);
    for _ in 0..rounds() {
        let primary = usize::from(stage.b.is("PRIM", "Ready"));
        let begin = now();
        happens(stage, primary);
        let other = machine(stage, 1 - primary);
        let took = comes_to(other, "start.begun", begin) - begin;
        figures.values.push(took);
        if took > SLOW {
            let log = other.must(&["log", "-m", "vm"]);
            let last: Vec<_> = log.lines().rev().take(20).collect();
            println!(
                "{what}: {took:.0} ms, last event first\n{}",
                last.join("\n")
            );
        }
        other.works();
        let all = [&stage.a, &stage.b];
        all[1 - primary].assert_found_all_of(all[primary]);
        made_good(stage, primary);
        stage_is(stage, 1 - primary);
    }
    figures.print();
}

fn machine(stage: &mut Stage, number: usize) -> &mut Machine {
    match number {
        0 => &mut stage.a,
        _ => &mut stage.b,
    }
}

fn stage_is(stage: &Stage, primary: usize) {
    let all = [&stage.a, &stage.b];
    all[primary].wait("PRIM", "Ready");
    all[1 - primary].wait("SECOND", "Ready");
    all[primary].works();
}

#[test]
fn timings_of_the_ways_in_which_a_primary_is_lost() {
    let (mut stage, witness) = stage();
    let nothing = |_: &mut Stage, _| {};
    measure(
        "SIGKILL of the primary's driver, to start_prim",
        &mut stage,
        |stage, n| machine(stage, n).kill_driver(),
        nothing,
    );
    measure(
        "SIGKILL of all processes of the primary's node, to start_prim",
        &mut stage,
        |stage, n| machine(stage, n).kill_everything(),
        |stage, n| machine(stage, n).start_daemon(),
    );
    measure(
        "freeze of the primary's node (timeout 3 s), to start_prim",
        &mut stage,
        |stage, n| machine(stage, n).freeze(true),
        |stage, n| machine(stage, n).freeze(false),
    );
    measure(
        "the primary's node cut off (timeout 3 s), to start_prim",
        &mut stage,
        |stage, n| {
            stage.network.cut().unwrap();
            stage.network.unreachable(witness.network(), n).unwrap();
        },
        |stage, n| {
            stage.network.heal().unwrap();
            stage.network.reachable(witness.network(), n).unwrap();
        },
    );
    stage.assert_identical();
}

#[test]
fn timings_of_exchanged_roles() {
    let (mut stage, _witness) = stage();
    let names = [
        "swap: the application is stopped",
        "swap: the same without its own stop and start",
    ];
    let mut figures = names.map(Figures::of);
    for _ in 0..rounds() {
        let primary = usize::from(stage.b.is("PRIM", "Ready"));
        let begin = now();
        machine(&mut stage, primary).must(&["swap"]);
        let to = machine(&mut stage, 1 - primary);
        let started = comes_to(to, "start.ended", begin);
        let starts = started - noted(to, "start.begun");
        let from = machine(&mut stage, primary);
        let stops = noted(from, "stop.ended") - noted(from, "stop.begun");
        let stopped = started - noted(from, "stop.begun");
        figures[0].values.push(stopped);
        figures[1].values.push(stopped - stops - starts);
        stage_is(&stage, 1 - primary);
    }
    figures.iter().for_each(Figures::print);
    stage.assert_identical();
}

/// The processor's time that the threads of a process have had, in seconds, and how often they
/// have slept.
fn used(pid: i32) -> (f64, f64) {
    let mut used = (0.0, 0.0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().path();
        // One that ends meanwhile is left out.
        let read = |file: &str| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
        let time = read("schedstat");
        let time = time.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        let status = read("status");
        let sleeps = status.lines().find(|l| l.starts_with("voluntary_ctxt"));
        let sleeps = sleeps.and_then(|l| l.split('\t').nth(1)?.parse::<f64>().ok());
        used.0 += time.unwrap_or(0.0) / 1e9;
        used.1 += sleeps.unwrap_or(0.0);
    }
    used
}

/// The drivers of a machine.
fn drivers(machine: &Machine) -> Vec<i32> {
    let space = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let here = space(machine.daemon());
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let runs = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"fs")
    };
    all.filter(runs).filter(|pid| space(*pid) == here).collect()
}

/// What the daemons, and their drivers, take of one core while nothing happens.
fn print_cost(stage: &Stage, modules: usize) {
    let period = match (number("TWINFOLD_REST", 0), rounds()) {
        (0, 1) => 5,
        (0, _) => 60,
        (period, _) => period,
    };
    let machines = [&stage.a, &stage.b];
    let daemons = machines.map(Machine::daemon).to_vec();
    let drivers = machines.map(drivers).concat();
    let all = [&daemons, &drivers];
    let look = || all.map(|some| some.iter().map(|pid| used(*pid)).collect::<Vec<_>>());
    let before = look();
    std::thread::sleep(Duration::from_secs(period as u64));
    let after = look();
    assert_eq!(daemons, machines.map(Machine::daemon));
    let what = ["both daemons", "their drivers"];
    for ((what, before), after) in what.iter().zip(before).zip(after) {
        let spent = |n: fn(&(f64, f64)) -> f64| {
            let sum = |all: &[(f64, f64)]| all.iter().map(n).sum::<f64>();
            (sum(&after) - sum(&before)) / period as f64
        };
        println!(
            "{modules} modules at rest: {what} ({}) take {:.2} % of one core, wake {:.0} times a \
             second, over {period} s, load {}",
            after.len(),
            spent(|(time, _)| *time) * 100.0,
            spent(|(_, sleeps)| *sleeps),
            load()
        );
    }
}

#[test]
fn timings_of_idle_daemons() {
    let (stage, _witness) = stage();
    for machine in [&stage.a, &stage.b] {
        write(&machine.home().join("acked.stop"), "");
    }
    print_cost(&stage, 1);
    stage.assert_identical();
}

/// How many modules are in this state.
fn count(machine: &Machine, states: &[&str]) -> usize {
    let (_, out, _) = machine.cli(&["state", "--json"]);
    let shown: Value = serde_json::from_str(&out).unwrap_or_default();
    let modules = shown["modules"].as_array().cloned().unwrap_or_default();
    let fits = |m: &&Value| m["status"] == "Ready" && states.iter().any(|s| m["state"] == *s);
    modules.iter().filter(fits).count()
}

#[test]
fn many_modules_run_and_fail_over_together() {
    let many = number("TWINFOLD_MODULES", 6);
    let mut stage = Stage::new("isolation=\"alone\"");
    let names: Vec<_> = (0..many).map(|n| format!("m{n}")).collect();
    let began = now();
    for (n, name) in names.iter().enumerate() {
        // Where nothing is measured no peer is dropped because the machine is busy.
        let patient: &[&str] = match rounds() {
            1 => &[
                "--stall-ms",
                "20000",
                "--op-ms",
                "20000",
                "--sync-ms",
                "20000",
            ],
            _ => &[],
        };
        stage.make_folders_with(name, 10 + n as u16, patient);
        for machine in [&stage.a, &stage.b] {
            let module = machine.home().join("etc/modules").join(name);
            let service = format!(
                "<safe><service isolation=\"alone\"><heart timeout=\"{TIMEOUT}\"/><rfs>\
                 <replicated dir=\"%HOME_OF_TEST%/{name}\"/></rfs></service></safe>"
            );
            write(&module.join("userconfig.xml"), &service);
            let begun = "#!/bin/sh\ndate +%s%N >\"$HOME_OF_TEST/begun.$TWINFOLD_MODULE\"\n";
            executable(&module.join("bin/start_prim"), begun);
        }
    }
    for machine in [&mut stage.a, &mut stage.b] {
        machine.end_daemon();
        machine.start_daemon();
    }
    println!(
        "{many} modules are configured after {:.0} ms",
        now() - began
    );
    let began = now();
    for name in &names {
        stage.a.must(&["prim", "-m", name]);
        stage.b.must(&["second", "-m", name]);
    }
    let all = |machine: &Machine, states: &[&str]| {
        let there = wait_until(TOGETHER, || count(machine, states) == many);
        assert!(
            there,
            "{} of {many}: {}",
            count(machine, states),
            machine.log()
        );
    };
    all(&stage.a, &["PRIM"]);
    all(&stage.b, &["SECOND"]);
    println!("{many} modules run after {:.0} ms", now() - began);
    print_cost(&stage, many);
    if number("TWINFOLD_REST", 0) > 0 {
        return;
    }
    for name in &names {
        write(&stage.a.home().join(name).join("data"), name);
    }
    let began = now();
    stage.a.kill_everything();
    let mut figures = Figures::of("SIGKILL of all processes, to start_prim of each module");
    all(&stage.b, &["ALONE"]);
    for name in &names {
        let begun = noted(&stage.b, &format!("begun.{name}"));
        figures.values.push(begun - began);
        let data = std::fs::read_to_string(stage.b.home().join(name).join("data"));
        assert_eq!(data.unwrap(), *name);
    }
    figures.print();
    stage.a.start_daemon();
    let began = now();
    all(&stage.b, &["PRIM"]);
    all(&stage.a, &["SECOND"]);
    println!(
        "{many} modules are equal again after {:.0} ms",
        now() - began
    );
}
