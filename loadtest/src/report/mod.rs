//! One JSON object a run: what was asked, what happened, what it cost, and what was wrong.
//!
//! `REPORT.md` beside `src/` documents every field; a test holds the two against each other.

mod latency;
#[cfg(test)]
pub mod schema;
mod spread;
mod violations;

pub use latency::{Latency, LatencySummary, Throughput};
pub use spread::spread;
pub use violations::Violations;

use crate::scenario::Accounts;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Grows when a field changes its meaning or goes; a new field leaves it alone.
pub const SCHEMA: u32 = 1;

/// What the latency of an open loop's generator against its own schedule is called.
pub const SEND_LATENESS: &str = "send_lateness";

/// Where more of a latency is the generator's own lateness, the figure is the generator's.
const LATE_SHARE_MAX: f64 = 0.5;

/// What a scenario hands to `main`.
#[derive(Debug)]
pub struct Outcome {
    pub violations: Violations,
    /// How often a promise was held against what happened: answers, deliveries, queries, connections.
    pub checked: u64,
    /// What one operation is: `event`, `delivery`, `query`, `connection`.
    pub unit: &'static str,
    pub operations: u64,
    pub pacing: Pacing,
    /// By what they span. The first is the run's; there may be none.
    pub latencies: Vec<(&'static str, Latency)>,
    pub accounts: Accounts,
    /// The scenario's own figures.
    pub detail: Value,
    /// A few lines for a person.
    pub summary: String,
}

impl Outcome {
    /// Holds the generator's own lateness, which is in every latency of an open loop, against the run's latency.
    pub fn judge_lateness(&mut self) {
        let lateness = self.latencies.iter().find(|(of, _)| *of == SEND_LATENESS);
        let Some(((_, latency), (_, lateness))) = self.latencies.first().zip(lateness) else {
            return;
        };
        let (latency, lateness) = (latency.summary(), lateness.summary());
        if latency.count > 0 {
            let share = (lateness.p50 / latency.p50).max(lateness.p99 / latency.p99);
            let generator = &mut self.accounts.generator;
            generator.late_share = Some(round(share, 3));
            generator.limited |= share > LATE_SHARE_MAX;
        }
    }
}

/// Who decides when an operation begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pacing {
    /// A schedule, whatever the relay does: latency counts from when the operation was due.
    Open,
    /// The relay's answer to the one before: a relay that stalls is asked less, and its stall is seen once.
    Closed,
    /// Nothing is asked.
    None,
}

/// What is emitted; the order is the reader's.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    scenario: String,
    label: Option<String>,
    ok: bool,
    oracle: Oracle,
    unit: &'static str,
    events: Option<&'static str>,
    operations: u64,
    seconds: f64,
    ops_per_s: f64,
    pacing: Pacing,
    latency_us: Option<NamedLatency>,
    /// The other latencies.
    latencies_us: BTreeMap<&'static str, LatencySummary>,
    throughput: Option<Throughput>,
    #[serde(flatten)]
    accounts: Accounts,
    relay: Option<Value>,
    /// Of the generator, like the commit.
    version: &'static str,
    commit: Option<&'static str>,
    finished_at: u64,
    parameters: Value,
    detail: Value,
}

#[derive(Debug, Serialize)]
struct Oracle {
    checked: u64,
    violations: u64,
    kinds: Vec<violations::Kind>,
}

#[derive(Debug, Serialize)]
struct NamedLatency {
    of: &'static str,
    #[serde(flatten)]
    summary: LatencySummary,
}

/// What a report says besides its outcome.
#[derive(Debug)]
pub struct Subject {
    pub scenario: String,
    pub label: Option<String>,
    /// Whose the events are.
    pub events: Option<&'static str>,
    pub parameters: Value,
    /// What the relay says of itself (NIP-11).
    pub relay: Option<Value>,
    /// Unix time.
    pub finished_at: u64,
}

impl Report {
    pub fn new(subject: Subject, outcome: Outcome) -> Self {
        let Outcome { violations, checked, unit, operations, pacing, .. } = outcome;
        let mut latencies = outcome.latencies.iter();
        let first = latencies.next();
        Self {
            schema: SCHEMA,
            scenario: subject.scenario,
            label: subject.label,
            ok: violations.is_empty(),
            oracle: Oracle { checked, violations: violations.count(), kinds: violations.kinds() },
            unit,
            events: subject.events,
            operations,
            seconds: round(outcome.accounts.elapsed.as_secs_f64(), 4),
            ops_per_s: per_second(operations, outcome.accounts.elapsed),
            pacing,
            latency_us: first.map(|(of, latency)| NamedLatency { of, summary: latency.summary() }),
            latencies_us: latencies.map(|(of, latency)| (*of, latency.summary())).collect(),
            throughput: first.map(|(_, latency)| latency.throughput().clone()),
            accounts: outcome.accounts,
            relay: subject.relay,
            version: env!("CARGO_PKG_VERSION"),
            commit: Some(env!("RHEOSTR_COMMIT")).filter(|commit| !commit.is_empty()),
            finished_at: subject.finished_at,
            parameters: subject.parameters,
            detail: outcome.detail,
        }
    }

    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// One line.
    ///
    /// # Panics
    /// Never: it holds nothing that JSON cannot.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report is JSON")
    }

    /// What went wrong, for a person.
    pub fn complaints(&self) -> Vec<String> {
        let one = |kind: &violations::Kind| {
            format!("{} × {}: {}", kind.count, kind.name, kind.examples.join("; "))
        };
        self.oracle.kinds.iter().map(one).collect()
    }
}

/// Keeps a run: `run.json`, and beside it these files by name.
///
/// # Errors
/// The directory cannot be made or written.
pub fn keep(directory: &Path, report: &str, histograms: &[(String, String)]) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, log) in histograms {
        fs::write(directory.join(name), log)?;
    }
    Ok(fs::write(directory.join("run.json"), format!("{report}\n"))?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{self, Machine};
    use crate::scenario::Generator;
    use crate::server::{Sample, Usage};
    use serde_json::json;
    use std::time::SystemTime;

    /// What a scenario puts into them is its own.
    const OPEN: [&str; 5] =
        ["parameters", "detail", "relay.limitation", "latencies_us", "server.syscalls.by_name"];

    fn outcome() -> Outcome {
        let sample = Sample::take(std::process::id()).unwrap();
        let syscalls = json!({
            "tool": "perf stat", "effect_on_times": "none", "total": 2, "per_op": 1.0,
            "by_name": {"read": {"count": 2, "per_op": 1.0}},
        });
        let elapsed = Duration::from_secs(2);
        let cpu = machine::Sample::take();
        let accounts = Accounts {
            elapsed,
            began: SystemTime::now(),
            machine: Machine::between(cpu, cpu, elapsed, Duration::ZERO),
            server: Some(Usage::between(&sample, &sample, 2.0, 4, Some(syscalls))),
            generator: Generator {
                limited: false,
                cpu_share: 0.5,
                wait_share: 0.0,
                late_share: Some(0.1),
                cpu_s: 1.0,
                threads: 1,
            },
        };
        let mut latency = Latency::default();
        latency.record(150_000_000, 1000);
        let mut violations = Violations::default();
        violations.add_many("lost", 3, || "event x".to_owned());
        Outcome {
            violations,
            checked: 4,
            unit: "event",
            operations: 4,
            pacing: Pacing::Open,
            latencies: vec![("event_to_ok", latency.clone()), ("other", latency)],
            accounts,
            detail: json!({"own": {"figure": 1}}),
            summary: String::new(),
        }
    }

    fn report() -> Report {
        let subject = Subject {
            scenario: "ingest".to_owned(),
            label: None,
            events: Some("synthetic"),
            parameters: json!({"url": "ws://127.0.0.1:7777"}),
            relay: Some(json!({"name": 1, "software": 2, "version": 3, "limitation": {"x": 1}})),
            finished_at: 1,
        };
        Report::new(subject, outcome())
    }

    #[test]
    fn a_generator_that_is_late_by_half_of_the_latency_is_the_limit() {
        let judged = |late_us: u64, times: u64| {
            let (mut latency, mut lateness) = (Latency::default(), Latency::default());
            for operation in 0..1000 {
                latency.record(0, 1_000_000);
                lateness.record(0, if operation < times { late_us * 1000 } else { 10_000 });
            }
            let mut outcome = outcome();
            outcome.latencies = vec![("event_to_ok", latency), (SEND_LATENESS, lateness)];
            outcome.judge_lateness();
            (outcome.accounts.generator.limited, outcome.accounts.generator.late_share.unwrap())
        };
        assert_eq!(judged(400, 1000), (false, 0.4));
        assert_eq!(judged(600, 1000), (true, 0.6));
        // At p99 only, and rarer than that.
        assert_eq!(judged(600, 20), (true, 0.6));
        assert_eq!(judged(600, 5), (false, 0.01));
        let mut closed = outcome();
        closed.accounts.generator.late_share = None;
        closed.judge_lateness();
        assert_eq!(closed.accounts.generator.late_share, None);
    }

    #[test]
    fn what_is_documented_is_what_is_emitted() {
        schema::hold_against("# The report of a run", &report().to_json(), &OPEN);
    }

    #[test]
    fn a_violation_is_on_top_and_rates_are_the_windows() {
        let report = report();
        let json = report.to_json();
        assert!(json.starts_with(
            "{\"schema\":1,\"scenario\":\"ingest\",\"label\":null,\"ok\":false,\"oracle\""
        ));
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["ops_per_s"], &value["oracle"]["violations"]), (&json!(2.0), &json!(3)));
        assert_eq!(value["throughput"]["operations"], json!([0, 1]));
        assert_eq!(report.complaints(), ["3 × lost: event x"]);
    }

    #[test]
    fn a_run_is_kept_with_its_histograms() {
        let directory =
            std::env::temp_dir().join(format!("rheostr-loadtest-keep-{}", std::process::id()));
        keep(&directory, "{}", &[("event_to_ok.hgrm".to_owned(), "log".to_owned())]).unwrap();
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let kept = (read("run.json"), read("event_to_ok.hgrm"));
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(kept, ("{}\n".to_owned(), "log".to_owned()));
    }
}
