//! The disk of the secondary: the application never sees an error that only the
//! secondary had, and the secondary is out until it has been brought up again.

use harness::faulty::{ALL, Fate, Faults};
use harness::{Options, Pair, Role};

use crate::app::{self, App};
use crate::{expect, options, pair};

/// The secondary is dropped, the application goes on, and the repaired node comes back.
fn is_dropped(name: &str, fault: impl Fn(&Pair) -> Faults) {
    let mut pair = pair();
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    let fault = fault(&pair);
    pair.disk_b().fail(fault);
    pair.a.expect_log(from, "the peer is dropped");
    pair.a.expect_log(from, "going on alone");
    app.go_on(40);
    let trouble = pair.b.status().unwrap()["trouble"].clone();
    assert!(trouble.is_string(), "{name}: {trouble}");
    assert!(pair.b.promote(false).is_err(), "{name}");
    pair.cut_power(1, |_, _| Fate::Kept);
    pair.b.start(Role::Secondary).unwrap();
    pair.wait_paired();
    let model = app.stop();
    pair.assert_identical();
    app::check(&pair.a.mount(), &model);
}

#[test]
fn its_writes_fail() {
    is_dropped("writes", |_| Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
}

#[test]
fn its_flush_fails() {
    is_dropped("a flush", |_| Faults {
        flushes: 1,
        ..Faults::default()
    });
}

#[test]
fn its_disk_is_gone() {
    is_dropped("everything", |_| Faults::everything());
}

#[test]
fn it_hangs() {
    let pair = Pair::with(Options {
        deadlines: [1_000, 2_000, 2_000],
        ..options()
    });
    let app = App::start(&pair.a.mount());
    let from = pair.a.log_text().len();
    pair.disk_b().hold();
    // It is dropped, or its line is: the thread that applies ops carries both.
    pair.a.expect_log(from, "going on alone");
    app.go_on(20);
    pair.disk_b().release();
    pair.wait_paired();
    let model = app.stop();
    pair.assert_identical();
    app::check(&pair.a.mount(), &model);
    expect(&pair.b, "peace", |s| s["trouble"].is_null());
}
