//! `[[retention]]`: which stored events are not kept for ever.

use serde::{Deserialize, Serialize};
use toml::Value;

/// One rule as it is written: what it is about, and one bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    /// The kinds it is about, in order; `None` = all but 5 and 62.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<u16>>,
    /// How long after its `created_at` an event is kept, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_s_max: Option<u64>,
    /// Events kept of each author, the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_events_max: Option<u64>,
    /// Bytes of records kept, those of the newest events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
}

/// Reads the rules of a configuration; their kinds come out in order.
///
/// # Errors
/// What must be otherwise, for people.
pub fn read(value: &Value) -> Result<Vec<RetentionRule>, String> {
    let shape = "a list of rules as in [{kinds = [1, 7], age_s_max = 2592000}]";
    let list = value.as_array().ok_or(shape)?;
    (1..).zip(list).map(|(number, rule)| read_one(rule).map_err(|why| of(number, &why))).collect()
}

fn of(number: usize, why: &str) -> String {
    format!("{why} (rule {number})")
}

fn read_one(value: &Value) -> Result<RetentionRule, String> {
    let rule = value.clone().try_into::<RetentionRule>();
    let mut rule = rule.map_err(|error| {
        let why = error.to_string();
        format!(
            "rules of kinds and one of age_s_max, author_events_max, bytes_max: {}",
            why.trim_end()
        )
    })?;
    let bounds = [rule.age_s_max, rule.author_events_max, rule.bytes_max];
    if bounds.iter().flatten().count() != 1 {
        return Err("one of age_s_max, author_events_max and bytes_max in each rule".into());
    }
    if bounds.contains(&Some(0)) {
        return Err("more than 0: `rheostr delete` erases everything".into());
    }
    if rule.kinds.as_ref().is_some_and(Vec::is_empty) {
        return Err("kinds with a kind in it, or no kinds for all but 5 and 62".into());
    }
    if let Some(kinds) = &mut rule.kinds {
        kinds.sort_unstable();
        kinds.dedup();
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Vec<RetentionRule>, String> {
        read(&text.parse().unwrap())
    }

    #[test]
    fn a_rule_has_kinds_or_not_and_one_bound() {
        let read = rules("[{kinds = [7, 1, 7], age_s_max = 60}, {bytes_max = 1_000}]").unwrap();
        let first = RetentionRule {
            kinds: Some(vec![1, 7]),
            age_s_max: Some(60),
            ..RetentionRule::default()
        };
        assert_eq!(read[0], first);
        assert_eq!(read[1], RetentionRule { bytes_max: Some(1_000), ..RetentionRule::default() });
        assert_eq!(rules("[]"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_rule() {
        for (text, why) in [
            ("7", "a list of rules"),
            ("[7]", "(rule 1)"),
            (
                "[{age_s_max = 1}, {kinds = [1]}]",
                "one of age_s_max, author_events_max and bytes_max in each rule (rule 2)",
            ),
            (
                "[{age_s_max = 1, bytes_max = 1}]",
                "one of age_s_max, author_events_max and bytes_max",
            ),
            ("[{age_s = 1}]", "unknown field `age_s`"),
            ("[{age_s_max = 0}]", "more than 0"),
            ("[{kinds = [], age_s_max = 1}]", "kinds with a kind in it"),
            ("[{kinds = [65536], age_s_max = 1}]", "65536"),
            ("[{age_s_max = -1}]", "-1"),
        ] {
            let error = rules(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
