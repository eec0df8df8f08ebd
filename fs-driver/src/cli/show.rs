//! The state as a person reads it.

use std::fmt::Write;

use serde_json::Value;

/// Lines of text for a status object.
pub(super) fn status(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or("-").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let mut out = String::new();
    let fresh = match status["up_to_date"].as_bool() {
        _ if status["given_up"] == true => "given up",
        Some(true) => "up to date",
        _ => "not up to date",
    };
    let _ = writeln!(
        out,
        "{}: {} {}, {fresh}, generation {}",
        text("name"),
        text("role"),
        text("link"),
        text("generation")
    );
    if number("in_flight_ops") > 0 {
        let _ = writeln!(
            out,
            "  on the way to the peer: {} ops, {} bytes",
            number("in_flight_ops"),
            number("in_flight_bytes")
        );
    }
    if number("suspect_objects") > 0 {
        let _ = writeln!(
            out,
            "  to be compared when the peer returns: {} objects",
            number("suspect_objects")
        );
    }
    if number("dirty_objects") > 0 {
        let _ = writeln!(
            out,
            "  to be moved when the peer returns: {} objects, {} bytes",
            number("dirty_objects"),
            number("dirty_bytes")
        );
    }
    if text("link") == "syncing"
        && let Some(resync) = status["resync"].as_object()
    {
        let _ = writeln!(
            out,
            "  resync: {:.1} %, {:.1} MB moved, {:.1} MB/s{}",
            resync["percent"].as_f64().unwrap_or(0.0),
            resync["moved_bytes"].as_f64().unwrap_or(0.0) / 1e6,
            resync["rate"].as_f64().unwrap_or(0.0) / 1e6,
            resync["seconds_left"]
                .as_f64()
                .map_or(String::new(), |s| format!(", {s:.0} s left"))
        );
    }
    if matches!(
        status["verify"]["state"].as_str(),
        Some("measuring" | "comparing" | "repairing")
    ) {
        let _ = writeln!(
            out,
            "  verify: {}",
            super::verify::progress(&status["verify"])
        );
    }
    if number("differing_objects") > 0 {
        let _ = writeln!(
            out,
            "  the copies differ in {} objects, by a verify; `verify --repair` on the primary makes \
             them equal",
            number("differing_objects")
        );
    }
    for (key, label) in [
        (
            "question",
            "waits for a decision (`go-alone`, or the peer's return)",
        ),
        ("conflict", "NOT REPLICATING"),
        ("trouble", "trouble"),
        ("damage", "damaged, so everything will be compared"),
        ("fenced", "FENCED"),
    ] {
        if let Some(text) = status[key].as_str() {
            let _ = writeln!(out, "  {label}: {text}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_folder_is_one_line_and_a_question_is_shown() {
        let quiet = serde_json::json!({
            "name": "vm", "role": "primary", "link": "paired", "up_to_date": true,
            "generation": "0a0b0c0d", "in_flight_ops": 0, "dirty_objects": 0,
        });
        assert_eq!(
            status(&quiet),
            "vm: primary paired, up to date, generation 0a0b0c0d\n"
        );
        let mut asking = quiet;
        asking["question"] = "gone".into();
        assert!(status(&asking).contains("go-alone"));
    }
}
