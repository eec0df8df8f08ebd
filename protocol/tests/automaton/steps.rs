//! What can happen next to two nodes.

use twinfold_protocol::automaton::{
    Arbiter, Automaton, Config, Effect, Isolation, Link, Reason, Wanted,
};

use super::world::{Driver, World};

/// Something that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// An effect of a node is done; `false`: it fails.
    Done(usize, usize, bool),
    /// A view arrives at a node.
    Arrive(usize),
    /// The older one of two views that are on their way to a node is lost.
    Lose(usize),
    /// A node hears nothing for the timeout.
    Silent(usize),
    /// What did not work is tried again.
    Retry(usize),
    /// The drivers find each other.
    Connect,
    /// The resync ends.
    Resynced,
    /// A primary notices that its secondary is gone.
    Lost(usize),
    /// The application writes.
    Write(usize),
    /// A crashed node starts again.
    Boot(usize),
    /// The module of a node that was started starts.
    Begin(usize),
    /// A node loses everything but its disk and what the kernel has for it.
    Crash(usize),
    /// A node loses everything but what is on its disk.
    PowerCut(usize),
    /// A node's driver dies.
    KillDriver(usize),
    /// The network is cut, or heals.
    Cut(bool),
    /// Nothing arrives at a node any more, and what it sends does; or it hears again.
    Deaf(usize, bool),
    /// The arbiter goes away, or comes back.
    Arbiter(bool),
    /// A node stops doing anything, or goes on.
    Freeze(usize, bool),
    /// A node's disk hangs, or goes on: it lives, and nothing that needs the disk ends.
    Hang(usize, bool),
    /// The disk of a primary fails, and its peer takes over.
    DiskFails(usize),
    /// It has a disk again, with what was on it.
    Repair(usize),
    /// A node that asks its peer to give way has waited long enough.
    Unanswered(usize),
    /// A node gets other rules than it had, or these again.
    Configure(usize, Arbiter, Isolation),
    /// The operator exchanges the roles.
    Swap(usize),
    /// A rule or the operator has the application stopped and started.
    Restart(usize),
    /// The operator or a rule stops or starts a node, or the operator says that its copy is the
    /// good one.
    Want(usize, Wanted),
}

impl World {
    /// Everything that can happen next. `faults`: also what breaks.
    pub(crate) fn steps(&self, faults: bool) -> Vec<Step> {
        let mut all = Vec::new();
        for n in 0..2 {
            let node = &self.nodes[n];
            if node.automaton.is_none() {
                all.push(Step::Boot(n));
                continue;
            }
            if node.frozen {
                all.push(Step::Freeze(n, false));
                continue;
            }
            let doing = node.doing.iter().enumerate();
            let ends = doing.filter(|(_, effect)| !(node.hangs && needs_disk(**effect)));
            all.extend(ends.map(|(i, _)| Step::Done(n, i, true)));
            if node.hangs {
                all.push(Step::Hang(n, false));
            }
            if node.broken && node.driver == Driver::Down {
                all.push(Step::Repair(n));
            }
            let shown = node.automaton.as_ref().map(Automaton::shown);
            if shown.is_some_and(|(_, _, reason)| reason == Reason::Asking) && self.is_unanswered(n)
            {
                all.push(Step::Unanswered(n));
            }
            if self.hears(n) && !self.sent[1 - n].is_empty() {
                all.push(Step::Arrive(n));
                if self.sent[1 - n].len() > 1 {
                    all.push(Step::Lose(n));
                }
            }
            if !self.hears(n) || !self.is_alive(1 - n) {
                all.push(Step::Silent(n));
            }
            all.push(Step::Retry(n));
            if node.soon {
                all.push(Step::Begin(n));
            }
            let paired = matches!(node.driver, Driver::Primary(Link::Paired | Link::Syncing));
            let follows = matches!(
                node.driver,
                Driver::Secondary {
                    link: Link::Paired | Link::Syncing,
                    ..
                }
            );
            let peer = match self.nodes[1 - n].driver {
                Driver::Primary(link) => paired_link(link) && follows,
                Driver::Secondary { link, .. } => paired_link(link) && paired,
                Driver::Down => false,
            };
            let hangs = paired && self.nodes[1 - n].hangs;
            if (paired || follows) && (hangs || !(peer && self.connected())) {
                all.push(Step::Lost(n));
            }
            if self.writes > 0 && self.acknowledges(n) && node.app && self.connected_or_alone(n) {
                all.push(Step::Write(n));
            }
        }
        let hangs = self.nodes.iter().any(|n| n.hangs);
        if self.connected() && !hangs && self.roles().is_some() {
            all.push(Step::Connect);
            all.push(Step::Resynced);
        }
        if !self.network {
            all.push(Step::Cut(false));
        }
        let deaf = (0..2).filter(|n| self.deaf[*n]);
        all.extend(deaf.map(|n| Step::Deaf(n, false)));
        if !self.reachable {
            all.push(Step::Arbiter(true));
        }
        if faults && self.faults > 0 {
            if self.network && self.deaf == [false; 2] {
                all.push(Step::Cut(true));
                all.extend([Step::Deaf(0, true), Step::Deaf(1, true)]);
            }
            if self.reachable && self.config[0].arbiter == Arbiter::Asked {
                all.push(Step::Arbiter(false));
            }
            for n in 0..2 {
                if self.is_alive(n) {
                    all.push(Step::Crash(n));
                    all.push(Step::PowerCut(n));
                    all.push(Step::Freeze(n, true));
                    if !self.nodes[n].hangs {
                        all.push(Step::Hang(n, true));
                    }
                    if self.has_heir(n) {
                        all.push(Step::DiskFails(n));
                    }
                    all.push(Step::Swap(n));
                    if self.nodes[n].app {
                        all.push(Step::Restart(n));
                    }
                    if self.nodes[n].driver != Driver::Down {
                        all.push(Step::KillDriver(n));
                    }
                    // One node keeps its rules, so the other one must not go on by its own.
                    if n == 1 && self.config[1].rules == self.config[0].rules {
                        let other = match self.config[0] {
                            Config {
                                arbiter: Arbiter::None,
                                isolation: Isolation::Alone,
                                ..
                            } => Isolation::Wait,
                            _ => Isolation::Alone,
                        };
                        all.push(Step::Configure(1, Arbiter::None, other));
                    }
                    // In the wrong place: nothing must come of it.
                    if self.plays(n) {
                        all.push(Step::Want(n, Wanted::Prim(true)));
                    }
                    let stopped = self.nodes[n].disk.wanted == Wanted::Stopped;
                    all.push(Step::Want(
                        n,
                        match stopped {
                            true => Wanted::Running,
                            false => Wanted::Stopped,
                        },
                    ));
                    let failing = self.nodes[n].doing.iter().enumerate();
                    all.extend(
                        failing
                            .filter(|(_, e)| {
                                matches!(
                                    e,
                                    Effect::Start(..)
                                        | Effect::Promote(_)
                                        | Effect::Demote
                                        | Effect::Ask(_)
                                        | Effect::Release(_)
                                )
                            })
                            .map(|(i, _)| Step::Done(n, i, false)),
                    );
                }
            }
        }
        all
    }

    /// Whether the peer may not have answered this node for as long as that one is waited for: in
    /// that time everything has arrived that it had to say. It cannot answer; or it is slow, where an
    /// arbiter decides or nobody goes on.
    fn is_unanswered(&self, n: usize) -> bool {
        let peer = 1 - n;
        let cannot = self.nodes[peer].hangs || !self.hears(peer) || !self.is_alive(peer);
        let heard = self.nodes[n].automaton.as_ref().and_then(Automaton::heard);
        let news = self.sent[peer].iter().any(|view| heard != Some(view));
        !news && (cannot || self.is_asked())
    }

    /// Whether this node serves, or follows a primary.
    fn plays(&self, n: usize) -> bool {
        match self.nodes[n].driver {
            Driver::Primary(_) => true,
            Driver::Secondary { link, .. } => paired_link(link),
            Driver::Down => false,
        }
    }

    fn connected_or_alone(&self, n: usize) -> bool {
        self.connected() || !matches!(self.nodes[n].driver, Driver::Primary(Link::Paired))
    }
}

/// Whether this ends only on a disk that works.
fn needs_disk(effect: Effect) -> bool {
    !matches!(
        effect,
        Effect::Ask(_) | Effect::Release(_) | Effect::StartApp | Effect::StopApp | Effect::Tell
    )
}

fn paired_link(link: Link) -> bool {
    matches!(link, Link::Paired | Link::Syncing)
}
