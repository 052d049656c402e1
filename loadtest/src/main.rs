//! A thin load generator for Nostr relays.
//!
//! One run, one scenario, one JSON object on stdout. Events are signed and frames are masked before the measured
//! window; inside it a thread does nothing but read, recognize, record and write. Every run is bounded in count and in
//! time, goes to loopback only unless told otherwise, and is judged: an unanswered event, a delivery that is missing,
//! doubled or out of order, or a wrong answer to a query makes the run fail, because the figures of a relay that loses
//! messages mean nothing.
//!
//! The layers, outermost last: [`client`] (frames, connections, messages), [`events`] (making and loading signed
//! events), [`server`] (what the relay's process costs), [`report`] (percentiles and violations), [`scenario`] (the
//! measured window and one module a scenario).

#![forbid(unsafe_code)]
// Figures: microseconds, bytes and counts far below the types' ends, on 64 bits.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
#![allow(clippy::float_cmp, clippy::unchecked_time_subtraction)]

mod client;
mod events;
mod report;
mod scenario;
mod server;

use clap::{Parser, Subcommand};
use report::Outcome;
use scenario::{Common, deaf::DeafArgs, fanout::FanoutArgs, idle::IdleArgs};
use scenario::{ingest::IngestArgs, query::QueryArgs};
use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::thread::available_parallelism;

/// Puts load on a Nostr relay and tells what it did and what it cost.
///
/// Prints one JSON object on stdout and a line for a person on stderr. Exits with 0 if the relay kept every promise, 1
/// if it broke one (see "violations"), 2 if nothing could be measured.
///
/// A relay on CPU 0 and the generator on CPU 1:
///
///   rheostr-loadtest gen --count 100000 --out events.jsonl
///   rheostr-loadtest ingest --events events.jsonl --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest query --events events.jsonl --shape author --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest fanout --mode paced --events 500 --pid $(pidof rheostr) --pin 1
///   rheostr-loadtest deaf --mode paced --rate 100 --subscribers 100 --events 10000 --deaf 1000 --source-addresses 8 \
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
    /// Hold connections that do nothing
    Idle(IdleArgs),
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
        Command::Ingest(args) => {
            report("ingest", &args.common, &args, scenario::ingest::run(&args))
        }
        Command::Fanout(args) => {
            report("fanout", &args.common, &args, scenario::fanout::run(&args))
        }
        Command::Deaf(args) => {
            report("deaf", &args.fanout.common, &args, scenario::deaf::run(&args))
        }
        Command::Query(args) => report("query", &args.common, &args, scenario::query::run(&args)),
        Command::Idle(args) => report("idle", &args.common, &args, scenario::idle::run(&args)),
    }
}

fn report(
    name: &str,
    common: &Common,
    args: &impl Serialize,
    outcome: anyhow::Result<Outcome>,
) -> ExitCode {
    let Outcome { violations, body, summary } = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return failed(name, &error),
    };
    let ok = violations.is_empty();
    let mut report = json!({
        "scenario": name, "label": common.label, "ok": ok, "violations": violations.to_json(),
        "finished_at": events::generate::unix_now(), "parameters": args, "machine": machine(),
    });
    scenario::extend(&mut report, body);
    println!("{report}");
    if !common.json {
        let limited =
            if report["generator_limited"] == json!(true) { " (GENERATOR-LIMITED)" } else { "" };
        eprintln!("{name}: {}{limited}: {summary}", if ok { "ok" } else { "VIOLATIONS" });
        if !ok {
            eprintln!("{}", report["violations"]);
        }
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn failed(name: &str, error: &anyhow::Error) -> ExitCode {
    println!("{}", json!({"scenario": name, "ok": false, "error": format!("{error:#}")}));
    eprintln!("{name}: {error:#}");
    ExitCode::from(2)
}

/// What a figure depends on besides the relay.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "cpus": available_parallelism().map_or(0, usize::from),
        "cpu_model": model.map(|(_, model)| model),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}
