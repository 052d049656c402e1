//! `delete`, `retain`, `info`, `check`: what an operator does to a data directory.

use std::io::IsTerminal;
use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::Value;

use super::arguments::{CheckArguments, DeleteArguments, InfoArguments, RetainArguments};
use super::failure::Failure;
use super::import::terms;
use super::output::Output;
use super::read::{configure, filters, store_options, unix_now};
use crate::config::memory::Size;
use crate::config::{Config, RetentionRule};
use crate::ops::admin::{Client, Reach, Running};
use crate::ops::server;
use crate::relay::limits::KeptAge;
use crate::store::{self, Doomed, Keep, Rule, Store, StoreError};

/// Runs `delete`.
pub fn delete(arguments: &DeleteArguments) -> Result<(), Failure> {
    let parsed = filters(&arguments.filters)?;
    let config = configure(&arguments.store)?;
    let dry_run = arguments.dry_run;
    let reach = if arguments.replaced { Reach::Replaced } else { Reach::All };
    let deleted = if dry_run {
        let store = Store::open_read_only(&config.data, &store_options(&config))?;
        let count = |doomed: Doomed| Ok::<_, StoreError>(doomed.len() as u64);
        server::delete(&store, parsed, reach, count, told)?
    } else {
        // Opening for writing makes a store where there is none, which is not what is meant here.
        Store::open_read_only(&config.data, &store_options(&config)).map(drop)?;
        match Store::open(&config.data, &store_options(&config)) {
            Ok(store) => {
                let erase = |doomed: Doomed| erase(&store, doomed);
                server::delete(&store, parsed, reach, erase, told)?
            }
            Err(held @ StoreError::Held { .. }) => {
                let client = match Client::connect(&config.data) {
                    Ok(client) => client,
                    Err(unreachable) => return Err(Failure::Held { held, unreachable }),
                };
                let values = arguments.filters.iter().map(|text| value_of(text)).collect();
                client.delete(values, reach, false, |sum| {
                    let _ = told(sum);
                })?
            }
            Err(error) => return Err(error.into()),
        }
    };
    let verb = if dry_run { "would be deleted" } else { "deleted" };
    let mut output = Output::stdout();
    output.line(format!("{deleted} events {verb}").as_bytes())?;
    output.finish()
}

/// Erases at once; answers how many.
fn erase(store: &Store, doomed: Doomed) -> Result<u64, StoreError> {
    let mut sum = 0;
    match doomed {
        Doomed::Stored(events) => store.erase(&events, &mut |part| sum += part.len() as u64)?,
        Doomed::Replaced(versions) => store.erase_replaced(&versions, &mut |part| sum += part)?,
    }
    Ok(sum)
}

/// The rules in force.
pub fn retention_rules(config: &Config) -> Vec<Rule> {
    let rule = |rule: &RetentionRule| {
        let age = rule.age_s_max.map(Keep::AgeS);
        let of_author = rule.author_events_max.map(Keep::OfAuthor);
        let keep = age.or(of_author).or(rule.bytes_max.map(Keep::Bytes));
        Rule { kinds: rule.kinds.clone(), keep: keep.expect("checked when it was read") }
    };
    config.retention.iter().map(rule).collect()
}

/// Of the rules in force those by age: what one of them would erase is not stored.
pub fn kept_ages(config: &Config) -> Vec<KeptAge> {
    let of = |rule: &RetentionRule| {
        Some(KeptAge { kinds: rule.kinds.clone(), age_s_max: rule.age_s_max? })
    };
    config.retention.iter().filter_map(of).collect()
}

/// Runs `retain`.
pub fn retain(arguments: &RetainArguments) -> Result<(), Failure> {
    let config = configure(&arguments.store)?;
    let rules = retention_rules(&config);
    if rules.is_empty() {
        return Err(Failure::Usage("the configuration has no [[retention]] rule".into()));
    }
    let dry_run = arguments.dry_run;
    // Opening for writing makes a store where there is none, which is not what is meant here.
    let mut store = Store::open_read_only(&config.data, &store_options(&config))?;
    if !dry_run {
        drop(store);
        store = Store::open(&config.data, &store_options(&config))?;
    }
    let mut sums = vec![(0, 0); rules.len()];
    let mut pass = store.retain(rules, unix_now(), dry_run);
    let mut total = 0;
    while let Some(surplus) = pass.slice(&store)? {
        let (events, bytes) = &mut sums[surplus.rule];
        *bytes += surplus.bytes;
        for doomed in [Doomed::Stored(surplus.events), Doomed::Replaced(surplus.replaced)] {
            total += doomed.len() as u64;
            *events += if dry_run { doomed.len() as u64 } else { erase(&store, doomed)? };
        }
        let _ = told(total);
    }
    let verb = if dry_run { "would be erased" } else { "erased" };
    let mut output = Output::stdout();
    for (rule, (events, bytes)) in config.retention.iter().zip(sums) {
        let rule = toml::Value::try_from(rule).expect("numbers are TOML");
        output.line(format!("{events} events, {} {verb} by {rule}", Size(bytes)).as_bytes())?;
    }
    output.finish()
}

fn value_of(text: &str) -> Value {
    serde_json::from_str(text).expect("it was read as a filter")
}

/// Tells a person how far it is.
fn told(sum: u64) -> ControlFlow<()> {
    if std::io::stderr().is_terminal() {
        eprint!("\r{sum} events ");
    }
    ControlFlow::Continue(())
}

/// What `info --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    data: String,
    events: u64,
    replaced: u64,
    last_sequence: u64,
    schema_version: u64,
    disk_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    map_bytes_max: u64,
    /// The read transaction that keeps most pages from being used again; `null` when none is open.
    oldest_reader: Option<OldestReader>,
    tables: Vec<Table>,
    relay: &'a Option<Running>,
}

#[derive(Debug, Serialize)]
struct OldestReader {
    pid: u32,
    transactions_behind: u64,
    alive: bool,
}

#[derive(Debug, Serialize)]
struct Table {
    name: &'static str,
    entries: u64,
    bytes: u64,
}

/// Runs `info`.
pub fn info(arguments: &InfoArguments) -> Result<(), Failure> {
    let config = configure(&arguments.store)?;
    // Before the store is open in this process.
    let oldest_reader = store::readers(&config.data)?.first().map(|reader| OldestReader {
        pid: reader.pid,
        transactions_behind: reader.behind,
        alive: reader.alive,
    });
    let store = Store::open_read_only(&config.data, &store_options(&config))?;
    let relay = Client::connect(&config.data).and_then(Client::info).ok();
    let store::Info {
        events,
        replaced,
        last_sequence,
        schema_version,
        disk_bytes,
        used_bytes,
        free_bytes,
        map_bytes_max,
        tables,
        ..
    } = store.info()?;
    let report = Report {
        data: config.data.display().to_string(),
        events,
        replaced,
        last_sequence,
        schema_version,
        disk_bytes,
        used_bytes,
        free_bytes,
        map_bytes_max,
        oldest_reader,
        tables: tables
            .into_iter()
            .map(|table| Table { name: table.name, entries: table.entries, bytes: table.bytes })
            .collect(),
        relay: &relay,
    };
    let mut output = Output::stdout();
    let text = match arguments.json {
        true => serde_json::to_string(&report).expect("plain fields serialize"),
        false => describe(&report),
    };
    output.line(text.as_bytes())?;
    output.finish()
}

fn describe(report: &Report<'_>) -> String {
    let mut out = format!(
        "data directory  {}\nrelay           {}\nevents          {}\nreplaced        {} archived\nlast sequence   {}\n\
         schema          {}\non disk         {} ({} in use, {} free), at most {}\n\
         oldest reader   {}\n",
        report.data,
        match report.relay {
            Some(Running { url, pid, version, shards, backend, .. }) => {
                format!("{url} (pid {pid}, version {version}, {shards} shards, {backend})")
            }
            None => "none answers".into(),
        },
        report.events,
        report.replaced,
        report.last_sequence,
        report.schema_version,
        Size(report.disk_bytes),
        Size(report.used_bytes),
        Size(report.free_bytes),
        Size(report.map_bytes_max),
        match report.oldest_reader {
            Some(OldestReader { pid, transactions_behind, alive }) => {
                let gone = if alive { "" } else { ", gone: the next writer clears it" };
                format!("pid {pid}, {transactions_behind} transactions behind{gone}")
            }
            None => "none".into(),
        },
    );
    for Table { name, entries, bytes } in &report.tables {
        out.push_str(&format!("  {name:<15}  {entries:>12} entries  {}\n", Size(*bytes)));
    }
    out.pop();
    out
}

/// Runs `check`.
pub fn check(arguments: &CheckArguments) -> Result<(), Failure> {
    let config = configure(&arguments.store)?;
    if arguments.repair {
        repair(&config)?;
    }
    tell(&Store::open_read_only(&config.data, &store_options(&config))?.check()?)
}

/// Makes the store anew and says what did not come along.
fn repair(config: &Config) -> Result<(), Failure> {
    let mut progress = |events| {
        let _ = told(events);
    };
    let (options, terms) = (store_options(config), terms(config));
    let repaired = Store::repair(&config.data, &options, &terms, &mut progress)?;
    let mut output = Output::stdout();
    for line in &repaired.described {
        output.line(line.as_bytes())?;
    }
    let summary = format!(
        "{} events and {} replaced versions kept ({} records made anew), {} left out; {} other entries left out",
        repaired.events,
        repaired.replaced,
        repaired.made_anew,
        repaired.left_out,
        repaired.entries_left_out,
    );
    output.line(summary.as_bytes())?;
    output.finish()
}

/// Prints what a check found; differences are a failure.
pub fn tell(report: &store::Report) -> Result<(), Failure> {
    let mut output = Output::stdout();
    for difference in &report.described {
        output.line(difference.as_bytes())?;
    }
    let store::Report { events, replaced, entries, differences, .. } = report;
    let summary = format!(
        "{events} events, {replaced} replaced versions, {entries} index entries, {differences} differences"
    );
    output.line(summary.as_bytes())?;
    output.finish()?;
    match report.differences {
        0 => Ok(()),
        differences => {
            Err(Failure::Differences(format!("the store has {differences} differences")))
        }
    }
}
