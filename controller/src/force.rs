//! `twinfold primforce`: what may be lost is said before it is.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::api::NodeState;
use crate::operate::{Api, Which};
use crate::runner::{Command, ModuleState};

/// `twinfold primforce`.
#[derive(Debug, clap::Args)]
pub(crate) struct Force {
    #[command(flatten)]
    which: Which,
    /// Do not ask; only who types at a terminal is asked.
    #[arg(short, long)]
    yes: bool,
}

/// What may be lost, and how it would not be.
fn warning(node: &str, peer: &str, module: &ModuleState) -> String {
    let name = &module.module;
    let here = match module.up_to_date {
        true => "up to date".to_owned(),
        false => format!(
            "not up to date ({}). Acknowledged writes may be missing from it, or a resync have \
             left it half done; the application starts with it as it is",
            module.reason
        ),
    };
    let there = match &module.peer {
        None => "nothing is known. It may have newer data".to_owned(),
        Some(other) => {
            let current = if other.up_to_date { "" } else { "not " };
            let state = format!("{} {}, {current}up to date", other.state, other.status);
            match other.silent {
                true => format!(
                    "nothing is heard; it was {state}. What it acknowledged since is not here, and \
                     if it still runs, both nodes serve from now on"
                ),
                false => state,
            }
        }
    };
    format!(
        "{name}: WARNING: primforce makes the copy on {node} the good one, whatever {peer} has.\n  \
         The copy on {node}: {here}.\n  \
         Of {peer}: {there}.\n  \
         What only {peer} has is given up when it follows: kept in its archive there, never merged.\n  \
         If {peer} can be started, start it and let `start` on both nodes choose, or run `prim` on \
         the node with the better copy. If it cannot, see that it stays off, and copy \
         {}/data away first if you may need this copy as it is now.\n",
        module.base
    )
}

/// Whether what was typed means yes.
fn agrees(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

impl Api {
    /// Forces a module to serve here; first is said what may be lost, and asked who can be.
    pub(crate) fn primforce(&self, force: &Force) -> Result<ExitCode> {
        let name = self.module(&force.which)?;
        let node: NodeState = self.get("/api/v1/state")?;
        let module: ModuleState = self.get(&format!("/api/v1/modules/{name}"))?;
        let serves = matches!(module.state.as_str(), "ALONE" | "PRIM");
        if !serves {
            eprint!("{}", warning(&node.node, &node.peer, &module));
            // Scripts are not asked.
            let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
            if asks && !force.yes {
                eprint!("Make the copy on {} the good one? [y/N] ", node.node);
                std::io::stderr().flush()?;
                let mut answer = String::new();
                std::io::stdin().lock().read_line(&mut answer)?;
                if !agrees(&answer) {
                    bail!("nothing was done");
                }
            }
        }
        self.command(&force.which, Command::Primforce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::PeerState;

    #[test]
    fn what_may_be_lost_is_said_of_both_copies() {
        let mut module = ModuleState {
            module: "vm".into(),
            state: "WAIT".into(),
            status: "NotReady".into(),
            reason: "the peer is silent and may hold newer data".into(),
            up_to_date: false,
            trouble: None,
            percent: None,
            resync: None,
            driver: None,
            base: "/.vm.twinfold".into(),
            resources: Default::default(),
            suspended: false,
            needs: Vec::new(),
            ending: false,
            peer: Some(PeerState {
                state: "ALONE".into(),
                status: "Ready".into(),
                reason: "serves".into(),
                up_to_date: true,
                silent: true,
            }),
        };
        let text = warning("a", "b", &module);
        for part in [
            "the copy on a the good one, whatever b has",
            "not up to date (the peer is silent",
            "it was ALONE Ready, up to date. What it acknowledged since is not here",
            "its archive",
            "/.vm.twinfold/data",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        module.up_to_date = true;
        module.peer = None;
        let text = warning("a", "b", &module);
        assert!(text.contains("The copy on a: up to date."), "{text}");
        assert!(text.contains("nothing is known"), "{text}");
    }

    #[test]
    fn only_a_yes_is_one() {
        for (answer, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            ("", false),
            ("\n", false),
            ("n\n", false),
            ("yesterday", false),
        ] {
            assert_eq!(agrees(answer), expected, "{answer:?}");
        }
    }
}
