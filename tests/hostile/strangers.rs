//! Who does not have the key that a node was told is refused in the handshake of
//! TLS, before a single byte of any stream is read.

use std::net::UdpSocket;
use std::time::Duration;

use harness::{Options, Pair, Role, wait_until};
use quinn::Connection;

use crate::stage::{Stage, assert_unharmed, store};
use crate::wire::{ALPN, Key, dialler, listener, run, soon};

/// Dials a node; returns why that came to nothing. What is said on a stream before
/// the refusal arrives must have no effect.
async fn refused(key: Option<&Key>, alpn: &[u8], to: std::net::SocketAddr) -> String {
    let endpoint = dialler(key, alpn);
    let connecting = endpoint.connect(to, "twinfold").unwrap();
    let connection: Connection = match soon("the handshake", connecting).await {
        Ok(connection) => connection,
        Err(error) => return error.to_string(),
    };
    // A client has finished its part before the server has looked at its certificate.
    if let Ok((mut tx, _rx)) = connection.open_bi().await {
        let _ = tx.write_all(&[1; 100]).await;
    }
    soon("the refusal", connection.closed()).await.to_string()
}

#[test]
fn a_primary_refuses_strangers_in_the_handshake() {
    let stage = Stage::new(Options::default());
    let a = &stage.pair.a;
    let before = store(a);
    let to = a.addresses()[0];
    let cases: [(&str, Option<Key>, &[u8], &str); 3] = [
        (
            "a stranger",
            Some(Key::strange()),
            ALPN,
            "a stranger was refused",
        ),
        ("no certificate", None, ALPN, "no certificates"),
        (
            "another protocol",
            Some(Key::of(&stage.pair.b)),
            b"h3",
            "protocol",
        ),
    ];
    for (what, key, alpn, says) in cases {
        let from = a.log_text().len();
        let reason = run(refused(key.as_ref(), alpn, to));
        assert!(
            reason.contains("aborted") || reason.contains("cryptographic"),
            "{what} was refused with: {reason}"
        );
        a.expect_log(from, says);
        assert_unharmed(a, &before, what);
        assert_eq!(a.status().unwrap()["link"], "paired", "after {what}");
    }
    stage.pair.assert_identical();
}

#[test]
fn a_secondary_gives_its_own_address_only_to_its_primary() {
    let mut pair = Pair::stopped(Options::default());
    pair.b.start(Role::Secondary).unwrap();
    let from = pair.b.log_text().len();
    run(async {
        let endpoint = listener(&Key::strange(), ALPN, pair.a.addresses()[0]);
        for _ in 0..2 {
            let incoming = soon("a call", endpoint.accept()).await.unwrap();
            // The secondary breaks off when it sees the certificate: no stream follows.
            if let Ok(connection) = incoming.await {
                let stream = soon("the refusal", connection.accept_bi()).await;
                assert!(stream.is_err(), "a stranger was sent a stream");
            }
        }
    });
    pair.b.expect_log(from, "a stranger was refused");
    let told = || {
        let status = pair.b.status().unwrap();
        status["trouble"]
            .as_str()
            .is_some_and(|t| t.contains("key"))
    };
    assert!(
        wait_until(Duration::from_secs(20), told),
        "the state does not tell: {:?}",
        pair.b.status()
    );
    pair.a.start(Role::Primary).unwrap();
    pair.wait_paired();
    assert_eq!(pair.b.status().unwrap()["trouble"], serde_json::Value::Null);
    pair.assert_identical();
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let stage = Stage::new(Options::default());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut word: u32 = 0x9e37_79b9;
    for round in 0..3000usize {
        let datagram: Vec<u8> = (0..round % 1400)
            .map(|_| {
                // xorshift32: any bytes will do, but the same in every run.
                word ^= word << 13;
                word ^= word >> 17;
                word ^= word << 5;
                word as u8
            })
            .collect();
        socket
            .send_to(&datagram, stage.pair.a.addresses()[0])
            .unwrap();
        if round % 500 == 0 {
            std::fs::write(stage.pair.on_a("meanwhile"), round.to_string()).unwrap();
        }
    }
    stage.pair.assert_identical();
    assert_eq!(stage.pair.a.status().unwrap()["link"], "paired");
}
