//! The shape of a corpus: kinds, sizes and tags, drawn again event by event. No text, key or id is kept, so a learned
//! file may be passed on where its corpus may not; it is synthetic and must be called so.

use super::EventFields;
use anyhow::{Context, ensure};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Kinds that change what a relay does with other events or the connection (a vanish, an AUTH).
const KINDS_LEFT_OUT: &[u16] = &[62, 22_242];
/// Tags that would make a relay refuse or delete the copy.
const TAGS_LEFT_OUT: &[&str] = &["expiration", "-"];

/// One event without its text.
#[derive(Clone, Debug)]
pub struct Shape {
    pub kind: u16,
    pub content_bytes: usize,
    /// The text has characters outside ASCII.
    pub wide: bool,
    pub tags: Vec<Vec<Element>>,
}

/// One string of a tag.
#[derive(Clone, Debug)]
pub enum Element {
    /// The tag's name, or an empty string.
    Literal(String),
    /// One of the generator's authors.
    Pubkey,
    /// 64 random hex digits.
    Hex64,
    Text {
        bytes: usize,
        wide: bool,
    },
}

/// # Errors
/// The file is unreadable, a line is no event, or no event is left.
pub fn read_shapes(path: &Path) -> anyhow::Result<Vec<Shape>> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let lines = BufReader::new(file).lines().collect::<Result<Vec<_>, _>>()?;
    shapes_of(lines.iter().map(String::as_str).filter(|line| !line.trim().is_empty()))
}

/// # Errors
/// As [`read_shapes`].
pub fn shapes_of<'a>(lines: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Vec<Shape>> {
    #[derive(Deserialize)]
    struct Line {
        content: String,
        #[serde(flatten)]
        fields: EventFields,
    }
    let mut shapes = Vec::new();
    for line in lines {
        let Line { content, fields } =
            serde_json::from_str(line).context("a line of the corpus is no event")?;
        if KINDS_LEFT_OUT.contains(&fields.kind) {
            continue;
        }
        let tags = fields
            .tags
            .iter()
            .filter(|tag| !tag.is_empty() && !TAGS_LEFT_OUT.contains(&tag[0].as_str()));
        let tags = tags
            .map(|tag| tag.iter().enumerate().map(|(i, text)| element(tag, i, text)).collect())
            .collect();
        shapes.push(Shape {
            kind: fields.kind,
            content_bytes: content.len(),
            wide: !content.is_ascii(),
            tags,
        });
    }
    ensure!(!shapes.is_empty(), "no event to learn from");
    Ok(shapes)
}

fn element(tag: &[String], position: usize, text: &str) -> Element {
    let hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match position {
        0 => Element::Literal(text.to_owned()),
        _ if text.is_empty() => Element::Literal(String::new()),
        1 if hex && tag[0] == "p" => Element::Pubkey,
        _ if hex => Element::Hex64,
        _ => Element::Text { bytes: text.len(), wide: !text.is_ascii() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_keep_sizes_and_forget_text() {
        let pubkey = "ab".repeat(32);
        let event = |kind: u16, tags: &str| {
            format!(
                r#"{{"id":"","pubkey":"","sig":"","created_at":1,"kind":{kind},"tags":{tags},"content":"sécret"}}"#
            )
        };
        let tags = format!(r#"[["p","{pubkey}","","secret"],["expiration","1"],["e","{pubkey}"]]"#);
        let lines = [event(1, &tags), event(62, "[]")];
        let shapes = shapes_of(lines.iter().map(String::as_str)).unwrap();
        assert_eq!(shapes.len(), 1);
        assert_eq!((shapes[0].content_bytes, shapes[0].wide, shapes[0].tags.len()), (7, true, 2));
        let [
            Element::Literal(name),
            Element::Pubkey,
            Element::Literal(empty),
            Element::Text { bytes: 6, wide: false },
        ] = &shapes[0].tags[0][..]
        else {
            panic!("{:?}", shapes[0].tags[0]);
        };
        assert_eq!((name.as_str(), empty.as_str()), ("p", ""));
        assert!(matches!(shapes[0].tags[1][1], Element::Hex64));
        assert!(!format!("{shapes:?}").contains("cret"));
    }
}
