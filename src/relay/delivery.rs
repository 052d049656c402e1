//! The outbound half of a shard: subscriptions from REQ to their end, and how events reach them.
//!
//! Two levels stand before a socket: each subscription's own queues (stored events of the last slice,
//! live events as small references), then the connection's outbox. What finds room in the outbox goes
//! there at once; the rest waits in its subscription and is moved, in turns, as batches leave.
//!
//! No gap and no double between stored and live: the last sequence number this shard was told of when
//! the subscription was filed in the index ([`Shard::filed_at`]) is the last its query covers. Live
//! events after that number wait for EOSE; there is none up to it. So an event that is committed after
//! the REQ is live, also where the query, for its `limit`, would leave it out.

use std::collections::VecDeque;
use std::rc::Rc;

use super::budget::{ASKED_TOO_MUCH, estimate};
use super::outbox::{Name, Outbox};
use super::planted::{Bug, planted};
use super::ports::{Chunk, Query, ScanKey, Sequence};
use super::session::{ConnectionKey, LIVE_ROOM_FACTOR, LiveEvent, Phase, Stage, Subscription};
use super::shard::{Effect, Now, Shard};
use crate::nostr::{Filter, RelayMessage, SubscriptionId};
use crate::wire::deflate::Deflater;

/// Events one subscription may move to the outbox before the next has its turn.
const TURN_EVENTS: usize = 16;

/// Bytes of stored events deflated for one connection before its batch leaves: some 0.6 ms.
const DEFLATED_PER_BATCH: u64 = 32 << 10;

/// Said to a subscription whose stored query goes beyond the same bound.
const LOOKS_AT_TOO_MUCH: &str = "rate-limited: the query looks at too many stored events";

impl Shard {
    /// Opens a subscription, or replaces the one of the same id.
    pub(super) fn subscribe(
        &mut self,
        key: ConnectionKey,
        id: SubscriptionId,
        filters: Vec<Filter>,
        now: Now,
    ) {
        self.unsubscribe(key, &id, now);
        let max = self.setup.limits.subscriptions_max as usize;
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        // One the relay has ended holds its place until its CLOSED has left: so many wait at most.
        if session.places_taken() >= max {
            let reason = format!("rate-limited: {max} subscriptions are open, the most allowed");
            return self.refuse_subscription(key, &id, &reason, now);
        }
        let limits = &self.setup.limits;
        let expected = estimate(&filters, limits.filter_limit_max.into());
        let admitted = session.examined.admit(expected, limits, now.ms);
        let Some(reserved) = admitted.or(planted(Bug::QueriesUnlimited).then_some(0)) else {
            return self.refuse_subscription(key, &id, ASKED_TOO_MUCH, now);
        };
        self.release_slot(key);
        self.counters.reqs += 1;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let entry = self.subscriptions.vacant_entry();
        let slot = u32::try_from(entry.key()).expect("fewer subscriptions than 2^32");
        let wants_stored =
            filters.iter().any(|filter| filter.limit != Some(0) && !filter.is_unsatisfiable());
        // What is searched for is the store's to find.
        let is_live = filters.iter().all(|filter| filter.search.is_none());
        let filed = match is_live && (wants_stored || !planted(Bug::LimitZeroNotLive)) {
            true => self.index.insert(slot, &filters),
            false => Box::default(),
        };
        let limit_max = u64::from(self.setup.limits.filter_limit_max);
        entry.insert(Subscription {
            connection: key,
            name: Name::new(id),
            generation,
            filed_at: self.last_sequence,
            stage: if wants_stored { Stage::Unbegun } else { Stage::Finishing },
            query: wants_stored.then(|| Box::new(Query { filters, limit_max })),
            reserved,
            filters: filed,
            snapshot: None,
            asked_us: self.turn_us,
            live_ms: 0,
            stored: VecDeque::new(),
            live: VecDeque::new(),
            is_waiting: false,
        });
        let Some(session) = self.session(key) else { return };
        session.subscriptions.push(slot);
        if wants_stored {
            session.unbegun += 1;
            self.counters.scans += 1;
            self.begin_queries(key);
        } else {
            session.queries += 1;
            self.wait_turn(slot);
            self.pump(key, now);
        }
    }

    /// Begins the stored queries that are next, subscriptions before counts. Each holds its place in the
    /// store and a slice of events, so a connection has a few at a time, however many it asks for.
    pub(super) fn begin_queries(&mut self, key: ConnectionKey) {
        let queries_max = self.setup.limits.connection_queries_max;
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        while session.unbegun > 0
            && (session.queries < queries_max || planted(Bug::QueriesUnbounded))
        {
            let mut slots = session.subscriptions.iter().copied();
            let is_unbegun =
                |slot: &u32| self.subscriptions[*slot as usize].stage == Stage::Unbegun;
            session.unbegun -= 1;
            session.queries += 1;
            let Some(slot) = slots.find(is_unbegun) else {
                let mut slots = session.counts.iter().copied();
                let is_unbegun = |slot: &u32| self.counts[*slot as usize].unbegun.is_some();
                let slot = slots.find(is_unbegun).expect("one for each that has not begun");
                let count = &mut self.counts[slot as usize];
                let (query, counting) = *count.unbegun.take().expect("it has not begun");
                let scan = ScanKey::of_count(slot, count.generation);
                self.effects.push_back(Effect::StartCount(scan, query, counting));
                continue;
            };
            let subscription = &mut self.subscriptions[slot as usize];
            let query = subscription.query.take().expect("it has not begun");
            subscription.stage = Stage::Scanning;
            let scan = ScanKey::new(slot, subscription.generation);
            self.effects.push_back(Effect::StartScan(scan, *query));
        }
    }

    /// Answers a REQ that is not taken. What its id named before ends with it.
    pub(super) fn refuse_subscription(
        &mut self,
        key: ConnectionKey,
        id: &SubscriptionId,
        reason: &str,
        now: Now,
    ) {
        self.unsubscribe(key, id, now);
        self.counters.subscriptions_refused += 1;
        self.reply(key, RelayMessage::Closed { subscription: id, text: reason });
    }

    /// Ends a subscription at its client's word, its unsent frames with it. If the relay has ended it
    /// before, its CLOSED goes too: behind a new REQ of the same id it would seem to answer that one.
    pub(super) fn unsubscribe(&mut self, key: ConnectionKey, id: &SubscriptionId, now: Now) {
        let Some(session) = self.sessions.get(key.slot()).filter(|s| s.key == key) else { return };
        let found =
            session.subscriptions.iter().find(|slot| self.subscriptions[**slot as usize].is(id));
        if let Some(&slot) = found {
            self.counters.subscriptions_closed += 1;
            self.end_subscription(slot);
        } else if let Some(session) = self.session(key)
            && !planted(Bug::ClosedStays)
        {
            session.outbox.purge_id(id);
        }
        // The room that was theirs is for those who wait, and no batch may come to hand it on.
        if !planted(Bug::RoomKept) {
            self.pump(key, now);
        }
    }

    /// Lets one subscription go: index, stored query, queues, unsent frames.
    fn end_subscription(&mut self, slot: u32) {
        let subscription = self.subscriptions.remove(slot as usize);
        if !planted(Bug::IndexLeak) {
            self.index.remove(&subscription.filters);
        }
        let stage = subscription.stage;
        match stage {
            Stage::Unbegun => self.counters.scans -= 1,
            Stage::Scanning | Stage::Paused => {
                self.cancel_scan(ScanKey::new(slot, subscription.generation));
            }
            Stage::Finishing | Stage::Live | Stage::Cut => {}
        }
        let waiting = subscription.live.len();
        self.counters.abandoned_live += waiting as u64;
        if let Some(session) = self.session(subscription.connection) {
            session.subscriptions.retain(|other| *other != slot);
            match stage {
                Stage::Unbegun => session.unbegun -= 1,
                Stage::Live => {}
                _ => session.queries -= 1,
            }
            session.live_waiting -= u32::try_from(waiting).expect("a part of their sum");
            if subscription.is_waiting {
                session.waiting.retain(|other| *other != slot);
            }
            if !planted(Bug::CloseLeavesFrames) {
                let purged = session.outbox.purge(&subscription.name);
                self.counters.purged_events += purged;
            }
            if !planted(Bug::QueryForgotten) {
                self.begin_queries(subscription.connection);
            }
        }
    }

    fn cancel_scan(&mut self, key: ScanKey) {
        self.counters.scans -= 1;
        if !planted(Bug::ScanRunsOn) {
            self.effects.push_back(Effect::CancelScan(key));
        }
    }

    /// Ends every subscription of a connection.
    pub(super) fn end_subscriptions(&mut self, key: ConnectionKey) {
        let Some(session) = self.session(key) else { return };
        // The last first: hardly a query begins in the stead of one that ends.
        for slot in session.subscriptions.clone().into_iter().rev() {
            self.end_subscription(slot);
        }
    }

    /// The relay stops: nothing new is matched and no stored query goes on. What has been read or matched
    /// still leaves, but for live events behind a query that is not done: there is no EOSE to come before them.
    pub(super) fn stop_scans(&mut self, key: ConnectionKey) {
        self.stop_counts(key);
        self.stop_matching(key);
        let Some(session) = self.session(key) else { return };
        for slot in session.subscriptions.clone().into_iter().rev() {
            let subscription = &mut self.subscriptions[slot as usize];
            match subscription.stage {
                Stage::Finishing | Stage::Live | Stage::Cut => {}
                Stage::Paused
                    if !subscription.stored.is_empty() && !planted(Bug::StopForgetsStored) =>
                {
                    subscription.stage = Stage::Cut;
                    let scan = ScanKey::new(slot, subscription.generation);
                    self.cancel_scan(scan);
                }
                Stage::Unbegun | Stage::Scanning | Stage::Paused => self.end_kept(slot),
            }
        }
    }

    /// Nothing new goes to the subscriptions of a connection: each ends when what it is owed is queued.
    pub(super) fn stop_matching(&mut self, key: ConnectionKey) {
        let Some(session) = self.session(key) else { return };
        for slot in session.subscriptions.clone() {
            let subscription = &mut self.subscriptions[slot as usize];
            let filters = std::mem::take(&mut subscription.filters);
            self.index.remove(&filters);
            if subscription.stage == Stage::Live && subscription.live.is_empty() {
                self.end_kept(slot);
            }
        }
    }

    /// Ends a subscription whose queued frames stay owed.
    fn end_kept(&mut self, slot: u32) {
        let subscription = &mut self.subscriptions[slot as usize];
        subscription.name = Name::new(subscription.name.id().clone());
        self.end_subscription(slot);
    }

    /// Ends a subscription from the relay's side, with a reason.
    pub(super) fn fail_subscription(&mut self, slot: u32, text: &str) {
        let subscription = &self.subscriptions[slot as usize];
        let (key, name) = (subscription.connection, subscription.name.clone());
        self.end_subscription(slot);
        if let Some(session) = self.session(key) {
            session.outbox.push_closed(&name, text);
            self.ask_write(key);
        }
    }

    /// Brings one matched live event to a subscription.
    pub(super) fn deliver(&mut self, slot: u32, live: &Rc<LiveEvent>) {
        let limits = &self.setup.limits;
        let Some(subscription) = self.subscriptions.get_mut(slot as usize) else {
            // It has just ended for the sake of another one that matched.
            self.counters.abandoned_live += 1;
            return;
        };
        let late = planted(Bug::LateListener) && subscription.stage == Stage::Scanning;
        if late || subscription.covers(live.sequence) {
            self.counters.suppressed_live += 1;
            return;
        }
        let key = subscription.connection;
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return;
        };
        let messages_max = limits.outbox_messages_max as usize;
        let straight = subscription.stage == Stage::Live
            && subscription.live.is_empty()
            && session.outbox.has_room(messages_max, limits.outbox_bytes_max as usize);
        if straight {
            session.push_live(&subscription.name, live, &mut self.deflater);
            session.ask_write(&mut self.effects, self.turn_us);
            self.counters.delivered_live += 1;
        } else if subscription.live.len() >= limits.live_queue_events_max as usize {
            self.counters.abandoned_live += u64::from(!planted(Bug::LossUncounted));
            if !planted(Bug::LossUnsaid) {
                self.end_slow(slot);
            }
        } else {
            subscription.live.push_back(live.clone());
            session.live_waiting += 1;
            let too_many = session.live_waiting > limits.connection_live_events_max;
            if subscription.stage == Stage::Live {
                self.wait_turn(slot);
            }
            if too_many && !planted(Bug::ReferencesUnbounded) {
                self.end_furthest_behind_of(key);
            }
        }
    }

    /// The sequence number up to which a stored query looks; `None` when nobody wants it any more.
    #[must_use]
    pub fn filed_at(&self, scan: ScanKey) -> Option<Sequence> {
        if scan.is_count() {
            let count = self.counts.get(scan.slot())?;
            return (count.generation == scan.generation()).then_some(count.asked_at);
        }
        let subscription = self.subscriptions.get(scan.slot())?;
        (subscription.generation == scan.generation()).then_some(subscription.filed_at)
    }

    /// Takes a slice of a stored query; whether the query is still wanted.
    pub fn handle_chunk(&mut self, scan: ScanKey, chunk: Chunk, now: Now) -> bool {
        if scan.is_count() {
            return self.handle_count_slice(scan, chunk, now);
        }
        let Some(subscription) = self
            .subscriptions
            .get_mut(scan.slot())
            .filter(|s| s.generation == scan.generation() || planted(Bug::SliceToStranger))
        else {
            return false;
        };
        debug_assert_eq!(subscription.stage, Stage::Scanning, "a slice nobody asked for");
        let slot = u32::try_from(scan.slot()).expect("32 bits");
        if chunk.failed.is_some() {
            self.counters.subscriptions_failed += 1;
            self.fail_subscription(slot, "error: the stored events could not be read");
            return false;
        }
        if !self.pay_for(slot, chunk.examined, chunk.done, now) && !chunk.done {
            self.counters.subscriptions_over_budget += 1;
            self.fail_subscription(slot, LOOKS_AT_TOO_MUCH);
            return false;
        }
        let subscription = &mut self.subscriptions[scan.slot()];
        if subscription.snapshot.is_none() {
            subscription.snapshot = Some(chunk.snapshot);
            let live = std::mem::take(&mut subscription.live);
            let (covered, left): (Vec<_>, Vec<_>) =
                live.into_iter().partition(|event| subscription.covers(event.sequence));
            subscription.live = left.into();
            self.counters.suppressed_live += covered.len() as u64;
            if let Some(session) = self.sessions.get_mut(subscription.connection.slot()) {
                session.live_waiting -= u32::try_from(covered.len()).expect("a part of their sum");
            }
        }
        subscription.stored.extend(chunk.events);
        subscription.stage = if chunk.done { Stage::Finishing } else { Stage::Paused };
        if chunk.done {
            self.counters.scans -= 1;
            if planted(Bug::SatisfiedNotLive) {
                self.index.remove(&std::mem::take(&mut subscription.filters));
            }
        }
        let key = subscription.connection;
        self.wait_turn(slot);
        self.pump(key, now);
        true
    }

    /// Charges a connection for a slice of a stored query, as far as it is more than was charged for the
    /// query; whether the query may go on.
    fn pay_for(&mut self, slot: u32, examined: u64, done: bool, now: Now) -> bool {
        let examined = if planted(Bug::SlicesUncharged) { 0 } else { examined };
        let subscription = &mut self.subscriptions[slot as usize];
        let beyond = examined.saturating_sub(subscription.reserved);
        subscription.reserved = subscription.reserved.saturating_sub(examined);
        let key = subscription.connection;
        let left = if done { std::mem::take(&mut subscription.reserved) } else { 0 };
        let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
            return true;
        };
        let goes_on = session.examined.charge(beyond, &self.setup.limits, now.ms);
        if !planted(Bug::ReserveKept) {
            session.examined.give_back(left);
        }
        goes_on || planted(Bug::QueriesUnlimited)
    }

    fn wait_turn(&mut self, slot: u32) {
        let subscription = &mut self.subscriptions[slot as usize];
        if !std::mem::replace(&mut subscription.is_waiting, true)
            && let Some(session) = self.sessions.get_mut(subscription.connection.slot())
        {
            session.waiting.push_back(slot);
        }
    }

    /// Moves what waits in a connection's subscriptions into its outbox, while there is room.
    pub(super) fn pump(&mut self, key: ConnectionKey, now: Now) {
        let limits = self.setup.limits.clone();
        let (messages_max, bytes_max) =
            (limits.outbox_messages_max as usize, limits.outbox_bytes_max as usize);
        let deflated_max = self.deflater.taken_bytes() + DEFLATED_PER_BATCH;
        let has_room = |outbox: &Outbox, deflater: &Deflater| {
            outbox.has_room(messages_max, bytes_max) && deflater.taken_bytes() < deflated_max
        };
        let mut moved = false;
        loop {
            let Some(session) = self.sessions.get_mut(key.slot()).filter(|s| s.key == key) else {
                return;
            };
            if !has_room(&session.outbox, &self.deflater) {
                break;
            }
            let Some(slot) = session.waiting.pop_front() else { break };
            let subscription = &mut self.subscriptions[slot as usize];
            let mut turn = TURN_EVENTS;
            let done = loop {
                let full = !has_room(&session.outbox, &self.deflater);
                if turn == 0 || full && !planted(Bug::PastHighWater) {
                    break false;
                }
                turn -= 1;
                let eose = planted(Bug::EoseFirst) && subscription.stage == Stage::Finishing;
                if !eose && let Some(json) = subscription.stored.pop_front() {
                    session.push_stored(&subscription.name, json, &mut self.deflater);
                    self.counters.delivered_stored += 1;
                    moved = true;
                    continue;
                }
                match subscription.stage {
                    Stage::Unbegun | Stage::Scanning | Stage::Cut => break true,
                    Stage::Paused => {
                        subscription.stage = Stage::Scanning;
                        let scan = ScanKey::new(slot, subscription.generation);
                        if !planted(Bug::ScanStuck) {
                            self.effects.push_back(Effect::ResumeScan(scan));
                        }
                        break true;
                    }
                    Stage::Finishing => {
                        session.outbox.push_eose(&subscription.name);
                        self.timings.eose.observe(subscription.asked_us, self.turn_us, 1);
                        if planted(Bug::EoseTwice) {
                            session.outbox.push_eose(&subscription.name);
                        }
                        subscription.stage = Stage::Live;
                        session.queries -= 1;
                        subscription.live_ms = now.ms;
                        subscription.stored = VecDeque::new();
                        moved = true;
                    }
                    Stage::Live => {
                        let Some(live) = subscription.live.pop_front() else { break true };
                        session.live_waiting -= 1;
                        session.push_live(&subscription.name, &live, &mut self.deflater);
                        self.counters.delivered_live += 1;
                        moved = true;
                    }
                }
            };
            let waiting = subscription.live.len();
            if subscription.live.capacity() > LIVE_ROOM_FACTOR * waiting {
                subscription.live.shrink_to((2 * waiting).max(4));
            }
            if !done {
                session.waiting.push_back(slot);
                continue;
            }
            subscription.is_waiting = false;
            let is_over = matches!(subscription.stage, Stage::Live | Stage::Cut);
            if session.phase == Phase::Draining && is_over {
                self.end_kept(slot);
            }
        }
        if moved {
            self.ask_write(key);
            self.begin_queries(key);
        }
    }
}

#[cfg(test)]
mod tests;
