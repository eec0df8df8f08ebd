//! `twinfold confcheck`: a configuration's mistakes, all at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::config::{self, Around, Findings, Module};
use crate::places::Places;

/// `twinfold confcheck`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The files: `cluster.xml` and `userconfig.xml` of modules, in any order. Modules are checked
    /// in the cluster of the first `cluster.xml` among them, or in that of this node.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print what was read, as JSON.
    #[arg(long)]
    json: bool,
}

/// A file with what was found in it.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) name: String,
    /// What was read of it, if anything.
    read: Option<serde_json::Result<String>>,
    pub(crate) found: Findings,
    /// It names what only a cluster can tell to be right, and there is none.
    alone: bool,
}

/// Checks files, given by names and texts: what is no mistake, the daemon runs, for it reads them
/// in the same way. `own` is the `cluster.xml` of this node; `variable` gives the values of the
/// environment's variables.
pub(crate) fn check(
    files: &[(String, String)],
    own: &Path,
    variable: impl Fn(&str) -> Option<String> + Copy,
) -> Vec<Checked> {
    let around = around(files, own);
    let checked = files.iter().map(|(name, text)| {
        let (read, found, alone) = match is_cluster(text) {
            true => {
                let (read, found) = config::cluster(name, text);
                (read.map(|r| serde_json::to_string_pretty(&r)), found, false)
            }
            false => {
                let (read, found) = config::module_in(name, text, variable, around.as_ref());
                let alone = around.is_none() && read.as_ref().is_some_and(names_others);
                (read.map(|r| serde_json::to_string_pretty(&r)), found, alone)
            }
        };
        Checked {
            name: name.clone(),
            read,
            found,
            alone,
        }
    });
    checked.collect()
}

/// Prints every mistake of every file; the exit status is 1 when there is one.
pub(crate) fn run(args: &Args, home: Option<&Path>) -> Result<ExitCode> {
    let mut files = Vec::new();
    for path in &args.files {
        files.push((path.display().to_string(), config::text(path)?));
    }
    let own = Places::new(home).cluster();
    let mut wrong = false;
    for checked in check(&files, &own, |name| std::env::var(name).ok()) {
        let name = checked.name;
        if checked.alone {
            eprintln!(
                "{name}: there is no cluster.xml to find its lans and defaultprim in: name it, too \
                 (note)"
            );
        }
        wrong |= report(&name, &checked.found);
        if let (true, Some(json)) = (args.json, checked.read) {
            println!("{}", json?);
        }
    }
    Ok(match wrong {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The cluster of the modules: the first of the files that is a good one, or else this node's.
fn around(files: &[(String, String)], own: &Path) -> Option<Around> {
    let read = |name: &str, text: &str| {
        let (cluster, _) = config::cluster(name, text);
        Some(Around::new(name, &cluster?))
    };
    let mut clusters = files.iter().filter(|(_, text)| is_cluster(text)).peekable();
    if clusters.peek().is_some() {
        return clusters.find_map(|(name, text)| read(name, text));
    }
    read(&own.display().to_string(), &config::text(own).ok()?)
}

/// Whether it names what only a cluster can tell to be right.
fn names_others(module: &Module) -> bool {
    !module.heart.lans.is_empty() || module.service.defaultprim.is_some()
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
