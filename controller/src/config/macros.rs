//! `%NAME%` in values: macros of the file, else variables of the environment.

use super::check::Findings;
use super::xml::Element;

/// A value after its macros are replaced, in bytes, at most.
const MAX_EXPANDED: usize = 64 << 10;

/// Replaces the macros in all attributes of all elements but the macros themselves. A
/// macro's value is taken as it is: macros do not build on one another.
pub(super) fn expand(
    file: &str,
    root: &mut Element,
    variable: impl Fn(&str) -> Option<String>,
    found: &mut Findings,
) {
    let macros: Vec<(String, String)> = root
        .all("macro")
        .filter_map(|m| Some((m.get("name")?.to_owned(), m.get("value")?.to_owned())))
        .collect();
    let value = |name: &str| {
        let own = macros.iter().find(|(n, _)| n == name);
        own.map(|(_, v)| v.clone()).or_else(|| variable(name))
    };
    below(file, root, &value, found);
}

fn below(
    file: &str,
    element: &mut Element,
    value: &impl Fn(&str) -> Option<String>,
    found: &mut Findings,
) {
    if element.name == "macro" {
        return;
    }
    for attribute in &mut element.attributes {
        match replace(&attribute.value, value) {
            Ok(text) => attribute.value = text,
            Err(text) => found.wrong(file, attribute.at, text),
        }
    }
    for child in &mut element.children {
        below(file, child, value, found);
    }
}

/// A macro's name between two percent signs; a percent sign alone is one.
fn replace(text: &str, value: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let is_name =
        |n: &str| !n.is_empty() && n.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('%') {
        out.push_str(before);
        match behind.split_once('%') {
            Some((name, after)) if is_name(name) => {
                let value = value(name).ok_or_else(|| {
                    format!(
                        "the macro %{name}% is not defined: add <macro name=\"{name}\" value=.../> \
                         or a variable of the environment"
                    )
                })?;
                out.push_str(&value);
                rest = after;
            }
            _ => {
                out.push('%');
                rest = behind;
            }
        }
        if out.len() > MAX_EXPANDED {
            return Err(format!(
                "with its macros the value is longer than {MAX_EXPANDED} bytes"
            ));
        }
    }
    out.push_str(rest);
    Ok(out)
}
