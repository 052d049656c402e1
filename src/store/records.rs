//! What matches a filter, as negentropy compares it with what somebody else has (NIP-77): `(created_at, id)`,
//! ascending.
//!
//! Gathered slice by slice by the same scans that answer queries, so that no transaction stays open and
//! nobody waits for a slice longer than for another. A scan comes newest first and, within a second, lowest
//! id first: turned round, the seconds are in order and the ids within one are not.
//!
//! Fingerprints of ranges are summed when they are asked for, over records that lie side by side: a message
//! sums each record at most a few times (PERF.md, "Reconciliation"). To keep sums would save that, but the
//! crate does not let its storages answer with any.

use std::sync::Arc;

use negentropy::{Bound, Error as NegentropyError, Id, Item, NegentropyStorageBase};

use super::Store;
use super::error::StoreError;
use super::scan::{Scan, SliceBudget};
use crate::nostr::Filter;
use crate::relay::ports::Query;

/// Bytes of one record.
pub const RECORD_BYTES: usize = size_of::<Item>();

/// Records in order, without repeats; shared by clones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records(Arc<[Item]>);

/// A gathering of records and how far it has come. Owned, without any transaction; may change threads and
/// may be dropped at any time.
#[derive(Debug)]
pub struct Gathering {
    scan: Scan,
    /// As the scan hands them out; no more than `records_max`.
    items: Vec<Item>,
    records_max: usize,
}

/// What a slice of a [`Gathering`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// There may be more.
    Further,
    /// All of them.
    Whole(Records),
    /// There are more than it may hold; those it held are let go.
    TooMany,
}

impl Store {
    /// Plans to gather the records of what matches a filter, its `limit` respected: `records_max` at most,
    /// of [`RECORD_BYTES`] each. Until they are whole they may take twice that, and three times for a moment
    /// at the end.
    ///
    /// # Errors
    /// When the environment is lost.
    pub fn gather(&self, filter: Filter, records_max: usize) -> Result<Gathering, StoreError> {
        let query = Query { filters: vec![filter], limit_max: u64::MAX };
        Ok(Gathering { scan: self.scan(query)?, items: Vec::new(), records_max })
    }
}

impl Gathering {
    /// Goes on by at most `budget.entries` index entries, for `budget.time`. `now` (seconds) decides what has expired. Not to
    /// be called again after an error or the end.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn slice(
        &mut self,
        store: &Store,
        budget: &SliceBudget,
        now: u64,
    ) -> Result<Gathered, StoreError> {
        let Self { scan, items, records_max } = self;
        let mut is_full = false;
        scan.visit(store, (budget.entries, budget.time), now, &mut |_, event| {
            is_full = items.len() == *records_max;
            if !is_full {
                let id = Id::from_byte_array(*event.id());
                items.push(Item::with_timestamp_and_id(event.created_at(), id));
            }
            !is_full
        })?;
        if is_full {
            *items = Vec::new();
            return Ok(Gathered::TooMany);
        }
        if !scan.is_done() {
            return Ok(Gathered::Further);
        }
        let mut items = std::mem::take(items);
        items.reverse();
        for second in items.chunk_by_mut(|one, other| one.timestamp == other.timestamp) {
            second.sort_unstable();
        }
        Ok(Gathered::Whole(Records(items.into())))
    }
}

impl Records {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn range(&self, begin: usize, end: usize) -> Result<&[Item], NegentropyError> {
        self.0.get(begin..end).ok_or(NegentropyError::BadRange)
    }
}

impl NegentropyStorageBase for Records {
    fn size(&self) -> Result<usize, NegentropyError> {
        Ok(self.0.len())
    }

    fn get_item(&self, at: usize) -> Result<Option<Item>, NegentropyError> {
        Ok(self.0.get(at).copied())
    }

    fn iterate(
        &self,
        begin: usize,
        end: usize,
        visit: &mut dyn FnMut(Item, usize) -> Result<bool, NegentropyError>,
    ) -> Result<(), NegentropyError> {
        for (at, item) in (begin..).zip(self.range(begin, end)?) {
            if !visit(*item, at)? {
                break;
            }
        }
        Ok(())
    }

    fn find_lower_bound(&self, first: usize, last: usize, bound: &Bound) -> usize {
        first + self.0[first..last].partition_point(|item| *item < bound.item)
    }
}
