//! What of an event is text, and what of a search are words.

use std::borrow::Cow;

use serde::Deserialize;

use crate::nostr::EventView;

/// Kinds whose content is encrypted: NIP-04 messages, seals and gift wraps (NIP-59), wallets (NIP-60).
const ENCRYPTED: &[u16] = &[4, 13, 1_059, 7_374, 7_375, 7_376, 17_375];

/// Tags whose value is for people to read.
const READABLE: &[&str] = &["title", "subject", "summary", "description", "alt", "name", "t"];

#[derive(Deserialize)]
struct Readable<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(borrow)]
    tags: Vec<Vec<Cow<'a, str>>>,
}

/// Its content and the tags that are for people; `None` when there is nothing in them.
pub fn of_event(event: EventView<'_>) -> Option<String> {
    if ENCRYPTED.contains(&event.kind().0) {
        return None;
    }
    let Readable { content, tags } = serde_json::from_slice(event.json()).ok()?;
    let mut text = content.into_owned();
    for tag in tags {
        if let [name, value, ..] = &tag[..]
            && READABLE.contains(&&**name)
        {
            text.push('\n');
            text.push_str(value);
        }
    }
    (!text.trim().is_empty()).then_some(text)
}

/// The parts of a search that stand for themselves: what is between quotes, and each word beside.
pub fn phrases(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').enumerate().flat_map(|(number, part)| {
        let quoted = number % 2 == 1;
        let words = part.split_whitespace().filter(move |_| !quoted);
        quoted.then_some(part).into_iter().chain(words)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        let of = |text: &'static str| phrases(text).collect::<Vec<_>>();
        assert_eq!(of("a  b"), ["a", "b"]);
        assert_eq!(of(r#"a "b c" d"#), ["a", "b c", "d"]);
        assert_eq!(of(r#"a "b c"#), ["a", "b c"]);
        assert_eq!(of(""), [""; 0]);
    }
}
