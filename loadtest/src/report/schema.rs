//! `REPORT.md` against what is emitted.

use serde_json::Value;
use std::collections::BTreeSet;

/// Every field of the JSON must be in a table of that section, and no other field may. Below the paths of `open`
/// anything may be.
pub fn hold_against(section: &str, json: &str, open: &[&str]) {
    let text = include_str!("../../REPORT.md");
    let from = text.find(section).expect("the section is there") + section.len();
    let section = text[from..].split("\n# ").next().expect("there is a first piece");
    let documented: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(field, _)| field.to_owned())
        .collect();
    let mut emitted = BTreeSet::new();
    paths(&serde_json::from_str(json).expect("it is JSON"), "", open, &mut emitted);
    let missing: Vec<_> = emitted.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&emitted).collect();
    assert!(missing.is_empty() && stale.is_empty(), "not there {missing:?}, gone {stale:?}");
}

/// Every leaf's path; a list's elements are `[]`.
fn paths(value: &Value, at: &str, open: &[&str], into: &mut BTreeSet<String>) {
    let below = |name: &str| match at {
        "" => name.to_owned(),
        _ => format!("{at}.{name}"),
    };
    match value {
        Value::Object(members) if !open.contains(&at) => {
            members.iter().for_each(|(name, member)| paths(member, &below(name), open, into));
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            elements.iter().for_each(|element| paths(element, &format!("{at}[]"), open, into));
        }
        _ => {
            into.insert(at.to_owned());
        }
    }
}
