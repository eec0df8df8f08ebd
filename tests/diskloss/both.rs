//! Both disks: the application is told, and nobody pretends.

use harness::faulty::{ALL, Faults};

use crate::app::App;
use crate::{expect, pair};

#[test]
fn without_a_peer_that_is_up_to_date_the_application_is_told() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    pair.disk_b().fail(Faults {
        writes: vec![ALL],
        ..Faults::default()
    });
    expect(&pair.a, "the loss of the peer", |s| s["link"] == "alone");
    app.go_on(5);
    let from = pair.a.log_text().len();
    pair.disk_a().fail(Faults::everything());
    app.fails();
    pair.a
        .expect_log(from, "there is no peer that is up to date");
    assert!(pair.a.status().unwrap()["disk_failure"].is_string());
    assert!(pair.a.status().unwrap()["swap"].is_null());
}

#[test]
fn a_peer_that_fails_as_it_takes_over_leaves_an_application_that_is_told() {
    let pair = pair();
    let app = App::start(&pair.a.mount());
    for disk in [pair.disk_a(), pair.disk_b()] {
        disk.fail(Faults {
            flushes: u64::MAX,
            ..Faults::default()
        });
    }
    app.fails();
    assert!(pair.a.status().unwrap()["swap"].is_null());
    assert_eq!(pair.b.status().unwrap()["serves_peer"], false);
}
