//! `connect` and `churn`: connections that come and go on a schedule.
//!
//! `connect` upgrades and closes. `churn` also subscribes; some of its visits break off with a reset as soon as their
//! REQ is sent, the others read to EOSE and close properly. Latency counts from when a visit was due, so a relay that
//! accepts late shows it, though its handshakes are fast. A visit that finds `--open-max` others open waits.

use super::schedule::{Arrivals, Pace, Roster};
use super::{Clock, Common, Notices, POLL_MS_MAX, Worker, lost, measure, message_in};
use crate::client::poller::Ready;
use crate::client::{Lost, Opening, Poller, RelayMessage, Target, frame};
use crate::report::{Latency, Outcome, Violations, per_second};
use crate::server::Sample;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MASK: [u8; 4] = [9, 8, 7, 6];
/// What the relay may take to let go of the connections that are gone.
const RELEASE: Duration = Duration::from_secs(5);
/// Files that a relay may have opened meanwhile for its own ends.
const FDS_SLACK: u64 = 16;

#[derive(Args, Clone, Debug, Serialize)]
pub struct ConnectArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// How many connections come and go
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// Connections a second
    #[arg(long, default_value_t = 100.0, conflicts_with = "closed_loop")]
    pub rate: f64,
    /// The next comes when one is gone: the rate is the relay's own, and its stalls are hidden
    #[arg(long)]
    pub closed_loop: bool,
    /// How many are there at once in the closed loop, on each thread
    #[arg(long, default_value_t = 8, requires = "closed_loop", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub at_once: u32,
    /// How many may be open at once in the open loop, on each thread
    #[arg(
        long, default_value_t = 1000, conflicts_with = "closed_loop",
        value_parser = clap::value_parser!(u32).range(1..=60_000)
    )]
    pub open_max: u32,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct ChurnArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub connect: ConnectArgs,
    /// How many of them break off, between 0 and 1
    #[arg(long, default_value_t = 0.5)]
    pub abort_share: f64,
    /// What they ask for
    #[arg(long, default_value = r#"{"kinds":[1],"limit":10}"#, value_name = "JSON")]
    pub filter: String,
}

super::scenario!(ConnectArgs, "connect", common, run);
super::scenario!(ChurnArgs, "churn", connect.common, run_churn);

/// What every visit does.
struct Custom {
    target: Target,
    pace: Pace,
    /// REQ of the subscribers; empty for those that only connect.
    request: Vec<u8>,
    abort_share: f64,
    open_max: usize,
}

/// `connect`.
///
/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &ConnectArgs) -> anyhow::Result<Outcome> {
    visit(args, Vec::new(), 0.0)
}

/// `churn`.
///
/// # Errors
/// As [`run`], and a filter that is no JSON object.
pub fn run_churn(args: &ChurnArgs) -> anyhow::Result<Outcome> {
    let share = args.abort_share;
    anyhow::ensure!((0.0..=1.0).contains(&share), "--abort-share {share} is not in 0..=1");
    let filter: Value = serde_json::from_str(&args.filter)?;
    anyhow::ensure!(filter.is_object(), "--filter {filter} is no filter");
    let mut request = Vec::new();
    frame::append_text(&mut request, format!("[\"REQ\",\"churn\",{filter}]").as_bytes(), MASK);
    visit(&args.connect, request, share)
}

fn visit(args: &ConnectArgs, request: Vec<u8>, abort_share: f64) -> anyhow::Result<Outcome> {
    anyhow::ensure!(args.common.admin.is_none(), "--admin: no delivery is counted here");
    let threads = usize::from(args.common.threads);
    let (pace, open_max) = match args.closed_loop {
        true => (Pace::Closed { in_flight_max: 1 }, args.at_once),
        false => (Pace::Open(Arrivals::even(args.rate)?), args.open_max),
    };
    let open_max = open_max as usize;
    let count = args.count as usize;
    let target = args.common.prepare((open_max * threads).min(count))?;
    let custom = Custom { target, pace, request, abort_share, open_max };
    let before = args.common.pid.map(Sample::take).transpose()?;
    let mut workers = (0..threads)
        .map(|thread| VisitWorker::new(&custom, thread, threads, count))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let length = custom.pace.length(count);
    let window = measure(&args.common, length + args.common.timeout(), &mut workers)?;
    let mut visited = Visited::default();
    workers.into_iter().for_each(|worker| visited.merge(worker.finish()));
    let fds = before.map(|before| released(args, &before, &mut visited.violations));

    let open = visited.opened.summary();
    let accounts = window.account(open.count);
    let rate = per_second(open.count, accounts.elapsed);
    let detail = json!({
        "visits": count, "opened": visited.opened_count, "closed_properly": visited.closed,
        "broken_off": visited.aborted, "notices": visited.notices.to_json(), "fds": fds,
    });
    let summary = format!(
        "{} of {count} connections opened, {rate}/s ({} loop), {} broken off; due to open p50 {} µs, p99 {} µs; \
         server {} µs each",
        visited.opened_count,
        custom.pace.name(),
        visited.aborted,
        open.p50,
        open.p99,
        accounts.cpu_us_per_op(),
    );
    let mut latencies = custom.pace.latencies("connect_to_open", visited.opened, visited.lateness);
    if visited.answered.summary().count > 0 {
        latencies.push(("req_to_eose", visited.answered));
    }
    Ok(Outcome {
        violations: visited.violations,
        checked: visited.opened_count,
        unit: "connection",
        operations: open.count,
        pacing: custom.pace.pacing(),
        latencies,
        accounts,
        detail,
        summary,
    })
}

/// Waits until the relay has closed what its peers have.
fn released(args: &ConnectArgs, before: &Sample, violations: &mut Violations) -> Value {
    let Some(pid) = args.common.pid else { return Value::Null };
    let deadline = Instant::now() + RELEASE;
    loop {
        let after = match Sample::take(pid) {
            Ok(after) => after,
            Err(error) => {
                violations.add("not_there_afterwards", || format!("{error:#}"));
                return Value::Null;
            }
        };
        let is_released = after.fds <= before.fds + FDS_SLACK;
        if !is_released && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        if !is_released {
            violations.add("fds_not_released", || {
                format!("{} open files before, {} after", before.fds, after.fds)
            });
        }
        return json!({"before": before.fds, "after": after.fds});
    }
}

/// What visits have seen.
#[derive(Default)]
struct Visited {
    opened_count: u64,
    closed: u64,
    aborted: u64,
    /// Due (or begun) → upgraded.
    opened: Latency,
    /// REQ → EOSE.
    answered: Latency,
    lateness: Latency,
    notices: Notices,
    violations: Violations,
}

impl Visited {
    fn merge(&mut self, other: Self) {
        self.opened_count += other.opened_count;
        self.closed += other.closed;
        self.aborted += other.aborted;
        self.opened.merge(&other.opened);
        self.answered.merge(&other.answered);
        self.lateness.merge(&other.lateness);
        self.notices.merge(other.notices);
        self.violations.merge(other.violations);
    }
}

/// ```text
/// Upgrading ─101→ Subscribing ─EOSE→ Closing ─close or EOF→ gone
///     │               └─ breaks off ──────────────────────→ gone
///     └─ only connects ────────────→ Closing
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Upgrading,
    Subscribing,
    Closing,
    Gone,
}

struct Visit {
    number: usize,
    from_ns: u64,
    asked_ns: u64,
    stage: Stage,
    opening: Opening,
}

struct VisitWorker<'a> {
    custom: &'a Custom,
    roster: Roster,
    poller: Poller,
    /// By token.
    visits: Vec<Option<Visit>>,
    free: Vec<usize>,
    visited: Visited,
}

impl<'a> VisitWorker<'a> {
    fn new(
        custom: &'a Custom,
        thread: usize,
        threads: usize,
        count: usize,
    ) -> anyhow::Result<Self> {
        let free: Vec<usize> = (0..custom.open_max).rev().collect();
        Ok(Self {
            custom,
            roster: Roster::new(vec![thread], threads, count),
            poller: Poller::new()?,
            visits: free.iter().map(|_| None).collect(),
            free,
            visited: Visited::default(),
        })
    }

    fn is_done(&self) -> bool {
        self.roster.peek().is_none() && self.free.len() == self.visits.len()
    }

    /// Begins the visits that are due; says how long none will be.
    fn start_due(&mut self, clock: Clock) -> Duration {
        while let Some(&token) = self.free.last() {
            let Some((number, _)) = self.roster.peek() else { return Duration::MAX };
            let now = clock.now_ns();
            let from_ns = match &self.custom.pace {
                Pace::Closed { .. } => {
                    self.roster.advance();
                    now
                }
                Pace::Open(arrivals) => match self.roster.take_due(arrivals, now) {
                    Ok((due_ns, _)) => {
                        if clock.is_measured(due_ns) {
                            self.visited.lateness.record(now, now - due_ns);
                        }
                        due_ns
                    }
                    Err(wait) => return wait,
                },
            };
            let opening = Opening::start(&self.custom.target, number).and_then(|mut opening| {
                self.poller.add(&mut opening.connection, token)?;
                Ok(opening)
            });
            match opening {
                Ok(opening) => {
                    self.free.pop();
                    let stage = Stage::Upgrading;
                    self.visits[token] =
                        Some(Visit { number, from_ns, asked_ns: 0, stage, opening });
                }
                Err(error) => self.fail(number, &error),
            }
        }
        Duration::MAX
    }

    fn fail(&mut self, number: usize, error: &anyhow::Error) {
        let violations = &mut self.visited.violations;
        violations.add("handshake_failed", || format!("connection {number}: {error:#}"));
    }

    fn serve(&mut self, ready: Ready, clock: Clock) {
        let Some(mut visit) = self.visits[ready.token].take() else { return };
        let result = self.proceed(&mut visit, ready, clock);
        match (result, visit.stage) {
            (Ok(()), Stage::Gone) => {
                visit.opening.connection.abort().ok();
                self.visited.aborted += 1;
            }
            (Ok(()), _) => {
                self.visits[ready.token] = Some(visit);
                return;
            }
            (Err(error), Stage::Upgrading) => self.fail(visit.number, &error),
            (Err(error), stage) => match (error.downcast_ref(), stage) {
                // The peer's close, or its end of the stream, is the answer to ours.
                (Some(Lost::Closed { .. } | Lost::Eof), Stage::Closing) => self.visited.closed += 1,
                _ => lost(&mut self.visited.violations, "visit", visit.number, &error),
            },
        }
        self.free.push(ready.token);
    }

    fn proceed(&mut self, visit: &mut Visit, ready: Ready, clock: Clock) -> anyhow::Result<()> {
        let connection = &mut visit.opening.connection;
        connection.flush()?;
        if ready.readable && visit.stage == Stage::Upgrading {
            if visit.opening.receive()? {
                self.on_open(visit, clock)?;
            }
        } else if ready.readable {
            let Visited { notices, violations, .. } = &mut self.visited;
            let (number, mut is_answered) = (visit.number, false);
            connection.receive(&mut self.poller.buffer, |text| {
                match message_in(text, notices, violations) {
                    None | Some(RelayMessage::Event { .. }) => {}
                    Some(RelayMessage::Eose { .. }) => is_answered = true,
                    Some(other) => violations
                        .add("unexpected_message", || format!("visit {number}: {other:?}")),
                }
            })?;
            if is_answered && visit.stage == Stage::Subscribing {
                if clock.is_measured(visit.from_ns) {
                    let now = clock.now_ns();
                    self.visited.answered.record(now, now - visit.asked_ns);
                }
                visit.close()?;
            }
        }
        Ok(self.poller.sync(&mut visit.opening.connection, ready.token)?)
    }

    fn on_open(&mut self, visit: &mut Visit, clock: Clock) -> anyhow::Result<()> {
        let now = clock.now_ns();
        self.visited.opened_count += 1;
        if clock.is_measured(visit.from_ns) {
            self.visited.opened.record(now, now - visit.from_ns);
        }
        if self.custom.request.is_empty() {
            return visit.close();
        }
        visit.opening.connection.send(&self.custom.request)?;
        visit.asked_ns = now;
        visit.stage = match breaks_off(visit.number, self.custom.abort_share) {
            true => Stage::Gone,
            false => Stage::Subscribing,
        };
        Ok(())
    }

    /// Names the visits that did not come to their end.
    fn finish(mut self) -> Visited {
        for visit in self.visits.iter().flatten() {
            self.visited.violations.add("visit_unfinished", || {
                format!("connection {}: still {:?}", visit.number, visit.stage)
            });
        }
        if let Some((first, _)) = self.roster.peek() {
            self.visited
                .violations
                .add("visits_not_begun", || format!("from connection {first} on"));
        }
        self.visited
    }
}

impl Visit {
    fn close(&mut self) -> anyhow::Result<()> {
        let mut close = Vec::new();
        frame::append_close(&mut close, MASK);
        self.opening.connection.send(&close)?;
        self.stage = Stage::Closing;
        Ok(())
    }
}

impl Worker for VisitWorker<'_> {
    fn run(&mut self, clock: Clock) {
        let mut ready = Vec::new();
        while !self.is_done() && !clock.is_over() {
            let wait = self.start_due(clock).min(Duration::from_millis(POLL_MS_MAX));
            if let Err(error) = self.poller.wait(wait, &mut ready) {
                let violations = &mut self.visited.violations;
                return violations.add("generator_failed", || error.to_string());
            }
            ready.iter().for_each(|one| self.serve(*one, clock));
        }
    }
}

/// Whether this visit is one of those that break off, which are spread evenly.
fn breaks_off(number: usize, share: f64) -> bool {
    ((number + 1) as f64 * share).floor() > (number as f64 * share).floor()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_break_off_as_were_asked_for() {
        for (share, expected) in [(0.0, 0), (0.25, 25), (0.5, 50), (1.0, 100)] {
            assert_eq!((0..100).filter(|number| breaks_off(*number, share)).count(), expected);
        }
    }
}
