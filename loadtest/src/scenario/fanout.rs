//! `fanout`: one publisher, many live subscriptions, every event to each of them exactly once and in order.
//!
//! In the open loop events are due at a fixed rate, and the latency of a delivery runs from then to the subscriber's
//! read; in the closed loop the publisher sends as fast as its window allows, which measures the cost of a delivery.
//! Either way the commit of a durable relay is in the latency; the OK's is reported beside it, to be subtracted.

mod bystanders;
mod deaf;

use super::mix::{Ledger, LiveFilter, Load, Ran};
use super::schedule::{Arrivals, Pace};
use super::{Common, extend, share};
use crate::events::generate::{Generator, unix_now};
use crate::events::{self, SignedEvent};
use crate::report::{Outcome, per_second};
use bystanders::Bystanders;
use clap::Args;
use deaf::Deaf;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Args, Clone, Debug, Serialize)]
pub struct FanoutArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub subscribers: u32,
    /// How many events are published
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub events: u32,
    /// Events a second
    #[arg(long, default_value_t = 50.0, conflicts_with = "closed_loop")]
    pub rate: f64,
    /// The next event leaves when one is answered: the rate is the relay's own, and its stalls are hidden
    #[arg(long)]
    pub closed_loop: bool,
    /// Unanswered events of the closed loop's publisher
    #[arg(long, default_value_t = 128, requires = "closed_loop", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
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
    /// Further connections that get nothing
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub bystanders: u32,
    /// Live subscriptions of each bystander, to authors who write nothing
    #[arg(
        long, default_value_t = 0, requires = "bystanders", value_parser = clap::value_parser!(u32).range(..=10_000)
    )]
    pub bystander_subscriptions: u32,
    /// Seed of the published events: with --created-at it fixes every byte of them, and without it all but their time,
    /// id and signature; each run of --runs adds 1 [default: from the clock, since a relay has seen the last run's]
    #[arg(long)]
    pub seed: Option<u64>,
    /// created_at of all events; a relay may find it too old [default: now]
    #[arg(long, value_name = "UNIX_SECONDS")]
    pub created_at: Option<u64>,
    /// Publish these signed events instead, all of --kind
    #[arg(long, value_name = "JSONL", conflicts_with_all = ["seed", "created_at", "payload_bytes"])]
    pub from: Option<PathBuf>,
}

super::scenario!(FanoutArgs, "fanout", common, run, |args| args.from.as_deref());

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &FanoutArgs) -> anyhow::Result<Outcome> {
    let pace = match args.closed_loop {
        true => Pace::Closed { in_flight_max: args.in_flight as usize },
        false => Pace::Open(Arrivals::even(args.rate)?),
    };
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = args.seed.unwrap_or_else(clock).wrapping_add(args.common.run.into());
    let created_at = args.created_at.unwrap_or_else(unix_now);
    let events = sign(args, seed, created_at)?;
    let index = events::index(&events)?;
    let filter = json!({"kinds": [args.kind]});
    let ledger = Ledger::new(&events, &index, 1, std::slice::from_ref(&filter))?;
    let load = Load {
        ledger: &ledger,
        publish_pace: &pace,
        questions: None,
        script: None,
        followers: args.subscribers as usize,
        live_filter: args.live_filter,
        any_order: args.any_order,
    };
    let besides = args.deaf as usize + args.bystanders as usize;
    let target = args.common.prepare(load.connections() + besides)?;
    let account = args.common.account()?;
    let (live, since) = (args.live_filter, ledger.created_from);
    let bystanders =
        Bystanders::open(&target, args.bystanders, args.bystander_subscriptions, live, since)?;
    let deaf = Deaf::open(&target, args.deaf, live, &filter, since, args.common.pid)?;
    let ran = load.run(&args.common, &target)?;
    let mut received = ran.followed.received;
    let mut outcome = outcome(args, &pace, &events, ran);
    if args.from.is_none() {
        extend(&mut outcome.detail, json!({"seed": seed, "created_at": created_at}));
    }
    bystanders.judge(&mut outcome.violations)?;
    if args.deaf > 0 {
        let gone = deaf.resume()?;
        received += gone.received;
        outcome.detail["deaf"] = gone.report;
    }
    if let Some(account) = account {
        let told = account.close(received, &mut outcome.violations);
        extend(&mut outcome.detail, told);
    }
    Ok(outcome)
}

fn sign(args: &FanoutArgs, seed: u64, created_at: u64) -> anyhow::Result<Vec<SignedEvent>> {
    if let Some(path) = &args.from {
        let (events, _) = events::load(path, Some(args.events as usize))?;
        return Ok(share(&events, &args.common)?.to_vec());
    }
    let mut generator = Generator::new(seed, 16, Vec::new(), created_at, args.events)?;
    Ok((0..args.events)
        .map(|_| generator.sized_event(args.kind, args.payload_bytes as usize))
        .collect())
}

fn outcome(args: &FanoutArgs, pace: &Pace, events: &[SignedEvent], ran: Ran) -> Outcome {
    let Ran { published, followed, notices, mut violations, window, .. } = ran;
    let verdicts = &published.verdicts;
    // All of them are new and valid, and their readers keep up: there is nothing to refuse or to end.
    let refused = verdicts.answered() - verdicts.accepted;
    violations.add_many("publish_refused", refused, || {
        format!("{} duplicates, {:?}", verdicts.duplicate, verdicts.rejected)
    });
    violations
        .add_many("subscription_closed", followed.closed, || followed.closed_reasons.join("; "));
    let (delivery, ok) = (followed.latency.summary(), published.latency.summary());
    let accounts = window.account(delivery.count);
    let expected = published.sent * u64::from(args.subscribers);
    let bytes = events.iter().map(|event| event.json.len()).sum::<usize>() / events.len();
    let detail = json!({
        "events_published": published.sent, "accepted": verdicts.accepted, "rejected": verdicts.rejected,
        "event_json_bytes_mean": bytes, "deliveries": followed.deliveries,
        "deliveries_expected": expected, "deliveries_out_of_order": followed.out_of_order,
        "events_per_second": per_second(ok.count, accounts.elapsed), "notices": notices.to_json(),
    });
    let summary = format!(
        "{} of {expected} deliveries, {} a second ({} loop); delivery p50 {} µs, p99 {} µs, OK p50 {} µs; server {} µs \
         a delivery",
        followed.deliveries,
        per_second(delivery.count, accounts.elapsed),
        pace.name(),
        delivery.p50,
        delivery.p99,
        ok.p50,
        accounts.cpu_us_per_op(),
    );
    let mut latencies = pace.latencies("publish_to_receipt", followed.latency, published.lateness);
    latencies.insert(1, ("event_to_ok", published.latency));
    Outcome {
        violations,
        checked: expected + published.sent,
        unit: "delivery",
        operations: delivery.count,
        pacing: pace.pacing(),
        latencies,
        accounts,
        detail,
        summary,
    }
}
