//! `import`: JSON lines into the store, by itself or through the relay that runs on it.
//!
//! Memory is bounded by what is in flight between the threads of `lines`, one batch, and the pages that
//! a transaction of as many events touches.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::arguments::ImportArguments;
use super::failure::Failure;
use super::lines::{CHUNK_LINES_MAX, Chunk, read_events};
use super::output::Output;
use super::read::{configure, store_options, unix_now};
use super::tend::kept_ages;
use crate::config::Config;
use crate::nostr::Event;
use crate::ops::admin::{CHUNK_EVENTS_MAX, Client, Import};
use crate::relay::limits::KeptAge;
use crate::relay::ports::{Submission, Ticket, Verdict};
use crate::store::{RelayNames, Store, StoreError, Terms};

/// Rejected lines named one by one; the others are counted by reason.
const REJECTED_NAMED_MAX: u64 = 20;

const READ_BUFFER_BYTES: usize = 1 << 20;

/// Lines of one transaction: ten times a relay's, whose clients wait for it. The more there are, the more
/// of them share a page that has to be written.
const BATCH_LINES_MAX: usize = 10_000;
/// Bytes of a batch's lines, but for its last chunk.
const BATCH_BYTES_MAX: u64 = 32 << 20;

/// Runs the command.
pub fn run(arguments: &ImportArguments) -> Result<(), Failure> {
    let config = configure(&arguments.store)?;
    let (input, bytes) = open(&arguments.file)?;
    let mut target = if arguments.dry_run { Target::Nothing } else { Target::open(&config)? };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut tally = Tally::new(bytes);
    let verify = config.verify && !arguments.no_verify;
    let kept_ages = kept_ages(&config);
    let mut batch = Batch::default();
    read_events(input, verify, workers, |chunk| {
        batch.add(chunk, &kept_ages, unix_now());
        if !batch.has_room(target.batch_lines_max()) {
            tally.take(std::mem::take(&mut batch), &mut target)?;
        }
        Ok::<_, Failure>(())
    })?;
    tally.take(batch, &mut target)?;
    tally.finish(arguments.json)
}

/// The input and, where it is known, its length.
fn open(path: &Path) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, io::stdin())), None));
    }
    let failed = |source| Failure::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let bytes = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, file)), bytes))
}

/// What takes the events.
enum Target {
    /// This process holds the directory.
    Store(Store, Terms),
    /// A relay does.
    Relay(Import),
    /// Nobody is to: a dry run.
    Nothing,
}

impl Target {
    fn open(config: &Config) -> Result<Self, Failure> {
        match Store::open(&config.data, &store_options(config)) {
            Ok(store) => Ok(Self::Store(store, terms(config))),
            Err(held @ StoreError::Held { .. }) => match Client::connect(&config.data) {
                Ok(client) => Ok(Self::Relay(client.import()?)),
                Err(unreachable) => Err(Failure::Held { held, unreachable }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// What [`Target::store`] may be given at once.
    fn batch_lines_max(&self) -> usize {
        match self {
            Self::Store(..) | Self::Nothing => BATCH_LINES_MAX,
            Self::Relay(_) => CHUNK_EVENTS_MAX,
        }
    }

    /// Stores a batch; returns when it is durable, with the verdicts in order.
    fn store(&mut self, events: Vec<Event>) -> Result<Vec<Verdict>, Failure> {
        match self {
            Self::Store(store, terms) => {
                let batch: Vec<Submission> = (0..)
                    .zip(events)
                    .map(|(token, event)| Submission { event, ticket: Ticket { origin: 0, token } })
                    .collect();
                let committed = store.apply(&batch, unix_now(), terms)?;
                Ok(committed.verdicts.into_iter().map(|(_, verdict)| verdict).collect())
            }
            Self::Relay(import) => Ok(import.store(&events)?),
            Self::Nothing => Ok(vec![Verdict::Stored; events.len()]),
        }
    }
}

/// What is laid down for every transaction.
pub fn terms(config: &Config) -> Terms {
    let url = (!config.relay_url.is_empty()).then_some(&config.relay_url);
    Terms { names: RelayNames::new(url), keep_replaced: config.store.keep_replaced }
}

/// What is stored together.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    /// The number of each event's line.
    numbers: Vec<u64>,
    /// Other lines, and what is wrong with them.
    refused: Vec<(u64, &'static str)>,
    /// Bytes of input.
    bytes: u64,
}

impl Batch {
    fn add(&mut self, chunk: Chunk, kept_ages: &[KeptAge], unix_s: u64) {
        self.bytes += chunk.bytes;
        for (number, outcome) in chunk.lines {
            match outcome {
                Ok(event) if !kept_ages.iter().all(|kept| kept.keeps(event.view(), unix_s)) => {
                    self.refused.push((number, "it is older than [[retention]] keeps its kind"));
                }
                Ok(event) => {
                    self.numbers.push(number);
                    self.events.push(event);
                }
                Err(reason) => self.refused.push((number, reason)),
            }
        }
    }

    fn lines(&self) -> usize {
        self.events.len() + self.refused.len()
    }

    /// Whether another chunk may be added.
    fn has_room(&self, lines_max: usize) -> bool {
        self.lines() + CHUNK_LINES_MAX <= lines_max && self.bytes < BATCH_BYTES_MAX
    }
}

/// The object `--json` ends with. `read` is the sum of the four below it.
#[derive(Debug, Default, Serialize)]
struct Counts {
    read: u64,
    imported: u64,
    duplicate: u64,
    superseded: u64,
    rejected: u64,
    seconds: f64,
}

struct Tally {
    counts: Counts,
    reasons: BTreeMap<&'static str, u64>,
    started: Instant,
    bar: ProgressBar,
}

impl Tally {
    fn new(bytes: Option<u64>) -> Self {
        Self {
            counts: Counts::default(),
            reasons: BTreeMap::new(),
            started: Instant::now(),
            bar: progress(bytes),
        }
    }

    /// Stores a batch and counts what became of its lines.
    fn take(&mut self, batch: Batch, target: &mut Target) -> Result<(), Failure> {
        self.counts.read += batch.lines() as u64;
        let Batch { events, numbers, mut refused, bytes } = batch;
        if !events.is_empty() {
            for (number, verdict) in numbers.into_iter().zip(target.store(events)?) {
                if let Err(reason) = self.count(verdict)? {
                    refused.push((number, reason));
                }
            }
        }
        refused.sort_unstable_by_key(|(number, _)| *number);
        for (number, reason) in refused {
            self.reject(number, reason);
        }
        self.bar.inc(bytes);
        self.bar.set_message(format!("{} events, {:.0}/s", self.counts.read, self.rate()));
        Ok(())
    }

    /// Counts a verdict, or says why the event is rejected.
    fn count(&mut self, verdict: Verdict) -> Result<Result<(), &'static str>, Failure> {
        match verdict {
            Verdict::Stored => self.counts.imported += 1,
            Verdict::Duplicate => self.counts.duplicate += 1,
            Verdict::Superseded => self.counts.superseded += 1,
            Verdict::Deleted => return Ok(Err("its author has deleted it")),
            Verdict::Vanished => return Ok(Err("its author has asked to vanish")),
            Verdict::Expired => return Ok(Err("it has expired")),
            Verdict::Failed(text) => return Err(Failure::Failed(text)),
        }
        Ok(Ok(()))
    }

    fn reject(&mut self, number: u64, reason: &'static str) {
        self.counts.rejected += 1;
        *self.reasons.entry(reason).or_default() += 1;
        if self.counts.rejected <= REJECTED_NAMED_MAX {
            self.bar.suspend(|| eprintln!("line {number}: {reason}"));
        } else if self.counts.rejected == REJECTED_NAMED_MAX + 1 {
            self.bar.suspend(|| eprintln!("more lines are rejected; they are counted by reason"));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn rate(&self) -> f64 {
        self.counts.read as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn finish(mut self, json: bool) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        self.counts.seconds = self.started.elapsed().as_secs_f64();
        let rate = self.rate();
        let Counts { read, imported, duplicate, superseded, rejected, seconds } = self.counts;
        assert_eq!(
            read,
            imported + duplicate + superseded + rejected,
            "every line is counted once"
        );
        eprintln!(
            "{read} read, {imported} imported, {duplicate} duplicate, {superseded} superseded, \
             {rejected} rejected in {seconds:.1} s ({rate:.0}/s)"
        );
        for (reason, lines) in &self.reasons {
            eprintln!("  {lines} rejected: {reason}");
        }
        if json {
            let mut output = Output::stdout();
            output.line(&serde_json::to_vec(&self.counts).expect("plain fields serialize"))?;
            output.finish()?;
        }
        Ok(())
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => {
            (ProgressBar::new(bytes), "{bar:30} {bytes}/{total_bytes}  {msg}  {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}  {msg}  {elapsed}"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.with_style(ProgressStyle::with_template(template).expect("the template is sound"))
}
