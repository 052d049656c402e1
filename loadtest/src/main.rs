//! A thin load generator for Nostr relays.
//!
//! One run, one scenario, one JSON object on stdout. Events are signed and frames are masked before the measured
//! window; inside it a thread does nothing but read, recognize, record and write. Every run is bounded in count and in
//! time, goes to loopback only unless told otherwise, and is judged: an unanswered event, a delivery that is missing,
//! doubled or out of order, or a wrong answer to a query makes the run fail, because the figures of a relay that loses
//! messages mean nothing.
//!
//! The layers, outermost last: [`client`] (frames, connections, messages), [`events`] (making and loading signed
//! events), [`server`] (what the relay's process costs), [`machine`] (what else the machine did), [`report`]
//! (percentiles, violations, the JSON of a run), [`scenario`] (the measured window and one module a scenario).

#![forbid(unsafe_code)]
// Figures: microseconds, bytes and counts far below the types' ends, on 64 bits.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
#![allow(clippy::float_cmp, clippy::unchecked_time_subtraction)]

mod client;
mod compare;
mod events;
mod machine;
mod page;
mod report;
mod scenario;
mod server;

use anyhow::Context;
use clap::{Parser, Subcommand};
use client::nip11;
use report::{Latency, Outcome, Report, SCHEMA, Subject};
use scenario::{Scenario, deaf::DeafArgs, fanout::FanoutArgs, idle::IdleArgs};
use scenario::{ingest::IngestArgs, query::CountArgs, query::QueryArgs};
use serde_json::json;
use std::process::ExitCode;

/// Puts load on a Nostr relay and tells what it did and what it cost.
///
/// Prints one JSON object on stdout (loadtest/REPORT.md says what is in it) and a few lines for a person on stderr. Exits with 0 if the relay kept every promise, 1
/// if it broke one (see "oracle"), 2 if nothing could be measured.
///
/// A relay on CPU 0 and the generator on CPU 1:
///
///   rheostr-loadtest gen --count 100000 --out events.jsonl
///   rheostr-loadtest ingest --events events.jsonl --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest query --events events.jsonl --shape author --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest fanout --rate 50 --events 500 --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest deaf --rate 100 --subscribers 100 --events 10000 --deaf 1000 --source-addresses 8 \
///     --timeout-s 300 --admin 127.0.0.1:7778
///   rheostr-loadtest idle --connections 5000 --source-addresses 8 --pid $(pidof rheostr)
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a file of signed, synthetic events
    Gen(events::generate::GenerateArgs),
    /// Publish a file and wait for every OK
    Ingest(IngestArgs),
    /// One publisher, many live subscriptions
    Fanout(FanoutArgs),
    /// The same without and with subscribers that never read, in turn
    Deaf(DeafArgs),
    /// Stored queries, REQ to EOSE
    Query(QueryArgs),
    /// COUNT to its answer (NIP-45); a relay that refuses is reported as such
    Count(CountArgs),
    /// Hold connections that do nothing
    Idle(IdleArgs),
    /// Relays side by side: a file of relays and runs
    Compare(compare::CompareArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Gen(args) => match events::generate::run(&args) {
            Ok(report) => {
                println!("{report}");
                ExitCode::SUCCESS
            }
            Err(error) => failed("gen", &error),
        },
        Command::Ingest(args) => report(args),
        Command::Fanout(args) => report(args),
        Command::Deaf(args) => report(args),
        Command::Query(args) => report(args),
        Command::Count(args) => report(args),
        Command::Idle(args) => report(args),
        Command::Compare(args) => match compare::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("compare: {error:#}");
                ExitCode::from(2)
            }
        },
    }
}

/// Runs a scenario as often as asked.
fn report<S: Scenario>(mut scenario: S) -> ExitCode {
    let name = S::NAME;
    let runs = scenario.common().runs;
    let mut reports = Vec::new();
    for run in 0..runs {
        scenario.common_mut().run = run;
        match scenario.run_and_judge().and_then(|outcome| tell(&scenario, outcome)) {
            Ok(report) => reports.push(report),
            Err(error) => return failed(name, &error),
        }
    }
    if runs > 1 {
        println!("{}", report::spread(name, &reports));
    }
    ExitCode::from(u8::from(!reports.iter().all(Report::is_ok)))
}

/// Prints a run, and keeps it if that is asked for.
fn tell<S: Scenario>(scenario: &S, outcome: Outcome) -> anyhow::Result<Report> {
    let (name, common) = (S::NAME, scenario.common());
    let subject = Subject {
        scenario: name.to_owned(),
        label: common.label.clone(),
        parameters: serde_json::to_value(scenario)?,
        relay: nip11::ask(&common.target()?),
        finished_at: events::generate::unix_now(),
    };
    let log = |(name, latency): &(&'static str, Latency)| (*name, latency.percentile_log());
    let logs: Vec<_> = outcome.latencies.iter().map(log).collect();
    let (summary, limited) = (outcome.summary.clone(), outcome.accounts.generator.limited);
    let report = Report::new(subject, outcome);
    let json = report.to_json();
    println!("{json}");
    if let Some(directory) = &common.out {
        let directory = match common.runs {
            1 => directory.clone(),
            _ => directory.join((common.run + 1).to_string()),
        };
        report::keep(&directory, &json, &logs)
            .with_context(|| format!("--out {}", directory.display()))?;
    }
    if !common.json {
        for complaint in report.complaints() {
            eprintln!("{name}: VIOLATION: {complaint}");
        }
        let limited = if limited { " (GENERATOR-LIMITED)" } else { "" };
        let verdict = if report.is_ok() { "ok" } else { "VIOLATIONS" };
        eprintln!("{name}: {verdict}{limited}: {summary}");
    }
    Ok(report)
}

fn failed(name: &str, error: &anyhow::Error) -> ExitCode {
    let error = format!("{error:#}");
    println!("{}", json!({"schema": SCHEMA, "scenario": name, "ok": false, "error": error}));
    eprintln!("{name}: {error}");
    ExitCode::from(2)
}
