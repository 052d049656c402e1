//! What of an event is text, and what of a search are words.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::nostr::EventView;

/// Kinds that are encrypted: messages (NIP-04, and Marmot's 443 to 445), seals and gift wraps (NIP-59), wallets
/// (NIP-60), drafts and where they are kept (NIP-37).
const ENCRYPTED: &[RangeInclusive<u16>] = &[
    4..=4,
    13..=13,
    443..=445,
    1_059..=1_059,
    7_374..=7_376,
    10_013..=10_013,
    17_375..=17_375,
    31_234..=31_234,
];

/// Kinds whose tags are for everybody and whose content is not: lists and sets, where it holds the private items
/// (NIP-51), and what applications keep (NIP-78).
const PRIVATE_CONTENT: &[RangeInclusive<u16>] = &[
    10_000..=10_030,
    10_101..=10_102,
    30_000..=30_007,
    30_015..=30_015,
    30_030..=30_030,
    30_078..=30_078,
    30_267..=30_267,
];

fn is_one_of(kinds: &[RangeInclusive<u16>], kind: u16) -> bool {
    kinds.iter().any(|kinds| kinds.contains(&kind))
}

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
    let kind = event.kind().0;
    if is_one_of(ENCRYPTED, kind) {
        return None;
    }
    let Readable { content, tags } = serde_json::from_slice(event.json()).ok()?;
    let is_private = is_one_of(PRIVATE_CONTENT, kind);
    let mut text = if is_private { String::new() } else { content.into_owned() };
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
    use crate::nostr::testing::Draft;

    #[test]
    fn what_is_private_by_its_kind_is_left_out() {
        let text = |kind: u64| {
            let tags = &[&["title", "weekend"][..], &["p", "nobody"]];
            let draft = Draft { kind, content: "secret".into(), ..Draft::tagged(tags) };
            of_event(draft.candidate().event().view())
        };
        assert_eq!(text(1).as_deref(), Some("secret\nweekend"));
        for kind in [4, 13, 444, 445, 1_059, 7_376, 10_013, 17_375, 31_234] {
            assert_eq!(text(kind), None, "{kind}");
        }
        for kind in [10_000, 10_030, 30_000, 30_007, 30_078] {
            assert_eq!(text(kind).as_deref(), Some("\nweekend"), "{kind}");
        }
    }

    #[test]
    fn quotes_keep_words_together() {
        let of = |text: &'static str| phrases(text).collect::<Vec<_>>();
        assert_eq!(of("a  b"), ["a", "b"]);
        assert_eq!(of(r#"a "b c" d"#), ["a", "b c", "d"]);
        assert_eq!(of(r#"a "b c"#), ["a", "b c"]);
        assert_eq!(of(""), [""; 0]);
    }
}
