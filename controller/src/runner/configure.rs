//! Another configuration of a module that exists.

use std::time::Duration;

use fs_driver::control::Request;
use twinfold_protocol::automaton::{Event, State};

use super::begin::automaton_config;
use super::{Runner, Setup};
use crate::peer::WireView;

impl Runner {
    /// Another configuration: what can change while it runs does, from now on, and for scripts
    /// and what they know with the next of them.
    pub(super) fn configure(&mut self, mut setup: Setup, only_look: bool) -> Result<(), String> {
        let stopped = self.seen.0 == State::Stop && self.pid.is_none();
        let before = &self.setup.config;
        if setup.config.folders != before.folders && !stopped {
            return Err("other folders are for a module that is stopped on both nodes".into());
        }
        if setup.config.addresses != before.addresses && !stopped {
            return Err("other addresses are for a module that is stopped on both nodes".into());
        }
        if only_look {
            return Ok(());
        }
        let other_copy = setup.config.folders != before.folders;
        let limit = setup.config.replication.limit;
        if limit != before.replication.limit && self.pid.is_some() {
            let request = Request::Limit {
                bytes_per_second: limit,
            };
            self.work(0, Duration::ZERO, move |place| place.ask(request).map(drop));
        }
        // Whoever forces a stop forces that of the scripts that run.
        setup.scripts.forced = self.setup.scripts.forced.clone();
        match setup.config.addresses == before.addresses {
            true => setup.vips = self.setup.vips.clone(),
            false => {
                let peer = self.peer.as_ref();
                setup
                    .vips
                    .peer_has(&peer.map(WireView::hardware).unwrap_or_default());
            }
        }
        self.board
            .configure(&before.checkers, &setup.config.checkers);
        self.setup = setup;
        self.hub
            .beats(&self.setup.name, Some(self.setup.config.heart.pulse));
        self.automaton
            .configure(automaton_config(&self.setup.config, &self.hub));
        let version = self.setup.version.as_ref();
        let text = version.map_or_else(
            || "has another configuration".to_owned(),
            |v| format!("version {} ({}) is applied", v.number, v.hash),
        );
        self.say("command", text);
        if other_copy {
            // What is remembered is of the copy before.
            self.remember(|m| {
                (m.was, m.session, m.yielded) = (None, None, None);
                (m.equal_at, m.fullsync) = (0, false);
            });
        }
        if stopped {
            self.down();
        }
        self.tell_peer();
        self.events.push_back(Event::Retry);
        Ok(())
    }

    /// Whether the two nodes would run the module differently.
    pub(super) fn differs(&self) -> Option<String> {
        let peer = self.peer.as_ref().filter(|_| !self.silent)?;
        let own = self.setup.version.as_ref().map(|v| v.hash.clone());
        (peer.config != own).then(|| {
            let show = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".to_owned());
            format!(
                "the nodes have different configurations (here {}, on {} {}): run `config` on \
                 the node with the right one",
                show(&own),
                self.hub.cluster.peer,
                show(&peer.config)
            )
        })
    }
}
