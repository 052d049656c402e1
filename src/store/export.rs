//! All events by time, for export and backup; the newest, for shards to have at hand.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::environment::{Environment, number};
use super::error::StoreError;
use super::schema::{CREATED_AT_MAX, Suffix};
use super::transaction::suffix_of;
use super::{Store, visible};
use crate::nostr::{Event, EventView, TagRef};
use crate::relay::ports::{Newest, Sequence};

/// Bytes of records copied out before the transaction is dropped; one record may be larger.
const CHUNK_BYTES: usize = 1 << 20;

/// Entries examined before the transaction is dropped.
pub(super) const CHUNK_ENTRIES: usize = 10_000;

/// Entries looked at for the newest events, of those asked for.
const HIDDEN_FACTOR: usize = 4;

/// Which events are exported, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportRange {
    /// Oldest `created_at`, inclusive.
    pub since: Option<u64>,
    /// Newest `created_at`, inclusive.
    pub until: Option<u64>,
    /// Newest first rather than oldest first.
    pub reverse: bool,
}

impl Store {
    /// Hands every visible event of the range to `visit`, by `created_at`, until it breaks.
    /// Events committed meanwhile are left out. `visit` runs outside of any transaction and may
    /// take its time. Answers how many it was given.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Panics
    /// Never: what is viewed was copied from a record.
    pub fn export(
        &self,
        range: ExportRange,
        now: u64,
        mut visit: impl FnMut(EventView<'_>) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        let since = range.since.unwrap_or(0);
        if since > CREATED_AT_MAX {
            return Ok(0);
        }
        let mut walk = Walk {
            low: Bound::Included(Suffix::newest(range.until.unwrap_or(u64::MAX))),
            high: Bound::Included(Suffix::oldest(since)),
            newest_first: range.reverse,
            now,
            snapshot: None,
        };
        let mut records = CopiedOut::default();
        loop {
            let more = walk.chunk(&*self.environment()?, &mut records)?;
            if records.show(&mut visit).is_break() || !more {
                return Ok(records.shown);
            }
        }
    }
}

impl Store {
    /// The newest visible events: `events_max` at most, whose records have `bytes_max` bytes at most. Fewer
    /// where many hidden or damaged ones lie between them.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn newest(
        &self,
        events_max: usize,
        bytes_max: usize,
        now: u64,
    ) -> Result<Newest, StoreError> {
        let environment = self.environment()?;
        let txn = environment.env.read_txn()?;
        let mut newest = Newest::default();
        let mut bytes = 0;
        for (looked_at, entry) in environment.tables.time.rev_iter(&txn)?.enumerate() {
            let suffix = suffix_of(entry?.0)?.turned();
            let sequence = suffix.seq();
            let event = match environment.indexed(&txn, sequence) {
                Err(StoreError::Record { .. }) => None,
                event => Some(event?),
            };
            let is_visible =
                |event: &EventView<'_>| visible::is_visible(&environment, &txn, *event, now);
            let event = match event {
                Some(event) if is_visible(&event)? => event,
                _ if looked_at < HIDDEN_FACTOR * events_max => continue,
                _ => {
                    newest.rest = Some(suffix.parts());
                    break;
                }
            };
            bytes += event.record().len();
            if newest.events.len() == events_max || bytes > bytes_max {
                newest.rest = Some(suffix.parts());
                break;
            }
            let record = Bytes::copy_from_slice(event.record());
            newest.events.extend(Event::from_record(record).map(|event| (sequence, event)));
        }
        Ok(newest)
    }
}

impl Store {
    /// Hands the next stored events by sequence number, `most` at most, to `visit`; answers how far it came.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn events_after(
        &self,
        after: Sequence,
        most: usize,
        mut visit: impl FnMut(Sequence, EventView<'_>),
    ) -> Result<Sequence, StoreError> {
        let environment = self.environment()?;
        let txn = environment.env.read_txn()?;
        let first = (after + 1).to_be_bytes();
        let range = (Bound::Included(&first[..]), Bound::Unbounded);
        let mut last = after;
        for entry in environment.tables.event.range(&txn, &range)?.take(most) {
            let (key, value) = entry?;
            last = number(key)?;
            match environment.view(last, value) {
                Ok(event) => visit(last, event),
                Err(StoreError::Record { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(last)
    }

    /// Those of `events` that are not stored.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn missing(&self, events: &[Sequence]) -> Result<Vec<Sequence>, StoreError> {
        let environment = self.environment()?;
        let txn = environment.env.read_txn()?;
        let mut missing = Vec::new();
        for sequence in events {
            if environment.tables.event.get(&txn, &sequence.to_be_bytes())?.is_none() {
                missing.push(*sequence);
            }
        }
        Ok(missing)
    }

    /// The number of the last transaction that has been committed: nothing has been written since while it is the
    /// same.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn last_transaction(&self) -> Result<usize, StoreError> {
        Ok(self.environment()?.env.info().last_txn_id)
    }

    /// A number that is this store's as long as it lives, and with it its sequence numbers.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn fingerprint(&self) -> Result<u64, StoreError> {
        let hasher = self.environment()?.hasher;
        Ok(u64::from_be_bytes(hasher.tag(TagRef::Text(b"fingerprint"))))
    }
}

/// Records copied out of a transaction, to be shown when it is gone.
#[derive(Default)]
pub(super) struct CopiedOut {
    records: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
    /// How many have been shown.
    pub shown: u64,
}

impl CopiedOut {
    pub fn push(&mut self, event: EventView<'_>) {
        self.records.extend_from_slice(event.record());
        self.ends.push(self.records.len());
    }

    /// Whether the transaction should end.
    pub fn is_full(&self) -> bool {
        self.records.len() >= CHUNK_BYTES
    }

    /// Hands each to `visit` until it breaks; none is left.
    pub fn show(
        &mut self,
        visit: &mut dyn FnMut(EventView<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut start = 0;
        for end in self.ends.drain(..) {
            let event = EventView::new(&self.records[start..end]).expect("copied from one");
            start = end;
            self.shown += 1;
            visit(event)?;
        }
        self.records.clear();
        ControlFlow::Continue(())
    }
}

/// The part of the `time` table that is still to be walked.
struct Walk {
    low: Bound<Suffix>,
    high: Bound<Suffix>,
    newest_first: bool,
    now: u64,
    snapshot: Option<Sequence>,
}

impl Walk {
    /// Copies the next records out; false when nothing follows them.
    fn chunk(
        &mut self,
        environment: &Environment,
        records: &mut CopiedOut,
    ) -> Result<bool, StoreError> {
        if is_empty(&self.low, &self.high) {
            return Ok(false);
        }
        let txn = environment.env.read_txn()?;
        let snapshot = match self.snapshot {
            Some(snapshot) => snapshot,
            None => *self.snapshot.insert(environment.last_sequence(&txn)?),
        };
        let (low, high) = (self.high.map(|high| high.turned()), self.low.map(|low| low.turned()));
        let bounds = (low.as_ref().map(|low| &low.0[..]), high.as_ref().map(|high| &high.0[..]));
        let table = environment.tables.time;
        let mut forward;
        let mut backward;
        let entries: &mut dyn Iterator<Item = heed::Result<(&[u8], &[u8])>> = if self.newest_first {
            backward = table.rev_range(&txn, &bounds)?;
            &mut backward
        } else {
            forward = table.range(&txn, &bounds)?;
            &mut forward
        };
        for (examined, entry) in entries.enumerate() {
            if examined == CHUNK_ENTRIES || records.is_full() {
                return Ok(true);
            }
            let suffix = suffix_of(entry?.0)?.turned();
            if self.newest_first {
                self.low = Bound::Excluded(suffix);
            } else {
                self.high = Bound::Excluded(suffix);
            }
            if suffix.seq() > snapshot {
                continue;
            }
            let event = match environment.indexed(&txn, suffix.seq()) {
                Err(StoreError::Record { .. }) => continue,
                event => event?,
            };
            if visible::is_visible(environment, &txn, event, self.now)? {
                records.push(event);
            }
        }
        Ok(false)
    }
}

fn is_empty(low: &Bound<Suffix>, high: &Bound<Suffix>) -> bool {
    let (Bound::Included(low) | Bound::Excluded(low)) = low else { return false };
    let (Bound::Included(high) | Bound::Excluded(high)) = high else { return false };
    low >= high
}
