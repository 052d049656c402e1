//! COUNT (NIP-45): asked, counted by the store slice by slice, answered.
//!
//! ```text
//!  Unbegun ──a query of the connection has ended──▶ Counting ──the last slice──▶ answered
//!     └──the connection ends or has asked too much, or the relay stops──┴────▶ given up
//! ```
//! A count is subject to what a REQ is: it holds a place among its connection's subscriptions
//! (`subscriptions_max`), and is one of its stored queries (`connection_queries_max`), and what it looks at is
//! charged to its connection, which ends it where that is too much. Its id is no
//! subscription's: a CLOSE or a REQ of the same id leaves it alone, and each is answered, in the slot
//! that was reserved when it was read, by one COUNT or one CLOSED.

use super::budget::ASKED_TOO_MUCH;
use super::planted::{Bug, planted};
use super::ports::{Chunk, Counted, Counting, Query, ScanKey, Sequence};
use super::session::ConnectionKey;
use super::shard::{Effect, Now, Shard};
use crate::nostr::{Filter, RelayMessage, SketchOffset, SubscriptionId};

/// Said to a COUNT that goes beyond the same bound.
const LOOKS_AT_TOO_MUCH: &str = "rate-limited: the count looks at too many stored events";

/// A COUNT whose answer is awaited.
pub(super) struct Count {
    pub(super) connection: ConnectionKey,
    pub(super) query: SubscriptionId,
    /// Tells its slices from those of an earlier one in the same slot.
    pub(super) generation: u32,
    /// The last sequence number the shard had been told of when this was asked, and that counts.
    pub(super) asked_at: Sequence,
    /// What it asks, until it begins.
    pub(super) unbegun: Option<Box<(Query, Counting)>>,
}

impl Shard {
    /// Takes a COUNT.
    pub(super) fn count(
        &mut self,
        key: ConnectionKey,
        query: &SubscriptionId,
        filters: Vec<Filter>,
        sketch: Option<SketchOffset>,
        now: Now,
    ) {
        let limits = self.setup.limits.clone();
        let Some(session) = self.session(key) else { return };
        let max = limits.subscriptions_max as usize;
        if session.places_taken() >= max && !planted(Bug::CountsUnbounded) {
            let reason = format!("rate-limited: {max} subscriptions are open, the most allowed");
            return self.refuse_count(key, query, &reason);
        }
        // What it looks at is charged with its slices, and bounded for each count.
        let admitted = session.examined.admit(1, &limits, now.ms).is_some();
        if !admitted && !planted(Bug::QueriesUnlimited) {
            return self.refuse_count(key, query, ASKED_TOO_MUCH);
        }
        self.generation = self.generation.wrapping_add(1);
        let counting = Counting { entries_max: limits.count_entries_max.into(), sketch };
        let count = Count {
            connection: key,
            query: query.clone(),
            generation: self.generation,
            asked_at: self.last_sequence,
            unbegun: Some(Box::new((Query { filters, limit_max: u64::MAX }, counting))),
        };
        let slot = self.counts.insert(count);
        if let Some(session) = self.session(key) {
            session.counts.push(u32::try_from(slot).expect("fewer counts than 2^32"));
            session.unbegun += 1;
        }
        self.counters.scans += 1;
        self.begin_queries(key);
    }

    /// Answers a COUNT that is not taken.
    pub(super) fn refuse_count(&mut self, key: ConnectionKey, query: &SubscriptionId, text: &str) {
        self.counters.counts_refused += 1;
        self.reply(key, RelayMessage::Closed { subscription: query, text });
    }

    /// Takes a slice of a count; whether it is still wanted.
    pub(super) fn handle_count_slice(&mut self, scan: ScanKey, chunk: Chunk, now: Now) -> bool {
        let Some(count) = self
            .counts
            .get(scan.slot())
            .filter(|count| count.generation == scan.generation() || planted(Bug::SliceToStranger))
        else {
            return false;
        };
        let (key, query) = (count.connection, count.query.clone());
        let limits = self.setup.limits.clone();
        let examined = if planted(Bug::SlicesUncharged) { 0 } else { chunk.examined };
        let Some(session) = self.session(key) else { return false };
        let pays = session.examined.charge(examined, &limits, now.ms);
        let goes_on = pays || planted(Bug::QueriesUnlimited);
        if !chunk.done && goes_on {
            self.effects.push_back(Effect::ResumeScan(scan));
            return true;
        }
        self.forget_count(scan.slot());
        if let Some(session) = self.session(key) {
            session.counts.retain(|slot| *slot as usize != scan.slot());
        }
        let too_many;
        let closed = |text| RelayMessage::Closed { subscription: &query, text };
        let counters = &mut self.counters;
        let (counter, message) = match &chunk.counted {
            _ if !chunk.done => (&mut counters.counts_over_budget, closed(LOOKS_AT_TOO_MUCH)),
            Some(Counted::Exactly { events, sketch }) => {
                let sketch = sketch.as_deref();
                let answer = RelayMessage::Count { query: &query, events: *events, sketch };
                (&mut counters.counts_answered, answer)
            }
            Some(Counted::TooMany) => {
                let max = self.setup.limits.count_entries_max;
                too_many = format!("error: more than {max} index entries to count through");
                (&mut counters.counts_too_many, closed(&too_many))
            }
            None => {
                let text = "error: the stored events could not be counted";
                (&mut counters.counts_failed, closed(text))
            }
        };
        *counter += 1;
        self.reply(key, message);
        if !planted(Bug::QueryForgotten) {
            self.begin_queries(key);
        }
        chunk.counted.is_some()
    }

    /// Lets one count go; its connection still lists it.
    fn forget_count(&mut self, slot: usize) -> Count {
        let count = self.counts.remove(slot);
        self.counters.scans -= 1;
        if let Some(session) = self.session(count.connection) {
            match count.unbegun {
                Some(_) => session.unbegun -= 1,
                None => session.queries -= 1,
            }
        }
        count
    }

    /// Gives all counts of a connection up; returns what they were to answer.
    fn give_counts_up(&mut self, key: ConnectionKey) -> Vec<SubscriptionId> {
        let Some(session) = self.session(key) else { return Vec::new() };
        let mut queries = Vec::new();
        for slot in std::mem::take(&mut session.counts) {
            let count = self.forget_count(slot as usize);
            if count.unbegun.is_none() && !planted(Bug::ScanRunsOn) {
                let scan = ScanKey::of_count(slot, count.generation);
                self.effects.push_back(Effect::CancelScan(scan));
            }
            queries.push(count.query);
        }
        queries
    }

    /// The connection ends: nobody waits for its counts.
    pub(super) fn end_counts(&mut self, key: ConnectionKey) {
        if planted(Bug::CountOutlives) {
            return;
        }
        for _ in self.give_counts_up(key) {
            self.release_slot(key);
        }
    }

    /// The relay stops: what is not counted is not answered with a number.
    pub(super) fn stop_counts(&mut self, key: ConnectionKey) {
        for query in self.give_counts_up(key) {
            let text = "error: the relay is stopping";
            self.refuse_count(key, &query, text);
        }
    }
}
