//! What an operator no longer keeps: rules by kind, age, number for an author, and bytes.
//!
//! A pass takes one rule after the other. Each walks what it is about, newest first, and finds what it does
//! not keep; whoever runs the pass has that erased, a few hundred events a transaction, before it goes on.
//! Reading and erasing are apart: the transaction is told which events go and knows of no rule, and a pass
//! may be dropped anywhere and begun again.
//!
//! No tombstone is left: an event may be stored again, by whoever still has it, and goes with the next pass.
//! Deletions (kind 5) and requests to vanish (62) stay unless a rule names their kind: `check --repair`
//! learns from them what was taken back. What has expired or vanished is left to maintenance, and not
//! counted.
//!
//! Rules of age are about archived versions as well. The others count what is stored alone: the archive is in no
//! order of time, and what an author may have there is no number of events that anybody sees.

use std::collections::HashSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Store;
use super::environment::Environment;
use super::error::StoreError;
use super::maintain::Doomed;
use super::replaced::Replaced;
use super::scan::Scan;
use super::writer::WriterHandle;
use crate::nostr::event::{Id, Pubkey};
use crate::nostr::{EventView, Filter, Kind};
use crate::relay::ports::{Query, Sequence};

/// Index entries looked at before the transaction is dropped.
const SLICE_ENTRIES: usize = 1_000;

/// Events found by one slice at most: some ten milliseconds of the writer's time.
const SLICE_EVENTS_MAX: usize = 200;

/// From the end of a pass to the next.
const PASS_EVERY: Duration = Duration::from_mins(10);

/// After each slice a pass rests this many times as long as the slice took, so that it takes a fifth of a
/// core at most.
const RESTS_PER_SLICE: u32 = 4;

/// Which events are kept, of those a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Those created at most so many seconds ago.
    AgeS(u64),
    /// So many of each author, the newest.
    OfAuthor(u64),
    /// The newest, as many as have so many bytes of records. Indexes come on top, about as much again.
    Bytes(u64),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The kinds it is about, in order; `None` = all but 5 and 62.
    pub kinds: Option<Vec<u16>>,
    /// What it keeps of them.
    pub keep: Keep,
}

impl Rule {
    fn is_about(&self, kind: Kind) -> bool {
        self.kinds.is_some() || !matches!(kind, Kind::DELETION | Kind::VANISH)
    }
}

/// What one slice of a pass found, all of it by one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surplus {
    /// Position of the rule.
    pub rule: usize,
    /// Stored events to be erased; may be empty.
    pub events: Vec<Sequence>,
    /// Archived versions to be erased; may be empty.
    pub replaced: Vec<Id>,
    /// Bytes of their records.
    pub bytes: u64,
}

/// A pass over the rules and how far it has come. Owned, without any transaction.
#[derive(Debug)]
pub struct Pass {
    rules: Vec<Rule>,
    /// `0 <= at <= rules.len()`.
    at: usize,
    walk: Option<Walk>,
    /// What decides ages, in seconds.
    now: u64,
    /// Of a pass after which nothing is erased: what it has found.
    found: Option<Found>,
}

#[derive(Debug, Default)]
struct Found {
    events: HashSet<Sequence>,
    replaced: HashSet<Id>,
}

#[derive(Debug)]
enum Walk {
    /// From the newest to the oldest.
    Newest {
        scan: Box<Scan>,
        /// Bytes kept; the greatest number once one did not fit.
        kept_bytes: u64,
    },
    /// Author by author, each from the newest to the oldest.
    Authors {
        /// First bytes of the key looked at last.
        last: Option<[u8; 8]>,
        /// What is by keys that begin with them.
        scan: Option<Box<Scan>>,
        /// Events kept of each of these keys.
        kept: Vec<(Pubkey, u64)>,
    },
    /// Archived versions.
    Replaced(Replaced),
}

impl Store {
    /// Plans a pass over `rules` as of `now`. With `dry_run` nothing is going to be erased: what one rule
    /// finds is then not found by the next, at the cost of remembering it.
    #[must_use]
    pub fn retain(&self, rules: Vec<Rule>, now: u64, dry_run: bool) -> Pass {
        Pass { rules, at: 0, walk: None, now, found: dry_run.then(Found::default) }
    }
}

impl Pass {
    /// Goes on by one slice; `None` when all rules are done.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn slice(&mut self, store: &Store) -> Result<Option<Surplus>, StoreError> {
        let Some(rule) = self.rules.get(self.at) else { return Ok(None) };
        let walk = match &mut self.walk {
            Some(walk) => walk,
            None => self.walk.insert(Walk::begin(store, rule, self.now)?),
        };
        let mut taking = Taking {
            rule,
            found: self.found.as_mut(),
            surplus: Surplus { rule: self.at, ..Surplus::default() },
        };
        let done = walk.slice(store, self.now, &mut taking)?;
        let surplus = taking.surplus;
        if done {
            self.walk = match walk {
                Walk::Newest { .. } => Walk::replaced(store, rule, self.now),
                Walk::Authors { .. } | Walk::Replaced(_) => None,
            };
            self.at += usize::from(self.walk.is_none());
        }
        Ok(Some(surplus))
    }
}

/// What a slice finds.
struct Taking<'p> {
    rule: &'p Rule,
    found: Option<&'p mut Found>,
    surplus: Surplus,
}

impl Taking<'_> {
    /// Whether the rule looks at the event at all.
    fn is_about(&self, seq: Sequence, event: EventView<'_>) -> bool {
        let gone = self.found.as_ref().is_some_and(|found| found.events.contains(&seq));
        !gone && self.rule.is_about(event.kind())
    }

    fn is_full(&self) -> bool {
        self.surplus.events.len() == SLICE_EVENTS_MAX
    }

    fn take(&mut self, seq: Sequence, event: EventView<'_>) {
        self.surplus.events.push(seq);
        self.surplus.bytes += event.record().len() as u64;
        if let Some(found) = &mut self.found {
            found.events.insert(seq);
        }
    }

    fn take_replaced(&mut self, event: EventView<'_>) {
        let is_new = self.found.as_mut().is_none_or(|found| found.replaced.insert(*event.id()));
        if is_new {
            self.surplus.replaced.push(*event.id());
            self.surplus.bytes += event.record().len() as u64;
        }
    }
}

impl Walk {
    fn begin(store: &Store, rule: &Rule, now: u64) -> Result<Self, StoreError> {
        let until = match rule.keep {
            Keep::OfAuthor(_) => {
                return Ok(Self::Authors { last: None, scan: None, kept: Vec::new() });
            }
            // Nothing is older than the epoch.
            Keep::AgeS(age_s) => too_old(now, age_s),
            Keep::Bytes(_) => Some(u64::MAX),
        };
        let limit = if until.is_none() { Some(0) } else { None };
        let filter = Filter { kinds: rule.kinds.clone(), until, limit, ..Filter::default() };
        let query = Query { filters: vec![filter], limit_max: u64::MAX };
        Ok(Self::Newest { scan: Box::new(store.scan(query)?), kept_bytes: 0 })
    }

    /// What a rule is about besides what is stored.
    fn replaced(store: &Store, rule: &Rule, now: u64) -> Option<Self> {
        let Keep::AgeS(age_s) = rule.keep else { return None };
        let until = Some(too_old(now, age_s)?);
        let filter = Filter { kinds: rule.kinds.clone(), until, ..Filter::default() };
        Some(Self::Replaced(store.replaced(&[filter])))
    }

    /// Goes on by one slice; whether it is done.
    fn slice(
        &mut self,
        store: &Store,
        now: u64,
        taking: &mut Taking<'_>,
    ) -> Result<bool, StoreError> {
        match self {
            Self::Newest { scan, kept_bytes } => {
                let bytes_max = match taking.rule.keep {
                    Keep::Bytes(bytes_max) => bytes_max,
                    Keep::AgeS(_) | Keep::OfAuthor(_) => 0,
                };
                scan.visit(store, (SLICE_ENTRIES, Duration::MAX), now, &mut |seq, event| {
                    if !taking.is_about(seq, event) {
                        return true;
                    }
                    let bytes = kept_bytes.saturating_add(event.record().len() as u64);
                    if bytes <= bytes_max {
                        *kept_bytes = bytes;
                        return true;
                    }
                    *kept_bytes = u64::MAX;
                    let room = !taking.is_full();
                    if room {
                        taking.take(seq, event);
                    }
                    room
                })?;
                Ok(scan.is_done())
            }
            Self::Authors { last, scan: slot, kept } => {
                let mut left = SLICE_ENTRIES;
                while left > 0 && !taking.is_full() {
                    let scan = match slot {
                        Some(scan) => scan,
                        None => {
                            *last = next_author(&*store.environment()?, *last)?;
                            let Some(first) = *last else { return Ok(true) };
                            kept.clear();
                            let kinds = taking.rule.kinds.clone();
                            let filters = vec![Filter { kinds, ..Filter::default() }];
                            let begun = store.scan(Query { filters, limit_max: u64::MAX })?;
                            slot.insert(Box::new(begun.under(first)))
                        }
                    };
                    let before = scan.examined();
                    scan.visit(store, (left, Duration::MAX), now, &mut |seq, event| {
                        keep_or_take(kept, taking, seq, event)
                    })?;
                    let examined = usize::try_from(scan.examined() - before).unwrap_or(left);
                    left = left.saturating_sub(examined.max(1));
                    if scan.is_done() {
                        *slot = None;
                    }
                }
                Ok(false)
            }
            Self::Replaced(walk) => {
                walk.slice(store, SLICE_ENTRIES, now, &mut |event| {
                    let room = taking.surplus.replaced.len() < SLICE_EVENTS_MAX;
                    if room {
                        taking.take_replaced(event);
                    }
                    room
                })?;
                Ok(walk.is_done())
            }
        }
    }
}

/// The last second of what is older than `age_s`, if there is one.
fn too_old(now: u64, age_s: u64) -> Option<u64> {
    now.checked_sub(age_s).and_then(|oldest| oldest.checked_sub(1))
}

/// The first bytes of the next key that has written something.
fn next_author(
    environment: &Environment,
    last: Option<[u8; 8]>,
) -> Result<Option<[u8; 8]>, StoreError> {
    let from = match last.map(u64::from_be_bytes) {
        None => 0,
        Some(u64::MAX) => return Ok(None),
        Some(last) => last + 1,
    };
    let txn = environment.env.read_txn()?;
    let table = environment.tables.author_kind;
    let found = table.get_greater_than_or_equal_to(&txn, &from.to_be_bytes())?;
    Ok(found.and_then(|(key, _)| key.first_chunk().copied()))
}

/// Judges the next event of an author; false where there is no room for one to be erased.
fn keep_or_take(
    kept: &mut Vec<(Pubkey, u64)>,
    taking: &mut Taking<'_>,
    seq: Sequence,
    event: EventView<'_>,
) -> bool {
    let Keep::OfAuthor(events_max) = taking.rule.keep else { return true };
    if !taking.is_about(seq, event) {
        return true;
    }
    let at = kept.iter().position(|(pubkey, _)| pubkey == event.pubkey());
    let at = at.unwrap_or_else(|| {
        kept.push((*event.pubkey(), 0));
        kept.len() - 1
    });
    if kept[at].1 < events_max {
        kept[at].1 += 1;
        return true;
    }
    let room = !taking.is_full();
    if room {
        taking.take(seq, event);
    }
    room
}

/// What a rule of a running relay has had erased at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// So many events.
    pub events: u64,
    /// Bytes of the records that the rule found; a few of the events may have gone before they were erased.
    pub bytes: u64,
}

/// The thread that applies the rules of a running relay, pass after pass; the writer erases.
pub struct Retention {
    stop: flume::Sender<()>,
    thread: JoinHandle<()>,
}

impl Retention {
    /// Starts the thread; the first pass begins at once. `observer` is told on it what went by which rule.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(
        store: Store,
        writer: WriterHandle,
        rules: Vec<Rule>,
        observer: Box<dyn Fn(Keep, Erasure) + Send>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = flume::bounded(1);
        let thread = std::thread::Builder::new().name("retention".into());
        let thread = thread.spawn(move || {
            loop {
                let pass = store.retain(rules.clone(), unix_now(), false);
                let told = |rule: usize, erasure| observer(rules[rule].keep, erasure);
                if let Err(error) = run(pass, &store, &writer, &stopped, &told) {
                    let error = store.note(error);
                    tracing::error!(%error, "retention could not go on; it begins again later");
                }
                if stopped.recv_timeout(PASS_EVERY) != Err(flume::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread after the slice it is at.
    ///
    /// # Panics
    /// If the thread did.
    pub fn close(self) {
        drop(self.stop);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Runs a pass to its end, or until it is stopped.
fn run(
    mut pass: Pass,
    store: &Store,
    writer: &WriterHandle,
    stopped: &flume::Receiver<()>,
    told: &dyn Fn(usize, Erasure),
) -> Result<(), StoreError> {
    let mut sum = Erasure { events: 0, bytes: 0 };
    loop {
        let began = Instant::now();
        let Some(surplus) = pass.slice(store)? else { break };
        let (rule, mut erasure) = (surplus.rule, Erasure { events: 0, bytes: surplus.bytes });
        let found = [Doomed::Stored(surplus.events), Doomed::Replaced(surplus.replaced)];
        let mut failed = None;
        for doomed in found.into_iter().filter(|doomed| !doomed.is_empty()) {
            match writer.erase_blocking(doomed) {
                None => return Ok(()),
                Some(Ok(erased)) => erasure.events += erased,
                Some(Err(error)) => failed = Some(error),
            }
        }
        if erasure.events > 0 {
            told(rule, erasure);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        sum.events += erasure.events;
        sum.bytes += erasure.bytes;
        let rest = began.elapsed() * RESTS_PER_SLICE;
        if stopped.recv_timeout(rest) != Err(flume::RecvTimeoutError::Timeout) {
            break;
        }
    }
    let Erasure { events, bytes } = sum;
    if events > 0 {
        tracing::info!(events, bytes, "retention erased what its rules do not keep");
    }
    Ok(())
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
