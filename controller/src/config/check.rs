//! A file against its schema: every mistake at once, each with what would be right.

use std::net::IpAddr;
use std::time::Duration;

use super::schema::{Kind, Rule, Support, find};
use super::units;
use super::xml::{Attribute, Element, MAX_MISTAKES, Mistake, Place};

/// What was found in a file.
#[derive(Clone, Debug, Default, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Findings {
    /// What must be changed.
    pub(crate) mistakes: Vec<Mistake>,
    /// What is not done, or not needed, and may stand.
    pub(crate) notes: Vec<Mistake>,
}

impl Findings {
    pub(super) fn wrong(&mut self, file: &str, at: Place, text: String) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(Mistake {
                file: file.to_owned(),
                at,
                text,
            });
        }
    }

    pub(super) fn note(&mut self, file: &str, at: Place, text: String) {
        if self.notes.len() < MAX_MISTAKES {
            self.notes.push(Mistake {
                file: file.to_owned(),
                at,
                text,
            });
        }
    }

    pub(super) fn sort(&mut self) {
        self.mistakes.sort_by_key(|m| m.at);
        self.notes.sort_by_key(|m| m.at);
    }
}

/// Checks an element, and all in it, by the rules.
pub(super) fn check(file: &str, rules: &[Rule], root: &Element, found: &mut Findings) {
    match find(rules, &root.name, None) {
        Some(rule) => element(file, rules, rule, root, found),
        None => {
            let right = rules.iter().find(|r| r.parents.is_empty());
            let right = right.map_or("", |r| r.name);
            found.wrong(
                file,
                root.at,
                format!("the file begins with <{}> instead of <{right}>", root.name),
            );
        }
    }
}

fn element(file: &str, rules: &[Rule], rule: Rule, here: &Element, found: &mut Findings) {
    match rule.support {
        Support::No(why) => {
            return found.wrong(
                file,
                here.at,
                format!("<{}> is not supported: {why}", here.name),
            );
        }
        Support::Needless(why) => {
            found.note(
                file,
                here.at,
                format!("<{}> is not needed: {why}", here.name),
            );
        }
        Support::Yes | Support::Own => {}
    }
    for attribute in &here.attributes {
        one(file, rule, attribute, found);
    }
    for wanted in rule.attributes.iter().filter(|a| a.required) {
        if here.get(wanted.name).is_none() {
            let text = format!("<{}> needs the attribute {}", here.name, wanted.name);
            found.wrong(file, here.at, text);
        }
    }
    if !rule.text && !here.text.trim().is_empty() {
        found.wrong(file, here.text_at, format!("<{}> holds no text", here.name));
    }
    let mut seen: Vec<&str> = Vec::new();
    for child in &here.children {
        let Some(next) = find(rules, &child.name, Some(&here.name)) else {
            found.wrong(file, child.at, misplaced(rules, child, here));
            continue;
        };
        if !next.many && seen.contains(&next.name) {
            let text = format!(
                "<{}> stands twice in <{}>; once is right",
                child.name, here.name
            );
            found.wrong(file, child.at, text);
        }
        seen.push(next.name);
        element(file, rules, next, child, found);
    }
}

fn misplaced(rules: &[Rule], child: &Element, parent: &Element) -> String {
    let places: Vec<_> = rules
        .iter()
        .filter(|r| r.name == child.name && !matches!(r.support, Support::No(_)))
        .flat_map(|r| r.parents)
        .map(|p| format!("<{p}>"))
        .collect();
    if !places.is_empty() {
        return format!(
            "<{}> stands in <{}>; it belongs in {}",
            child.name,
            parent.name,
            places.join(" or ")
        );
    }
    let known: Vec<_> = rules
        .iter()
        .filter(|r| r.parents.contains(&parent.name.as_str()))
        .map(|r| r.name)
        .collect();
    let hint = nearest(&child.name, &known);
    format!("<{}> is not known in <{}>{hint}", child.name, parent.name)
}

/// What was probably meant, or what there is.
fn nearest(word: &str, known: &[&str]) -> String {
    let best = known
        .iter()
        .map(|k| (distance(word, k), *k))
        .min()
        .filter(|(d, k)| *d <= k.len().div_ceil(3));
    match best {
        Some((_, name)) => format!("; did you mean {name}?"),
        None if known.is_empty() => String::new(),
        None => format!("; there are {}", known.join(", ")),
    }
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut last = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = last + usize::from(x != *y);
            last = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(last + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

fn one(file: &str, rule: Rule, attribute: &Attribute, found: &mut Findings) {
    let Some(known) = rule.attributes.iter().find(|a| a.name == attribute.name) else {
        let names: Vec<_> = rule.attributes.iter().map(|a| a.name).collect();
        let hint = nearest(&attribute.name, &names);
        let text = format!("<{}> has no attribute {}{hint}", rule.name, attribute.name);
        return found.wrong(file, attribute.at, text);
    };
    match known.support {
        Support::No(why) => {
            let text = format!("{} is not supported: {why}", attribute.name);
            return found.wrong(file, attribute.at, text);
        }
        Support::Needless(why) => {
            let text = format!("{} is not needed: {why}", attribute.name);
            found.note(file, attribute.at, text);
        }
        Support::Yes | Support::Own => {}
    }
    if let Some(right) = wrong_value(known.kind, &attribute.value) {
        let text = format!("{}=\"{}\" is not {right}", attribute.name, attribute.value);
        found.wrong(file, attribute.at, text);
    }
}

/// What the value should have been, unless it is that.
fn wrong_value(kind: Kind, value: &str) -> Option<String> {
    let time = |unit| units::time(value, unit).is_none();
    let a_time = |unit: &str| {
        format!("a time: a number with d, h, m, s, ms or us (without one it counts in {unit})")
    };
    match kind {
        Kind::Text => None,
        Kind::Name => value
            .trim()
            .is_empty()
            .then(|| "a name: it is empty".into()),
        Kind::Switch => units::switch(value).is_none().then(|| "on or off".into()),
        Kind::Millis => time(Duration::from_millis(1)).then(|| a_time("milliseconds")),
        Kind::Seconds => time(Duration::from_secs(1)).then(|| a_time("seconds")),
        Kind::Minutes => time(Duration::from_secs(60)).then(|| a_time("minutes")),
        Kind::Hours => time(Duration::from_secs(3600)).then(|| a_time("hours")),
        Kind::Number(least, most) => {
            let fits = value
                .parse::<u64>()
                .is_ok_and(|n| (least..=most).contains(&n));
            (!fits).then(|| match most {
                u64::MAX => format!("a whole number of at least {least}"),
                most => format!("a whole number from {least} to {most}"),
            })
        }
        Kind::OneOf(words) => (!words.contains(&value)).then(|| match words {
            [one] => (*one).to_owned(),
            many => format!("one of {}", many.join(", ")),
        }),
        Kind::Address => value
            .parse::<IpAddr>()
            .is_err()
            .then(|| "an IPv4 or IPv6 address".into()),
        Kind::Host => {
            let name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            let fits = value.parse::<IpAddr>().is_ok()
                || (!value.is_empty() && value.len() <= 253 && value.chars().all(name));
            (!fits).then(|| "an address or a host name".into())
        }
        Kind::Path => {
            let fits = value.starts_with('/') && !value.split('/').any(|p| p == "..");
            (!fits).then(|| "an absolute path without ..".into())
        }
    }
}
