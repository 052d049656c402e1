//! `query` and `count`: what the relay has stored, asked for by REQ or by NIP-45's COUNT.
//!
//! Filters are drawn from the file that the relay was fed with, so each finds something. Every answer is checked
//! against its filter, its limit and NIP-01's order; `--exact` also demands exactly the events of the file that match,
//! or their number. Each connection asks one query at a time: in the open loop, one that finds it busy waits, and its
//! latency counts from when it was due.

use super::corpus::{Corpus, Shape};
use super::mix::{Ledger, LiveFilter, Load, Questions, Ran, Verb};
use super::schedule::{Arrivals, Pace};
use super::{Common, extend};
use crate::events::{self, IdIndex, Random};
use crate::report::{Outcome, per_second, round};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

#[derive(Args, Clone, Debug, Serialize)]
pub struct QueryArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
}

super::scenario!(QueryArgs, "query", ask.common, run, |args| Some(&args.ask.events));

#[derive(Args, Clone, Debug, Serialize)]
pub struct CountArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub ask: AskArgs,
}

super::scenario!(CountArgs, "count", ask.common, run_count, |args| Some(&args.ask.events));

#[derive(Args, Clone, Debug, Serialize)]
pub struct AskArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// The events that the relay holds: filters are drawn from it, answers are checked against it
    #[arg(long, value_name = "JSONL")]
    pub events: PathBuf,
    #[arg(long, value_enum)]
    pub shape: Shape,
    /// How many queries, over all connections
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,
    /// Queries a second, over all connections
    #[arg(long, default_value_t = 200.0, conflicts_with = "closed_loop")]
    pub rate: f64,
    /// Each connection asks the next query when one is answered: the rate is the relay's own, and its stalls are hidden
    #[arg(long)]
    pub closed_loop: bool,
    /// Seed of the choice of filters
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The relay holds this file and nothing else: a missing or an extra event is a violation
    #[arg(long)]
    pub exact: bool,
}

/// `query`.
///
/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &QueryArgs) -> anyhow::Result<Outcome> {
    ask(&args.ask, Verb::Req, Some(args.limit as usize))
}

/// `count`.
///
/// # Errors
/// As [`run`].
pub fn run_count(args: &CountArgs) -> anyhow::Result<Outcome> {
    ask(&args.ask, Verb::Count, None)
}

fn ask(args: &AskArgs, verb: Verb, limit: Option<usize>) -> anyhow::Result<Outcome> {
    let pace = match args.closed_loop {
        true => Pace::Closed { in_flight_max: 1 },
        false => Pace::Open(Arrivals::even(args.rate)?),
    };
    let (events, index) = events::load(&args.events, None)?;
    let corpus = Corpus::new(&events, index, args.exact)?;
    drop(events);
    let mut random = Random::new(args.seed.wrapping_add(args.common.run.into()));
    let queries = (0..args.count)
        .map(|_| corpus.draw(args.shape, limit, &mut random))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let connections = (args.connections as usize).min(queries.len());
    let exact = args.exact;
    let questions = Questions { verb, corpus: &corpus, queries, connections, pace, exact };
    let nothing = (Vec::new(), IdIndex::new());
    let ledger = Ledger::new(&nothing.0, &nothing.1, 0, &[])?;
    let target = args.common.prepare(connections)?;
    let account = args.common.account()?;
    let load = Load {
        ledger: &ledger,
        publish_pace: &Pace::Closed { in_flight_max: 0 },
        questions: Some(&questions),
        script: None,
        followers: 0,
        live_filter: LiveFilter::Limit,
        any_order: false,
    };
    let ran = load.run(&args.common, &target)?;
    let received = ran.answered.events + ran.answered.late_events;
    let mut outcome = outcome(args, &questions, ran);
    if let Some(account) = account {
        let told = account.close(received, &mut outcome.violations);
        extend(&mut outcome.detail, told);
    }
    Ok(outcome)
}

fn outcome(args: &AskArgs, questions: &Questions<'_>, ran: Ran) -> Outcome {
    let Ran { answered, notices, violations, window, .. } = ran;
    let pace = &questions.pace;
    let all = questions.queries.len() as u64;
    let latency = answered.latency.summary();
    let accounts = window.account(latency.count);
    let rate = per_second(latency.count, accounts.elapsed);
    let mut detail = json!({
        "queries": all, "answered": answered.complete, "refused": answered.refused,
        "notices": notices.to_json(),
    });
    let mut summary = format!(
        "{} of {} answered; {rate} a second ({} loop); p50 {} µs, p99 {} µs; server {} µs each",
        answered.complete,
        args.count,
        pace.name(),
        latency.p50,
        latency.p99,
        accounts.cpu_us_per_op(),
    );
    let span = match questions.verb {
        Verb::Req => {
            let (returned, measured) = (answered.events, answered.events_measured);
            let cpu_us = accounts.server.as_ref().map(|server| server.user_us + server.sys_us);
            let cpu_us_per_event =
                cpu_us.filter(|_| measured > 0).map(|us| round(us / measured as f64, 3));
            let more = json!({
                "events_returned": returned,
                "events_per_query": round(returned as f64 / answered.complete.max(1) as f64, 2),
                "events_not_in_file": answered.unknown, "message_bytes": answered.bytes,
                "events_per_second": per_second(measured, accounts.elapsed),
                "cpu_us_per_event": cpu_us_per_event,
            });
            extend(&mut detail, more);
            summary += &format!(", {} an event; {returned} events", detail["cpu_us_per_event"]);
            "req_to_eose"
        }
        Verb::Count => {
            detail["approximate"] = json!(answered.approximate);
            if answered.refused_count() > 0 {
                let reasons = &answered.refused;
                summary += &format!("; REFUSED {}: {reasons:?}", answered.refused_count());
            }
            "count_to_answer"
        }
    };
    Outcome {
        violations,
        checked: answered.complete,
        unit: "query",
        operations: latency.count,
        pacing: pace.pacing(),
        latencies: pace.latencies(span, answered.latency, answered.lateness),
        accounts,
        detail,
        summary,
    }
}
