//! XML into elements that know where they stand, within limits.
//!
//! No document type with an internal subset and no entity but the five of XML itself: a
//! configuration cannot make the reader expand, fetch or loop.

use std::borrow::Cow;
use std::fmt;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Largest file, in bytes: a configuration of 64 modules is far below it.
pub(super) const MAX_FILE: usize = 1 << 20;

/// Deepest nesting; the deepest known element stands seven deep.
const MAX_DEPTH: usize = 16;

/// Elements of one file, at most.
const MAX_ELEMENTS: usize = 20_000;

/// Longest attribute value, in bytes.
const MAX_VALUE: usize = 64 << 10;

/// Mistakes reported of one file, at most; one behind it says that there are more.
pub(super) const MAX_MISTAKES: usize = 100;

/// A place in a file, both numbers from 1; the column counts characters.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, utoipa::ToSchema,
)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Something wrong in a file, and what would be right.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct Mistake {
    pub(crate) file: String,
    #[serde(flatten)]
    pub(crate) at: Place,
    pub(crate) text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.at;
        write!(f, "{}:{line}:{column}: {}", self.file, self.text)
    }
}

/// An attribute.
#[derive(Clone, Debug)]
pub(crate) struct Attribute {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) at: Place,
}

/// An element with everything in it.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) at: Place,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) children: Vec<Element>,
    /// Text directly in it, and where it begins.
    pub(crate) text: String,
    pub(crate) text_at: Place,
}

impl Element {
    /// An attribute's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|a| a.name == name)?;
        Some(&found.value)
    }

    /// The children of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// The first child of a name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }
}

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    mistakes: Vec<Mistake>,
    elements: usize,
}

/// Reads a file's text into its root element.
pub(super) fn parse(file: &str, text: &str) -> Result<Element, Vec<Mistake>> {
    let mut parser = Parser {
        file,
        text,
        mistakes: Vec::new(),
        elements: 0,
    };
    if text.len() > MAX_FILE {
        parser.wrong(
            0,
            format!(
                "the file has {} bytes; a configuration has at most {MAX_FILE}",
                text.len()
            ),
        );
        return Err(parser.mistakes);
    }
    match parser.run() {
        Some(root) if parser.mistakes.is_empty() => Ok(root),
        Some(_) => Err(parser.mistakes),
        None => {
            if parser.mistakes.is_empty() {
                parser.wrong(0, "the file holds no element".into());
            }
            Err(parser.mistakes)
        }
    }
}

/// Where a byte of a text stands.
pub(super) fn place(text: &str, at: usize) -> Place {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    Place {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

impl Parser<'_> {
    fn wrong(&mut self, at: usize, text: String) {
        if self.mistakes.len() < MAX_MISTAKES {
            self.mistakes.push(Mistake {
                file: self.file.to_owned(),
                at: place(self.text, at),
                text,
            });
        }
    }

    fn run(&mut self) -> Option<Element> {
        let mut reader = Reader::from_str(self.text);
        let mut open: Vec<Element> = Vec::new();
        let mut root = None;
        loop {
            let begin = reader.buffer_position() as usize;
            let event = match reader.read_event() {
                Ok(event) => event,
                Err(e) => {
                    let at = reader.error_position() as usize;
                    self.wrong(at, format!("this is not XML: {e}"));
                    return None;
                }
            };
            match event {
                Event::Start(tag) => {
                    let element = self.element(&tag, begin)?;
                    if open.len() >= MAX_DEPTH {
                        self.wrong(
                            begin,
                            format!("elements are nested deeper than {MAX_DEPTH}"),
                        );
                        return None;
                    }
                    open.push(element);
                }
                Event::Empty(tag) => {
                    let element = self.element(&tag, begin)?;
                    self.close(element, &mut open, &mut root);
                }
                Event::End(_) => {
                    // The reader has checked that it closes what is open.
                    if let Some(element) = open.pop() {
                        self.close(element, &mut open, &mut root);
                    }
                }
                Event::Text(text) => self.text(&text.xml10_content(), begin, &mut open),
                Event::CData(text) => {
                    self.text(&text.xml10_content(), begin + "<![CDATA[".len(), &mut open);
                }
                Event::GeneralRef(reference) => {
                    let name = reference.to_string();
                    match resolve(&name) {
                        Some(text) => self.text(&text, begin, &mut open),
                        None => self.unknown_entity(&name, begin),
                    }
                }
                Event::DocType(doctype) => {
                    if doctype.contains(['[', '"', '\'']) {
                        self.wrong(
                            begin,
                            "a document type with declarations is not allowed; `<!DOCTYPE safe>` \
                             alone is, or nothing"
                                .into(),
                        );
                        return None;
                    }
                }
                Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => {
                    if let Some(element) = open.last() {
                        let text = format!("<{}> is not closed", element.name);
                        self.wrong(self.text.len(), text);
                        return None;
                    }
                    return root;
                }
            }
        }
    }

    fn unknown_entity(&mut self, name: &str, at: usize) {
        self.wrong(
            at,
            format!(
                "the entity &{name}; is not known; there are only &amp; &lt; &gt; &quot; &apos; and \
                 numbers"
            ),
        );
    }

    fn text(&mut self, text: &str, begin: usize, open: &mut [Element]) {
        match open.last_mut() {
            Some(element) => {
                if element.text.trim().is_empty() {
                    element.text_at = place(self.text, begin);
                    element.text.clear();
                }
                element.text.push_str(text);
            }
            None if text.trim().is_empty() => {}
            None => self.wrong(begin, "text stands outside of every element".into()),
        }
    }

    fn close(&mut self, element: Element, open: &mut [Element], root: &mut Option<Element>) {
        match open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if root.is_none() => *root = Some(element),
            None => self.mistakes.push(Mistake {
                file: self.file.to_owned(),
                at: element.at,
                text: format!(
                    "<{}> stands behind the end of the first element: a file has one",
                    element.name
                ),
            }),
        }
    }

    fn element(&mut self, tag: &BytesStart<'_>, begin: usize) -> Option<Element> {
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            self.wrong(
                begin,
                format!("the file has more than {MAX_ELEMENTS} elements"),
            );
            return None;
        }
        let name = tag.name().as_ref().to_owned();
        let at = place(self.text, begin);
        let mut attributes = Vec::new();
        for attribute in tag.attributes() {
            let attribute = match attribute {
                Ok(attribute) => attribute,
                Err(e) => {
                    self.wrong(
                        begin,
                        format!("an attribute of <{name}> cannot be read: {e}"),
                    );
                    continue;
                }
            };
            let key = attribute.key.as_ref().to_owned();
            let offset = self.offset_of(attribute.key.as_ref(), begin);
            if attribute.value.len() > MAX_VALUE {
                self.wrong(
                    offset,
                    format!(
                        "{key} has {} bytes; a value has at most {MAX_VALUE}",
                        attribute.value.len()
                    ),
                );
                continue;
            }
            let raw = attribute.value.to_string();
            let value = quick_xml::escape::unescape_with(&raw, resolve_named);
            match value {
                Ok(value) => attributes.push(Attribute {
                    name: key,
                    value: value.into_owned(),
                    at: place(self.text, offset),
                }),
                Err(e) => self.wrong(offset, format!("the value of {key} cannot be read: {e}")),
            }
        }
        Some(Element {
            name,
            at,
            attributes,
            children: Vec::new(),
            text: String::new(),
            text_at: at,
        })
    }

    /// Where a slice that the reader borrowed from the text stands in it.
    fn offset_of(&self, part: &str, otherwise: usize) -> usize {
        let from = self.text.as_ptr() as usize;
        let at = (part.as_ptr() as usize).wrapping_sub(from);
        if at < self.text.len() { at } else { otherwise }
    }
}

fn resolve_named(name: &str) -> Option<&'static str> {
    Some(match name {
        "amp" => "&",
        "lt" => "<",
        "gt" => ">",
        "quot" => "\"",
        "apos" => "'",
        _ => return None,
    })
}

fn resolve(name: &str) -> Option<Cow<'static, str>> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix('x') {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => number.parse().ok()?,
        };
        return Some(char::from_u32(code)?.to_string().into());
    }
    resolve_named(name).map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        match parse("f.xml", text) {
            Ok(root) => panic!("{root:?}"),
            Err(all) => all.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn elements_know_where_they_stand() {
        let root = parse(
            "f",
            "<?xml version=\"1.0\"?>\n<a>\n  <b x='1'\n     y=\"&lt;2\"/>\n</a>\n",
        );
        let root = root.unwrap();
        let b = &root.children[0];
        assert_eq!((b.at.line, b.at.column), (3, 3));
        let y = &b.attributes[1];
        assert_eq!((y.value.as_str(), y.at.line, y.at.column), ("<2", 4, 6));
    }

    #[test]
    fn text_and_cdata_fall_together_and_know_where_they_begin() {
        let root = parse("f", "<a><![CDATA[\nx < 1;]]> &amp; y</a>").unwrap();
        assert_eq!(root.text, "\nx < 1; & y");
        assert_eq!(root.text_at.column, 13);
    }

    #[test]
    fn what_is_no_xml_is_told_with_its_place() {
        for (text, part) in [
            ("", "holds no element"),
            ("<a>\n<b>\n</a>", "f.xml:3:1: this is not XML"),
            ("<a/><b/>", "behind the end of the first element"),
            ("<a/>x", "outside of every element"),
            ("<a><b></b>", "<a> is not closed"),
            ("<a x=1/>", "an attribute of <a> cannot be read"),
            ("<a x='1' x='2'/>", "an attribute of <a> cannot be read"),
        ] {
            let all = mistakes(text);
            assert!(all.iter().any(|m| m.contains(part)), "{text}: {all:?}");
        }
    }

    #[test]
    fn nothing_is_expanded_fetched_or_built_without_end() {
        let bomb = "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;&b;'>]><a>&c;</a>";
        assert!(mistakes(bomb)[0].contains("document type with declarations"));
        let outside = "<!DOCTYPE a SYSTEM \"file:///etc/passwd\"><a/>";
        assert!(mistakes(outside)[0].contains("document type with declarations"));
        assert!(mistakes("<a>&c;</a>")[0].contains("&c;"));
        assert!(mistakes("<a x='&c;'/>")[0].contains("cannot be read"));
        let deep = "<a>".repeat(50) + &"</a>".repeat(50);
        assert!(mistakes(&deep)[0].contains("nested deeper"));
        let wide = format!("<a>{}</a>", "<b/>".repeat(MAX_ELEMENTS));
        assert!(mistakes(&wide)[0].contains("more than"));
        let long = format!("<a x='{}'/>", "y".repeat(MAX_VALUE + 1));
        assert!(mistakes(&long)[0].contains("at most"));
        let huge = "x".repeat(MAX_FILE + 1);
        assert!(mistakes(&huge)[0].contains("at most"));
        assert!(parse("f", "<!DOCTYPE safe><safe/>").is_ok());
    }
}
