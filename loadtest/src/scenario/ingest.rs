//! `ingest`: publish a file, wait for every OK, and look afterwards whether the relay has what it acknowledged.
//!
//! In the open loop each event has its time (`--rate`). In the closed loop (`--closed-loop`) each connection keeps
//! `--in-flight` events unanswered: the rate is the relay's own, and latency is that of a full window.

use super::mix::{Ledger, LiveFilter, Load, Ran};
use super::schedule::{Arrivals, Pace};
use super::stored::{self, CheckArgs, Checked};
use super::{Common, share};
use crate::events;
use crate::report::{Outcome, per_second};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Serialize)]
pub struct IngestArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub check: CheckArgs,
    /// Signed events, one JSON object a line (see `gen`); with --runs, each run publishes its share
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    /// Publish only N events of the file, its first if nothing is skipped
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Leave out the first N events of the file, which --limit does not count
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub skip: usize,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Events a second, over all connections
    #[arg(long, default_value_t = 1000.0, conflicts_with = "closed_loop")]
    pub rate: f64,
    /// The next event leaves when one is answered: the rate is the relay's own, and its stalls are hidden
    #[arg(long)]
    pub closed_loop: bool,
    /// Unanswered events a connection in the closed loop
    #[arg(long, default_value_t = 128, requires = "closed_loop", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// A refused event is a violation
    #[arg(long)]
    pub require_accepted: bool,
}

super::scenario!(IngestArgs, "ingest", common, run, |args| Some(&args.events));

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &IngestArgs) -> anyhow::Result<Outcome> {
    anyhow::ensure!(args.common.admin.is_none(), "--admin: there are no deliveries to count");
    let pace = match args.closed_loop {
        true => Pace::Closed { in_flight_max: args.in_flight as usize },
        false => Pace::Open(Arrivals::even(args.rate)?),
    };
    let (events, _) = events::load(&args.events, args.limit.map(|limit| args.skip + limit))?;
    let events = events.get(args.skip..).unwrap_or_default();
    let events = share(events, &args.common)?;
    let index = events::index(events)?;
    let publishers = (args.connections as usize).min(events.len());
    let ledger = Ledger::new(events, &index, publishers, &[])?;
    let target = args.common.prepare(publishers)?;
    let load = Load {
        ledger: &ledger,
        publish_pace: &pace,
        questions: None,
        script: None,
        followers: 0,
        live_filter: LiveFilter::Limit,
        any_order: false,
    };
    let mut ran = load.run(&args.common, &target)?;
    let checked = stored::check(&args.check, &target, &ledger, &mut ran.violations)?;
    Ok(outcome(args, events.len() as u64, &pace, ran, checked))
}

fn outcome(args: &IngestArgs, events: u64, pace: &Pace, ran: Ran, checked: Checked) -> Outcome {
    let Ran { published, notices, mut violations, window, .. } = ran;
    let verdicts = &published.verdicts;
    let answered = verdicts.answered();
    if args.require_accepted {
        let rejected = verdicts.rejected.values().sum();
        violations.add_many("rejected", rejected, || format!("{:?}", verdicts.rejected));
    }
    let ok = published.latency.summary();
    let accounts = window.account(ok.count);
    let rate = per_second(ok.count, accounts.elapsed);
    let detail = json!({
        "events": events, "answered": answered, "accepted": verdicts.accepted, "duplicate": verdicts.duplicate,
        "rejected": verdicts.rejected, "notices": notices.to_json(), "checked_afterwards": checked,
    });
    let summary = format!(
        "{answered} of {events} answered, {} accepted; {rate} events/s ({} loop); OK p50 {} µs, p99 {} µs; \
         server {} µs an event; {} looked for afterwards",
        verdicts.accepted,
        pace.name(),
        ok.p50,
        ok.p99,
        accounts.cpu_us_per_op(),
        checked.ids,
    );
    Outcome {
        violations,
        checked: events + checked.ids + checked.queries,
        unit: "event",
        operations: ok.count,
        pacing: pace.pacing(),
        latencies: pace.latencies("event_to_ok", published.latency, published.lateness),
        accounts,
        detail,
        summary,
    }
}
