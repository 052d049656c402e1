//! One JSON object a run: what was asked, what happened, what it cost, and what was wrong.

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
const EXAMPLES_PER_KIND_MAX: usize = 3;

/// Broken promises of the relay, by kind. A run with any of them is not ok, and exits with 1.
#[derive(Clone, Debug, Default)]
pub struct Violations {
    kinds: BTreeMap<&'static str, (u64, Vec<String>)>,
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

    pub fn to_json(&self) -> Value {
        self.kinds
            .iter()
            .map(|(kind, (count, examples))| json!({"kind": kind, "count": count, "examples": examples}))
            .collect()
    }
}

/// Durations with three significant digits, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants"))
    }
}

impl Latency {
    pub fn record_ns(&mut self, nanoseconds: u64) {
        self.0.saturating_record(nanoseconds);
    }

    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    pub fn summary(&self) -> LatencySummary {
        let us = |nanoseconds: u64| round(nanoseconds as f64 / 1000.0, 1);
        let at = |quantile: f64| us(self.0.value_at_quantile(quantile));
        LatencySummary {
            count: self.0.len(),
            mean: round(self.0.mean() / 1000.0, 1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: if self.0.is_empty() { 0.0 } else { us(self.0.max()) },
        }
    }
}

/// Microseconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct LatencySummary {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p999: f64,
    pub max: f64,
}

/// Rounds for the reader; `digits` after the point.
pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// `count` a second.
pub fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { round(count as f64 / elapsed.as_secs_f64(), 1) }
}

/// What a scenario hands to `main`.
#[derive(Debug)]
pub struct Outcome {
    pub violations: Violations,
    /// The scenario's own figures and the window's accounts, in reading order.
    pub body: Value,
    /// A few lines for a person.
    pub summary: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_recorded_values() {
        let mut low = Latency::default();
        let mut high = Latency::default();
        for us in 1..=500u64 {
            low.record_ns(us * 1000);
            high.record_ns((us + 500) * 1000);
        }
        low.merge(&high);
        let summary = low.summary();
        assert_eq!(summary.count, 1000);
        for (value, expected) in [
            (summary.p50, 500.0),
            (summary.p90, 900.0),
            (summary.p99, 990.0),
            (summary.max, 1000.0),
        ] {
            assert!((value - expected).abs() <= expected * 0.002, "{value} for {expected}");
        }
        assert_eq!(Latency::default().summary().max, 0.0);
    }

    #[test]
    fn violations_count_everything_and_keep_few_examples() {
        let mut violations = Violations::default();
        assert!(violations.is_empty());
        for i in 0..10 {
            violations.add("lost", || format!("event {i}"));
        }
        violations.add_many("never", 0, String::new);
        let mut other = Violations::default();
        other.add("lost", || "event x".into());
        violations.merge(other);
        assert_eq!(
            violations.to_json(),
            json!([{"kind": "lost", "count": 11, "examples": ["event 0", "event 1", "event 2"]}])
        );
    }
}
