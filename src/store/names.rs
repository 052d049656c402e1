//! What this relay is called, for requests to vanish (NIP-62). Pure.

use std::borrow::Cow;

use serde::Deserialize;

use crate::nostr::{EventView, Kind};

/// The value of a `relay` tag that names every relay (NIP-62).
const ALL_RELAYS: &str = "ALL_RELAYS";

/// The URLs under which this relay is known; a part of the input of every transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayNames {
    /// Normalised, see [`normalise`].
    urls: Vec<String>,
}

impl RelayNames {
    /// Takes the configured URLs.
    pub fn new<S: AsRef<str>>(urls: impl IntoIterator<Item = S>) -> Self {
        Self { urls: urls.into_iter().map(|url| normalise(url.as_ref())).collect() }
    }

    /// Whether the event is a request to vanish that names this relay, or all of them (NIP-62).
    #[must_use]
    pub fn are_asked_to_forget(&self, event: EventView<'_>) -> bool {
        if event.kind() != Kind::VANISH {
            return false;
        }
        // `relay` is no single letter, so the record's packed tags do not hold it.
        let Ok(body) = serde_json::from_slice::<Body<'_>>(event.json()) else {
            debug_assert!(false, "a record holds the JSON of an event");
            return false;
        };
        body.tags.iter().any(|tag| match tag.as_slice() {
            [name, value, ..] if name.0 == "relay" => {
                value.0 == ALL_RELAYS || self.urls.contains(&normalise(&value.0))
            }
            _ => false,
        })
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    tags: Vec<Vec<Text<'a>>>,
}

/// A JSON string, borrowed unless it has escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Scheme and host in lower case, no default port, no slash at the end: two spellings of one URL
/// (RFC 3986 §6.2) become equal. What is no URL stays as it is.
fn normalise(url: &str) -> String {
    let url = url.trim();
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let scheme = scheme.to_ascii_lowercase();
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let mut authority = authority.to_ascii_lowercase();
    let default_port = if matches!(scheme.as_str(), "wss" | "https") { ":443" } else { ":80" };
    if authority.ends_with(default_port) {
        authority.truncate(authority.len() - default_port.len());
    }
    format!("{scheme}://{authority}{}", path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_url_are_equal_and_others_are_not() {
        for url in ["wss://relay.example", "WSS://Relay.Example/", "wss://relay.example:443"] {
            assert_eq!(normalise(url), "wss://relay.example", "{url}");
        }
        for url in ["ws://relay.example", "wss://relay.example:80", "wss://relay.example/x", "ALL"]
        {
            assert_ne!(normalise(url), "wss://relay.example", "{url}");
        }
        assert_eq!(normalise("ws://[::1]:7777/a/"), "ws://[::1]:7777/a");
    }
}
