//! Broken promises of the relay, by kind.

use serde::Serialize;
use std::collections::BTreeMap;

const EXAMPLES_PER_KIND_MAX: usize = 3;

/// A run with any of them is not ok, and exits with 1.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    kinds: BTreeMap<&'static str, (u64, Vec<String>)>,
}

/// All of one kind.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Kind {
    #[serde(rename = "kind")]
    pub name: &'static str,
    pub count: u64,
    /// The first few.
    pub examples: Vec<String>,
}

impl Violations {
    /// Counts one; the text is kept for the first few of a kind.
    pub fn add(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        self.add_many(kind, 1, example);
    }

    pub fn add_many(&mut self, kind: &'static str, count: u64, example: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        let (total, examples) = self.kinds.entry(kind).or_default();
        *total += count;
        if examples.len() < EXAMPLES_PER_KIND_MAX {
            examples.push(example());
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (kind, (count, examples)) in other.kinds {
            let (total, kept) = self.kinds.entry(kind).or_default();
            *total += count;
            kept.extend(examples);
            kept.truncate(EXAMPLES_PER_KIND_MAX);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Of all kinds together.
    pub fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    pub fn kinds(&self) -> Vec<Kind> {
        let one = |(name, (count, examples)): (&&'static str, &(u64, Vec<String>))| Kind {
            name,
            count: *count,
            examples: examples.clone(),
        };
        self.kinds.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_counted_and_few_examples_kept() {
        let mut violations = Violations::default();
        assert!(violations.is_empty());
        for i in 0..10 {
            violations.add("lost", || format!("event {i}"));
        }
        violations.add_many("never", 0, String::new);
        let mut other = Violations::default();
        other.add("lost", || "event x".into());
        other.add("late", || "event y".into());
        violations.merge(other);
        let examples = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        assert_eq!(
            violations.kinds(),
            [
                Kind { name: "late", count: 1, examples: examples(&["event y"]) },
                Kind {
                    name: "lost",
                    count: 11,
                    examples: examples(&["event 0", "event 1", "event 2"])
                },
            ]
        );
        assert_eq!(violations.count(), 12);
    }
}
