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

use super::ports::{CommitBatch, Erased, Newest, Sequence, Vanished};
use crate::nostr::event::{Event, EventView, Kind};
use crate::nostr::{Filter, TagRef};

/// Looks one query may take, about: a filter's list of authors or kinds makes a look longer. Some 50 µs.
const LOOKS_MAX: usize = 1 << 16;

/// Events one query may look into that do not match: each is likely to be far from the processor.
const MISSES_MAX: usize = 256;

/// Gift wraps that are looked into when a key vanishes; where there are more, everything is let go.
const WRAPS_MAX: u16 = 1_024;

/// Events of one answer: references, kept until the client has taken them.
const ANSWER_EVENTS_MAX: usize = 512;

/// Bytes of the events of one answer.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Place in NIP-01's order: newest first, lowest id first. Eight bytes of the id, then the order of
/// arrival, as in the store.
type Rank = (Reverse<u64>, u64, Sequence);

/// Before every event: nothing is newer.
const TOP: Rank = (Reverse(u64::MAX), 0, 0);

fn rank(sequence: Sequence, event: EventView<'_>) -> Rank {
    let id = event.id().first_chunk().expect("an id is longer");
    (Reverse(event.created_at()), u64::from_be_bytes(*id), sequence)
}

/// What is looked at before an event.
#[derive(Clone, Copy, Debug)]
struct Mark {
    created_at: u64,
    /// The author's first bytes.
    author: [u8; 4],
    kind: u16,
}

impl Mark {
    fn of(event: EventView<'_>) -> Self {
        let author = *event.pubkey().first_chunk().expect("a key is longer");
        Self { created_at: event.created_at(), author, kind: event.kind().0 }
    }

    /// Counts go by these bytes of a key.
    fn author_slot(author: &[u8]) -> usize {
        usize::from(u16::from_be_bytes([author[0], author[1]]))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Recent {
    events_max: usize,
    bytes_max: usize,
    /// The last in order first, so that new ones come to the end. Both have one length.
    marks: VecDeque<Mark>,
    events: VecDeque<(Sequence, Event)>,
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
            marks: VecDeque::with_capacity(room),
            events: VecDeque::with_capacity(room),
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
        if !newest.are_all {
            let last = newest.events.last();
            self.floor = Some(last.map_or(TOP, |(seq, event)| rank(*seq, event.view())));
        }
        for (sequence, event) in newest.events.iter().rev() {
            let place = self.place(rank(*sequence, event.view()));
            self.insert(place, *sequence, event);
        }
        self.evict();
    }

    /// Events kept, and the bytes of their records.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.events.len(), self.bytes)
    }

    /// Lets go what a commit takes away, before any of its events is kept.
    pub fn forget(&mut self, batch: &CommitBatch) {
        for erased in &batch.erased {
            self.forget_one(*erased);
        }
        batch.vanished.iter().for_each(|vanished| self.forget_key(vanished));
    }

    /// Keeps an event of a commit, unless the commit takes it away again or there are newer ones enough.
    pub fn keep(&mut self, sequence: Sequence, event: &Event, batch: &CommitBatch) {
        let rank = rank(sequence, event.view());
        if self.floor.is_some_and(|floor| floor < rank)
            || batch.erased.binary_search_by_key(&sequence, |erased| erased.sequence).is_ok()
            || batch.vanished.iter().any(|vanished| is_covered(event.view(), vanished))
        {
            return;
        }
        let place = self.place(rank);
        self.insert(place, sequence, event);
        self.evict();
    }

    /// The result of a query among the events up to `last` that have not expired at `unix_s`, in order;
    /// `None` when it may be that not all of it is here, or finding it takes long.
    ///
    /// A filter without a `limit`, or with a higher one, finds `limit_max` events at most.
    #[must_use]
    pub fn answer(
        &self,
        filters: &[Filter],
        limit_max: u64,
        last: Sequence,
        unix_s: u64,
    ) -> Option<Vec<&Event>> {
        let mut looks = LOOKS_MAX;
        let mut found = Vec::new();
        for filter in filters.iter().filter(|filter| !filter.is_unsatisfiable()) {
            let wanted = filter.limit.unwrap_or(u64::MAX).min(limit_max);
            self.find(filter, wanted, (last, unix_s), &mut looks, &mut found)?;
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
        if filter.ids.is_some() || !has_all && self.at_most(filter) < wanted {
            return None;
        }
        let until = filter.until.unwrap_or(u64::MAX);
        let end = self.marks.partition_point(|mark| mark.created_at <= until);
        let kinds = filter.kinds.as_deref();
        let authors = filter.authors.as_deref();
        let per_look = 1 + list_looks(kinds.map(<[_]>::len)) + list_looks(authors.map(<[_]>::len));
        let looks_max = *looks / per_look;
        let (mut left, mut misses) = (wanted, 0);
        let mut looked = 0;
        for (at, mark) in self.marks.range(..end).enumerate().rev() {
            if mark.created_at < since {
                *looks -= looked * per_look;
                return Some(());
            }
            if looked == looks_max || misses > MISSES_MAX {
                return None;
            }
            looked += 1;
            if kinds.is_some_and(|kinds| kinds.binary_search(&mark.kind).is_err())
                || authors.is_some_and(|authors| {
                    authors.binary_search_by(|key| key[..4].cmp(&mark.author)).is_err()
                })
            {
                continue;
            }
            let (sequence, event) = &self.events[at];
            let view = event.view();
            if *sequence > last || view.is_expired(unix_s) || !filter.matches(view) {
                misses += 1;
                continue;
            }
            found.push(at);
            left -= 1;
            if left == 0 {
                *looks -= looked * per_look;
                return Some(());
            }
            if found.len() > ANSWER_EVENTS_MAX * 2 {
                return None;
            }
        }
        *looks -= looked * per_look;
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
            sum(&mut authors.iter().map(|key| self.by_author[Mark::author_slot(key)]))
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
        let mark = Mark::of(event.view());
        self.by_author[Mark::author_slot(&mark.author)] += 1;
        self.by_kind[usize::from(mark.kind)] += 1;
        self.bytes += event.record().len();
        self.marks.insert(place, mark);
        self.events.insert(place, (sequence, event.clone()));
    }

    fn remove(&mut self, at: usize) {
        let (Some(mark), Some((_, event))) = (self.marks.remove(at), self.events.remove(at)) else {
            return;
        };
        self.by_author[Mark::author_slot(&mark.author)] -= 1;
        self.by_kind[usize::from(mark.kind)] -= 1;
        self.bytes -= event.record().len();
    }

    fn forget_one(&mut self, erased: Erased) {
        let first = self.marks.partition_point(|mark| mark.created_at < erased.created_at);
        let mut same = (first..self.marks.len())
            .take_while(|at| self.marks[*at].created_at == erased.created_at);
        if let Some(at) = same.find(|at| self.events[*at].0 == erased.sequence) {
            self.remove(at);
        }
    }

    fn forget_key(&mut self, vanished: &Vanished) {
        if self.held().0 == 0 {
            return;
        }
        if self.by_kind[usize::from(Kind::GIFT_WRAP.0)] > WRAPS_MAX {
            return self.clear();
        }
        for at in (0..self.marks.partition_point(|mark| mark.created_at <= vanished.up_to)).rev() {
            let mark = self.marks[at];
            let may_be = mark.author == vanished.pubkey[..4] || mark.kind == Kind::GIFT_WRAP.0;
            if may_be && is_covered(self.events[at].1.view(), vanished) {
                self.remove(at);
            }
        }
    }

    /// Lets all go; what comes before the newest of them is kept again.
    fn clear(&mut self) {
        if let Some((sequence, event)) = self.events.back() {
            self.floor = Some(rank(*sequence, event.view()));
        }
        self.marks.clear();
        self.events.clear();
        self.bytes = 0;
        self.by_author.fill(0);
        self.by_kind.fill(0);
    }

    /// Lets the last go while there are too many; the floor rises to them.
    fn evict(&mut self) {
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some((sequence, event)) = self.events.front() else { return };
            self.floor = Some(rank(*sequence, event.view()));
            self.remove(0);
        }
    }
}

/// How much longer a list of so many values makes a look.
fn list_looks(values: Option<usize>) -> usize {
    values.map_or(0, |values| values.max(1).ilog2() as usize)
}

/// Whether the event is gone with a key (NIP-62): it wrote it, or it is a gift wrap to it.
fn is_covered(event: EventView<'_>, vanished: &Vanished) -> bool {
    event.created_at() <= vanished.up_to
        && event.kind() != Kind::VANISH
        && (*event.pubkey() == vanished.pubkey
            || event.kind() == Kind::GIFT_WRAP
                && event.tags().any(|tag| tag == (b'p', TagRef::Hex(&vanished.pubkey))))
}

#[cfg(test)]
mod tests;
