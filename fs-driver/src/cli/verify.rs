//! `verify`, as a person or a program sees it.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::control::{self, Request};
use crate::store::Layout;

/// How often to ask how it stands.
const POLL: Duration = Duration::from_millis(200);

/// The copies are equal.
const EQUAL: u8 = 0;
/// Something differed.
const DIFFERED: u8 = 1;
/// Not everything could be compared.
const INCOMPLETE: u8 = 2;

/// Bytes a second, with k, K, M or G behind it for 1024 times as many (`limit` takes K, M, G).
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        other => return Err(format!("{other:?} is no unit: use k, M or G")),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a number is needed".to_owned())?;
    match number.checked_mul(unit) {
        Some(rate) if rate > 0 => Ok(rate),
        _ => Err("a limit is at least 1 byte a second".into()),
    }
}

/// Runs a verify to its end and tells what it found.
pub(super) fn run(
    layout: Result<Layout>,
    repair: bool,
    limit: Option<u64>,
    json: bool,
) -> ExitCode {
    match layout.and_then(|layout| follow(&layout, repair, limit, json)) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("twinfold-fs: {e:#}");
            ExitCode::from(INCOMPLETE)
        }
    }
}

fn follow(layout: &Layout, repair: bool, limit: Option<u64>, json: bool) -> Result<u8> {
    // Before anything else, so that an interrupt ends the verify in the driver too.
    let signals = control::signals()?;
    let started = control::ask(layout, Request::Verify { repair, limit })?;
    let id = started.map(|s| s["id"].clone());
    let terminal = !json && std::io::stderr().is_terminal();
    let mut findings: Vec<Value> = Vec::new();
    loop {
        if signals.try_recv().is_ok() {
            control::ask(layout, Request::VerifyCancel)?;
        }
        let from = findings.len();
        let page = control::ask(layout, Request::VerifyPoll { from })?
            .context("the driver did not say how the verify stands")?;
        if Some(&page["id"]) != id.as_ref() {
            bail!("another verify runs now");
        }
        let status = &page["status"];
        let running = !matches!(status["state"].as_str(), Some("done" | "failed"));
        let new = page["findings"].as_array().cloned().unwrap_or_default();
        let more = !new.is_empty();
        for finding in &new {
            if !json {
                clear(terminal);
                println!("{}", line(finding));
            }
        }
        findings.extend(new);
        if !running && !more {
            clear(terminal);
            if json {
                let all = if repair {
                    again(layout, findings.len())?
                } else {
                    findings
                };
                println!(
                    "{}",
                    serde_json::json!({ "status": status, "findings": all })
                );
            } else {
                println!("{}", summary(status, repair, findings.len() as u64));
            }
            return Ok(code(status));
        }
        if terminal {
            eprint!("\r\x1b[K{}", progress(status));
            let _ = std::io::stderr().flush();
        }
        if !more {
            std::thread::sleep(POLL);
        }
    }
}

/// The findings once more, now that the repair is noted in them.
fn again(layout: &Layout, count: usize) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    while all.len() < count {
        let from = all.len();
        let page = control::ask(layout, Request::VerifyPoll { from })?.unwrap_or_default();
        match page["findings"].as_array() {
            Some(more) if !more.is_empty() => all.extend(more.iter().cloned()),
            _ => break,
        }
    }
    Ok(all)
}

fn clear(terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K");
    }
}

fn code(status: &Value) -> u8 {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    if number("differences") > 0 {
        DIFFERED
    } else if status["state"] != "done" || number("unreadable") > 0 {
        INCOMPLETE
    } else {
        EQUAL
    }
}

fn line(finding: &Value) -> String {
    let text = |key: &str| finding[key].as_str().unwrap_or("-");
    format!("{}: {}", text("path"), text("text"))
}

/// One line for a status: how far, how fast, how long.
pub(super) fn progress(status: &Value) -> String {
    let number = |key: &str| status[key].as_f64().unwrap_or(0.0);
    let left = match status["seconds_left"].as_f64() {
        Some(seconds) => format!(", {seconds:.0} s left"),
        None => String::new(),
    };
    format!(
        "{} {:.1} %, {:.1} MB compared, {:.1} MB/s{left}, {} differences",
        status["state"].as_str().unwrap_or("-"),
        number("percent"),
        number("compared_bytes") / 1e6,
        number("rate") / 1e6,
        number("differences")
    )
}

fn summary(status: &Value, repair: bool, told: u64) -> String {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let (differences, foreign) = (number("differences"), number("foreign"));
    let mut text = match differences {
        0 => "no differences".to_owned(),
        n => format!("{n} differences"),
    };
    if differences + number("unreadable") > told {
        text += &format!(" (the first {told} are listed)");
    }
    match number("unreadable") {
        0 => {}
        n => text += &format!(", {n} things could not be read"),
    }
    text += &format!(
        ", {:.1} MB compared at {:.1} MB/s",
        number("compared_bytes") as f64 / 1e6,
        status["rate"].as_f64().unwrap_or(0.0) / 1e6
    );
    if let Some(error) = status["error"].as_str() {
        return format!("verify: not everything was compared: {error}\n{text}");
    }
    if differences > foreign {
        text += &match repair {
            true => format!("; repaired, {} bytes moved", number("moved_bytes")),
            false => "; not repaired: `verify --repair` moves them to the secondary".to_owned(),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_has_a_unit_or_none() {
        assert_eq!(rate("500"), Ok(500));
        assert_eq!(rate("10M"), Ok(10 << 20));
        assert_eq!(rate("2k"), Ok(2048));
        let resync = crate::state::parse_limit;
        for text in ["50M", "50K", "1G"] {
            assert_eq!(
                rate(text).map(Some),
                resync(text),
                "one meaning in both places"
            );
        }
        for bad in ["", "0", "M", "1T", "-1", "1.5M", "99999999999999999999"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_code_says_equal_different_or_incomplete() {
        let status = |state: &str, differences: u64, unreadable: u64| {
            serde_json::json!({
                "state": state, "differences": differences, "unreadable": unreadable,
            })
        };
        assert_eq!(code(&status("done", 0, 0)), EQUAL);
        assert_eq!(code(&status("done", 1, 0)), DIFFERED);
        assert_eq!(code(&status("failed", 1, 0)), DIFFERED);
        assert_eq!(code(&status("failed", 0, 0)), INCOMPLETE);
        assert_eq!(code(&status("done", 0, 1)), INCOMPLETE);
    }
}
