//! `replay`: the events of a file at the pace of their `created_at`, or a multiple of it; an open loop.
//!
//! A second of the file is the finest that `created_at` tells: its events are spread evenly over it. Nobody else's
//! events match the followers' filters, so every delivery is judged; a file with replacements, deletions or expired
//! events may have some of them refused, which is counted and no violation.

use super::mixed::{CrowdArgs, Show};
use super::schedule::{Arrivals, Pace};
use super::share;
use crate::events::{self, SignedEvent};
use crate::report::Outcome;
use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Serialize)]
pub struct ReplayArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub crowd: CrowdArgs,
    /// Signed events, in any order; with --runs, each run replays its share
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    /// Replay only the first N events of the file
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// How many times faster than the file's own pace
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
}

super::scenario!(ReplayArgs, "replay", crowd.common, run);

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &ReplayArgs) -> anyhow::Result<Outcome> {
    ensure!(args.speed > 0.0, "--speed {} is not above 0", args.speed);
    ensure!(args.crowd.learn.is_none(), "--learn makes events, and replay has its own");
    let (events, _) = events::load(&args.events, args.limit)?;
    let (events, times) = in_time(share(&events, &args.crowd.common)?)?;
    let due = due_ns(&times, args.speed);
    let index = events::index(&events)?;
    let pace = Pace::Open(Arrivals::At(due));
    let show = Show { seed: args.crowd.seed.unwrap_or(1), events: &events, index: &index };
    let mut outcome = show.run(&args.crowd, &pace, None)?;
    outcome.detail["file_seconds"] = json!(times.last().zip(times.first()).map(|(z, a)| z - a + 1));
    Ok(outcome)
}

/// The events and their `created_at`, oldest first.
fn in_time(events: &[SignedEvent]) -> anyhow::Result<(Vec<SignedEvent>, Vec<u64>)> {
    let mut timed = events
        .iter()
        .map(|event| Ok((event.fields()?.created_at, event.clone())))
        .collect::<anyhow::Result<Vec<_>>>()?;
    timed.sort_by_key(|(time, _)| *time);
    Ok(timed.into_iter().map(|(time, event)| (event, time)).unzip())
}

/// When each is due; `times` ascend.
fn due_ns(times: &[u64], speed: f64) -> Vec<u64> {
    let first = times.first().copied().unwrap_or(0);
    let mut due = Vec::with_capacity(times.len());
    for second in times.chunk_by(|a, b| a == b) {
        for place in 0..second.len() {
            let offset = (second[0] - first) as f64 + place as f64 / second.len() as f64;
            due.push((offset / speed * 1e9) as u64);
        }
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::generate::Generator;

    #[test]
    fn a_second_of_the_file_is_a_second_divided_by_the_speed() {
        let ms = |times: &[u64], speed| -> Vec<u64> {
            due_ns(times, speed).into_iter().map(|ns| ns / 1_000_000).collect()
        };
        assert_eq!(ms(&[100, 100, 103], 1.0), [0, 500, 3000]);
        assert_eq!(ms(&[100, 100, 103], 10.0), [0, 50, 300]);
    }

    #[test]
    fn a_file_is_put_in_the_order_of_time() {
        let mut generator = Generator::new(1, 3, Vec::new(), 1_800_000_000, 10).unwrap();
        let events: Vec<_> = (0..10).map(|_| generator.next_event()).collect();
        let (sorted, times) = in_time(&events).unwrap();
        assert!(times.is_sorted());
        assert!(sorted.iter().rev().map(|one| one.id).eq(events.iter().map(|one| one.id)));
    }
}
