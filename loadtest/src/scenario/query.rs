//! `query`: stored queries, one after the other on each connection: REQ, read to EOSE, CLOSE.
//!
//! Filters are drawn from the file that the relay was fed with, so each finds something. Every answer is checked
//! against its filter, its limit and NIP-01's order; `--exact` also demands exactly the events of the file that match.

mod oracle;

use super::{Clock, Common, Notices, POLL_MS_MAX, Worker, connect, deal, lost, measure};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, Id, Lost, Poller, RelayMessage, message};
use crate::events::{self, Random};
use crate::report::{Latency, Outcome, Pacing, Violations, per_second, round};
use clap::{Args, ValueEnum};
use oracle::{Corpus, Query};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

const SUBSCRIPTION: &str = "q";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// The newest of one author
    Author,
    /// The newest of one kind
    Kind,
    /// The newest of all
    Global,
    /// As many ids as the limit says
    Ids,
    /// The newest with one value of a single-letter tag
    Tag,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct QueryArgs {
    #[command(flatten)]
    pub common: Common,
    /// The events that the relay holds: filters are drawn from it, answers are checked against it
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    #[arg(long, value_enum)]
    pub shape: Shape,
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// How many queries, over all connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Seed of the choice of filters
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The relay holds this file and nothing else: a missing or an extra event is a violation
    #[arg(long)]
    pub exact: bool,
}

/// One connection and its queries.
struct Lane {
    number: usize,
    connection: Option<Connection>,
    queries: Vec<Query>,
    /// Frame i asks query i; from the second on it closes the one before, too.
    frames: FrameArena,
    /// The query that is being answered; `queries.len()` when all are.
    current: usize,
    asked_ns: u64,
    answer: Vec<Id>,
}

struct QueryWorker<'a> {
    lanes: Vec<Lane>,
    corpus: &'a Corpus,
    exact: bool,
    poller: Poller,
    events_returned: u64,
    bytes_received: u64,
    unknown: u64,
    latency: Latency,
    notices: Notices,
    violations: Violations,
}

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &QueryArgs) -> anyhow::Result<Outcome> {
    let (events, index) = events::load(&args.events, None)?;
    let corpus = Corpus::new(&events, index, args.exact)?;
    drop(events);
    let mut random = Random::new(args.seed);
    let queries = (0..args.count)
        .map(|_| corpus.draw(args.shape, args.limit as usize, &mut random))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let lanes_total = (args.connections as usize).min(queries.len());
    let target = args.common.prepare(lanes_total)?;
    let account = args.common.account()?;
    let connections = connect(&target, lanes_total)?;
    let lanes = connections.into_iter().zip(deal(queries, lanes_total)).enumerate();
    let lanes = lanes
        .map(|(number, (connection, queries))| Lane::new(number, connection, queries, &mut random));
    let lanes: Vec<_> = lanes.collect();
    let threads = usize::from(args.common.threads).min(lanes_total);
    let mut workers = deal(lanes, threads)
        .into_iter()
        .map(|lanes| QueryWorker::new(lanes, &corpus, args.exact))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let window = measure(&args.common, args.common.timeout(), &mut workers)?;
    let mut outcome = outcome(args, workers, window);
    if let Some(account) = account {
        let received = outcome.detail["events_returned"].as_u64().unwrap_or(0);
        outcome.detail["relay_counts"] = account.close(received, &mut outcome.violations)?;
    }
    Ok(outcome)
}

fn outcome(args: &QueryArgs, workers: Vec<QueryWorker<'_>>, window: super::Window) -> Outcome {
    let (mut latency, mut notices, mut violations): (Latency, Notices, Violations) =
        Default::default();
    let (mut answered, mut returned, mut bytes, mut unknown) = (0, 0, 0, 0);
    for mut worker in workers {
        worker.judge();
        answered += worker.lanes.iter().map(|lane| lane.current as u64).sum::<u64>();
        returned += worker.events_returned;
        bytes += worker.bytes_received;
        unknown += worker.unknown;
        latency.merge(&worker.latency);
        notices.merge(worker.notices);
        violations.merge(worker.violations);
    }
    let rate = per_second(answered, window.elapsed);
    let eose = latency.summary();
    let accounts = window.account(answered);
    let cpu_us = accounts.server.as_ref().map(|server| server.user_us + server.sys_us);
    let cpu_us_per_event = cpu_us.filter(|_| returned > 0).map(|us| round(us / returned as f64, 3));
    let detail = json!({
        "queries": args.count, "answered": answered, "events_returned": returned,
        "events_per_query": round(returned as f64 / answered.max(1) as f64, 2), "events_not_in_file": unknown,
        "message_bytes": bytes, "events_per_second": per_second(returned, accounts.elapsed),
        "cpu_us_per_event": cpu_us_per_event, "notices": notices.to_json(),
    });
    let summary = format!(
        "{answered} of {} queries, {returned} events; {rate} queries/s; REQ to EOSE p50 {} µs, p99 {} µs; server {} µs \
         an event",
        args.count, eose.p50, eose.p99, detail["cpu_us_per_event"]
    );
    Outcome {
        violations,
        checked: args.count.into(),
        unit: "query",
        operations: answered,
        pacing: Pacing::Closed,
        latencies: vec![("req_to_eose", latency)],
        accounts,
        detail,
        summary,
    }
}

impl Lane {
    fn new(
        number: usize,
        connection: Connection,
        queries: Vec<Query>,
        random: &mut Random,
    ) -> Self {
        let mut frames = FrameArena::default();
        for query in &queries {
            let request = format!("[\"REQ\",\"{SUBSCRIPTION}\",{}]", query.filter);
            frames.push_text(request.as_bytes(), random.mask());
        }
        Self {
            number,
            connection: Some(connection),
            queries,
            frames,
            current: 0,
            asked_ns: 0,
            answer: Vec::new(),
        }
    }
}

impl<'a> QueryWorker<'a> {
    fn new(mut lanes: Vec<Lane>, corpus: &'a Corpus, exact: bool) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        for (token, lane) in lanes.iter_mut().enumerate() {
            poller.add(lane.connection.as_mut().expect("it is open"), token)?;
        }
        let (latency, notices, violations) = Default::default();
        let (events_returned, bytes_received, unknown) = (0, 0, 0);
        Ok(Self {
            lanes,
            corpus,
            exact,
            poller,
            events_returned,
            bytes_received,
            unknown,
            latency,
            notices,
            violations,
        })
    }

    fn is_done(&self) -> bool {
        self.lanes
            .iter()
            .all(|lane| lane.connection.is_none() || lane.current == lane.queries.len())
    }

    /// Sends the current query, behind the CLOSE of the one before.
    fn ask(&mut self, token: usize, close: &[u8], clock: Clock) -> Result<(), Lost> {
        let lane = &mut self.lanes[token];
        let Some(connection) = &mut lane.connection else { return Ok(()) };
        if lane.current < lane.queries.len() {
            let request = [close, lane.frames.slice(lane.current, lane.current + 1)].concat();
            lane.asked_ns = clock.now_ns();
            connection.send(&request)?;
        }
        self.poller.sync(connection, token)?;
        Ok(())
    }

    fn on_ready(&mut self, ready: Ready, close: &[u8], clock: Clock) -> Result<(), Lost> {
        let Some(mut connection) = self.lanes[ready.token].connection.take() else { return Ok(()) };
        if ready.writable {
            connection.flush()?;
        }
        let before = self.lanes[ready.token].current;
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
        let lane = &mut self.lanes[ready.token];
        lane.connection = Some(connection);
        if lane.current > before {
            return self.ask(ready.token, close, clock);
        }
        let connection = self.lanes[ready.token].connection.as_mut().expect("it was just put back");
        self.poller.sync(connection, ready.token)?;
        Ok(())
    }

    fn on_text(&mut self, token: usize, text: &[u8], now: u64) {
        self.bytes_received += text.len() as u64;
        let lane = &mut self.lanes[token];
        match message::parse(text) {
            Ok(RelayMessage::Event { id, .. }) => lane.answer.push(id),
            Ok(RelayMessage::Eose { .. }) if lane.current < lane.queries.len() => {
                self.latency.record(now, now.saturating_sub(lane.asked_ns));
                self.finish(token);
            }
            Ok(RelayMessage::Closed { reason, .. }) if lane.current < lane.queries.len() => {
                self.violations.add("query_closed", || {
                    format!("{}: {reason}", lane.queries[lane.current].filter)
                });
                lane.answer.clear();
                lane.current += 1;
            }
            Ok(RelayMessage::Notice(text)) => self.notices.add(&text),
            Ok(RelayMessage::Auth | RelayMessage::Other) => {}
            Ok(other) => self.violations.add("unexpected_message", || format!("{other:?}")),
            Err(malformed) => self.violations.add("malformed_message", || malformed.to_string()),
        }
    }

    fn finish(&mut self, token: usize) {
        let lane = &mut self.lanes[token];
        self.events_returned += lane.answer.len() as u64;
        let query = &lane.queries[lane.current];
        self.unknown += self.corpus.check(query, &lane.answer, self.exact, &mut self.violations);
        lane.answer.clear();
        lane.current += 1;
    }

    fn judge(&mut self) {
        for lane in &self.lanes {
            let missing = lane.queries.len() - lane.current;
            self.violations.add_many("query_unanswered", missing as u64, || {
                format!("connection {}", lane.number)
            });
        }
    }
}

impl Worker for QueryWorker<'_> {
    fn run(&mut self, clock: Clock) {
        let mut close = Vec::new();
        let text = format!("[\"CLOSE\",\"{SUBSCRIPTION}\"]");
        crate::client::frame::append_text(&mut close, text.as_bytes(), [2, 4, 6, 8]);
        let mut ready = Vec::new();
        for token in 0..self.lanes.len() {
            if let Err(why) = self.ask(token, &[], clock) {
                lost(&mut self.violations, "connection", self.lanes[token].number, &why);
                self.lanes[token].connection = None;
            }
        }
        while !self.is_done() && !clock.is_over() {
            if let Err(error) = self.poller.wait(Duration::from_millis(POLL_MS_MAX), &mut ready) {
                return self.violations.add("generator_failed", || error.to_string());
            }
            for &one in &ready {
                if let Err(why) = self.on_ready(one, &close, clock) {
                    lost(&mut self.violations, "connection", self.lanes[one.token].number, &why);
                    self.lanes[one.token].connection = None;
                }
            }
        }
    }
}
