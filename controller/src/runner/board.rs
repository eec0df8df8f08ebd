//! The resources of a module: what checkers and `twinfold set` say, and what the rules make
//! of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::checkers::Running;
use crate::config::{Action, Checker, Expr, ResourceState, Rule};

/// Resources of one module, and letters of a name, at most: all go to the peer in a frame.
pub(crate) const MAX_RESOURCES: usize = 256;
pub(crate) const MAX_NAME: usize = 100;

/// What is known, and since when what holds.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) states: BTreeMap<String, ResourceState>,
    /// Why one is not up.
    pub(super) reasons: BTreeMap<String, String>,
    /// Checkers at work, by their place in the configuration, with the number of their run.
    pub(super) running: BTreeMap<usize, (u64, Running)>,
    pub(super) runs: u64,
    /// Rules whose condition holds.
    since: BTreeMap<String, Instant>,
}

impl Board {
    /// Notes a state; true if that is new.
    pub(super) fn set(&mut self, name: &str, state: ResourceState) -> Result<bool, String> {
        let fits = |part: &str| {
            let known = |c: char| c.is_alphanumeric() || "_-.:%".contains(c);
            !part.is_empty() && part.chars().all(known)
        };
        let named = name
            .split_once('.')
            .is_some_and(|(c, i)| fits(c) && fits(i));
        if !named || name.len() > MAX_NAME {
            return Err(format!(
                "{name:?} is no resource: it is written class.id, with at most {MAX_NAME} letters"
            ));
        }
        if self.states.len() >= MAX_RESOURCES && !self.states.contains_key(name) {
            return Err(format!("there are {MAX_RESOURCES} resources already"));
        }
        Ok(self.states.insert(name.to_owned(), state) != Some(state))
    }

    /// What the rules ask for that have held for long enough, the gravest first, with the
    /// rule's label. What is asked for once has to hold as long again.
    pub(super) fn judge(
        &mut self,
        rules: &[Rule],
        remote: &BTreeMap<String, ResourceState>,
        patience: Duration,
    ) -> Vec<(Action, String)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for rule in rules {
            if !holds(&rule.when, &self.states, remote) {
                self.since.remove(&rule.label);
                continue;
            }
            let since = *self.since.entry(rule.label.clone()).or_insert(now);
            let patience = if at_once(&rule.when) {
                Duration::ZERO
            } else {
                patience
            };
            if now.duration_since(since) >= patience {
                due.push((rule.action, rule.label.clone()));
            }
        }
        due.sort_by_key(|(action, _)| gravity(*action));
        due
    }

    /// When the next of the rules that hold has held for long enough.
    pub(super) fn due(&self, patience: Duration) -> Option<Instant> {
        let now = Instant::now();
        // One that was due and could not be followed waits for the module to change.
        let due = self.since.values().map(|since| *since + patience);
        due.filter(|at| *at > now).min()
    }

    /// Other checkers are configured: all begin anew, and who is not there any more says nothing.
    pub(super) fn configure(&mut self, before: &[Checker], after: &[Checker]) {
        self.running.clear();
        let stays = |name: &String| after.iter().any(|c| c.resource() == *name);
        for name in before.iter().map(Checker::resource).filter(|n| !stays(n)) {
            self.states.remove(&name);
            self.reasons.remove(&name);
        }
        self.forget();
    }

    /// Rules have to hold anew before they are followed again.
    pub(super) fn forget(&mut self) {
        self.since.clear();
    }

    /// The rule because of which the module waits, or the resource that is not known yet.
    pub(super) fn blocked(
        &self,
        rules: &[Rule],
        checkers: &[Checker],
        remote: &BTreeMap<String, ResourceState>,
    ) -> Option<(bool, String)> {
        let waits = || rules.iter().filter(|r| r.action == Action::Wait);
        if let Some(rule) = waits().find(|r| holds(&r.when, &self.states, remote)) {
            let down = self.down().map(|d| format!(" ({d})"));
            let text = format!("the rule {} says to wait", rule.label);
            return Some((true, text + &down.unwrap_or_default()));
        }
        let looked_at = checkers.iter().enumerate();
        let looked_at = looked_at.filter(|(n, _)| self.running.contains_key(n));
        let mut open = looked_at.map(|(_, c)| c.resource()).filter(|name| {
            let state = self.states.get(name);
            matches!(state, None | Some(ResourceState::Init))
                && waits().any(|r| names(&r.when, name))
        });
        open.next()
            .map(|name| (false, format!("{name} is not known yet")))
    }

    /// What is down, and why.
    pub(super) fn down(&self) -> Option<String> {
        let down = self.states.iter();
        let down = down.filter(|(_, state)| **state == ResourceState::Down);
        let all: Vec<_> = down
            .map(|(name, _)| match self.reasons.get(name) {
                Some(reason) => format!("{name}: {reason}"),
                None => format!("{name} is down"),
            })
            .collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// A process that is gone is no passing trouble.
fn at_once(when: &Expr) -> bool {
    matches!(when, Expr::Is { class, remote: false, .. } if class == "proc")
}

fn gravity(action: Action) -> u8 {
    match action {
        Action::Stop => 0,
        Action::Wait => 1,
        Action::Stopstart => 2,
        Action::Swap => 3,
        Action::Restart => 4,
    }
}

fn holds(
    expr: &Expr,
    local: &BTreeMap<String, ResourceState>,
    peer: &BTreeMap<String, ResourceState>,
) -> bool {
    match expr {
        Expr::Is {
            remote,
            class,
            id,
            state,
        } => {
            let of = if *remote { peer } else { local };
            of.iter()
                .any(|(name, s)| s == state && fits_name(class, id, name))
        }
        Expr::Not(inner) => !holds(inner, local, peer),
        Expr::And(all) => all.iter().all(|e| holds(e, local, peer)),
        Expr::Or(all) => all.iter().any(|e| holds(e, local, peer)),
    }
}

/// Whether an expression asks for this resource here.
fn names(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Is {
            remote, class, id, ..
        } => !remote && fits_name(class, id, name),
        Expr::Not(inner) => names(inner, name),
        Expr::And(all) | Expr::Or(all) => all.iter().any(|e| names(e, name)),
    }
}

fn fits_name(class: &str, id: &str, name: &str) -> bool {
    name.split_once('.').is_some_and(|(c, i)| {
        fits(class.as_bytes(), c.as_bytes()) && fits(id.as_bytes(), i.as_bytes())
    })
}

/// `*` stands for any letters, `?` for one. Goes back to the last `*` only: no name takes long.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ResourceState::{Down, Init, Up};

    fn is(name: &str, state: ResourceState) -> Expr {
        let (remote, name) = match name.strip_prefix("remote.") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let (class, id) = name.split_once('.').unwrap();
        Expr::Is {
            remote,
            class: class.into(),
            id: id.into(),
            state,
        }
    }

    fn rule(label: &str, when: Expr, action: Action) -> Rule {
        Rule {
            label: label.into(),
            when,
            action,
        }
    }

    #[test]
    fn names_fit_by_stars_and_question_marks() {
        for (pattern, name, fits_it) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b", "aab", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("", "a", false),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                fits_it,
                "{pattern} {name}"
            );
        }
        let long = "a".repeat(10_000);
        assert!(!fits(b"*a*a*a*a*a*b", long.as_bytes()));
    }

    #[test]
    fn the_gravest_of_the_rules_that_hold_long_enough_comes_first() {
        let rules = [
            rule("one", is("tcp.*", Down), Action::Restart),
            rule("two", is("remote.x.y", Up), Action::Stop),
            rule("three", Expr::Not(Box::new(is("a.b", Up))), Action::Wait),
        ];
        let mut board = Board::default();
        let mut remote = BTreeMap::new();
        let judge = |board: &mut Board, remote: &BTreeMap<_, _>, patience| {
            let due = board.judge(&rules, remote, Duration::from_secs(patience));
            due.into_iter().map(|(_, label)| label).collect::<Vec<_>>()
        };
        assert_eq!(judge(&mut board, &remote, 0), ["three"]);
        assert!(board.set("a.b", Up).unwrap());
        assert!(!board.set("a.b", Up).unwrap());
        board.set("tcp.web", Down).unwrap();
        remote.insert("x.y".to_owned(), Up);
        assert_eq!(judge(&mut board, &remote, 3600), [""; 0]);
        assert_eq!(judge(&mut board, &remote, 0), ["two", "one"]);
        assert_eq!(board.due(Duration::ZERO), None);
        let hour = Duration::from_secs(3600);
        assert!(
            board
                .due(hour)
                .is_some_and(|at| at <= Instant::now() + hour)
        );
        remote.clear();
        board.set("tcp.web", Up).unwrap();
        assert_eq!(judge(&mut board, &remote, 0), [""; 0]);
        assert_eq!(board.due(hour), None, "no rule holds");
    }

    #[test]
    fn a_process_that_is_gone_is_not_waited_for() {
        let rules = [rule("p", is("proc.x", Down), Action::Restart)];
        let mut board = Board::default();
        board.set("proc.x", Down).unwrap();
        let due = board.judge(&rules, &BTreeMap::new(), Duration::from_secs(3600));
        assert_eq!(due, [(Action::Restart, "p".to_owned())]);
    }

    #[test]
    fn a_module_waits_for_what_a_rule_says_and_no_longer() {
        let rules = [rule("w", is("intf.*", Down), Action::Wait)];
        let mut board = Board::default();
        let none = BTreeMap::new();
        assert_eq!(board.blocked(&rules, &[], &none), None);
        board.set("intf.eth0", Down).unwrap();
        let (grave, text) = board.blocked(&rules, &[], &none).unwrap();
        assert!(grave && text.contains("intf.eth0 is down"), "{text}");
        board.set("intf.eth0", Init).unwrap();
        assert_eq!(board.blocked(&rules, &[], &none), None);
    }

    #[test]
    fn what_is_no_name_is_refused_and_there_is_a_limit() {
        let mut board = Board::default();
        for name in ["x", ".x", "x.", "a b.c", "a.b\n", ""] {
            board.set(name, Up).unwrap_err();
        }
        board
            .set(&format!("a.{}", "b".repeat(MAX_NAME)), Up)
            .unwrap_err();
        for n in 0..MAX_RESOURCES {
            board.set(&format!("a.{n}"), Up).unwrap();
        }
        board.set("a.more", Up).unwrap_err();
        board.set("a.1", Down).unwrap();
    }
}
