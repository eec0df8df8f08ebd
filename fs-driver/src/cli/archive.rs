//! `archive list`, `show` and `drop`: straight from the disk, whether a driver runs or not.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::Folder;
use crate::archive::{self, About, Archive, Line};
use crate::engine::clock;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the archives, the oldest first.
    List {
        #[command(flatten)]
        folder: Folder,
        /// As one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Show what an archive keeps, and where to copy it from.
    Show {
        #[command(flatten)]
        folder: Folder,
        /// As `list` names it.
        name: String,
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Drop an archive: what it keeps is gone for good.
    Drop {
        #[command(flatten)]
        folder: Folder,
        /// As `list` names it.
        name: String,
    },
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    files: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<String>,
    about: &'a About,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<&'a [Line]>,
}

fn shown<'a>(archive: &'a Archive, lines: Option<&'a [Line]>) -> Shown<'a> {
    Shown {
        name: &archive.name,
        files: archive.files().display().to_string(),
        removed: removed(archive),
        about: &archive.about,
        lines,
    }
}

/// Where lies what the resync removed, if there is anything.
fn removed(archive: &Archive) -> Option<String> {
    (archive.about.removed > 0).then(|| archive.removed().display().to_string())
}

pub(super) fn run(command: Command) -> Result<()> {
    match command {
        Command::List { folder, json } => {
            let all = archive::list(&folder.layout()?)?;
            if json {
                let all: Vec<_> = all.iter().map(|a| shown(a, None)).collect();
                println!("{}", serde_json::to_string(&all)?);
            } else {
                all.iter().for_each(|a| println!("{}", summary(a)));
            }
        }
        Command::Show { folder, name, json } => {
            let (archive, lines) = archive::manifest(&folder.layout()?, &name)?;
            if json {
                println!("{}", serde_json::to_string(&shown(&archive, Some(&lines)))?);
            } else {
                println!("{}", summary(&archive));
                println!("files: {}", archive.files().display());
                if let Some(removed) = removed(&archive) {
                    let objects = archive.about.removed;
                    println!("removed by the other copy, {objects} objects: {removed}");
                }
                lines.iter().for_each(|line| println!("{}", text(line)));
            }
        }
        Command::Drop { folder, name } => archive::drop_archive(&folder.layout()?, &name)?,
    }
    Ok(())
}

fn summary(archive: &Archive) -> String {
    let about = &archive.about;
    format!(
        "{}  {}  generation {:.8}  {} changes, {} files, {} bytes{}",
        archive.name,
        clock::utc(about.time),
        about.generation,
        about.changes,
        about.files,
        about.bytes,
        match about.everything {
            true => ", all of the copy",
            false => "",
        }
    )
}

/// One line of a manifest as a person reads it.
fn text(line: &Line) -> String {
    let bytes: u64 = line.ranges.iter().map(|(_, length)| length).sum();
    let ranges = match line.ranges.len() {
        0 => String::new(),
        n => format!(", {bytes} bytes in {n} ranges"),
    };
    let changes: Vec<_> = line.changes.iter().map(|c| c.word()).collect();
    format!(
        "{:7}  {}{ranges}  {}",
        line.kept.word(),
        changes.join(" "),
        match line.path.as_str() {
            "" => ".",
            path => path,
        }
    )
}
