//! A peer of which no process runs any more: as good as one that is silent, and noticed at once.
//!
//! ```text
//! paired ──> where does the peer's driver let callers in?            (once a session)
//!                │ the line ends, and the peer's kernel refuses callers at its daemon's port
//!                v
//! look ─────> and at its driver's?  ── no ──> look again, until the daemon is back or silent
//!                │ yes: the driver here lets go of the connection, and would find a living peer again
//!                v
//! still so after a moment, and nothing was heard ──> silent
//! ```
//!
//! What follows is what follows from silence: whoever has to be asked is asked. A daemon that has
//! died alone decides nothing, for the driver goes on without it and lets callers in.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs_driver::control::{Hex, Request};
use fs_driver::engine::LinkState;
use fs_driver::state::Settings;
use twinfold_protocol::handshake::Role;

use super::perform::spawn;
use super::{Input, Runner};
use crate::driver::Place;
use crate::peer::{Answer, Hub, knock};

/// How long it has to be so. A driver that lives has its connection again after its next call,
/// each tenth of a second; and nobody notices a failover that is later by that.
const GRACE: Duration = Duration::from_millis(200);

/// How often it looks.
const LOOK: Duration = Duration::from_millis(50);

/// How often the peer's driver is called to learn where it lets callers in, and the pause.
const CALLS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// What is known of the peer's processes.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The session in which its driver was called last, and where it let callers in.
    met: Option<(Hex, Vec<SocketAddr>)>,
    /// The peer was told that callers are let in here.
    told: bool,
    /// It is being looked whether any of its processes is left.
    looking: bool,
    /// None was, when so much had been heard of it.
    gone: Option<u64>,
}

/// What came of looking.
#[derive(Debug)]
pub(crate) enum Looked {
    /// In this session the peer's driver lets callers in there.
    Met(Hex, Vec<SocketAddr>),
    /// Neither daemon nor driver of the peer is left, and so much had been heard of it.
    Gone(u64),
    /// Its driver lives, although its port is refused: that says nothing.
    Alive,
    /// Its daemon may be back, or its silence is long enough to tell.
    Unknown,
}

impl Runner {
    /// Learns where the peer's driver lets callers in. It has to say that it does, or somebody
    /// else may listen there.
    pub(super) fn meet(&mut self) {
        let Some(standing) = self.standing.as_ref() else {
            return;
        };
        let present = self.peer.as_ref().is_some_and(|v| v.present) && !self.silent;
        let Some(session) = standing
            .session
            .filter(|_| present && standing.link == LinkState::Paired)
        else {
            return;
        };
        if self.presence.met.as_ref().is_some_and(|m| m.0 == session) {
            return;
        }
        self.presence.met = Some((session, Vec::new()));
        let (state, inbox) = (self.setup.place.layout.state(), self.inbox.clone());
        spawn(move || {
            let found = addresses(&state);
            let _ = inbox.send(Input::Looked(Looked::Met(session, found)));
        });
    }

    /// Tells the peer whether callers are let in here, once all else that it is told then is as the
    /// driver said it.
    pub(super) fn tell_presence(&mut self) {
        let present = self.standing.as_ref().is_some_and(|s| s.present);
        if std::mem::replace(&mut self.presence.told, present) != present {
            self.tell_peer();
        }
    }

    /// The peer's kernel refuses callers at its daemon's port.
    pub(super) fn refused(&mut self) {
        let heart = &self.setup.config.heart;
        let refused = self.hub.refuses(&heart.lans, heart.timeout);
        let Some(addresses) = self.to_be_called().filter(|_| refused) else {
            return;
        };
        let look = Look {
            hub: self.hub.clone(),
            lans: heart.lans.clone(),
            silence: heart.timeout,
            addresses,
            own: self.setup.place.clone(),
        };
        self.presence.looking = true;
        let inbox = self.inbox.clone();
        spawn(move || {
            let _ = inbox.send(Input::Looked(look.look(GRACE)));
        });
    }

    /// Where to look, if this copy was equal to the peer's until it was lost: of another peer
    /// nothing is to be known but what it says.
    fn to_be_called(&self) -> Option<Vec<SocketAddr>> {
        let standing = self.standing.as_ref()?;
        let (session, addresses) = self.presence.met.as_ref()?;
        let open = match self.role? {
            Role::Primary => matches!(
                standing.link,
                LinkState::Paired | LinkState::Bridging | LinkState::Holding
            ),
            Role::Secondary => standing.current,
        };
        let looks = open && !self.presence.looking && !self.silent && !addresses.is_empty();
        (looks && standing.session == Some(*session)).then(|| addresses.clone())
    }

    pub(super) fn looked(&mut self, looked: Looked) {
        if !matches!(looked, Looked::Met(..)) {
            self.presence.looking = false;
        }
        match looked {
            Looked::Met(session, found) => {
                if let Some((of, addresses)) = &mut self.presence.met
                    && *of == session
                {
                    *addresses = found;
                }
                // It may have died meanwhile.
                self.refused();
            }
            // It may be refused again since.
            Looked::Unknown => self.refused(),
            Looked::Alive => {
                if let Some((_, addresses)) = &mut self.presence.met {
                    addresses.clear();
                }
            }
            Looked::Gone(words) => self.presence.gone = Some(words),
        }
    }

    /// Whether no process of the peer is left, as far as is known: nothing was heard of it since.
    pub(super) fn is_gone(&self) -> bool {
        let words = self.hub.words(&self.setup.config.heart.lans);
        self.presence.gone == Some(words)
    }
}

/// Where the driver of a peer that is there lets callers in.
fn addresses(state: &Path) -> Vec<SocketAddr> {
    let mut all = match Settings::load(state) {
        Ok(settings) => settings.peer,
        Err(error) => {
            tracing::warn!("the addresses of the peer's driver are not known: {error:#}");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for call in 0..CALLS {
        if call > 0 && !all.is_empty() {
            std::thread::sleep(PAUSE);
        }
        all.retain(|address| {
            let open = knock(*address) == Answer::Open;
            if open {
                found.push(*address);
            }
            !open
        });
    }
    for address in all {
        tracing::info!(
            %address,
            "the peer's driver does not let callers in by TCP: should all its processes die, that \
             is noticed by their silence alone"
        );
    }
    found
}

/// The driver here, as far as it is needed to know the other one.
trait Own {
    /// Lets go of the connection to the peer: a peer that lives is found again.
    fn let_go(&self);

    /// Whether it has none, if it can be asked.
    fn is_apart(&self) -> Option<bool>;
}

impl Own for Place {
    fn let_go(&self) {
        if let Err(error) = self.ask(Request::Disconnect) {
            tracing::debug!(%error, "the connection was not closed");
        }
    }

    fn is_apart(&self) -> Option<bool> {
        let apart = [LinkState::Waiting, LinkState::Bridging, LinkState::Holding];
        Some(apart.contains(&self.standing().ok()?.link))
    }
}

/// Looks whether any process of the peer is left.
struct Look<O> {
    hub: Arc<Hub>,
    lans: Vec<String>,
    silence: Duration,
    addresses: Vec<SocketAddr>,
    own: O,
}

impl<O: Own> Look<O> {
    fn look(&self, grace: Duration) -> Looked {
        let until = Instant::now() + self.silence;
        let (mut since, mut told) = (None, false);
        while Instant::now() < until {
            // Before it is asked: what is heard afterwards takes it back.
            let words = self.hub.words(&self.lans);
            if !self.hub.refuses(&self.lans, self.silence) {
                return Looked::Unknown;
            }
            let mut all = self.addresses.iter();
            if all.all(|address| knock(*address) == Answer::Refused) {
                // What the kernel knows at once, the connection would show after its timeout.
                if !std::mem::replace(&mut told, true) {
                    self.own.let_go();
                }
                match (self.own.is_apart(), since) {
                    (Some(false), Some(_)) => return Looked::Alive,
                    (Some(true), None) => since = Some(Instant::now()),
                    (Some(true), Some(at)) if at.elapsed() >= grace => {
                        return Looked::Gone(words);
                    }
                    _ => {}
                }
            } else {
                since = None;
            }
            std::thread::sleep(LOOK);
        }
        Looked::Unknown
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::peer::tests::{answered, hub};

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);

    /// A driver that is let go, and finds its peer again when it was asked so often.
    struct Driver {
        asked: AtomicUsize,
        found: usize,
    }

    impl Own for Driver {
        fn let_go(&self) {
            assert_eq!(self.asked.swap(1, Ordering::AcqRel), 0, "it is let go once");
        }

        fn is_apart(&self) -> Option<bool> {
            let asked = self.asked.fetch_add(1, Ordering::AcqRel);
            assert!(asked > 0, "it was not let go");
            Some(asked < self.found)
        }
    }

    /// Where somebody listens, until that is dropped.
    fn open() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Looks at these addresses of a peer whose daemon is refused everywhere.
    fn look(addresses: Vec<SocketAddr>, silence: Duration) -> Look<Driver> {
        let hub = hub();
        (0..2).for_each(|lan| answered(&hub, lan, Answer::Refused));
        Look {
            hub,
            lans: Vec::new(),
            silence,
            addresses,
            own: Driver {
                asked: AtomicUsize::new(0),
                found: usize::MAX,
            },
        }
    }

    #[test]
    fn a_peer_is_gone_when_its_driver_is_refused_at_all_addresses() {
        let (listener, one) = open();
        let (other, two) = open();
        drop(other);
        let looked = look(vec![two], LONG).look(SHORT);
        assert!(matches!(looked, Looked::Gone(0)), "{looked:?}");
        let looked = look(vec![two, one], SHORT).look(Duration::ZERO);
        assert!(matches!(looked, Looked::Unknown), "{looked:?}");
        drop(listener);
        let looked = look(vec![two, one], LONG).look(SHORT);
        assert!(matches!(looked, Looked::Gone(0)), "{looked:?}");
    }

    #[test]
    fn a_driver_that_dies_while_it_is_looked_at_is_noticed() {
        let (listener, address) = open();
        let looks = look(vec![address], LONG);
        let looked = std::thread::spawn(move || looks.look(Duration::ZERO));
        std::thread::sleep(4 * LOOK);
        assert!(!looked.is_finished());
        drop(listener);
        assert!(matches!(looked.join().unwrap(), Looked::Gone(0)));
    }

    #[test]
    fn a_daemon_that_may_be_back_ends_the_look() {
        let (listener, address) = open();
        drop(listener);
        let looks = look(vec![address], LONG);
        let hub = looks.hub.clone();
        let looked = std::thread::spawn(move || looks.look(LONG));
        std::thread::sleep(4 * LOOK);
        assert!(!looked.is_finished());
        answered(&hub, 1, Answer::Open);
        assert!(matches!(looked.join().unwrap(), Looked::Unknown));
    }

    #[test]
    fn a_driver_that_is_found_again_lives_whatever_its_port_says() {
        let (listener, address) = open();
        drop(listener);
        let mut looks = look(vec![address], LONG);
        looks.own.found = 3;
        assert!(matches!(looks.look(LONG), Looked::Alive));
    }
}
