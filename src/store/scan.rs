//! Stored queries, slice by slice: an owned, resumable merge of index ranges.
//!
//! No transaction outlives a slice, so a slow reader never pins old pages. What is kept between
//! slices is where each range stands: the *heads*, a heap of suffixes. A head is a lower bound:
//! it is sought again when its turn comes in a later slice, and moves on if its entry has been
//! erased meanwhile. Ranges whose turn does not come cost nothing.
//!
//! One step takes the smallest head and either moves it to the entry really there, or judges that
//! entry and moves to the next. Every step makes progress that is kept, so any budget ends.
//!
//! Where a filter names a second tag, say, its entries are sought beside: a suffix that is not among
//! them is passed over with all that lie before the next that is, without a look at the records.
//!
//! The ranges are chosen filter by filter in the first slices (see `estimate`): only where the scan runs
//! may it wait for the disk.
//!
//! **Snapshot.** The first slice notes the last sequence number, unless [`Scan::up_to`] named an
//! earlier one; later slices pass over what came after. Within that, an event is handed out once: all entries of one event have one suffix, so
//! they follow each other in the merge.

mod sources;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use heed::RoTxn;

use super::count::Tally;
use super::cursor::Cursor;
use super::environment::Environment;
use super::error::StoreError;
use super::plan::{Index, Source, bounds};
use super::ranked::Ranked;
use super::schema::Suffix;
use super::{Store, visible};
use crate::nostr::{EventView, Filter};
use crate::relay::ports::{Chunk, ExpiringBytes, Query, Sequence};
use sources::Finding;

/// How much one slice may do. A slice makes progress under any budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceBudget {
    /// Index entries examined, whether they match or not.
    pub entries: usize,
    /// Bytes of JSON handed out; one event may be larger than that.
    pub bytes: usize,
    /// Events handed out.
    pub events: usize,
    /// How long it may take, looked at every few entries.
    pub time: Duration,
}

/// Entries between two looks at the clock.
const ENTRIES_PER_LOOK: usize = 16;

/// What a slice may still do.
pub(super) struct Left {
    entries: usize,
    begun: Instant,
    time: Duration,
}

impl Left {
    /// All of a slice that begins now; at least one entry.
    pub fn new(entries: usize, time: Duration) -> Self {
        Self { entries: entries.max(1), begun: Instant::now(), time }
    }

    /// Takes entries that were examined, or all when the time is over.
    fn take(&mut self, entries: usize) {
        self.entries = self.entries.saturating_sub(entries);
        let looks = entries > 0 && self.entries.is_multiple_of(ENTRIES_PER_LOOK);
        if looks && self.begun.elapsed() >= self.time {
            self.entries = 0;
        }
    }
}

/// A stored query and how far it has come. Owned, without any transaction; may change threads
/// and may be dropped at any time.
#[derive(Debug)]
pub struct Scan {
    filters: Vec<FilterScan>,
    /// How many of the filters have their sources. `0 <= planned <= filters.len()`.
    planned: usize,
    sources: Vec<Source>,
    /// How far the sources by author of the filter that is planned next have been found.
    finding: Option<Finding>,
    /// Where each source that is not exhausted stands, smallest first.
    heads: BinaryHeap<Reverse<(Suffix, u32)>>,
    /// Set by the first slice, or before.
    snapshot: Option<Sequence>,
    /// The event handed out last.
    last: Option<Suffix>,
    /// Whether a filter ended at its limit rather than at its last match.
    limited: bool,
    /// Index entries examined so far.
    pub(super) examined: u64,
    /// What has been counted, if it counts and hands nothing out.
    pub(super) tally: Option<Box<Tally>>,
    /// What is left of a search, if it is one; then there are no filters.
    pub(super) ranked: Option<Ranked>,
}

#[derive(Debug)]
struct FilterScan {
    filter: Filter,
    /// Events it may still yield.
    left: u64,
    /// The event it judged last.
    judged: Option<Suffix>,
    /// Its time range.
    newest: Suffix,
    oldest: Suffix,
    ids: Option<Ids>,
    /// First bytes of keys instead of its authors.
    under: Option<[u8; 8]>,
    /// A range in which everything that matches is too.
    also: Option<Source>,
}

/// The ids of a filter: first looked up, then handed out in order.
#[derive(Debug, Default)]
struct Ids {
    /// `0 <= looked_up <= ids.len()`.
    looked_up: usize,
    /// What was found; descending once all are looked up, so that the next is at the end.
    found: Vec<Suffix>,
}

impl Scan {
    /// Begins a query.
    pub(super) fn new(query: Query) -> Self {
        let mut scan = Self {
            filters: Vec::with_capacity(query.filters.len()),
            planned: 0,
            sources: Vec::new(),
            finding: None,
            heads: BinaryHeap::new(),
            snapshot: None,
            last: None,
            limited: false,
            examined: 0,
            tally: None,
            ranked: None,
        };
        for filter in query.filters {
            let left = filter.limit.unwrap_or(u64::MAX).min(query.limit_max);
            let Some((newest, oldest)) = bounds(&filter) else { continue };
            if left == 0 {
                scan.limited = true;
                continue;
            }
            if filter.search.is_some() {
                scan.ranked = Some(Ranked { filter, left, hits: None, priced: false });
                continue;
            }
            let ids = filter.ids.as_ref().map(|_| Ids::default());
            scan.filters.push(FilterScan {
                filter,
                left,
                judged: None,
                newest,
                oldest,
                ids,
                under: None,
                also: None,
            });
        }
        scan
    }

    /// Of the only filter, which names no authors, only what is by keys that begin with these bytes.
    #[must_use]
    pub(super) fn under(mut self, first: [u8; 8]) -> Self {
        for scan in &mut self.filters {
            scan.under = Some(first);
        }
        self
    }

    /// Covers what was committed up to `snapshot`, and not what the first slice may see beyond.
    #[must_use]
    pub fn up_to(mut self, snapshot: Sequence) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// Goes on by one slice. `now` (seconds) decides what has expired. After an error the scan is
    /// where it was before the slice or later, never earlier.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn slice(
        &mut self,
        store: &Store,
        budget: &SliceBudget,
        now: u64,
    ) -> Result<Chunk, StoreError> {
        let before = self.examined;
        if let Some(price) = self.find_hits(store)? {
            return Ok(price);
        }
        let environment = store.environment()?;
        let txn = environment.env.read_txn()?;
        if let Some(ranked) = self.ranked.take() {
            let mut chunk = self.ranked_slice(ranked, (&*environment, &txn), budget, now)?;
            chunk.examined = self.examined - before;
            return Ok(chunk);
        }
        if let Some(tally) = self.tally.take() {
            let mut chunk = self.tally_slice(tally, &environment, &txn, budget, now)?;
            chunk.examined = self.examined - before;
            return Ok(chunk);
        }
        let mut found: Vec<EventView<'_>> = Vec::new();
        let mut bytes = 0;
        let left = Left::new(budget.entries, budget.time);
        self.run(&environment, &txn, left, now, &mut |_, event| {
            let json = event.json();
            let fits = found.is_empty()
                || (found.len() < budget.events && bytes + json.len() <= budget.bytes);
            if fits {
                bytes += json.len();
                found.push(event);
            }
            fits
        })?;
        // One allocation of the exact size; the events share it.
        let mut whole = BytesMut::with_capacity(bytes);
        for event in &found {
            whole.extend_from_slice(event.json());
        }
        let mut whole = whole.freeze();
        let mut cut = |event: &EventView<'_>| whole.split_to(event.json().len());
        let events = found.iter().map(|event| ExpiringBytes::new(cut(event), event.expiration()));
        let events = events.collect();
        let (snapshot, examined) = (self.snapshot(), self.examined - before);
        Ok(Chunk { snapshot, events, examined, done: self.is_done(), ..Chunk::default() })
    }

    /// Goes on by at most `entries` index entries, counting instead of handing out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn count_slice(
        &mut self,
        store: &Store,
        entries: usize,
        now: u64,
    ) -> Result<u64, StoreError> {
        let mut count = 0;
        self.sequences(store, entries, now, &mut |_| {
            count += 1;
            true
        })?;
        Ok(count)
    }

    /// What the first slice noted.
    pub(super) fn snapshot(&self) -> Sequence {
        self.snapshot.unwrap_or_default()
    }

    /// Whether nothing follows.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ranked.is_none()
            && self.heads.is_empty()
            && self.planned == self.filters.len()
            && self.filters.iter().all(FilterScan::is_looked_up)
    }

    /// Index entries examined so far, those included that were looked at to plan.
    #[must_use]
    pub fn examined(&self) -> u64 {
        self.examined
    }

    /// Whether a filter ended at its limit: more may match than was handed out (NIP-67).
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limited
    }

    /// Goes on by one slice, handing sequence numbers to `take` until it answers false.
    pub(super) fn sequences(
        &mut self,
        store: &Store,
        entries: usize,
        now: u64,
        take: &mut dyn FnMut(Sequence) -> bool,
    ) -> Result<(), StoreError> {
        let environment = store.environment()?;
        let txn = environment.env.read_txn()?;
        let left = Left::new(entries, Duration::MAX);
        self.run(&environment, &txn, left, now, &mut |suffix, _| take(suffix.seq()))
    }

    /// Goes on by one slice, showing events to `take` until it answers false.
    pub(super) fn visit(
        &mut self,
        store: &Store,
        (entries, time): (usize, Duration),
        now: u64,
        take: &mut dyn FnMut(Sequence, EventView<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let environment = store.environment()?;
        let txn = environment.env.read_txn()?;
        let left = Left::new(entries, time);
        self.run(&environment, &txn, left, now, &mut |suffix, event| take(suffix.seq(), event))
    }

    /// Steps until the entries are used up, nothing is left, or `accept` has no room for an event.
    pub(super) fn run<'t>(
        &mut self,
        environment: &'t Environment,
        txn: &'t RoTxn<'t>,
        mut left: Left,
        now: u64,
        accept: &mut dyn FnMut(Suffix, EventView<'t>) -> bool,
    ) -> Result<(), StoreError> {
        let snapshot = self.begin_snapshot(environment, txn)?;
        self.plan(environment, txn, &mut left)?;
        self.look_up_ids(environment, txn, &mut left)?;
        if left.entries == 0 {
            return Ok(());
        }
        let mut slice = Slice {
            environment,
            txn,
            now,
            snapshot,
            any_vanishing: !environment.tables.backlog.is_empty(txn)?,
            cursors: std::iter::repeat_with(|| None).take(self.sources.len()).collect(),
            beside: std::iter::repeat_with(|| None).take(self.filters.len()).collect(),
            loaded: None,
        };
        while left.entries > 0 && self.step(&mut slice, accept)? {
            self.examined += 1;
            left.take(1);
        }
        Ok(())
    }

    /// The last sequence number it looks at, which its first slice fixes.
    pub(super) fn begin_snapshot(
        &mut self,
        environment: &Environment,
        txn: &RoTxn<'_>,
    ) -> Result<Sequence, StoreError> {
        match self.snapshot {
            Some(snapshot) => Ok(snapshot),
            None => Ok(*self.snapshot.insert(environment.last_sequence(txn)?)),
        }
    }

    /// Takes one step; false when nothing is left or there is no room.
    fn step<'t>(
        &mut self,
        slice: &mut Slice<'t>,
        accept: &mut dyn FnMut(Suffix, EventView<'t>) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(false) };
        let Reverse((suffix, number)) = *head;
        let source = &self.sources[number as usize];
        let filter = &mut self.filters[source.filter as usize];
        let hint = if source.index == Index::Ids {
            &[][..]
        } else {
            let cursor = slice.cursor(number, source, suffix, filter.oldest)?;
            match cursor.entry {
                None => {
                    PeekMut::pop(head);
                    return Ok(true);
                }
                Some((found, _)) if found != suffix => {
                    *head = Reverse((found, number));
                    return Ok(true);
                }
                Some((_, hint)) => hint,
            }
        };
        if filter.judged != Some(suffix) {
            if let Some(also) = &filter.also
                && slice.may_match(&filter.filter, source, suffix, hint)
            {
                match slice.beside(source.filter, also, suffix, filter.oldest)? {
                    Some(found) if found == suffix => {}
                    Some(found) => {
                        *head = Reverse((found, number));
                        return Ok(true);
                    }
                    None => {
                        PeekMut::pop(head);
                        return Ok(true);
                    }
                }
            }
            if let Some(event) = slice.matching(&filter.filter, source, suffix, hint)? {
                if self.last != Some(suffix) {
                    if !accept(suffix, event) {
                        return Ok(false);
                    }
                    self.last = Some(suffix);
                }
                filter.left -= 1;
            }
            filter.judged = Some(suffix);
        }
        if filter.left == 0 {
            let finished = source.filter;
            drop(head);
            self.limited = true;
            let sources = &self.sources;
            self.heads.retain(|Reverse((_, n))| sources[*n as usize].filter != finished);
            return Ok(true);
        }
        let next = match &mut filter.ids {
            Some(ids) => ids.found.pop(),
            None => slice.advance(number)?,
        };
        match next {
            Some(next) => *head = Reverse((next, number)),
            None => drop(PeekMut::pop(head)),
        }
        Ok(true)
    }
}

impl FilterScan {
    fn is_looked_up(&self) -> bool {
        match (&self.filter.ids, &self.ids) {
            (Some(wanted), Some(ids)) => ids.looked_up == wanted.len(),
            _ => true,
        }
    }
}

/// What lives as long as one read transaction.
struct Slice<'t> {
    environment: &'t Environment,
    txn: &'t RoTxn<'t>,
    now: u64,
    snapshot: Sequence,
    any_vanishing: bool,
    /// One a source, opened when its turn comes.
    cursors: Vec<Option<Box<Cursor<'t>>>>,
    /// One a filter with a range beside its sources, opened when it is asked.
    beside: Vec<Option<Box<Cursor<'t>>>>,
    /// The record loaded last; `None` inside when it may not be served.
    loaded: Option<(Suffix, Option<EventView<'t>>)>,
}

impl<'t> Slice<'t> {
    /// The cursor of a source, at or behind `from`.
    fn cursor(
        &mut self,
        number: u32,
        source: &Source,
        from: Suffix,
        to: Suffix,
    ) -> Result<&Cursor<'t>, StoreError> {
        let slot = &mut self.cursors[number as usize];
        sought(slot, self.environment, self.txn, source, from, to)
    }

    /// The first suffix at or behind `from` in the range beside a filter's sources.
    fn beside(
        &mut self,
        filter: u32,
        also: &Source,
        from: Suffix,
        to: Suffix,
    ) -> Result<Option<Suffix>, StoreError> {
        let slot = &mut self.beside[filter as usize];
        Ok(sought(slot, self.environment, self.txn, also, from, to)?.suffix())
    }

    /// Moves the cursor of a source on.
    fn advance(&mut self, number: u32) -> Result<Option<Suffix>, StoreError> {
        let cursor = self.cursors[number as usize].as_mut().expect("a judged source has a cursor");
        cursor.advance()?;
        Ok(cursor.suffix())
    }

    /// The event, if it is in the snapshot, may be served and matches.
    fn matching(
        &mut self,
        filter: &Filter,
        source: &Source,
        suffix: Suffix,
        hint: &[u8],
    ) -> Result<Option<EventView<'t>>, StoreError> {
        if !self.may_match(filter, source, suffix, hint) {
            return Ok(None);
        }
        let event = match self.loaded {
            Some((loaded, event)) if loaded == suffix => event,
            _ => {
                let event = self.load(source, suffix)?;
                self.loaded = Some((suffix, event));
                event
            }
        };
        Ok(event.filter(|event| filter.matches(*event)))
    }

    /// Whether the entry leaves a chance that its event is in the snapshot and matches.
    fn may_match(&self, filter: &Filter, source: &Source, suffix: Suffix, hint: &[u8]) -> bool {
        suffix.seq() <= self.snapshot && (source.index != Index::Tag || fits(filter, hint))
    }

    fn load(&self, source: &Source, suffix: Suffix) -> Result<Option<EventView<'t>>, StoreError> {
        let event = match self.environment.event(self.txn, suffix.seq()) {
            Err(StoreError::Record { .. }) => return Ok(None),
            event => event?,
        };
        let Some(event) = event else {
            if source.index != Index::Ids {
                self.environment.isolated.meet(suffix.seq());
            }
            // Else it was looked up in an earlier slice and erased since.
            return Ok(None);
        };
        let visible = if self.any_vanishing {
            visible::is_visible(self.environment, self.txn, event, self.now)?
        } else {
            !event.is_expired(self.now)
        };
        Ok(visible.then_some(event))
    }
}

/// The cursor in `slot`, moved to or opened at the first entry at or behind `from`.
fn sought<'c, 't>(
    slot: &'c mut Option<Box<Cursor<'t>>>,
    environment: &Environment,
    txn: &'t RoTxn<'_>,
    source: &Source,
    from: Suffix,
    to: Suffix,
) -> Result<&'c Cursor<'t>, StoreError> {
    let reached = match slot {
        Some(cursor) => cursor.walk_to(from)?,
        None => false,
    };
    if !reached {
        *slot = Some(Box::new(Cursor::open(environment, txn, source, from, to)?));
    }
    Ok(slot.as_deref().expect("it was just put there"))
}

/// Whether the kind and the author's first bytes, which a tag entry carries, leave a chance.
fn fits(filter: &Filter, hint: &[u8]) -> bool {
    let Some((kind, author)) = hint.split_first_chunk::<2>() else { return true };
    filter.kinds.as_ref().is_none_or(|k| k.binary_search(&u16::from_be_bytes(*kind)).is_ok())
        && filter
            .authors
            .as_ref()
            .is_none_or(|a| a.binary_search_by(|full| full[..8].cmp(author)).is_ok())
}
