//! `replay`: the events of a file at the pace of their `created_at`, or a multiple of it; an open loop.
//!
//! A second of the file is the finest that `created_at` tells: its events are spread evenly over it. Nobody else's
//! events match the followers' filters, so every delivery is judged; a file with replacements, deletions or expired
//! events may have some of them refused, which is counted and no violation.
//!
//! A capture of a relay's own (`rheostr --capture`) tells microseconds: each of its events is due when it came, and
//! goes out by one of the publishers; each connection that said REQ or CLOSE is there again and says it when it did,
//! but for a CLOSE, which waits for the answer. A REQ must be answered by EOSE or CLOSED, and its latency is told; what
//! the answer holds is not judged.

use super::mix::{Cue, Script};
use super::mixed::{CrowdArgs, Show};
use super::schedule::{Arrivals, Pace};
use super::share;
use crate::events::{self, SignedEvent};
use crate::report::Outcome;
use anyhow::{Context, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
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
    /// The file is a capture of rheostr's: its events, each when it came, and the REQs and CLOSEs of each connection;
    /// what is none of these, no valid event, or one that came before, is left out
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

super::scenario!(ReplayArgs, "replay", crowd.common, run, |args| Some(&args.events));

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &ReplayArgs) -> anyhow::Result<Outcome> {
    ensure!(args.speed > 0.0, "--speed {} is not above 0", args.speed);
    let (events, due, script) = if args.captured {
        ensure!(args.crowd.common.runs == 1, "--captured has its own pace once, not --runs times");
        let captured = captured(&args.events, args.limit, args.speed)?;
        (captured.events, captured.due_ns, captured.script)
    } else {
        let (events, _) = events::load(&args.events, args.limit)?;
        let (events, times) = in_time(share(&events, &args.crowd.common)?)?;
        (events, due_ns(&times, args.speed), Script::new())
    };
    let file_seconds = due.last().map(|ns: &u64| (*ns as f64 / 1e9 * args.speed).round());
    let index = events::index(&events)?;
    let pace = Pace::Open(Arrivals::At(due));
    let script = Some(&script).filter(|script| !script.is_empty());
    let show = Show { seed: args.seed, events: &events, index: &index, script };
    let mut outcome = show.run(&args.crowd, &pace, None)?;
    outcome.detail["file_seconds"] = json!(file_seconds);
    Ok(outcome)
}

/// What clients said, on a schedule that begins with the first of it.
#[derive(Debug, Default)]
struct Capture {
    events: Vec<SignedEvent>,
    due_ns: Vec<u64>,
    script: Script,
}

/// A line of a capture; its last one has only how many messages found no room.
#[derive(Deserialize)]
struct Said {
    us: Option<u64>,
    #[serde(default)]
    shard: u64,
    #[serde(default)]
    connection: u64,
    #[serde(default)]
    text: String,
}

/// Reads a capture; of its events, the first `limit`.
fn captured(path: &Path, limit: Option<usize>, speed: f64) -> anyhow::Result<Capture> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut lines = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let said: Said = serde_json::from_str(&line?).with_context(|| {
            format!("{}:{} is no line of a capture", path.display(), number + 1)
        })?;
        lines.extend(said.us.map(|us| (us, said)));
    }
    // Shards hand in their turns side by side.
    lines.sort_by_key(|(us, _)| *us);
    let first = lines.first().map_or(0, |(us, _)| *us);
    let mut capture = Capture::default();
    let (mut seen, mut places) = (HashSet::new(), HashMap::new());
    for (us, said) in lines {
        let due_ns = ((us - first) as f64 / speed * 1e3) as u64;
        let Ok(message) = serde_json::from_str::<Vec<Value>>(&said.text) else { continue };
        let subscription = message.get(1).and_then(Value::as_str).map(str::to_owned);
        match (message.first().and_then(Value::as_str), subscription) {
            (Some("EVENT"), _) if capture.events.len() < limit.unwrap_or(usize::MAX) => {
                if let Some(event) = message.get(1)
                    && let Ok(event) = SignedEvent::from_json(event.to_string())
                    && seen.insert(event.id)
                {
                    capture.events.push(event);
                    capture.due_ns.push(due_ns);
                }
            }
            (Some(verb @ ("REQ" | "CLOSE")), Some(subscription)) => {
                let asks = verb == "REQ";
                let place =
                    *places.entry((said.shard, said.connection)).or_insert(capture.script.len());
                if place == capture.script.len() {
                    capture.script.push(Vec::new());
                }
                capture.script[place].push(Cue { due_ns, text: said.text, subscription, asks });
            }
            _ => {}
        }
    }
    ensure!(!capture.events.is_empty(), "{}: no events", path.display());
    Ok(capture)
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
    fn a_capture_gives_what_was_said_when_it_was() {
        let mut generator = Generator::new(1, 3, Vec::new(), 1_800_000_000, 3).unwrap();
        let events: Vec<_> = (0..3).map(|_| generator.next_event()).collect();
        let said = |us: u64, connection: u64, text: &str| json!({"us": us, "shard": 0, "connection": connection, "text": text});
        let event = |us, n: usize| said(us, 1, &format!("[\"EVENT\",{}]", events[n].json));
        let req = r#"["REQ","s", {}]"#;
        let lines = [
            event(70, 0),
            said(71, 1, req),
            event(9_000, 1),
            event(9_500, 0),
            said(9_600, 1, r#"["EVENT",{"id":"00"}]"#),
            event(8_000, 2),
            said(9_700, 2, r#"["REQ"]"#),
            said(9_800, 3, req),
            said(9_900, 1, r#"["CLOSE","s"]"#),
            json!({"dropped_messages": 0}),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.map(|line| format!("{line}\n")).concat()).unwrap();
        let found = captured(file.path(), None, 10.0).unwrap();
        assert_eq!(found.due_ns, [0, 793_000, 893_000]);
        assert!(found.events.iter().map(|one| one.id).eq([0, 2, 1].map(|n: usize| events[n].id)));
        let cue = |due_ns, text: &str, asks| Cue {
            due_ns,
            text: text.to_owned(),
            subscription: "s".to_owned(),
            asks,
        };
        let first = vec![cue(100, req, true), cue(983_000, r#"["CLOSE","s"]"#, false)];
        assert_eq!(found.script, [first, vec![cue(973_000, req, true)]]);
        assert_eq!(captured(file.path(), Some(1), 1.0).unwrap().due_ns, [0]);
        std::fs::write(file.path(), "no JSON").unwrap();
        let error = captured(file.path(), None, 1.0).unwrap_err();
        assert!(format!("{error:#}").contains(":1 is no line"));
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
