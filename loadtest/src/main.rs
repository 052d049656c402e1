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
//! (percentiles, violations, the JSON of a run), [`scenario`] (the measured window and one module a scenario), [`plan`]
//! (many runs from one file), [`compare`] (relays side by side), [`page`] (plots of either).

#![forbid(unsafe_code)]
// Figures: microseconds, bytes and counts far below the types' ends, on 64 bits.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
#![allow(clippy::float_cmp, clippy::unchecked_time_subtraction)]

mod client;
mod compare;
mod events;
mod machine;
mod page;
mod plan;
mod report;
mod scenario;
mod server;

use anyhow::Context;
use clap::{Parser, Subcommand};
use client::nip11;
use page::Told;
use plan::PlanArgs;
use report::{Latency, Outcome, Report, SCHEMA, Subject};
use scenario::{
    Common, Scenario, burst::BurstArgs, deaf::DeafArgs, fanout::FanoutArgs, idle::IdleArgs,
};
use scenario::{ingest::IngestArgs, mixed::MixedArgs, query::CountArgs, query::QueryArgs};
use scenario::{replay::ReplayArgs, soak::SoakArgs, visits::ChurnArgs, visits::ConnectArgs};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Puts load on a Nostr relay and tells what it did and what it cost.
///
/// Prints one JSON object a run on stdout (loadtest/REPORT.md says what is in it), and a few
/// lines and a table of latencies for a person on stderr. Exits with 0 if the relay kept every promise, 1 if it broke
/// one (see "oracle"), 2 if nothing could be measured, or not be kept.
///
/// Operations are due on a schedule whatever the relay does, and their latency counts from
/// then: an open loop. --closed-loop waits for answers instead, which measures what the relay
/// takes at most, and hides its stalls.
///
/// A relay on CPU 0 and the generator on CPU 1:
///
///   rheostr-loadtest gen --count 100000 --out events.jsonl
///   rheostr-loadtest ingest --events events.jsonl --rate 5000 --pid $(pidof rheostr) --pin 1
///
/// Each subcommand's --help ends with an example.
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a file of signed, synthetic events
    #[command(
        after_help = "Example: rheostr-loadtest gen --count 100000 --seed 7 --learn real.jsonl --out events.jsonl"
    )]
    Gen(events::generate::GenerateArgs),
    /// Measures handshakes: from the TCP connect to the upgrade's answer
    #[command(
        after_help = "Example: rheostr-loadtest connect --rate 500 --count 5000 --source-addresses 8"
    )]
    Connect(ConnectArgs),
    /// Measures what a connection costs that does nothing: memory and CPU time
    #[command(
        after_help = "Example: rheostr-loadtest idle --connections 5000 --source-addresses 8 --pid $(pidof rheostr)"
    )]
    Idle(IdleArgs),
    /// Measures publishing: from EVENT to OK, and whether what was acknowledged is there
    #[command(
        after_help = "Example: rheostr-loadtest ingest --events events.jsonl --rate 5000 --pid $(pidof rheostr)"
    )]
    Ingest(IngestArgs),
    /// Measures live delivery: one publisher, many subscriptions, every event to each once and in order
    #[command(
        after_help = "Example: rheostr-loadtest fanout --rate 50 --events 500 --subscribers 200"
    )]
    Fanout(FanoutArgs),
    /// Measures stored queries: from REQ to EOSE, each answer checked
    #[command(
        after_help = "Example: rheostr-loadtest query --events events.jsonl --shape author --rate 500"
    )]
    Query(QueryArgs),
    /// Measures counting (NIP-45): from COUNT to its answer; a relay that refuses is reported as refusing
    #[command(
        after_help = "Example: rheostr-loadtest count --events events.jsonl --shape tag --rate 100"
    )]
    Count(CountArgs),
    /// Measures publishers, followers and queries at fixed rates, all at once
    #[command(
        after_help = "Example: rheostr-loadtest mixed --rate 500 --followers 100 --query-rate 100 --duration-s 30"
    )]
    Mixed(MixedArgs),
    /// Measures connections that come, subscribe and go, closing properly or breaking off
    #[command(
        after_help = "Example: rheostr-loadtest churn --rate 200 --count 10000 --abort-share 0.5 --pid $(pidof rheostr)"
    )]
    Churn(ChurnArgs),
    /// Measures how bursts of events are taken and delivered
    #[command(
        after_help = "Example: rheostr-loadtest burst --burst-events 1000 --every-ms 2000 --bursts 10"
    )]
    Burst(BurstArgs),
    /// Measures what subscribers that never read cost the others: the same fan-out without and with them, in turn
    #[command(
        name = "slow-readers",
        visible_alias = "deaf",
        after_help = "Example: rheostr-loadtest slow-readers --rate 100 --subscribers 100 --events 10000 --deaf 1000 \
                      --source-addresses 8 --timeout-s 300"
    )]
    SlowReaders(DeafArgs),
    /// Measures whether memory and open files stay flat under the mixed load, for long
    #[command(
        after_help = scenario::soak::HELP
    )]
    Soak(SoakArgs),
    /// Measures a file's events at their own pace, or a multiple of it
    #[command(after_help = "Example: rheostr-loadtest replay --events real.jsonl --speed 60")]
    Replay(ReplayArgs),
    /// Measures relays side by side, in turn: a TOML file of relays and runs
    #[command(
        after_help = "Example: rheostr-loadtest compare loadtest/compare.toml --html compare.html"
    )]
    Compare(compare::CompareArgs),
    /// Runs the scenarios of a TOML file one after the other
    #[command(after_help = plan::EXAMPLE)]
    Plan(PlanArgs),
}

fn main() -> ExitCode {
    ExitCode::from(execute(Cli::parse().command, &mut Vec::new()))
}

/// The exit status; the runs are added to `told`.
fn execute(command: Command, told: &mut Vec<Vec<Told>>) -> u8 {
    match command {
        Command::Gen(args) => match events::generate::run(&args) {
            Ok(report) => {
                println!("{report}");
                0
            }
            Err(error) => failed("gen", &error).0,
        },
        Command::Connect(args) => report(args, told),
        Command::Idle(args) => report(args, told),
        Command::Ingest(args) => report(args, told),
        Command::Fanout(args) => report(args, told),
        Command::Query(args) => report(args, told),
        Command::Count(args) => report(args, told),
        Command::Mixed(args) => report(args, told),
        Command::Churn(args) => report(args, told),
        Command::Burst(args) => report(args, told),
        Command::SlowReaders(args) => report(args, told),
        Command::Soak(args) => report(args, told),
        Command::Replay(args) => report(args, told),
        Command::Compare(args) => match compare::run(&args) {
            Ok(ok) => u8::from(!ok),
            Err(error) => {
                eprintln!("compare: {error:#}");
                2
            }
        },
        Command::Plan(args) => match plan::read::<Cli>(&args) {
            Ok(runs) => {
                let statuses = runs.into_iter().map(|run| execute(run.command, told));
                statuses.max().unwrap_or(0).max(draw("plan", args.html.as_deref(), told))
            }
            Err(error) => failed("plan", &error).0,
        },
    }
}

/// Runs a scenario as often as asked; the exit status.
fn report<S: Scenario>(mut scenario: S, told: &mut Vec<Vec<Told>>) -> u8 {
    let Common { runs, html, .. } = scenario.common().clone();
    let (mut reports, mut mine, mut status) = (Vec::new(), Vec::new(), 0);
    for run in 0..runs {
        scenario.common_mut().run = run;
        match scenario.run_and_judge().and_then(|outcome| tell(&scenario, outcome)) {
            Ok((report, run)) => {
                status = status.max(u8::from(!report.is_ok()));
                reports.push(report);
                mine.push(run);
            }
            Err(error) => {
                let (code, run) = failed(S::NAME, &error);
                status = code;
                mine.push(run);
                break;
            }
        }
    }
    if runs > 1 && reports.len() == usize::from(runs) {
        println!("{}", report::spread(S::NAME, &reports));
    }
    told.push(mine);
    status.max(draw(S::NAME, html.as_deref(), &told[told.len() - 1..]))
}

/// Prints a run, and keeps it if that is asked for.
fn tell<S: Scenario>(scenario: &S, outcome: Outcome) -> anyhow::Result<(Report, Told)> {
    let (name, common) = (S::NAME, scenario.common());
    let events = match scenario.file() {
        Some(file) if !events::generate::is_synthetic(file) => Some("unlabelled"),
        None if outcome.unit == "connection" => None,
        _ => Some("synthetic"),
    };
    let subject = Subject {
        scenario: name.to_owned(),
        label: common.label.clone(),
        events,
        parameters: serde_json::to_value(scenario)?,
        relay: nip11::ask(&common.target()?),
        finished_at: events::generate::unix_now(),
    };
    let log = |(name, latency): &(&'static str, Latency)| (*name, latency.percentile_log());
    let logs: Vec<_> = outcome.latencies.iter().map(log).collect();
    let (began, lasted) = (outcome.accounts.began, outcome.accounts.elapsed);
    let mut files: Vec<(String, String)> =
        logs.iter().map(|(name, log)| (format!("{name}.hgrm"), log.clone())).collect();
    for (name, latency) in &outcome.latencies {
        files.push((format!("{name}.hlog"), latency.interval_log(name, began, lasted)));
    }
    let (summary, limited) = (outcome.summary.clone(), outcome.accounts.generator.limited);
    let report = Report::new(subject, outcome);
    let json = report.to_json();
    println!("{json}");
    if let Some(directory) = &common.out {
        let directory = match common.runs {
            1 => directory.clone(),
            _ => directory.join((common.run + 1).to_string()),
        };
        report::keep(&directory, &json, &files)
            .with_context(|| format!("--out {}", directory.display()))?;
    }
    if !common.json {
        for complaint in report.complaints() {
            eprintln!("{name}: VIOLATION: {complaint}");
        }
        let limited = if limited { " (GENERATOR-LIMITED)" } else { "" };
        let verdict = if report.is_ok() { "ok" } else { "VIOLATIONS" };
        let events = events.map_or_else(String::new, |events| format!("; {events} events"));
        eprintln!("{name}: {verdict}{limited}: {summary}{events}");
    }
    let told = Told { report: serde_json::to_value(&report)?, logs };
    if !common.json {
        eprint!("{}", page::latency_table(&told.report));
    }
    Ok((report, told))
}

/// Draws the page that is asked for; the exit status.
fn draw(name: &str, html: Option<&Path>, told: &[Vec<Told>]) -> u8 {
    match html.map(|html| page::write(html, page::runs(told))) {
        None | Some(Ok(())) => 0,
        Some(Err(error)) => {
            eprintln!("{name}: {error:#}");
            2
        }
    }
}

/// Tells that there is no run.
fn failed(name: &str, error: &anyhow::Error) -> (u8, Told) {
    let error = format!("{error:#}");
    let report = json!({"schema": SCHEMA, "scenario": name, "ok": false, "error": error});
    println!("{report}");
    eprintln!("{name}: {error}");
    (2, Told { report, logs: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_another_leaves_without_effect_is_refused() {
        let lines = [
            "replay --events e.jsonl --authors 3",
            "replay --events e.jsonl --learn f.jsonl",
            "ingest --events e.jsonl --in-flight 8",
            "ingest --events e.jsonl --closed-loop --rate 5",
            "query --events e.jsonl --shape tag --closed-loop --rate 5",
            "fanout --in-flight 8",
            "fanout --closed-loop --rate 5",
            "fanout --bystander-subscriptions 2",
            "fanout --from e.jsonl --seed 2",
            "fanout --from e.jsonl --created-at 2",
            "fanout --from e.jsonl --payload-bytes 500",
            "connect --at-once 3",
            "churn --closed-loop --open-max 3",
        ];
        let is_taken = |line: &&str| {
            Cli::try_parse_from(["rheostr-loadtest"].into_iter().chain(line.split(' '))).is_ok()
        };
        assert_eq!(lines.into_iter().filter(is_taken).collect::<Vec<_>>(), [""; 0]);
    }
}
