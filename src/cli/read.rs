//! `export`, `scan`, `count`: reading, also beside a running relay.

use std::ops::ControlFlow;
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use super::arguments::{ExportArguments, FilterArguments, StoreArguments};
use super::failure::Failure;
use super::logging;
use super::output::Output;
use crate::config::{Config, Log, LogLevel};
use crate::nostr::{EventView, Filter, MessageReader};
use crate::relay::ports::Query;
use crate::store::{ExportRange, Options, SliceBudget, Store};

/// One slice: what is read before the transaction is dropped.
const SLICE: SliceBudget =
    SliceBudget { entries: 20_000, bytes: 4 << 20, events: 2_000, time: Duration::MAX };

/// Runs `export`.
pub fn export(arguments: &ExportArguments) -> Result<(), Failure> {
    let (store, _) = open(&arguments.store)?;
    let ExportArguments { since, until, reverse, .. } = *arguments;
    let mut output = Output::open(&arguments.file)?;
    let mut broken = Ok(());
    let write = |event: EventView<'_>| {
        broken = output.line(event.json());
        if broken.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let events = if arguments.replaced {
        store.export_replaced(Filter { since, until, ..Filter::default() }, unix_now(), write)?
    } else {
        store.export(ExportRange { since, until, reverse }, unix_now(), write)?
    };
    broken?;
    output.finish()?;
    eprintln!("{events} events exported");
    Ok(())
}

/// Runs `scan`.
pub fn scan(arguments: &FilterArguments) -> Result<(), Failure> {
    let filters = filters(&arguments.filters)?;
    let (store, _) = open(&arguments.store)?;
    let mut scan = store.scan(Query { filters, limit_max: u64::MAX })?;
    let mut output = Output::stdout();
    loop {
        let chunk = scan.slice(&store, &SLICE, unix_now())?;
        for event in &chunk.events {
            output.line(event)?;
        }
        if let Some(error) = chunk.failed {
            output.finish()?;
            return Err(Failure::Failed(error));
        }
        if chunk.done {
            return output.finish();
        }
    }
}

/// Runs `count`.
pub fn count(arguments: &FilterArguments) -> Result<(), Failure> {
    let filters = filters(&arguments.filters)?;
    let (store, _) = open(&arguments.store)?;
    let count = store.count(&filters, unix_now())?;
    let mut output = Output::stdout();
    output.line(count.to_string().as_bytes())?;
    output.finish()
}

/// Opens the configured store for reading.
pub fn open(arguments: &StoreArguments) -> Result<(Store, Config), Failure> {
    let config = configure(arguments)?;
    let store = Store::open_read_only(&config.data, &store_options(&config))?;
    Ok((store, config))
}

/// Reads the configuration and starts logging, as quietly as suits a command.
pub fn configure(arguments: &StoreArguments) -> Result<Config, Failure> {
    let config = arguments.read()?;
    let level = match config.log.level {
        LogLevel::Info => LogLevel::Warn,
        level => level,
    };
    logging::start(&Log { level, ..config.log.clone() });
    Ok(config)
}

/// How the store is opened.
pub fn store_options(config: &Config) -> Options {
    Options { map_bytes_max: config.store.map_bytes_max, ..Options::default() }
}

/// Reads filters as the command line has them.
pub fn filters(texts: &[String]) -> Result<Vec<Filter>, Failure> {
    let mut reader = MessageReader::default();
    let read = |text: &String| {
        let filter = reader.read_filter(text.clone().into_bytes().as_mut_slice());
        filter.map_err(|why| Failure::Usage(format!("the filter {text}: {why}")))
    };
    texts.iter().map(read).collect()
}

/// Seconds since the epoch.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
