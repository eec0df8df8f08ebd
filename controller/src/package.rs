//! What a package of the programs needs of them: manual pages and completions, made from the
//! command lines themselves, and where the folders of this node are, for who removes it.
//!
//! ```text
//! DIRECTORY/man/man1/twinfold.1, twinfold-start.1, ...    twinfold-fs.1, twinfold-fs-init.1, ...
//! DIRECTORY/bash-completion/completions/twinfold          and twinfold-fs
//! DIRECTORY/zsh/vendor-completions/_twinfold
//! DIRECTORY/fish/vendor_completions.d/twinfold.fish
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap_complete::Shell;
use fs_driver::setup::{absolute, default_base};
use fs_driver::store::Layout;

use crate::places::Places;
use crate::{cluster, config, daemon, versions};

/// Where a distribution looks for completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/vendor-completions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

/// `twinfold package`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write manual pages and completions.
    Documents {
        /// Below this directory.
        into: PathBuf,
    },
    /// Print where the folders of this node's modules and their files are.
    Folders,
}

/// Runs it; the programs are those that are packed.
pub(crate) fn run(
    args: &Args,
    home: Option<&Path>,
    programs: [clap::Command; 2],
) -> Result<ExitCode> {
    match &args.what {
        What::Documents { into } => documents(into, programs)?,
        What::Folders => folders(&Places::new(home))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The same commands without `help`, of which there would be a page for each page.
fn without_help(command: clap::Command) -> clap::Command {
    let command = command.disable_help_subcommand(true);
    command.mut_subcommands(without_help)
}

fn documents(into: &Path, programs: [clap::Command; 2]) -> Result<()> {
    let make = |name: &str| {
        let directory = into.join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok::<_, anyhow::Error>(directory)
    };
    for mut program in programs {
        let name = program.get_name().to_owned();
        clap_mangen::generate_to(without_help(program.clone()), make("man/man1")?)
            .context("no manual page can be written")?;
        for (shell, place) in COMPLETIONS {
            let made = clap_complete::generate_to(shell, &mut program, &name, make(place)?)
                .with_context(|| format!("no completion of {shell} can be written"))?;
            // That shell looks for the program's own name.
            if shell == Shell::Bash {
                std::fs::rename(&made, made.with_file_name(&name))?;
            }
        }
    }
    Ok(())
}

fn folders(places: &Places) -> Result<()> {
    for module in daemon::modules(places)? {
        match of_module(places, &module) {
            Ok(all) => {
                for (folder, data) in all {
                    println!("module {module}: the files of {folder} are in {data}");
                }
            }
            Err(error) => {
                println!("module {module}: where its folder is cannot be read: {error:#}")
            }
        }
    }
    Ok(())
}

/// Each folder of a module, and where its files are.
fn of_module(places: &Places, module: &str) -> Result<Vec<(String, String)>> {
    let (_, directory) = versions::directory(places, module)?;
    let file = directory.join(versions::FILE);
    let shown = file.display().to_string();
    let text = config::text(&file)?;
    let (read, found) = config::module(&shown, &text, |name| std::env::var(name).ok());
    let read = read.with_context(|| cluster::mistakes(&shown, &found))?;
    let place = |folder: String| {
        let layout = Layout::new(default_base(&absolute(Path::new(&folder))?)?);
        Ok((folder, layout.data().display().to_string()))
    };
    read.folders.into_iter().map(place).collect()
}
