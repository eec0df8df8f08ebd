//! The local API, asked as a program of somebody else's would.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::PATIENCE;
use crate::stage::{Machine, Stage};

/// Asks without a body; the status and what is answered.
fn ask(machine: &Machine, method: &str, path: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(machine.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: twinfold\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn the_description_that_a_daemon_serves_names_all_that_it_serves_and_nothing_else() {
    let stage = Stage::new("");
    let (status, description) = ask(&stage.a, "GET", "/api/v1/openapi.json");
    assert_eq!(status, 200, "{description}");
    let mut described = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, how) in methods.as_object().unwrap() {
            let answers = how["responses"].as_object().unwrap();
            assert!(
                answers.contains_key("200") || answers.contains_key("202"),
                "{path}"
            );
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let served: BTreeSet<_> = twinfold_controller::served().into_iter().collect();
    assert_eq!(described, served);
    // Of what the bodies are made is described as well.
    let text = description.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        let known = !description["components"]["schemas"][name].is_null();
        assert!(known, "{name} is not described");
    }
    // And it is there, whatever it makes of a question without a body.
    for (method, path) in &served {
        let path = path
            .replace("{module}", "nothing")
            .replace("{node}", "b")
            .replace("{rest}", "modules/nothing/config");
        let (status, said) = ask(&stage.a, method, &path);
        assert!(
            said != Value::Null || path.ends_with("metrics"),
            "{method} {path}: {status}"
        );
    }
    let (status, said) = ask(&stage.a, "GET", "/api/v1/nothing");
    assert_eq!((status, said), (404, Value::Null));
    let (status, state) = ask(&stage.a, "GET", "/api/v1/nodes/b/state");
    assert_eq!((status, &state["node"]), (200, &"b".into()), "{state}");
}
