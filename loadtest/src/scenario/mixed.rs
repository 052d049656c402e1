//! `mixed`: publishers, followers and queries at fixed rates, all at once; an open loop throughout.
//!
//! Each follower has a filter of its own kind (everything, some authors, one author, a tag), so that what must be
//! delivered is what a naive evaluation of NIP-01's filters says, and not simply everything.

use super::corpus::{Corpus, Shape};
use super::mix::{Ledger, LiveFilter, Load, Questions, Ran, Script, Verb};
use super::schedule::{Arrivals, Pace};
use super::stored::{self, CheckArgs, Checked};
use super::{Common, extend};
use crate::events::generate::{Generator, unix_now};
use crate::events::{self, EventFields, IdIndex, Random, SignedEvent, learn};
use crate::report::{Latency, Outcome, Pacing, SEND_LATENESS, per_second};
use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// All events of a run are in memory, signed before it begins.
const EVENTS_MAX: f64 = 5e6;

#[derive(Args, Clone, Debug, Serialize)]
pub struct MixedArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub mix: MixArgs,
    /// How long the schedule is
    #[arg(long, default_value_t = 10.0)]
    pub duration_s: f64,
}

super::scenario!(MixedArgs, "mixed", mix.crowd.common, run);

/// Who publishes to whom.
#[derive(Args, Clone, Debug, Serialize)]
pub struct CrowdArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub check: CheckArgs,
    /// Connections that publish
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub publishers: u32,
    /// Connections with a live subscription
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub followers: u32,
    /// How many different filters they have
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub filters: u32,
    #[arg(long, value_enum, default_value_t = LiveFilter::Limit)]
    pub live_filter: LiveFilter,
    /// Count deliveries out of order, but do not call them violations
    #[arg(long)]
    pub any_order: bool,
}

/// Who signs what is published.
#[derive(Args, Clone, Debug, Serialize)]
pub struct SignArgs {
    /// Seed of the events, filters and queries: with --created-at it fixes every byte of the events, and without it all
    /// but their times, ids and signatures; each run of --runs adds 1 [default: from the clock, since a relay has seen
    /// the last run's]
    #[arg(long)]
    pub seed: Option<u64>,
    /// created_at of the first event, each next one is a second older; a relay may find it too old [default: now]
    #[arg(long, value_name = "UNIX_SECONDS")]
    pub created_at: Option<u64>,
    /// How many keys sign; a few of them write most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub authors: u32,
    /// Take kinds, sizes and tags (never text or keys) from the events of this file
    #[arg(long, value_name = "JSONL")]
    pub learn: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Serialize)]
pub struct MixArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub crowd: CrowdArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub sign: SignArgs,
    /// Events a second, over all publishers
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    /// Connections that ask stored queries
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub askers: u32,
    /// Queries a second, over all askers
    #[arg(long, default_value_t = 50.0)]
    pub query_rate: f64,
    /// Limit of each query
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub query_limit: u32,
}

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &MixedArgs) -> anyhow::Result<Outcome> {
    let stage = Stage::new(&args.mix, args.duration_s)?;
    stage.run(&args.mix)
}

/// The events, filters and queries of a run, made before it.
pub struct Stage {
    seed: u64,
    created_at: u64,
    events: Vec<SignedEvent>,
    index: IdIndex,
    corpus: Corpus,
    query_count: usize,
    pace: Pace,
}

impl Stage {
    /// # Errors
    /// A rate or a duration that makes no sense.
    pub fn new(args: &MixArgs, duration_s: f64) -> anyhow::Result<Self> {
        let count = |rate: f64| -> anyhow::Result<usize> {
            let count = rate * duration_s;
            ensure!(
                (1.0..=EVENTS_MAX).contains(&count),
                "{rate} a second for {duration_s} s is not between 1 and {EVENTS_MAX}"
            );
            Ok(count as usize)
        };
        let seed = args.sign.seed(&args.crowd.common);
        let created_at = args.sign.created_at();
        let events = args.sign.sign(seed, created_at, count(args.rate)? as u32)?;
        let index = events::index(&events)?;
        let corpus = Corpus::new(&events, index.clone(), false)?;
        let query_count = if args.askers == 0 { 0 } else { count(args.query_rate)? };
        let pace = Pace::Open(Arrivals::even(args.rate)?);
        Ok(Self { seed, created_at, events, index, corpus, query_count, pace })
    }

    /// # Errors
    /// Anything that keeps the window from being measured.
    pub fn run(&self, args: &MixArgs) -> anyhow::Result<Outcome> {
        let mut random = Random::new(self.seed);
        let questions = match self.query_count {
            0 => None,
            count => Some(Questions {
                verb: Verb::Req,
                corpus: &self.corpus,
                queries: self.draw(count, args.query_limit as usize, &mut random)?,
                connections: (args.askers as usize).min(count),
                pace: Pace::Open(Arrivals::even(args.query_rate)?),
                exact: false,
            }),
        };
        let Self { seed, events, index, .. } = self;
        let show = Show { seed: *seed, events, index, script: None };
        let mut outcome = show.run(&args.crowd, &self.pace, questions.as_ref())?;
        outcome.detail["created_at"] = json!(self.created_at);
        Ok(outcome)
    }

    fn draw(
        &self,
        count: usize,
        limit: usize,
        random: &mut Random,
    ) -> anyhow::Result<Vec<super::corpus::Query>> {
        let shapes = [Shape::Author, Shape::Tag, Shape::Kind, Shape::Ids];
        (0..count)
            .map(|i| {
                // Not every file has tags.
                self.corpus
                    .draw(shapes[i % shapes.len()], Some(limit), random)
                    .or_else(|_| self.corpus.draw(Shape::Author, Some(limit), random))
            })
            .collect()
    }
}

impl SignArgs {
    /// Another one in each run.
    pub fn seed(&self, common: &Common) -> u64 {
        let clock = || {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
        };
        self.seed.unwrap_or_else(clock).wrapping_add(common.run.into())
    }

    /// Of the first event.
    pub fn created_at(&self) -> u64 {
        self.created_at.unwrap_or_else(unix_now)
    }

    /// # Errors
    /// The file to learn from cannot be read.
    pub fn sign(&self, seed: u64, created_at: u64, count: u32) -> anyhow::Result<Vec<SignedEvent>> {
        let shapes = self.learn.as_deref().map(learn::read_shapes).transpose()?.unwrap_or_default();
        let mut generator = Generator::new(seed, self.authors, shapes, created_at, count)?;
        Ok((0..count).map(|_| generator.next_event()).collect())
    }
}

/// Published events, whoever made them.
pub struct Show<'a> {
    pub seed: u64,
    pub events: &'a [SignedEvent],
    pub index: &'a IdIndex,
    /// What further connections say.
    pub script: Option<&'a Script>,
}

impl Show<'_> {
    /// Runs the window and the checks after it.
    ///
    /// # Errors
    /// Anything that keeps the window from being measured.
    pub fn run(
        &self,
        args: &CrowdArgs,
        pace: &Pace,
        questions: Option<&Questions<'_>>,
    ) -> anyhow::Result<Outcome> {
        let filters = match args.followers {
            0 => Vec::new(),
            _ => filters(self.events, args.filters, &mut Random::new(self.seed))?,
        };
        let publishers = (args.publishers as usize).min(self.events.len());
        let ledger = Ledger::new(self.events, self.index, publishers, &filters)?;
        let load = Load {
            ledger: &ledger,
            publish_pace: pace,
            questions,
            script: self.script,
            followers: args.followers as usize,
            live_filter: args.live_filter,
            any_order: args.any_order,
        };
        let target = args.common.prepare(load.connections())?;
        let account = args.common.account()?;
        let mut ran = load.run(&args.common, &target)?;
        let received = ran.followed.received + ran.answered.events + ran.answered.late_events;
        let told = account.map(|account| account.close(received, &mut ran.violations));
        let checked = stored::check(&args.check, &target, &ledger, &mut ran.violations)?;
        let mut outcome = outcome(ran, checked);
        outcome.detail["seed"] = json!(self.seed);
        if let Some(told) = told {
            extend(&mut outcome.detail, told);
        }
        Ok(outcome)
    }
}

/// Filters that select everything of the run, or parts of it; each names authors, so that nobody else's events match.
fn filters(events: &[SignedEvent], count: u32, random: &mut Random) -> anyhow::Result<Vec<Value>> {
    let fields = events.iter().map(SignedEvent::fields).collect::<anyhow::Result<Vec<_>>>()?;
    let authors: Vec<&str> = fields
        .iter()
        .map(|event| event.pubkey.as_str())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let tagged: Vec<&EventFields> =
        fields.iter().filter(|event| event.tags.iter().any(|tag| is_indexed(tag))).collect();
    let mut some = |count: usize| -> Vec<&str> {
        let drawn: BTreeSet<usize> = (0..count).map(|_| random.below(authors.len())).collect();
        drawn.into_iter().map(|at| authors[at]).collect()
    };
    let one = |number: u32| match number % 4 {
        0 => json!({"authors": authors}),
        1 => json!({"authors": some(1)}),
        2 if !tagged.is_empty() => {
            let event = tagged[number as usize * 7919 % tagged.len()];
            let tag = event.tags.iter().find(|tag| is_indexed(tag)).expect("it is tagged");
            json!({"authors": authors, format!("#{}", tag[0]): [tag[1]]})
        }
        _ => json!({"authors": some(authors.len().div_ceil(4)), "kinds": [fields[0].kind]}),
    };
    Ok((0..count).map(one).collect())
}

/// A tag that filters can ask for.
pub fn is_indexed(tag: &[String]) -> bool {
    tag.len() > 1 && tag[0].len() == 1 && tag[0].as_bytes()[0].is_ascii_alphabetic()
}

fn outcome(ran: Ran, checked: Checked) -> Outcome {
    let Ran { published, answered, followed, notices, violations, window } = ran;
    let verdicts = &published.verdicts;
    let (ok, delivery) = (published.latency.summary(), followed.latency.summary());
    let eose = answered.latency.summary();
    let accounts = window.account(ok.count);
    let rate = |count: u64| per_second(count, accounts.elapsed);
    let mut detail = json!({
        "published": published.sent, "accepted": verdicts.accepted, "duplicate": verdicts.duplicate,
        "rejected": verdicts.rejected, "deliveries": followed.deliveries,
        "deliveries_expected": followed.expected, "deliveries_out_of_order": followed.out_of_order,
        "deliveries_per_second": rate(delivery.count), "queries": answered.complete,
        "queries_per_second": rate(eose.count), "queries_refused": answered.refused, "events_returned": answered.events,
    });
    extend(
        &mut detail,
        json!({
            "subscriptions_closed": followed.closed, "closed_reasons": followed.closed_reasons,
            "deliveries_declared_missing": followed.declared_missing,
            "notices": notices.to_json(), "checked_afterwards": checked,
        }),
    );
    let mut summary = format!(
        "{} of {} published were accepted, {}/s; OK p50 {} µs, p99 {} µs",
        verdicts.accepted,
        published.sent,
        rate(ok.count),
        ok.p50,
        ok.p99,
    );
    if followed.expected > 0 {
        summary += &format!(
            "; {} of {} deliveries, p50 {} µs, p99 {} µs",
            followed.deliveries, followed.expected, delivery.p50, delivery.p99
        );
    }
    if followed.closed > 0 {
        summary += &format!("; {} subscriptions ended by the relay", followed.closed);
    }
    if answered.complete > 0 {
        summary +=
            &format!("; {} queries, p50 {} µs, p99 {} µs", answered.complete, eose.p50, eose.p99);
    }
    summary += &format!("; server {} µs an event and what goes with it", accounts.cpu_us_per_op());
    let mut lateness = published.lateness;
    lateness.merge(&answered.lateness);
    let latencies = vec![
        ("publish_to_receipt", followed.latency),
        ("event_to_ok", published.latency),
        ("req_to_eose", answered.latency),
        (SEND_LATENESS, lateness),
    ];
    let has_any = |one: &(&str, Latency)| one.1.summary().count > 0;
    Outcome {
        violations,
        checked: published.sent
            + followed.expected
            + answered.complete
            + checked.ids
            + checked.queries,
        unit: "event",
        operations: ok.count,
        pacing: Pacing::Open,
        latencies: latencies.into_iter().filter(has_any).collect(),
        accounts,
        detail,
        summary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_differ_and_each_selects_something() {
        let mut generator = Generator::new(1, 20, Vec::new(), 1_800_000_000, 400).unwrap();
        let events: Vec<_> = (0..400).map(|_| generator.next_event()).collect();
        let index = events::index(&events).unwrap();
        let filters = filters(&events, 8, &mut Random::new(1)).unwrap();
        let ledger = Ledger::new(&events, &index, 1, &filters).unwrap();
        let due: Vec<u64> =
            ledger.audiences.iter().map(crate::scenario::mix::Audience::due).collect();
        assert_eq!((due[0], due[4]), (400, 400));
        assert!(due.iter().all(|due| *due > 0), "{due:?}");
        assert!(due.iter().filter(|due| **due < 400).count() == 6, "{due:?}");
    }
}
