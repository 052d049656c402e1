//! `fanout`: one publisher, many live subscriptions, every event to each of them exactly once and in order.
//!
//! In the open loop events are due at a fixed rate, and the latency of a delivery runs from then to the subscriber's
//! read; in the closed loop the publisher sends as fast as its window allows, which measures the cost of a delivery.
//! Either way the commit of a durable relay is in the latency; the OK's is reported beside it, to be subtracted.

mod deaf;
mod publisher;
mod subscriber;

use super::schedule::Arrivals;
use super::{Clock, Common, Notices, POLL_MS_MAX, Worker, connect, deal, extend, lost, measure};
use crate::client::poller::Ready;
use crate::client::{Connection, Lost, Poller};
use crate::events::generate::{Generator, unix_now};
use crate::events::{self, IdIndex, SignedEvent};
use crate::report::{Latency, Outcome, Pacing, Violations, per_second};
use anyhow::Context;
use clap::{Args, ValueEnum};
use deaf::Deaf;
use publisher::Publisher;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subscriber::Subscriber;

/// After the window, connections are read for this long: a delivery too many would arrive now.
const DRAIN: Duration = Duration::from_millis(200);

/// How a filter says "nothing stored, please".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LiveFilter {
    /// `"limit":0`, NIP-01's way
    Limit,
    /// `"since":now`, for relays where `limit:0` never goes live
    Since,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct FanoutArgs {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub subscribers: u32,
    /// How many events are published
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub events: u32,
    /// Events a second
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// The next event leaves when one is answered: the rate is the relay's own, and its stalls are hidden
    #[arg(long)]
    pub closed_loop: bool,
    /// Unanswered events of the closed loop's publisher
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// In the closed loop, hold the publisher back while deliveries are behind by more than this many events (0: never)
    #[arg(long, default_value_t = 0)]
    pub lag_max: u32,
    /// Bytes of each event's JSON
    #[arg(long, default_value_t = 425, value_parser = clap::value_parser!(u32).range(350..=1_000_000))]
    pub payload_bytes: u32,
    /// Kind of the events; 20001 is ephemeral and leaves durability out of the picture
    #[arg(long, default_value_t = 1)]
    pub kind: u16,
    #[arg(long, value_enum, default_value_t = LiveFilter::Limit)]
    pub live_filter: LiveFilter,
    /// Count deliveries out of order, but do not call them violations (rnostr reverses each batch)
    #[arg(long)]
    pub any_order: bool,
    /// Further subscribers that never read
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub deaf: u32,
    /// Seed of the published events [default: from the clock, since a relay has seen the last run's]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Publish these signed events instead, all of --kind
    #[arg(long, value_name = "JSONL")]
    pub from: Option<PathBuf>,
}

super::scenario!(FanoutArgs, "fanout", common, run);

/// The only state that workers share.
struct Shared<'a> {
    events: &'a [SignedEvent],
    index: &'a IdIndex,
    /// Latency counts from here: when each event was due or sent, in nanoseconds of the window's clock; written before
    /// the event leaves, 0 until then.
    from_ns: Vec<AtomicU64>,
    /// Deliveries so far, over all subscribers; wrong ones are not counted.
    delivered: AtomicU64,
    /// Events that the relay will not deliver, because it refused them.
    refused: AtomicU64,
    subscribers_live: AtomicU64,
}

struct FanoutWorker<'a> {
    shared: &'a Shared<'a>,
    /// On the first worker only; its token follows the last subscriber's.
    publisher: Option<Publisher<'a>>,
    subscribers: Vec<Subscriber>,
    /// All was answered and delivered inside the window.
    finished: bool,
    poller: Poller,
    latency: Latency,
    notices: Notices,
    violations: Violations,
}

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &FanoutArgs) -> anyhow::Result<Outcome> {
    let arrivals = Arrivals::even(args.rate)?;
    let clock_seed =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64);
    let seed = args.seed.unwrap_or(clock_seed);
    let (events, index) = sign(args, seed)?;
    let subscribers_total = args.subscribers as usize;
    let target = args.common.prepare(subscribers_total + args.deaf as usize + 1)?;
    let account = args.common.account()?;
    let mut connections = connect(&target, subscribers_total + 1)?;
    let publisher = connections.pop().context("there is a publisher")?;
    let shared = Shared {
        events: &events,
        index: &index,
        from_ns: events.iter().map(|_| AtomicU64::new(0)).collect(),
        delivered: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        subscribers_live: AtomicU64::new(subscribers_total as u64),
    };
    let filter = filter(args);
    let subscribers = subscribe(&filter, &target, connections, events.len())?;
    let length = match args.closed_loop {
        true => Duration::ZERO,
        false => Duration::from_nanos(arrivals.due_ns(events.len())),
    };
    let publisher = Publisher::new(args, arrivals, &shared, publisher);
    let mut workers = workers(args, &shared, publisher, subscribers)?;
    let deaf = Deaf::open(&target, args.deaf, &filter, args.common.pid)?;
    let window = measure(&args.common, length + args.common.timeout(), &mut workers)?;
    drain(&mut workers, window.clock);
    let mut outcome = outcome(args, seed, &events, workers, window);
    let mut received = outcome.detail["deliveries"].as_u64().unwrap_or(0);
    if args.deaf > 0 {
        let gone = deaf.resume()?;
        received += gone.received;
        outcome.detail["deaf"] = gone.report;
    }
    if let Some(account) = account {
        outcome.detail["relay_counts"] = account.close(received, &mut outcome.violations)?;
    }
    Ok(outcome)
}

fn filter(args: &FanoutArgs) -> Value {
    match args.live_filter {
        LiveFilter::Limit => json!({"kinds": [args.kind], "limit": 0}),
        LiveFilter::Since => json!({"kinds": [args.kind], "since": unix_now()}),
    }
}

fn sign(args: &FanoutArgs, seed: u64) -> anyhow::Result<(Vec<SignedEvent>, IdIndex)> {
    if let Some(path) = &args.from {
        return events::load(path, Some(args.events as usize));
    }
    let mut generator = Generator::new(seed, 16, Vec::new(), unix_now(), args.events)?;
    let events: Vec<_> = (0..args.events)
        .map(|_| generator.sized_event(args.kind, args.payload_bytes as usize))
        .collect();
    let index = events::index(&events)?;
    Ok((events, index))
}

fn subscribe(
    filter: &Value,
    target: &crate::client::Target,
    connections: Vec<Connection>,
    events: usize,
) -> anyhow::Result<Vec<Subscriber>> {
    let mut subscribers: Vec<Subscriber> = connections
        .into_iter()
        .enumerate()
        .map(|(number, connection)| Subscriber::new(number, connection, events))
        .collect();
    for subscriber in &mut subscribers {
        subscriber.subscribe(filter, target.connect_timeout)?;
    }
    Ok(subscribers)
}

fn workers<'a>(
    args: &FanoutArgs,
    shared: &'a Shared<'a>,
    publisher: Publisher<'a>,
    subscribers: Vec<Subscriber>,
) -> anyhow::Result<Vec<FanoutWorker<'a>>> {
    let threads = usize::from(args.common.threads);
    // With several threads, the first one only publishes.
    let mut hands = if threads == 1 { vec![] } else { vec![Vec::new()] };
    hands.extend(deal(subscribers, (threads - 1).max(1)));
    let mut publisher = Some(publisher);
    hands
        .into_iter()
        .map(|mut subscribers| {
            let poller = Poller::new()?;
            for (token, subscriber) in subscribers.iter_mut().enumerate() {
                poller.add(subscriber.connection.as_mut().expect("it is open"), token)?;
            }
            let mut publisher = publisher.take();
            if let Some(publisher) = &mut publisher {
                poller
                    .add(publisher.connection.as_mut().expect("it is open"), subscribers.len())?;
            }
            let (latency, notices, violations) = Default::default();
            Ok(FanoutWorker {
                shared,
                publisher,
                subscribers,
                finished: false,
                poller,
                latency,
                notices,
                violations,
            })
        })
        .collect()
}

fn outcome(
    args: &FanoutArgs,
    seed: u64,
    events: &[SignedEvent],
    workers: Vec<FanoutWorker<'_>>,
    window: super::Window,
) -> Outcome {
    let (mut latency, mut notices, mut violations): (Latency, Notices, Violations) =
        Default::default();
    let mut detail = Value::Null;
    let (mut ok_latency, mut lateness) = (Latency::default(), Latency::default());
    let mut delivered = 0;
    let mut published = 0;
    let mut out_of_order = 0;
    for mut worker in workers {
        worker.judge();
        latency.merge(&worker.latency);
        notices.merge(worker.notices);
        violations.merge(worker.violations);
        out_of_order += worker.subscribers.iter().map(|one| one.out_of_order).sum::<u64>();
        delivered += worker.subscribers.iter().map(Subscriber::received).sum::<u64>();
        if let Some(publisher) = worker.publisher {
            published = publisher.sent() as u64;
            (detail, ok_latency, lateness) = publisher.finish();
        }
    }
    if !args.any_order {
        violations.add_many("delivery_out_of_order", out_of_order, || {
            format!("{out_of_order} of {delivered} came behind an event that was published later")
        });
    }
    let expected = published * u64::from(args.subscribers);
    let summary = latency.summary();
    let rate = per_second(summary.count, window.elapsed);
    let bytes = events.iter().map(|event| event.json.len()).sum::<usize>() / events.len();
    extend(
        &mut detail,
        json!({
            "seed": seed, "event_json_bytes_mean": bytes, "deliveries": delivered, "deliveries_expected": expected, "deliveries_out_of_order": out_of_order,
            "events_per_second": per_second(published, window.elapsed), "notices": notices.to_json(),
        }),
    );
    let accounts = window.account(summary.count);
    let ok_p50 = ok_latency.summary().p50;
    let text = format!(
        "{delivered} of {expected} deliveries, {rate} a second; delivery p50 {} µs, p99 {} µs, OK p50 {} µs; server {} µs \
         a delivery",
        summary.p50,
        summary.p99,
        ok_p50,
        accounts.cpu_us_per_op(),
    );
    let mut latencies = vec![("publish_to_receipt", latency), ("event_to_ok", ok_latency)];
    if !args.closed_loop {
        latencies.push(("send_lateness", lateness));
    }
    Outcome {
        violations,
        checked: expected + published,
        unit: "delivery",
        operations: summary.count,
        pacing: if args.closed_loop { Pacing::Closed } else { Pacing::Open },
        latencies,
        accounts,
        detail,
        summary: text,
    }
}

impl FanoutWorker<'_> {
    fn is_done(&self) -> bool {
        let deliverable =
            self.shared.events.len() as u64 - self.shared.refused.load(Ordering::Relaxed);
        let publisher_done = self.publisher.as_ref().is_none_or(Publisher::is_done);
        let behind =
            |subscriber: &Subscriber| subscriber.is_live() && subscriber.received() < deliverable;
        publisher_done && !self.subscribers.iter().any(behind)
    }

    fn on_ready(&mut self, ready: Ready, clock: Clock) -> Result<(), Lost> {
        let Some(subscriber) = self.subscribers.get_mut(ready.token) else {
            let Some(publisher) = &mut self.publisher else { return Ok(()) };
            return publisher.on_ready(
                ready,
                &mut self.poller,
                &mut self.notices,
                &mut self.violations,
                clock,
            );
        };
        let Some(connection) = &mut subscriber.connection else { return Ok(()) };
        if ready.writable {
            connection.flush()?;
        }
        self.poller.sync(connection, ready.token)?;
        if !ready.readable {
            return Ok(());
        }
        let before = subscriber.received();
        let mut buffer = std::mem::take(&mut self.poller.buffer);
        let result = subscriber.receive(
            &mut buffer,
            self.shared,
            &mut self.latency,
            &mut self.notices,
            &mut self.violations,
            clock,
        );
        self.poller.buffer = buffer;
        self.shared.delivered.fetch_add(subscriber.received() - before, Ordering::Relaxed);
        result
    }

    fn on_lost(&mut self, token: usize, why: &Lost) {
        match self.subscribers.get_mut(token) {
            Some(subscriber) => {
                if subscriber.is_live() {
                    self.shared.subscribers_live.fetch_sub(1, Ordering::Relaxed);
                }
                subscriber.connection = None;
                lost(&mut self.violations, "subscriber", subscriber.number, why);
            }
            None => {
                if let Some(publisher) = &mut self.publisher {
                    publisher.connection = None;
                }
                lost(&mut self.violations, "publisher", 0, why);
            }
        }
    }

    /// One wait and everything it brought; false when the generator itself fails.
    fn turn(&mut self, clock: Clock, wait: Duration, ready: &mut Vec<Ready>) -> bool {
        if let Err(error) = self.poller.wait(wait, ready) {
            self.violations.add("generator_failed", || error.to_string());
            return false;
        }
        for one in ready.drain(..) {
            if let Err(why) = self.on_ready(one, clock) {
                self.on_lost(one.token, &why);
            }
        }
        true
    }

    fn judge(&mut self) {
        if !self.finished {
            self.violations
                .add("timed_out", || "deliveries or answers came too late, or never".to_owned());
        }
        if let Some(publisher) = &self.publisher {
            publisher.judge(&mut self.violations);
        }
        let published = self.publisher_sent();
        for subscriber in &self.subscribers {
            subscriber.judge(self.shared, published, &mut self.violations);
        }
    }

    /// Events that left, by their timestamps: the publisher may be another worker's.
    fn publisher_sent(&self) -> usize {
        self.shared.from_ns.iter().take_while(|sent| sent.load(Ordering::Relaxed) != 0).count()
    }
}

impl Worker for FanoutWorker<'_> {
    fn run(&mut self, clock: Clock) {
        let mut ready = Vec::new();
        let publisher_token = self.subscribers.len();
        while !self.is_done() && !clock.is_over() {
            let mut wait = Duration::from_millis(POLL_MS_MAX);
            if let Some(publisher) = &mut self.publisher {
                match publisher.publish_due(&self.poller, publisher_token, clock) {
                    Ok(next) => wait = wait.min(next),
                    Err(why) => self.on_lost(publisher_token, &why),
                }
            }
            if !self.turn(clock, wait, &mut ready) {
                return;
            }
        }
        self.finished = self.is_done();
    }
}

/// Reads on for [`DRAIN`], outside the window.
fn drain(workers: &mut [FanoutWorker<'_>], window: Clock) {
    let clock = window.extended(DRAIN);
    let mut ready = Vec::new();
    while !clock.is_over() {
        for worker in workers.iter_mut() {
            worker.turn(clock, Duration::from_millis(1), &mut ready);
        }
    }
}
