//! The newest stored events, kept by each shard: stored queries that these answer whole never leave it.
//!
//! What is kept has no hole: of all stored events those that come first in NIP-01's order, down to a
//! *floor*. So a filter that finds as many as it wants, or whose `since` lies above the floor, has its
//! whole result here. Any other query is the store's.
//!
//! A shard may not spend long on one query, so what is kept beside the events, for a look at each, is
//! small and lies together; and where counts of authors and kinds say that there is not enough, none is
//! looked at.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::Range;

use super::ports::{
    Chunk, CommitBatch, Erased, ExpiringBytes, Newest, Query, ScanKey, Sequence, Vanished,
};
use super::shard::{Now, Shard};
use crate::nostr::event::{Event, EventView, Kind, Pubkey};
use crate::nostr::{Filter, TagRef};

/// Looks one query may take: a few nanoseconds each, some 150 µs together.
const LOOKS_MAX: usize = 1 << 16;

/// Looks that finding the next event of an author or kind takes beside the distance, that an event takes, and
/// that a byte of its tags takes of which a filter asks for some.
const FIND_LOOKS: usize = 8;
const EVENT_LOOKS: usize = 16;
const TAG_BYTES_PER_LOOK: usize = 8;

/// Looks of all queries in one turn of the shard; further ones are the store's.
pub(super) const LOOKS_PER_TURN: usize = 1 << 18;

/// So many looks cost a connection as much as an index entry of the store.
const LOOKS_PER_ENTRY: usize = 4;

/// Values of a column that are compared in about the time of one look.
const COMPARED_AT_ONCE: usize = 16;
const BLOCK: usize = 4 * COMPARED_AT_ONCE;

/// Bytes of the tags of gift wraps that are looked into when keys vanish; where there are more, all is let go
/// that may be gone.
const WRAPS_TAG_BYTES_MAX: usize = 64 << 10;

/// Events that are taken out one by one; more of them together.
const ONE_BY_ONE_MAX: usize = 8;

/// Events of one answer: references, kept until the client has taken them.
const ANSWER_EVENTS_MAX: usize = 512;

/// Events that the filters of one query may find, those found twice included.
const FOUND_MAX: usize = 2 * ANSWER_EVENTS_MAX;

/// Bytes of the events of one answer.
pub const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Place in NIP-01's order: newest first, lowest id first. Eight bytes of the id, then the order of
/// arrival, as in the store.
type Rank = (Reverse<u64>, u64, Sequence);

/// Moving so many aside for one that is not the newest takes about as long as a delivery.
pub const MOVED_PER_DELIVERY: u64 = 1_024;

/// Before every event: nothing is newer.
const TOP: Rank = (Reverse(u64::MAX), 0, 0);

fn rank(sequence: Sequence, event: EventView<'_>) -> Rank {
    let id = event.id().first_chunk().expect("an id is longer");
    (Reverse(event.created_at()), u64::from_be_bytes(*id), sequence)
}

/// The first bytes of a key, which are looked at before an event.
fn head(key: &[u8]) -> u32 {
    u32::from_be_bytes(*key.first_chunk().expect("a key is longer"))
}

/// Counts of authors go by these bytes of a key.
fn author_slot(head: u32) -> usize {
    (head >> 16) as usize
}

/// See the module.
#[derive(Debug)]
pub struct Recent {
    events_max: usize,
    bytes_max: usize,
    /// The last in order first, so that new ones come to the end. What is looked at before an event lies in
    /// columns of the same length, for the processor to compare many at once.
    events: VecDeque<(Sequence, Event)>,
    seconds: VecDeque<u64>,
    authors: VecDeque<u32>,
    kinds: VecDeque<u16>,
    /// Of their records.
    bytes: usize,
    /// All stored events before this place are here; all that are stored, where there is none.
    floor: Option<Rank>,
    /// How many are here, by two bytes of the author and by kind.
    by_author: Box<[u16]>,
    by_kind: Box<[u16]>,
}

impl Recent {
    /// Keeps up to `events_max` events whose records have up to `bytes_max` bytes, of an empty store so
    /// far.
    #[must_use]
    pub fn new(events_max: u16, bytes_max: u32) -> Self {
        let room = usize::from(events_max) + 1;
        let counts = || vec![0; if events_max == 0 { 0 } else { 1 << 16 }].into_boxed_slice();
        Self {
            events_max: events_max.into(),
            bytes_max: bytes_max as usize,
            // Memory is taken as it fills.
            events: VecDeque::with_capacity(room),
            seconds: VecDeque::with_capacity(room),
            authors: VecDeque::with_capacity(room),
            kinds: VecDeque::with_capacity(room),
            bytes: 0,
            floor: (events_max == 0).then_some(TOP),
            by_author: counts(),
            by_kind: counts(),
        }
    }

    /// Begins with what a store holds.
    pub fn begin(&mut self, newest: &Newest) {
        if self.events_max == 0 {
            return;
        }
        // What is between the last here and the first that is left out is no event.
        self.floor = newest.rest.map(|(created_at, id, sequence)| {
            (Reverse(created_at), u64::from_be_bytes(id), sequence)
        });
        for (sequence, event) in newest.events.iter().rev() {
            let place = self.place(rank(*sequence, event.view()));
            self.insert(place, *sequence, event);
        }
        self.evict();
    }

    /// Begins again.
    pub fn renew(&mut self, newest: &Newest) {
        self.raise_floor(self.events.len());
        self.begin(newest);
    }

    /// Events kept, and the bytes of their records.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.events.len(), self.bytes)
    }

    /// Lets go what a commit takes away, before any of its events is kept.
    pub fn forget(&mut self, batch: &CommitBatch) {
        let covered = match batch.vanished.is_empty() {
            true => Some(Vec::new()),
            false => self.covered(&batch.vanished),
        };
        let mut gone = covered.unwrap_or_else(|| {
            let up_to = batch.vanished.iter().map(|vanished| vanished.up_to).max();
            self.raise_floor(self.seconds.partition_point(|second| Some(*second) <= up_to));
            Vec::new()
        });
        gone.extend(batch.erased.iter().filter_map(|erased| self.place_of(erased)));
        gone.sort_unstable();
        gone.dedup();
        self.remove_all(&gone);
    }

    /// Keeps an event of a commit, unless the commit takes it away again or there are newer ones enough; says how
    /// many were moved aside for it ([`MOVED_PER_DELIVERY`]).
    pub fn keep(&mut self, sequence: Sequence, event: &Event, batch: &CommitBatch) -> u64 {
        let rank = rank(sequence, event.view());
        if self.floor.is_some_and(|floor| floor < rank)
            || batch.erased.binary_search_by_key(&sequence, |erased| erased.sequence).is_ok()
            || is_covered(event.view(), &batch.vanished)
        {
            return 0;
        }
        let place = self.place(rank);
        let moved = place.min(self.events.len() - place);
        self.insert(place, sequence, event);
        self.evict();
        moved as u64
    }

    /// The result of a query among the events up to `last` that have not expired at `unix_s`, in order;
    /// `None` when it may be that not all of it is here, or finding it takes long.
    ///
    /// A filter without a `limit`, or with a higher one, finds `limit_max` events at most.
    /// `looks` is what it may cost, and then what is left of that.
    #[must_use]
    pub fn answer(
        &self,
        filters: &[Filter],
        limit_max: u64,
        (last, unix_s): (Sequence, u64),
        looks: &mut usize,
    ) -> Option<Vec<&Event>> {
        let mut found = Vec::new();
        for filter in filters.iter().filter(|filter| !filter.is_unsatisfiable()) {
            let wanted = filter.limit.unwrap_or(u64::MAX).min(limit_max);
            self.find(filter, wanted, (last, unix_s), looks, &mut found)?;
        }
        found.sort_unstable_by_key(|at| Reverse(*at));
        found.dedup();
        let events: Vec<&Event> = found.into_iter().map(|at| &self.events[at].1).collect();
        let bytes: usize = events.iter().map(|event| event.record().len()).sum();
        (events.len() <= ANSWER_EVENTS_MAX && bytes <= ANSWER_BYTES_MAX).then_some(events)
    }

    /// Adds the places of the first `wanted` events that match.
    fn find(
        &self,
        filter: &Filter,
        wanted: u64,
        (last, unix_s): (Sequence, u64),
        looks: &mut usize,
        found: &mut Vec<usize>,
    ) -> Option<()> {
        if wanted == 0 {
            return Some(());
        }
        let since = filter.since.unwrap_or(0);
        let has_all = self.floor.is_none_or(|(Reverse(floor), ..)| floor < since);
        let at_most = self.at_most(filter);
        let is_elsewhere = filter.ids.is_some() || filter.search.is_some();
        if is_elsewhere || !has_all && at_most < wanted {
            return None;
        }
        if at_most == 0 {
            return Some(());
        }
        let until = filter.until.unwrap_or(u64::MAX);
        let begin = self.seconds.partition_point(|second| *second < since);
        let mut end = self.seconds.partition_point(|second| *second <= until);
        let (kinds, authors) = (filter.kinds.as_deref(), filter.authors.as_deref());
        let lists = list_looks(kinds.map(<[_]>::len)) + list_looks(authors.map(<[_]>::len));
        let mut left = wanted;
        while begin < end {
            let (next, cost) = match (authors, kinds) {
                (Some([author]), _) => {
                    (last_of(&self.authors, begin..end, head(author)), FIND_LOOKS)
                }
                (None, Some([kind])) => (last_of(&self.kinds, begin..end, *kind), FIND_LOOKS),
                _ => (Some(end - 1), 1 + lists),
            };
            let passed = end - next.unwrap_or(begin);
            spend(looks, cost + passed / COMPARED_AT_ONCE)?;
            let Some(at) = next else { break };
            end = at;
            if kinds.is_some_and(|kinds| kinds.binary_search(&self.kinds[at]).is_err())
                || authors.is_some_and(|authors| {
                    authors.binary_search_by(|key| head(key).cmp(&self.authors[at])).is_err()
                })
            {
                continue;
            }
            let (sequence, event) = &self.events[at];
            let view = event.view();
            let tags = if filter.tags.is_empty() { 0 } else { view.tags_bytes() };
            spend(looks, EVENT_LOOKS + tags / TAG_BYTES_PER_LOOK)?;
            if *sequence > last || view.is_expired(unix_s) || !filter.matches(view) {
                continue;
            }
            found.push(at);
            left -= 1;
            if left == 0 {
                return Some(());
            }
            if found.len() > FOUND_MAX {
                return None;
            }
        }
        has_all.then_some(())
    }

    /// No more events than this can match.
    fn at_most(&self, filter: &Filter) -> u64 {
        const COUNTED_MAX: usize = 64;
        if self.events.is_empty() {
            return 0;
        }
        let sum = |slots: &mut dyn Iterator<Item = u16>| slots.map(u64::from).sum::<u64>();
        let authors = filter.authors.as_ref().filter(|authors| authors.len() <= COUNTED_MAX);
        let authors = authors.map_or(u64::MAX, |authors| {
            sum(&mut authors.iter().map(|key| self.by_author[author_slot(head(key))]))
        });
        let kinds = filter.kinds.as_ref().filter(|kinds| kinds.len() <= COUNTED_MAX);
        let kinds = kinds.map_or(u64::MAX, |kinds| {
            sum(&mut kinds.iter().map(|kind| self.by_kind[usize::from(*kind)]))
        });
        authors.min(kinds).min(self.events.len() as u64)
    }

    /// Where an event of this rank is, or would be.
    fn place(&self, of: Rank) -> usize {
        // Most events that come are the newest.
        if self.events.back().is_none_or(|(seq, event)| of < rank(*seq, event.view())) {
            return self.events.len();
        }
        self.events.partition_point(|(seq, event)| of < rank(*seq, event.view()))
    }

    fn insert(&mut self, place: usize, sequence: Sequence, event: &Event) {
        let view = event.view();
        let (author, kind) = (head(view.pubkey()), view.kind().0);
        self.by_author[author_slot(author)] += 1;
        self.by_kind[usize::from(kind)] += 1;
        self.bytes += event.record().len();
        self.events.insert(place, (sequence, event.clone()));
        self.seconds.insert(place, view.created_at());
        self.authors.insert(place, author);
        self.kinds.insert(place, kind);
    }

    fn uncount(&mut self, at: usize) {
        self.by_author[author_slot(self.authors[at])] -= 1;
        self.by_kind[usize::from(self.kinds[at])] -= 1;
        self.bytes -= self.events[at].1.record().len();
    }

    /// Takes events out, by their places in ascending order.
    fn remove_all(&mut self, places: &[usize]) {
        places.iter().for_each(|at| self.uncount(*at));
        if places.len() <= ONE_BY_ONE_MAX {
            for at in places.iter().rev() {
                self.events.remove(*at);
                self.seconds.remove(*at);
                self.authors.remove(*at);
                self.kinds.remove(*at);
            }
            return;
        }
        retain_others(&mut self.events, places);
        retain_others(&mut self.seconds, places);
        retain_others(&mut self.authors, places);
        retain_others(&mut self.kinds, places);
    }

    fn place_of(&self, erased: &Erased) -> Option<usize> {
        let rank = (Reverse(erased.created_at), u64::from_be_bytes(erased.id), erased.sequence);
        let place = self.place(rank);
        self.events.get(place).is_some_and(|(seq, _)| *seq == erased.sequence).then_some(place)
    }

    /// The places of what is gone with vanished keys; `None` where finding that out takes long.
    fn covered(&self, vanished: &[Vanished]) -> Option<Vec<usize>> {
        let mut covered = Vec::new();
        let mut tag_bytes = 0;
        for at in 0..self.events.len() {
            let may_have_written = || {
                let head_of = |vanished: &Vanished| head(&vanished.pubkey);
                vanished.binary_search_by_key(&self.authors[at], head_of).is_ok()
            };
            let is_wrap = self.kinds[at] == Kind::GIFT_WRAP.0;
            if !is_wrap && !may_have_written() {
                continue;
            }
            let event = self.events[at].1.view();
            tag_bytes += if is_wrap { event.tags_bytes() } else { 0 };
            if tag_bytes > WRAPS_TAG_BYTES_MAX {
                return None;
            }
            if is_covered(event, vanished) {
                covered.push(at);
            }
        }
        Some(covered)
    }

    /// Lets all go before this place: what comes before the last of them in order is all there is here.
    fn raise_floor(&mut self, end: usize) {
        let Some((sequence, event)) = end.checked_sub(1).and_then(|at| self.events.get(at)) else {
            return;
        };
        self.floor = Some(rank(*sequence, event.view()));
        (0..end).for_each(|at| self.uncount(at));
        self.events.drain(..end);
        self.seconds.drain(..end);
        self.authors.drain(..end);
        self.kinds.drain(..end);
    }

    /// Lets the last go while there are too many; the floor rises to them.
    fn evict(&mut self) {
        let (mut end, mut bytes) = (0, self.bytes);
        while self.events.len() - end > self.events_max || bytes > self.bytes_max {
            bytes -= self.events[end].1.record().len();
            end += 1;
        }
        self.raise_floor(end);
    }
}

impl Shard {
    /// The whole result of a stored query, from the newest events; `None` when it is the store's to give.
    /// The answer goes to [`Shard::handle_chunk`].
    pub fn recall(&mut self, scan: ScanKey, query: &Query, now: Now) -> Option<Chunk> {
        let snapshot = self.filed_at(scan)?;
        let Query { filters, limit_max } = query;
        let looks_max = LOOKS_MAX.min(self.recall_looks);
        let mut looks = looks_max;
        let events = self.recent.answer(filters, *limit_max, (snapshot, now.unix_s), &mut looks);
        let events: Option<Vec<_>> =
            events.map(|events| events.into_iter().map(ExpiringBytes::from).collect());
        let looked = looks_max - looks;
        self.recall_looks -= looked;
        // Where nothing comes of it, the query goes on in the store, which charges it; and few of a connection do
        // so at once.
        let events = events?;
        let examined = (looked / LOOKS_PER_ENTRY) as u64;
        self.counters.scans_recalled += 1;
        Some(Chunk { snapshot, events, examined, done: true, ..Chunk::default() })
    }
}

/// Takes so many looks; `None` when they are used up.
fn spend(looks: &mut usize, count: usize) -> Option<()> {
    let left = looks.checked_sub(count);
    *looks = left.unwrap_or(0);
    left.map(|_| ())
}

/// Takes values out of a column, by their places in ascending order.
fn retain_others<T>(column: &mut VecDeque<T>, places: &[usize]) {
    let (mut at, mut next) = (0, places.iter().peekable());
    column.retain(|_| {
        let is_gone = next.next_if_eq(&&at).is_some();
        at += 1;
        !is_gone
    });
}

/// The last place in a range of a column that holds `value`.
fn last_of<T: Copy + PartialEq>(
    column: &VecDeque<T>,
    range: Range<usize>,
    value: T,
) -> Option<usize> {
    let (front, back) = column.as_slices();
    let of_back = |at: usize| at.saturating_sub(front.len());
    let of_front = range.start.min(front.len())..range.end.min(front.len());
    let in_back = last_position(&back[of_back(range.start)..of_back(range.end)], value);
    in_back
        .map(|at| range.start.max(front.len()) + at)
        .or_else(|| Some(range.start + last_position(&front[of_front], value)?))
}

fn last_position<T: Copy + PartialEq>(values: &[T], value: T) -> Option<usize> {
    let mut end = values.len();
    // Whole blocks without a branch in them, which become a few vector instructions.
    while let Some(block) = end.checked_sub(BLOCK).map(|start| &values[start..end]) {
        if block.iter().map(|other| u32::from(*other == value)).sum::<u32>() > 0 {
            break;
        }
        end -= BLOCK;
    }
    values[..end].iter().rposition(|other| *other == value)
}

/// How much longer a list of so many values makes a look.
fn list_looks(values: Option<usize>) -> usize {
    values.map_or(0, |values| values.max(1).ilog2() as usize)
}

/// Whether the event is gone with one of these keys (NIP-62): it wrote it, or it is a gift wrap to it.
fn is_covered(event: EventView<'_>, vanished: &[Vanished]) -> bool {
    let covers = |key: &Pubkey| {
        let found = vanished.binary_search_by_key(key, |vanished| vanished.pubkey);
        found.is_ok_and(|at| event.created_at() <= vanished[at].up_to)
    };
    !vanished.is_empty()
        && event.kind() != Kind::VANISH
        && (covers(event.pubkey())
            || event.kind() == Kind::GIFT_WRAP
                && event.tags().any(|(letter, value)| match value {
                    TagRef::Hex(key) => letter == b'p' && covers(key),
                    TagRef::Text(_) => false,
                }))
}

#[cfg(test)]
mod tests;
