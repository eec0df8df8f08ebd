//! The local API, asked as a program of somebody else's would.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::PATIENCE;
use crate::stage::{Machine, Stage};

/// Asks without a body; the status and what is answered.
fn ask(machine: &Machine, method: &str, path: &str) -> (u16, Value) {
    send(machine, method, path, "")
}

fn send(machine: &Machine, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(machine.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: twinfold\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
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

#[test]
fn a_module_is_made_and_files_are_checked_over_the_api_on_either_node() {
    let mut stage = Stage::new("");
    let kinds = |on: &Machine| on.must(&["-H", "b", "module", "list"]);
    let told = kinds(&stage.a);
    assert!(
        told.contains("FOLDER=...") && told == kinds(&stage.b),
        "{told}"
    );
    let (status, shown) = ask(&stage.a, "GET", "/api/v1/kinds");
    assert_eq!(status, 200);
    let named = |kind: &Value| kind["name"] == "kvm" && kind["readme"].is_string();
    assert!(shown.as_array().unwrap().iter().any(named), "{shown}");

    // Named on one node, made on the other one, and nowhere else.
    let install = [
        "module",
        "install",
        "kvm",
        "guest",
        "FOLDER=/srv/guest",
        "VIA=qemu",
    ];
    let told = stage.a.must(&[&["-H", "b"][..], &install].concat());
    assert!(told.contains("twinfold config -m guest"), "{told}");
    let made = |machine: &Machine| machine.home().join("etc/modules/guest/userconfig.xml");
    assert!(made(&stage.b).exists() && !made(&stage.a).exists());
    let (code, _, said) = stage.b.cli(&install);
    assert!(code == 1 && said.contains("is there already"), "{said}");
    let path = "/api/v1/modules/guest/install";
    for (body, status, part) in [
        ("{\"kind\":\"kvm\"}", 409, "FOLDER=..."),
        ("{\"kind\":\"vm\"}", 409, "there are mirror, "),
        ("{\"kinds\":\"kvm\"}", 422, "kinds"),
        ("kvm", 400, "JSON"),
    ] {
        let (code, said) = send(&stage.a, "POST", path, body);
        let text = said["text"].as_str().unwrap_or_default();
        assert!(code == status && text.contains(part), "{code}: {said}");
    }
    let outside = "/api/v1/modules/..%2Foutside/install";
    let wish = "{\"kind\":\"kvm\",\"options\":[\"FOLDER=/x\",\"VIA=qemu\"]}";
    let (code, said) = send(&stage.a, "POST", outside, wish);
    assert_eq!(code, 409, "{said}");
    assert!(!stage.a.home().join("etc/outside").exists());

    // What nobody has saved yet is checked in this node's cluster.
    let check = |text: &str| {
        let files = serde_json::json!({ "files": [{ "name": "new", "text": text }] });
        let path = "/api/v1/confcheck";
        let (code, found) = send(&stage.a, "POST", path, &files.to_string());
        assert_eq!(code, 200, "{found}");
        found[0]["mistakes"].as_array().unwrap().clone()
    };
    let module = |prim: &str| {
        format!(
            "<safe>\n <service defaultprim=\"{prim}\">\n  <rfs><replicated dir=\"/srv/x\"/></rfs>\n \
             </service>\n</safe>"
        )
    };
    assert_eq!(check(&module("b")), [Value::Null; 0]);
    let mistakes = check(&module("nobody"));
    let [nobody] = &mistakes[..] else {
        panic!("{mistakes:?}")
    };
    let told = nobody["text"].as_str().unwrap();
    assert!(told.contains("nobody") && nobody["line"] == 2, "{nobody}");
    assert_eq!(check("<cluster/>").len(), 1);

    // Where no daemon runs yet, a module is made all the same, and on this node alone.
    stage.a.end_daemon();
    assert_eq!(stage.a.must(&["module", "list"]), kinds(&stage.b));
    let (code, _, said) = stage.a.cli(&["-H", "b", "module", "list"]);
    assert!(code == 1 && said.contains("no daemon answers"), "{said}");
    stage.a.must(&install);
    assert!(made(&stage.a).exists());
}
