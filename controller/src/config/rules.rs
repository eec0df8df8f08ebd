//! Failover rules: `label: if (class.id == down && remote.x.y != up) then wait;`.
//!
//! ```text
//! rules  := { label ":" "if" "(" or ")" "then" action [ "(" ")" ] ";" }
//! or     := and { "||" and }
//! and    := unary { "&&" unary }
//! unary  := "!" unary | "(" or ")" | resource ("==" | "!=") state
//! ```
//!
//! `*` and `?` in a resource's names stand for any letters and any one letter. Comments as in C.

use super::check::Findings;
use super::xml::{Place, place};

/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 50;

/// Rules of one module, at most.
const MAX_RULES: usize = 500;

/// What a rule does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    Stop,
    Stopstart,
    Wait,
    Restart,
    Swap,
}

/// The state of a resource.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ResourceState {
    /// Nothing is known of it yet.
    Init,
    /// As it should be.
    Up,
    /// Not as it should be.
    Down,
    /// It cannot be told.
    Unknown,
}

impl ResourceState {
    pub(crate) fn text(self) -> &'static str {
        match self {
            ResourceState::Init => "init",
            ResourceState::Up => "up",
            ResourceState::Down => "down",
            ResourceState::Unknown => "unknown",
        }
    }
}

impl Action {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Action::Stop => "stop",
            Action::Stopstart => "stopstart",
            Action::Wait => "wait",
            Action::Restart => "restart",
            Action::Swap => "swap",
        }
    }
}

/// What a rule asks.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expr {
    /// Any resource whose name fits is in a state.
    Is {
        /// On the peer rather than here.
        remote: bool,
        class: String,
        id: String,
        state: ResourceState,
    },
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub(crate) struct Rule {
    pub(crate) label: String,
    pub(crate) when: Expr,
    pub(crate) action: Action,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Word(String),
    Sign(&'static str),
    End,
}

impl Token {
    fn show(&self) -> String {
        match self {
            Token::Word(word) => format!("{word:?}"),
            Token::Sign(sign) => format!("{sign:?}"),
            Token::End => "the end".into(),
        }
    }
}

const SIGNS: [&str; 9] = ["&&", "||", "==", "!=", "(", ")", ":", ";", "!"];

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

struct Wrong {
    at: usize,
    text: String,
}

/// Reads the rules of a text that begins at a place of a file; mistakes go to `found`.
pub(super) fn parse(file: &str, begin: Place, text: &str, found: &mut Findings) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut parser = Parser {
        text,
        tokens: Vec::new(),
        next: 0,
        depth: 0,
    };
    let mut report = |wrong: Wrong| {
        let inner = place(text, wrong.at);
        let at = Place {
            line: begin.line + inner.line - 1,
            column: match inner.line {
                1 => begin.column + inner.column - 1,
                _ => inner.column,
            },
        };
        found.wrong(file, at, wrong.text);
    };
    if let Err(wrong) = parser.cut() {
        report(wrong);
        return rules;
    }
    while *parser.peek() != Token::End {
        let at = parser.at();
        match parser.rule() {
            Ok(rule) if rules.iter().any(|r| r.label == rule.label) => report(Wrong {
                at,
                text: format!("there is another rule with the label {}", rule.label),
            }),
            Ok(_) if rules.len() >= MAX_RULES => {
                report(Wrong {
                    at,
                    text: format!("there are more than {MAX_RULES} rules"),
                });
                break;
            }
            Ok(rule) => rules.push(rule),
            Err(wrong) => {
                report(wrong);
                // The next rule begins behind the next semicolon.
                while !matches!(parser.take().1, Token::Sign(";") | Token::End) {}
            }
        }
    }
    rules
}

impl Parser<'_> {
    fn cut(&mut self) -> Result<(), Wrong> {
        let mut at = 0;
        while at < self.text.len() {
            let rest = &self.text[at..];
            let Some(first) = rest.chars().next() else {
                break;
            };
            if first.is_whitespace() {
                at += first.len_utf8();
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let Some(end) = comment.find("*/") else {
                    let text = "this comment is not closed with */".into();
                    return Err(Wrong { at, text });
                };
                at += 2 + end + 2;
            } else if rest.starts_with("//") || first == '#' {
                at += rest.find('\n').unwrap_or(rest.len());
            } else if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
                self.tokens.push((at, Token::Sign(sign)));
                at += sign.len();
            } else {
                let part = |c: char| c.is_alphanumeric() || "_-.*?".contains(c);
                let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
                if end == 0 {
                    let text = format!("{first:?} has no meaning in a rule");
                    return Err(Wrong { at, text });
                }
                self.tokens.push((at, Token::Word(rest[..end].to_owned())));
                at += end;
            }
        }
        self.tokens.push((self.text.len(), Token::End));
        Ok(())
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |t| &t.1)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.text.len(), |t| t.0)
    }

    fn take(&mut self) -> (usize, Token) {
        let taken = (self.at(), self.peek().clone());
        self.next += 1;
        taken
    }

    fn sign(&mut self, sign: &'static str) -> Result<(), Wrong> {
        match self.take() {
            (_, Token::Sign(s)) if s == sign => Ok(()),
            (at, other) => Err(Wrong {
                at,
                text: format!("expected {sign:?}, found {}", other.show()),
            }),
        }
    }

    fn word(&mut self, what: &str) -> Result<(usize, String), Wrong> {
        match self.take() {
            (at, Token::Word(word)) => Ok((at, word)),
            (at, other) => Err(Wrong {
                at,
                text: format!("expected {what}, found {}", other.show()),
            }),
        }
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), Wrong> {
        let (at, word) = self.word(&format!("{keyword:?}"))?;
        match word == keyword {
            true => Ok(()),
            false => Err(Wrong {
                at,
                text: format!("expected {keyword:?}, found {word:?}"),
            }),
        }
    }

    fn rule(&mut self) -> Result<Rule, Wrong> {
        let (_, label) = self.word("the label of a rule")?;
        self.sign(":")?;
        self.keyword("if")?;
        self.sign("(")?;
        let when = self.or()?;
        self.sign(")")?;
        self.keyword("then")?;
        let (at, word) = self.word("an action")?;
        let action = match word.as_str() {
            "stop" => Action::Stop,
            "stopstart" => Action::Stopstart,
            "wait" => Action::Wait,
            "restart" => Action::Restart,
            "swap" => Action::Swap,
            other => {
                let text = format!(
                    "{other:?} is no action; there are stop, stopstart, wait, restart, swap"
                );
                return Err(Wrong { at, text });
            }
        };
        if *self.peek() == Token::Sign("(") {
            self.sign("(")?;
            self.sign(")")?;
        }
        self.sign(";")?;
        Ok(Rule {
            label,
            when,
            action,
        })
    }

    fn or(&mut self) -> Result<Expr, Wrong> {
        let mut all = vec![self.and()?];
        while *self.peek() == Token::Sign("||") {
            self.next += 1;
            all.push(self.and()?);
        }
        Ok(only_or(all, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, Wrong> {
        let mut all = vec![self.unary()?];
        while *self.peek() == Token::Sign("&&") {
            self.next += 1;
            all.push(self.unary()?);
        }
        Ok(only_or(all, Expr::And))
    }

    fn unary(&mut self) -> Result<Expr, Wrong> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Wrong {
                at: self.at(),
                text: format!("the expression is nested deeper than {MAX_DEPTH}"),
            });
        }
        let expr = match self.peek() {
            Token::Sign("!") => {
                self.next += 1;
                Expr::Not(Box::new(self.unary()?))
            }
            Token::Sign("(") => {
                self.next += 1;
                let inner = self.or()?;
                self.sign(")")?;
                inner
            }
            _ => self.comparison()?,
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn comparison(&mut self) -> Result<Expr, Wrong> {
        let (at, name) = self.word("a resource (class.id)")?;
        let (remote, rest) = match name.split_once('.') {
            Some(("local", rest)) if rest.contains('.') => (false, rest),
            Some(("remote", rest)) if rest.contains('.') => (true, rest),
            _ => (false, name.as_str()),
        };
        let Some((class, id)) = rest
            .split_once('.')
            .filter(|(c, i)| !c.is_empty() && !i.is_empty())
        else {
            let text = format!("{name:?} is no resource: it is written class.id");
            return Err(Wrong { at, text });
        };
        let equal = match self.take() {
            (_, Token::Sign("==")) => true,
            (_, Token::Sign("!=")) => false,
            (at, other) => {
                let text = format!("expected \"==\" or \"!=\", found {}", other.show());
                return Err(Wrong { at, text });
            }
        };
        let (at, word) = self.word("a state")?;
        let state = match word.as_str() {
            "init" => ResourceState::Init,
            "up" => ResourceState::Up,
            "down" => ResourceState::Down,
            "unknown" => ResourceState::Unknown,
            other => {
                let text = format!("{other:?} is no state; there are init, up, down, unknown");
                return Err(Wrong { at, text });
            }
        };
        let is = Expr::Is {
            remote,
            class: class.to_owned(),
            id: id.to_owned(),
            state,
        };
        Ok(match equal {
            true => is,
            false => Expr::Not(Box::new(is)),
        })
    }
}

fn only_or(mut all: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match all.len() {
        1 => all.remove(0),
        _ => many(all),
    }
}

/// The rules that hold unless a configuration says `extends="no"`. `splitbrain` needs none: a node
/// that does not reach its witness waits by itself, and goes on as soon as it may.
pub(super) const BUILT_IN: &str = "\
interface_failure: if (intf.* == down) then wait;
module_failure: if (module.* == down) then wait;
ip_failure: if (ip.* == down) then stopstart;
";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<Rule>, Vec<String>) {
        let mut found = Findings::default();
        let begin = Place {
            line: 10,
            column: 5,
        };
        let rules = parse("f", begin, text, &mut found);
        (
            rules,
            found.mistakes.iter().map(ToString::to_string).collect(),
        )
    }

    fn is(class: &str, id: &str, state: ResourceState) -> Expr {
        Expr::Is {
            remote: false,
            class: class.into(),
            id: id.into(),
            state,
        }
    }

    #[test]
    fn and_binds_tighter_than_or_and_not_tightest() {
        let (rules, wrong) = read(
            "a: if (x.1 == down || !y.2 == up && z.* != init) then stopstart();\n\
             // a comment\nb: if ((remote.p.q == unknown)) then swap;",
        );
        assert_eq!(wrong, [""; 0]);
        let not = |e| Expr::Not(Box::new(e));
        assert_eq!(
            rules[0].when,
            Expr::Or(vec![
                is("x", "1", ResourceState::Down),
                Expr::And(vec![
                    not(is("y", "2", ResourceState::Up)),
                    not(is("z", "*", ResourceState::Init)),
                ]),
            ])
        );
        assert_eq!(rules[1].action, Action::Swap);
        assert!(matches!(&rules[1].when, Expr::Is { remote: true, class, .. } if class == "p"));
    }

    #[test]
    fn every_mistake_is_told_with_its_place_and_the_rest_is_read() {
        let (rules, wrong) = read(
            "a if (x.1 == down) then stop;\nb: if (x == down) then stop;\n\
             c: if (x.1 = down) then stop;\n",
        );
        assert_eq!(rules, []);
        assert_eq!(
            wrong,
            ["f:12:12: '=' has no meaning in a rule"],
            "the text cannot be cut"
        );
        let (rules, wrong) = read(
            "a if (x.1 == down) then stop;\nb: if (x == down) then stop;\n\
             c: if (x.1 down) then stop;\nd: if (x.1 == dwn) then stop;\n\
             e: if (x.1 == down) then halt;\nok: if (x.1 == down) then wait;\n\
             ok: if (x.2 == down) then wait;\nf: if (x.1 == down then stop;\nok2: if (a.b == up) then stop",
        );
        assert_eq!(rules.len(), 1);
        let places: Vec<_> = wrong
            .iter()
            .map(|w| w.split(": ").next().unwrap())
            .collect();
        assert_eq!(
            places,
            [
                "f:10:7", "f:11:8", "f:12:12", "f:13:15", "f:14:26", "f:16:1", "f:17:20", "f:18:30"
            ],
            "{wrong:#?}"
        );
    }

    #[test]
    fn the_built_in_rules_are_rules() {
        let (rules, wrong) = read(BUILT_IN);
        assert_eq!((rules.len(), wrong.len()), (3, 0));
    }

    #[test]
    fn an_expression_cannot_exhaust_the_stack() {
        let deep = format!(
            "a: if ({}x.y == up{}) then stop;",
            "(".repeat(5000),
            ")".repeat(5000)
        );
        assert!(read(&deep).1[0].contains("nested deeper"));
        let nots = format!("a: if ({}x.y == up) then stop;", "!".repeat(5000));
        assert!(read(&nots).1[0].contains("nested deeper"));
    }
}
