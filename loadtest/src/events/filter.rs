//! What a filter of NIP-01 selects, said as plainly as can be: the measure that a relay's answers are held against.

use super::EventFields;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A filter; an absent field asks for nothing.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Filter {
    pub ids: Option<Vec<String>>,
    pub authors: Option<Vec<String>>,
    pub kinds: Option<Vec<u16>>,
    pub since: Option<u64>,
    pub until: Option<u64>,
    pub limit: Option<usize>,
    /// `#x` → the values asked for.
    #[serde(flatten)]
    pub tags: BTreeMap<String, Vec<String>>,
}

impl Filter {
    /// Everything but the limit.
    pub fn matches(&self, event: &EventFields) -> bool {
        let one_of = |list: &Option<Vec<String>>, value: &String| {
            list.as_ref().is_none_or(|list| list.contains(value))
        };
        one_of(&self.ids, &event.id)
            && one_of(&self.authors, &event.pubkey)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind))
            && self.since.is_none_or(|since| event.created_at >= since)
            && self.until.is_none_or(|until| event.created_at <= until)
            && self.tags.iter().all(|(key, values)| tag_matches(event, key, values))
    }
}

/// Some tag of this letter has one of the values, as its first one.
fn tag_matches(event: &EventFields, key: &str, values: &[String]) -> bool {
    let name = key.strip_prefix('#').unwrap_or(key);
    event.tags.iter().any(|tag| match &tag[..] {
        [letter, value, ..] => letter == name && values.contains(value),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_selects_and_all_must_agree() {
        let event: EventFields = serde_json::from_value(json!({
            "id": "aa", "pubkey": "bb", "created_at": 100, "kind": 1,
            "tags": [["t", "x", "y"], ["e"], ["p", "cc"], ["t", "z"]],
        }))
        .unwrap();
        let matches = |filter| serde_json::from_value::<Filter>(filter).unwrap().matches(&event);
        for yes in [
            json!({}),
            json!({"ids": ["00", "aa"]}),
            json!({"authors": ["bb"], "kinds": [0, 1]}),
            json!({"since": 100, "until": 100, "limit": 0}),
            json!({"#t": ["x"]}),
            json!({"#t": ["z"], "#p": ["00", "cc"]}),
        ] {
            assert!(matches(yes.clone()), "{yes}");
        }
        for no in [
            json!({"ids": []}),
            json!({"ids": ["a"]}),
            json!({"authors": ["aa"]}),
            json!({"kinds": [2]}),
            json!({"since": 101}),
            json!({"until": 99}),
            json!({"#t": ["y"]}),
            json!({"#e": [""]}),
            json!({"#t": ["x"], "#p": ["x"]}),
            json!({"ids": ["aa"], "kinds": [2]}),
        ] {
            assert!(!matches(no.clone()), "{no}");
        }
    }
}
