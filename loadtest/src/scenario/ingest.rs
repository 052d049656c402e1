//! `ingest`: publish a file, wait for every OK.
//!
//! A closed loop: each connection keeps `--in-flight` events unanswered, so the rate is the relay's own and latency is
//! that of a full window (a slow answer delays the next send; it is not the latency at a given arrival rate).

use super::{Clock, Common, Notices, POLL_MS_MAX, Worker, connect, deal, lost, measure};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, Lost, Poller, RelayMessage, message};
use crate::events::{self, IdIndex, Random, SignedEvent};
use crate::report::{Latency, Outcome, Pacing, Violations, per_second};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Args, Clone, Debug, Serialize)]
pub struct IngestArgs {
    #[command(flatten)]
    pub common: Common,
    /// Signed events, one JSON object a line (see `gen`)
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    /// Publish only the first N events of the file
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Unanswered events a connection
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// A refused event is a violation
    #[arg(long)]
    pub require_accepted: bool,
}

/// Verdicts by kind; `rejected` by the reason's prefix.
#[derive(Debug, Default)]
pub struct Verdicts {
    pub accepted: u64,
    pub duplicate: u64,
    pub rejected: BTreeMap<String, u64>,
}

impl Verdicts {
    pub fn add(&mut self, accepted: bool, reason: &str) {
        let prefix = reason.split_once(':').map_or("", |(prefix, _)| prefix);
        match (accepted, prefix) {
            (true, "duplicate") => self.duplicate += 1,
            (true, _) => self.accepted += 1,
            (false, _) => *self.rejected.entry(prefix.chars().take(40).collect()).or_default() += 1,
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        for (prefix, count) in other.rejected {
            *self.rejected.entry(prefix).or_default() += count;
        }
    }

    pub fn answered(&self) -> u64 {
        self.accepted + self.duplicate + self.rejected.values().sum::<u64>()
    }
}

/// One connection and its share of the file: event i of the file is number i / lanes of lane i % lanes.
struct Lane {
    number: usize,
    connection: Option<Connection>,
    frames: FrameArena,
    /// `in_flight_max` bounds `sent - answered`; `answered <= sent <= frames.len()`.
    sent: usize,
    answered: usize,
    /// When each was sent; [`ANSWERED`] once its OK came.
    sent_ns: Vec<u64>,
}

const ANSWERED: u64 = u64::MAX;

struct IngestWorker<'a> {
    lanes: Vec<Lane>,
    lanes_total: usize,
    in_flight_max: usize,
    index: &'a IdIndex,
    poller: Poller,
    verdicts: Verdicts,
    latency: Latency,
    notices: Notices,
    violations: Violations,
}

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &IngestArgs) -> anyhow::Result<Outcome> {
    let (events, index) = events::load(&args.events, args.limit)?;
    let lanes_total = (args.connections as usize).min(events.len());
    let target = args.common.prepare(lanes_total)?;
    let connections = connect(&target, lanes_total)?;
    let lanes = connections.into_iter().enumerate().map(|(number, connection)| {
        let frames = frames(events.iter().skip(number).step_by(lanes_total));
        let sent_ns = vec![0; frames.len()];
        Lane { number, connection: Some(connection), frames, sent: 0, answered: 0, sent_ns }
    });
    let threads = usize::from(args.common.threads).min(lanes_total);
    let mut workers = deal(lanes, threads)
        .into_iter()
        .map(|lanes| IngestWorker::new(lanes, lanes_total, args.in_flight as usize, &index))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let window = measure(&args.common, args.common.timeout(), &mut workers)?;

    let (mut verdicts, mut latency) = (Verdicts::default(), Latency::default());
    let (mut notices, mut violations) = (Notices::default(), Violations::default());
    for mut worker in workers {
        worker.judge();
        verdicts.merge(worker.verdicts);
        latency.merge(&worker.latency);
        notices.merge(worker.notices);
        violations.merge(worker.violations);
    }
    let rejected: u64 = verdicts.rejected.values().sum();
    if args.require_accepted {
        violations.add_many("rejected", rejected, || format!("{:?}", verdicts.rejected));
    }
    Ok(outcome(events.len() as u64, &verdicts, latency, &notices, violations, window))
}

fn outcome(
    events: u64,
    verdicts: &Verdicts,
    latency: Latency,
    notices: &Notices,
    violations: Violations,
    window: super::Window,
) -> Outcome {
    let answered = verdicts.answered();
    let rate = per_second(answered, window.elapsed);
    let ok = latency.summary();
    let detail = json!({
        "events": events, "answered": answered, "accepted": verdicts.accepted, "duplicate": verdicts.duplicate,
        "rejected": verdicts.rejected, "notices": notices.to_json(),
    });
    let accounts = window.account(answered);
    let summary = format!(
        "{answered} of {events} answered, {} accepted; {rate} events/s; OK p50 {} µs, p99 {} µs; server {} µs an event",
        verdicts.accepted,
        ok.p50,
        ok.p99,
        accounts.cpu_us_per_op(),
    );
    Outcome {
        violations,
        checked: events,
        unit: "event",
        operations: answered,
        pacing: Pacing::Closed,
        latencies: vec![("event_to_ok", latency)],
        accounts,
        detail,
        summary,
    }
}

/// `["EVENT",…]` frames, masked.
pub fn frames<'a>(events: impl Iterator<Item = &'a SignedEvent>) -> FrameArena {
    let mut random = Random::new(0);
    let mut arena = FrameArena::default();
    for event in events {
        arena.push_text(format!("[\"EVENT\",{}]", event.json).as_bytes(), random.mask());
    }
    arena
}

impl<'a> IngestWorker<'a> {
    fn new(
        mut lanes: Vec<Lane>,
        lanes_total: usize,
        in_flight_max: usize,
        index: &'a IdIndex,
    ) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        for (token, lane) in lanes.iter_mut().enumerate() {
            poller.add(lane.connection.as_mut().expect("it is open"), token)?;
        }
        let (verdicts, latency) = (Verdicts::default(), Latency::default());
        let (notices, violations) = (Notices::default(), Violations::default());
        Ok(Self {
            lanes,
            lanes_total,
            in_flight_max,
            index,
            poller,
            verdicts,
            latency,
            notices,
            violations,
        })
    }

    fn is_done(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.connection.is_none() || lane.answered == lane.frames.len())
    }

    /// Fills the lane's window in one write.
    fn refill(&mut self, token: usize, clock: Clock) -> Result<(), Lost> {
        let lane = &mut self.lanes[token];
        let Some(connection) = &mut lane.connection else { return Ok(()) };
        let to = lane.frames.len().min(lane.answered + self.in_flight_max);
        if to > lane.sent {
            let now = clock.now_ns();
            lane.sent_ns[lane.sent..to].fill(now);
            connection.send(lane.frames.slice(lane.sent, to))?;
            lane.sent = to;
        }
        self.poller.sync(connection, token)?;
        Ok(())
    }

    fn on_ready(&mut self, ready: Ready, clock: Clock) -> Result<(), Lost> {
        let Some(mut connection) = self.lanes[ready.token].connection.take() else { return Ok(()) };
        if ready.writable {
            connection.flush()?;
        }
        if ready.readable {
            let mut buffer = std::mem::take(&mut self.poller.buffer);
            let mut now = None;
            let result = connection.receive(&mut buffer, |text| {
                let now = *now.get_or_insert_with(|| clock.now_ns());
                self.on_text(ready.token, text, now);
            });
            self.poller.buffer = buffer;
            result?;
        }
        self.lanes[ready.token].connection = Some(connection);
        self.refill(ready.token, clock)
    }

    fn on_text(&mut self, token: usize, text: &[u8], now: u64) {
        match message::parse(text) {
            Ok(RelayMessage::Ok { id, accepted, reason }) => {
                let lane = &mut self.lanes[token];
                let hex = || faster_hex::hex_string(&id);
                let position = self.index.get(&id).map(|position| *position as usize);
                let Some(position) =
                    position.filter(|position| position % self.lanes_total == lane.number)
                else {
                    return self.violations.add("ok_for_unsent_event", hex);
                };
                let position = position / self.lanes_total;
                if position >= lane.sent {
                    return self.violations.add("ok_for_unsent_event", hex);
                }
                let sent = std::mem::replace(&mut lane.sent_ns[position], ANSWERED);
                if sent == ANSWERED {
                    return self.violations.add("event_answered_twice", hex);
                }
                lane.answered += 1;
                self.latency.record(now, now.saturating_sub(sent));
                self.verdicts.add(accepted, &reason);
            }
            Ok(RelayMessage::Notice(text)) => self.notices.add(&text),
            Ok(RelayMessage::Auth | RelayMessage::Other) => {}
            Ok(other) => self.violations.add("unexpected_message", || format!("{other:?}")),
            Err(malformed) => self.violations.add("malformed_message", || malformed.to_string()),
        }
    }

    /// What is still unanswered when the window is over.
    fn judge(&mut self) {
        for lane in &self.lanes {
            let (number, answered, all) = (lane.number, lane.answered, lane.frames.len());
            self.violations.add_many("event_unanswered", (lane.sent - answered) as u64, || {
                format!("connection {number}: {answered} answers to {} events", lane.sent)
            });
            self.violations.add_many("event_unsent", (all - lane.sent) as u64, || {
                format!("connection {number}: {} of {all} sent before it was over", lane.sent)
            });
        }
    }
}

impl Worker for IngestWorker<'_> {
    fn run(&mut self, clock: Clock) {
        let mut ready = Vec::new();
        for token in 0..self.lanes.len() {
            if let Err(why) = self.refill(token, clock) {
                lost(&mut self.violations, "connection", self.lanes[token].number, &why);
                self.lanes[token].connection = None;
            }
        }
        while !self.is_done() && !clock.is_over() {
            if let Err(error) = self.poller.wait(Duration::from_millis(POLL_MS_MAX), &mut ready) {
                return self.violations.add("generator_failed", || error.to_string());
            }
            for &one in &ready {
                if let Err(why) = self.on_ready(one, clock) {
                    lost(&mut self.violations, "connection", self.lanes[one.token].number, &why);
                    self.lanes[one.token].connection = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_told_apart_by_their_prefix() {
        let mut verdicts = Verdicts::default();
        for (accepted, reason) in [
            (true, ""),
            (true, "duplicate: have it"),
            (false, "duplicate: a newer version is stored"),
            (false, "invalid: x"),
            (false, "no prefix"),
        ] {
            verdicts.add(accepted, reason);
        }
        assert_eq!((verdicts.accepted, verdicts.duplicate, verdicts.answered()), (1, 1, 5));
        let prefixes: Vec<&str> = verdicts.rejected.keys().map(String::as_str).collect();
        assert_eq!(prefixes, ["", "duplicate", "invalid"]);
    }
}
