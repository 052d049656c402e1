//! `replay`: the events of a file at the pace of their `created_at`, or a multiple of it; an open loop.
//!
//! A second of the file is the finest that `created_at` tells: its events are spread evenly over it. Nobody else's
//! events match the followers' filters, so every delivery is judged; a file with replacements, deletions or expired
//! events may have some of them refused, which is counted and no violation. A capture of a relay's own (`rheostr
//! --capture`) tells microseconds, and each of its events is due when it came.

use super::mixed::{CrowdArgs, Show};
use super::schedule::{Arrivals, Pace};
use super::share;
use crate::events::{self, SignedEvent};
use crate::report::Outcome;
use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

#[derive(Args, Clone, Debug, Serialize)]
pub struct ReplayArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub crowd: CrowdArgs,
    /// Signed events, in any order; with --runs, each run replays its share
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    /// The file is a capture of rheostr's: its events, each when it came; what is no valid event, or came before, is
    /// left out
    #[arg(long)]
    pub captured: bool,
    /// Replay only the first N events of the file
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// How many times faster than the file's own pace
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Seed of the choice of the followers' filters
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

super::scenario!(ReplayArgs, "replay", crowd.common, run);

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &ReplayArgs) -> anyhow::Result<Outcome> {
    ensure!(args.speed > 0.0, "--speed {} is not above 0", args.speed);
    let (events, due) = if args.captured {
        ensure!(args.crowd.common.runs == 1, "--captured has its own pace once, not --runs times");
        let (events, times) = captured(&args.events, args.limit)?;
        let first = times[0];
        let due = times.iter().map(|us| ((us - first) as f64 / args.speed * 1e3) as u64).collect();
        (events, due)
    } else {
        let (events, _) = events::load(&args.events, args.limit)?;
        let (events, times) = in_time(share(&events, &args.crowd.common)?)?;
        (events, due_ns(&times, args.speed))
    };
    let file_seconds = due.last().map(|ns: &u64| (*ns as f64 / 1e9 * args.speed).round());
    let index = events::index(&events)?;
    let pace = Pace::Open(Arrivals::At(due));
    let show = Show { seed: args.seed, events: &events, index: &index };
    let mut outcome = show.run(&args.crowd, &pace, None)?;
    outcome.detail["file_seconds"] = json!(file_seconds);
    Ok(outcome)
}

/// The events of a capture, and when each came, in microseconds.
fn captured(path: &Path, limit: Option<usize>) -> anyhow::Result<(Vec<SignedEvent>, Vec<u64>)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let (mut seen, mut timed) = (HashSet::new(), Vec::new());
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let line: Value = serde_json::from_str(&line?).with_context(|| {
            format!("{}:{} is no line of a capture", path.display(), number + 1)
        })?;
        // The last line tells only how many messages found no room.
        let (Some(us), Some(text)) = (line["us"].as_u64(), line["text"].as_str()) else { continue };
        let Ok((name, event)) = serde_json::from_str::<(String, Value)>(text) else { continue };
        if name == "EVENT"
            && let Ok(event) = SignedEvent::from_json(event.to_string())
            && seen.insert(event.id)
        {
            timed.push((event, us));
        }
    }
    timed.truncate(limit.unwrap_or(usize::MAX));
    ensure!(!timed.is_empty(), "{}: no events", path.display());
    timed.sort_by_key(|(_, us)| *us);
    Ok(timed.into_iter().unzip())
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
    fn a_capture_gives_its_events_when_they_came() {
        let mut generator = Generator::new(1, 3, Vec::new(), 1_800_000_000, 3).unwrap();
        let events: Vec<_> = (0..3).map(|_| generator.next_event()).collect();
        let said =
            |us: u64, text: String| json!({"us": us, "shard": 0, "connection": 1, "text": text});
        let event = |us, n: usize| said(us, format!("[\"EVENT\",{}]", events[n].json));
        let lines = [
            event(70, 0),
            said(71, r#"["REQ","s",{}]"#.into()),
            event(9_000, 1),
            event(9_500, 0),
            said(9_600, r#"["EVENT",{"id":"00"}]"#.into()),
            event(8_000, 2),
            json!({"dropped": 0}),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.map(|line| format!("{line}\n")).concat()).unwrap();
        let (found, times) = captured(file.path(), None).unwrap();
        assert_eq!(times, [70, 8_000, 9_000]);
        assert!(found.iter().map(|one| one.id).eq([0, 2, 1].map(|n: usize| events[n].id)));
        assert_eq!(captured(file.path(), Some(1)).unwrap().1, [70]);
        std::fs::write(file.path(), "no JSON").unwrap();
        assert!(
            format!("{:#}", captured(file.path(), None).unwrap_err()).contains(":1 is no line")
        );
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
