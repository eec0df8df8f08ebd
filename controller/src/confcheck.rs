//! `twinfold confcheck`: a configuration's mistakes, all at once.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::config::{self, Findings};

/// `twinfold confcheck`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The files: `cluster.xml` and `userconfig.xml` of modules, in any order.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print what was read, as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints every mistake of every file; the exit status is 1 when there is one.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut wrong = false;
    for path in &args.files {
        let name = path.display().to_string();
        let text = config::text(path)?;
        let (json, found) = match is_cluster(&text) {
            true => {
                let (read, found) = config::cluster(&name, &text);
                (read.map(|r| serde_json::to_string_pretty(&r)), found)
            }
            false => {
                let variable = |name: &str| std::env::var(name).ok();
                let (read, found) = config::module(&name, &text, variable);
                (read.map(|r| serde_json::to_string_pretty(&r)), found)
            }
        };
        wrong |= report(&name, &found);
        if let (true, Some(json)) = (args.json, json) {
            println!("{}", json?);
        }
    }
    Ok(match wrong {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Which of the two kinds of files it is, by its first element.
fn is_cluster(text: &str) -> bool {
    let module = text.find("<safe").unwrap_or(usize::MAX);
    text.find("<cluster").is_some_and(|at| at < module)
}

fn report(name: &str, found: &Findings) -> bool {
    for mistake in &found.mistakes {
        eprintln!("{mistake}");
    }
    for note in &found.notes {
        eprintln!("{note} (note)");
    }
    match found.mistakes.len() {
        0 => println!("{name}: correct"),
        1 => eprintln!("{name}: 1 mistake"),
        n => eprintln!("{name}: {n} mistakes"),
    }
    !found.mistakes.is_empty()
}
