//! `twinfold module`: modules ready to use, each of a kind.
//!
//! A kind is a directory of `controller/modules`, kept in this program: `userconfig.xml`, whose
//! macros are its options (an empty one has to be given), scripts in `bin`, and `README.md`,
//! whose first line says what it is for. `install` writes all that as a module's configuration,
//! which from then on is the operator's own to edit.

mod embedded;
mod needs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use quick_xml::escape::escape;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{Said, check_name, client};
use crate::cluster::mistakes;
use crate::config;
use crate::operate;
use crate::places::Places;
use crate::versions::FILE;
use embedded::{KINDS, Kind};

/// `twinfold module`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the kinds of modules there are, and their options.
    List,
    /// Make a module's configuration on this node, ready to be looked at and applied.
    Install {
        /// The kind, as `module list` shows them.
        kind: String,
        /// The new module's name.
        module: String,
        /// Options, as `module list` shows them: FOLDER=/srv/web.
        #[arg(value_name = "NAME=VALUE")]
        options: Vec<String>,
    },
}

/// One option of a kind.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Choice<'a> {
    name: &'a str,
    /// None: it has to be given.
    default: Option<&'a str>,
    about: &'a str,
}

/// What was chosen, by the option's name.
type Chosen = BTreeMap<String, String>;

/// A kind, as it is shown.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Shown {
    name: String,
    /// What it is for, in a line.
    about: String,
    /// What can be chosen.
    options: Vec<ShownOption>,
    /// All about it, as Markdown.
    readme: String,
}

/// One option of a kind, as it is shown.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct ShownOption {
    name: String,
    /// None: it has to be given.
    default: Option<String>,
    about: String,
}

/// What `install` is asked to make.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// The kind's name.
    kind: String,
    /// Options, as NAME=VALUE.
    #[serde(default)]
    options: Vec<String>,
}

/// Asks the daemon of the node that is meant; on this one also without a daemon, which may not be
/// started yet.
pub(crate) fn run(args: &Args, home: Option<&Path>, on: Option<&str>) -> Result<ExitCode> {
    let act = |api: Option<&operate::Api>| {
        match &args.what {
            What::List => list(&match api {
                Some(api) => api.get("/api/v1/kinds")?,
                None => shown(),
            }),
            What::Install {
                kind,
                module,
                options,
            } => {
                check_name(module)?;
                let wish = Wish {
                    kind: kind.clone(),
                    options: options.clone(),
                };
                let path = format!("/api/v1/modules/{module}/install");
                let told = match api {
                    Some(api) => api.call::<Said>(Method::POST, &path, Some(&wish))?.text,
                    None => make(&Places::new(home), module, &wish)?,
                };
                print!("{told}");
            }
        }
        Ok(ExitCode::SUCCESS)
    };
    match operate::on_each(home, on, &|api| act(Some(api))) {
        Err(error) if on.is_none() && client::nobody_listens(&error) => act(None),
        done => done,
    }
}

/// Makes a module's configuration on this node.
pub(crate) fn make(places: &Places, module: &str, wish: &Wish) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    install(places, &path, &wish.kind, module, &wish.options)
}

/// All kinds.
pub(crate) fn shown() -> Vec<Shown> {
    let option = |choice: Choice<'_>| ShownOption {
        name: choice.name.to_owned(),
        default: choice.default.map(str::to_owned),
        about: choice.about.to_owned(),
    };
    let kinds = KINDS.iter().map(|kind| Shown {
        name: kind.name.to_owned(),
        about: kind.about().to_owned(),
        options: kind.choices().into_iter().map(option).collect(),
        readme: kind.readme.to_owned(),
    });
    kinds.collect()
}

fn list(kinds: &[Shown]) {
    for kind in kinds {
        println!("{}: {}", kind.name, kind.about);
        for option in &kind.options {
            let shown = match option.default.as_deref() {
                Some("") => format!("[{}=]", option.name),
                Some(default) => format!("[{}={default}]", option.name),
                None => format!("{}=...", option.name),
            };
            println!("  {shown:30} {}", option.about);
        }
    }
}

impl Kind {
    fn find(name: &str) -> Result<&'static Kind> {
        let found = KINDS.iter().find(|kind| kind.name == name);
        found.with_context(|| {
            let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            format!(
                "{name:?} is no kind of module; there are {}",
                names.join(", ")
            )
        })
    }

    /// What it is for, in a line.
    fn about(&self) -> &'static str {
        let first = self.readme.lines().next().unwrap_or_default();
        first.split_once(": ").map_or(first, |(_, about)| about)
    }

    /// `<macro name="NAME" value="DEFAULT"/> <!-- what it is -->`, a line each; where nothing
    /// may be said, too, the remark ends with "if any".
    fn choices(&self) -> Vec<Choice<'static>> {
        let lines = self.config.lines();
        lines
            .filter_map(|line| {
                let (name, rest) = line.trim().strip_prefix(NAME)?.split_once(VALUE)?;
                let (default, rest) = rest.split_once("\"/>")?;
                let about = rest.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")?;
                let optional = !default.is_empty() || about.ends_with("if any");
                Some(Choice {
                    name,
                    default: optional.then_some(default),
                    about,
                })
            })
            .collect()
    }

    /// The configuration with what was chosen.
    fn render(&self, module: &str, chosen: &Chosen) -> String {
        let mut text = String::new();
        for line in self.config.lines() {
            let value = line.trim().strip_prefix(NAME).and_then(|rest| {
                let (name, rest) = rest.split_once(VALUE)?;
                let (default, rest) = rest.split_once('"')?;
                let value = match chosen.get(name) {
                    Some(value) => escape(value.as_str()).into_owned(),
                    None => default.replace("%MODULE%", module),
                };
                Some(format!("  {NAME}{name}{VALUE}{value}\"{rest}"))
            });
            text.push_str(value.as_deref().unwrap_or(line));
            text.push('\n');
        }
        text
    }
}

const NAME: &str = "<macro name=\"";
const VALUE: &str = "\" value=\"";

/// What was said on the command line: each once, known, and all that have to be.
fn chosen(kind: &Kind, options: &[String]) -> Result<Chosen> {
    let choices = kind.choices();
    let names = || {
        choices
            .iter()
            .map(|c| c.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut chosen = Chosen::new();
    for option in options {
        let (name, value) = option
            .split_once('=')
            .with_context(|| format!("{option:?} is no NAME=VALUE"))?;
        let known = choices.iter().any(|c| c.name == name);
        ensure!(
            known,
            "{} has no option {name:?}; there are {}",
            kind.name,
            names()
        );
        let printable = !value.chars().any(char::is_control);
        ensure!(printable, "{name} holds what is no text");
        let before = chosen.insert(name.to_owned(), value.to_owned());
        ensure!(before.is_none(), "{name} is given twice");
    }
    let missing: Vec<_> = choices
        .iter()
        .filter(|c| c.default.is_none() && chosen.get(c.name).is_none_or(String::is_empty))
        .map(|c| format!("{}=... ({})", c.name, c.about))
        .collect();
    ensure!(
        missing.is_empty(),
        "this is missing: {}",
        missing.join(", ")
    );
    Ok(chosen)
}

/// Makes the configuration; what comes back tells what is next. What is needed is looked for in
/// the directories of `path`.
fn install(
    places: &Places,
    path: &OsStr,
    kind: &str,
    module: &str,
    options: &[String],
) -> Result<String> {
    check_name(module)?;
    let kind = Kind::find(kind)?;
    let mut chosen = chosen(kind, options)?;
    let directory = places.modules().join(module);
    ensure!(
        !directory.exists(),
        "{} is there already: choose another name, or take it away first (`twinfold deconfig`)",
        directory.display()
    );
    let found = needs::check(kind.name, &mut chosen, path)?;
    let text = kind.render(module, &chosen);
    let shown = directory.join(FILE).display().to_string();
    let (read, wrong) = config::module(&shown, &text, |_| None);
    let read = read.with_context(|| mistakes(&shown, &wrong))?;
    let Some(folder) = read.folders.first() else {
        bail!("{} has no folder", kind.name);
    };
    write(places, &directory, kind, &text)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let isolation = match read.service.isolation_alone {
        true => {
            "If the two nodes do not hear each other any more, both go on: <etcd>, <fence> or \
             <splitbrain> in userconfig.xml keep that from happening."
        }
        false => {
            "If a node does not hear the other one any more it waits for you, unless <etcd>, <fence> \
             or <splitbrain> in userconfig.xml decide."
        }
    };
    Ok(format!(
        "{} is made ({found}); look at userconfig.xml and README.md in it.\n{isolation}\n\n\
         If {folder} is no replicated folder yet, on both nodes:\n  \
         twinfold fs init {folder} --name {module} ... (--good-copy here, --from-peer there)\n\
         Then here, for both nodes, while their daemons run:\n  \
         twinfold config -m {module}\n\
         And once:\n  \
         twinfold prim -m {module}     here\n  \
         twinfold second -m {module}   on the other node\n",
        directory.display()
    ))
}

/// In one step, so that nobody finds half of it.
fn write(places: &Places, directory: &Path, kind: &Kind, text: &str) -> std::io::Result<()> {
    let beside = places.etc.join("module.new");
    if beside.exists() {
        std::fs::remove_dir_all(&beside)?;
    }
    std::fs::create_dir_all(beside.join("bin"))?;
    std::fs::create_dir_all(places.modules())?;
    let put = |name: &str, text: &str, mode: u32| {
        let path = beside.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        std::fs::File::open(&path)?.sync_all()
    };
    // Variables may be secrets.
    put(FILE, text, 0o600)?;
    put("README.md", kind.readme, 0o644)?;
    for script in kind.scripts {
        let mode = if script.executable { 0o755 } else { 0o644 };
        put(&format!("bin/{}", script.name), script.text, mode)?;
    }
    std::fs::rename(&beside, directory)
}
