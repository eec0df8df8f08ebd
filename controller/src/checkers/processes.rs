//! How many processes of a kind run.

use std::path::Path;

use anyhow::{Context, Result, bail};
use regex::Regex;

use crate::config::Processes;

/// Longest command line that is looked at, in bytes.
const MAX_LINE: usize = 64 << 10;

/// An error says how many there are and how many should be.
pub(super) fn check(wanted: &Processes) -> Result<()> {
    let name_like = wanted.name_like.as_deref().map(Regex::new).transpose()?;
    let arguments_like = wanted.arguments_like.as_deref();
    let arguments_like = arguments_like.map(Regex::new).transpose()?;
    let mut count = 0;
    for entry in std::fs::read_dir("/proc").context("the processes are not seen")? {
        let entry = entry.context("the processes are not seen")?;
        let name = entry.file_name();
        let number = name.as_encoded_bytes();
        if !number.iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that has ended meanwhile has no files.
        let Some((program, line)) = read(&entry.path()) else {
            continue;
        };
        let named = match &name_like {
            Some(like) => like.is_match(&program),
            None => program == wanted.name || named(&line, &wanted.name),
        };
        let fits = arguments_like
            .as_ref()
            .is_none_or(|like| like.is_match(&line));
        // With arguments to look for the name is only a name.
        let by_line = name_like.is_none() && arguments_like.is_some();
        if fits && (named || by_line) {
            count += 1;
        }
    }
    if count < wanted.at_least {
        bail!(
            "{count} processes {} run, {} should",
            wanted.name,
            wanted.at_least
        );
    }
    if let Some(most) = wanted.at_most
        && count > most
    {
        bail!(
            "{count} processes {} run, {most} at most should",
            wanted.name
        );
    }
    Ok(())
}

/// A process's short name and its command line; one that only waits to be noticed as ended
/// counts as none.
fn read(process: &Path) -> Option<(String, String)> {
    let stat = std::fs::read(process.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    let (begin, end) = (stat.find('(')?, stat.rfind(')')?);
    if stat[end + 1..].trim_start().starts_with(['Z', 'X']) {
        return None;
    }
    let mut line = std::fs::read(process.join("cmdline")).ok()?;
    line.truncate(MAX_LINE);
    while line.last() == Some(&0) {
        line.pop();
    }
    for byte in &mut line {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    Some((stat[begin + 1..end].to_owned(), line))
}

/// The kernel's name is cut after fifteen letters; the command line has it whole.
fn named(line: &str, name: &str) -> bool {
    let program = line.split(' ').next().unwrap_or_default();
    Path::new(program).file_name().is_some_and(|n| n == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str) -> Processes {
        Processes {
            name: name.into(),
            name_like: None,
            arguments_like: None,
            at_least: 1,
            at_most: None,
        }
    }

    #[test]
    fn processes_are_counted_by_name_and_by_arguments() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a-program-with-a-long-name";
        let program = dir.path().join(name);
        std::os::unix::fs::symlink("/bin/sleep", &program).unwrap();
        let mark = format!("{}.5", 1000 + std::process::id());
        let run = || {
            std::process::Command::new(&program)
                .arg(&mark)
                .spawn()
                .unwrap()
        };
        let error = check(&wanted(name)).unwrap_err();
        assert!(error.to_string().starts_with("0 processes"), "{error}");
        let mut all = [run(), run()];
        check(&wanted(name)).unwrap();
        let mut some = wanted("anything");
        some.arguments_like = Some(format!("^.*name {}$", mark.replace('.', "\\.")));
        some.at_least = 2;
        check(&some).unwrap();
        some.at_most = Some(1);
        some.at_least = 0;
        check(&some).unwrap_err();
        let mut like = wanted("x");
        like.name_like = Some("^a-program-with-$".into());
        check(&like).unwrap();
        // One that has ended and that nobody took note of does not run.
        for child in &mut all {
            child.kill().unwrap();
        }
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while check(&wanted(name)).is_ok() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        check(&wanted(name)).unwrap_err();
        for child in &mut all {
            child.wait().unwrap();
        }
    }
}
