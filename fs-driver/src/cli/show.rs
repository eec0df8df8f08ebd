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
    if let Some(line) = resync(status) {
        let _ = writeln!(out, "  {line}");
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
    if number("store_silent_s") > 0 {
        let _ = writeln!(
            out,
            "  THE STORE HAS NOT ANSWERED FOR {} s: its disk hangs. If it does not come back, end \
             this node, and be it by its power, and run `promote` on the peer",
            number("store_silent_s")
        );
    }
    if number("store_busy_s") > 0 {
        let _ = writeln!(
            out,
            "  a call has waited for the store for {} s: its disk works, and has more to do than it \
             can",
            number("store_busy_s")
        );
    }
    match status["swap"].as_str() {
        Some("to-peer") => out.push_str(
            "  this node's disk has failed; the peer carries out the application's calls. Swap the \
             application to it: `promote` there, then stop this node and repair its disk\n",
        ),
        Some(_) => out.push_str(
            "  the peer's disk has failed; this node carries out its application's calls. Swap the \
             application to this node: `promote` here\n",
        ),
        None => {}
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
        ("disk_failure", "DISK FAILED"),
    ] {
        if let Some(text) = status[key].as_str() {
            let _ = writeln!(out, "  {label}: {text}");
        }
    }
    out
}

/// How far a running resync is.
fn resync(status: &Value) -> Option<String> {
    let resync = &status["resync"];
    let number = |key: &str| resync[key].as_f64().unwrap_or(0.0);
    let (key, what) = match resync["phase"].as_str()? {
        "comparing" => ("compared_bytes", "compared"),
        "moving" => ("moved_bytes", "moved"),
        "flushing" => return Some("resync: everything is moved, the secondary flushes".into()),
        _ => return None,
    };
    let mut line = format!(
        "resync: {:.1} %, {:.1} MB {what}, {:.1} MB/s",
        number("percent"),
        number(key) / 1e6,
        number("rate") / 1e6
    );
    if let Some(seconds) = resync["seconds_left"].as_f64() {
        let _ = write!(line, ", {seconds:.0} s left");
    }
    if let Some(limit) = status["resync_limit"].as_f64() {
        let _ = write!(line, ", limited to {:.1} MB/s", limit / 1e6);
    }
    Some(line)
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
        let mut failed = asking;
        failed["swap"] = "to-peer".into();
        failed["disk_failure"] = "a write failed: EIO".into();
        let text = status(&failed);
        assert!(text.contains("`promote` there") && text.contains("DISK FAILED: a write"));
        failed["store_silent_s"] = 12.into();
        assert!(status(&failed).contains("NOT ANSWERED FOR 12 s"));
        failed["swap"] = "to-this-node".into();
        assert!(status(&failed).contains("`promote` here"));
    }

    #[test]
    fn a_running_resync_tells_its_phase_and_an_ended_one_nothing() {
        let mut state = serde_json::json!({
            "name": "vm", "role": "primary", "link": "comparing", "up_to_date": true,
            "generation": "0a0b0c0d", "resync": {
                "phase": "comparing", "percent": 12.34, "compared_bytes": 5e6, "moved_bytes": 0,
                "rate": 2e6, "seconds_left": 7.2,
            },
        });
        let told = status(&state);
        assert!(
            told.contains("  resync: 12.3 %, 5.0 MB compared, 2.0 MB/s, 7 s left\n"),
            "{told}"
        );
        state["resync"]["phase"] = "moving".into();
        state["resync"]["seconds_left"] = Value::Null;
        state["resync_limit"] = 3_000_000.into();
        assert!(status(&state).contains("0.0 MB moved, 2.0 MB/s, limited to 3.0 MB/s\n"));
        state["resync"]["phase"] = "flushing".into();
        assert!(status(&state).contains("flushes"));
        state["resync"]["phase"] = "done".into();
        assert!(!status(&state).contains("resync"));
    }
}
