//! What reaches a shard from elsewhere: the writer's commits, slices of stored queries, the other
//! shards' messages.

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;

use super::coverage::Seen;
use super::expect::{NAMES, Sub};
use super::model::{Log, NoteIndex, Rng, note_of, pool};
use super::node::Node;
use super::socket::Socket;
use crate::nostr::{Event, Sketch};
use crate::relay::ports::{Chunk, CommitBatch, Counted, Counting, Query, Sequence, Verdict};
use crate::relay::session::Stage;
use crate::relay::{ConnectionKey, Now, ScanKey, Shard};

/// What shards say to each other.
pub enum BusMessage {
    Ephemeral { from: usize, token: u64, event: Event },
    Heard { token: u64, count: u64 },
}

/// A stored query between two slices.
pub struct ScanState {
    query: Query,
    /// It counts.
    counting: Option<Counting>,
    /// The last sequence number it looks at, once that is fixed.
    up_to: Option<Sequence>,
    /// What is left of its result, once the first slice is read.
    left: Option<VecDeque<NoteIndex>>,
}

/// An ephemeral event whose OK waits for the other shards.
pub struct Hearing {
    pub key: ConnectionKey,
    pub note: NoteIndex,
    pub shards_left: usize,
    pub heard: u64,
}

impl Node {
    /// Commits and slices that wait.
    pub fn waiting_from_threads(&self) -> usize {
        self.commits.len() + self.chunks.len()
    }

    /// A message of another shard arrives. There is room for every message that the others may owe:
    /// they never wait, so two that send to each other do not lock up.
    pub fn receive(&mut self, message: BusMessage) {
        let room = (self.shards - 1) * 2 * self.core.submissions_max;
        assert!(self.bus.len() < room, "the queue between shards has room for all that is owed");
        self.bus.push_back(message);
    }

    /// Questions of another shard that wait here.
    pub fn asked_by(&self, shard: usize) -> usize {
        let asks = |message: &&BusMessage| match message {
            BusMessage::Ephemeral { from, .. } => *from == shard,
            BusMessage::Heard { .. } => false,
        };
        self.bus.iter().filter(asks).count()
    }

    /// The next commit batch arrives, or is gone on with.
    pub fn take_commit(&mut self, now: Now) {
        let Some(batch) = self.commits.front().cloned() else { return };
        let before = self.core.counters();
        let from = self.commit_at;
        if from == 0 {
            self.take_verdicts(&batch);
        }
        let next = self.core.handle_commit(&batch, from, 2, now);
        let done = next.unwrap_or(batch.stored.len());
        let notes: Vec<_> = batch.stored[from..done]
            .iter()
            .map(|(at, event)| (note_of(event.view().id()).expect("a known event"), Some(*at)))
            .collect();
        self.published(&notes, &before);
        self.commit_at = next.unwrap_or(0);
        if next.is_none() {
            self.commits.pop_front();
            self.seen.add(Seen::CommitInParts, u64::from(from > 0));
        }
    }

    fn take_verdicts(&mut self, batch: &CommitBatch) {
        for (ticket, verdict) in &batch.verdicts {
            if ticket.origin != self.core.setup.origin {
                continue;
            }
            let ticket = self.tickets.remove(&ticket.token);
            let (key, note) = ticket.expect("a verdict for each submission, once");
            self.seen.add(Seen::VerdictLate, u64::from(!self.sockets.contains_key(&key)));
            match verdict {
                Verdict::Stored => self.answer(key, note, true, ""),
                Verdict::Duplicate => {
                    self.seen.note(Seen::Duplicate);
                    self.answer(key, note, true, "duplicate: already stored");
                }
                Verdict::Expired => {
                    self.seen.note(Seen::ExpiredLate);
                    self.answer(key, note, false, "invalid: event has expired");
                }
                _ => {
                    self.seen.note(Seen::CommitFailed);
                    self.answer(key, note, false, "error: the event could not be stored: disk");
                }
            }
        }
    }

    /// The next message of another shard arrives; the answer to it, if it wants one.
    pub fn take_bus(&mut self, now: Now) -> Option<(usize, BusMessage)> {
        match self.bus.pop_front()? {
            BusMessage::Ephemeral { from, token, event } => {
                let before = self.core.counters();
                let count = self.core.handle_ephemeral(&event, now);
                let note = note_of(event.view().id()).expect("a known event");
                assert_eq!(self.published(&[(note, None)], &before), count);
                Some((from, BusMessage::Heard { token, count }))
            }
            BusMessage::Heard { token, count } => {
                self.core.handle_heard(token, count);
                let hearing = self.hearings.get_mut(&token).expect("somebody asked");
                hearing.heard += count;
                hearing.shards_left -= 1;
                if hearing.shards_left == 0 {
                    let Hearing { key, note, heard, .. } = self.hearings.remove(&token)?;
                    self.answer_ephemeral(key, note, heard);
                }
                None
            }
        }
    }

    /// A reader of the store makes one slice of the query that has waited longest.
    pub fn read_slice(&mut self, log: &Log, rng: &mut Rng, now: Now) {
        let Some(key) = self.slices.pop_front() else { return };
        let Some(scan) = self.scans.get_mut(&key) else { return };
        let max = usize::try_from(scan.query.limit_max).expect("small");
        if rng.chance(2) {
            let chunk = Chunk { failed: Some("disk".into()), done: true, ..Chunk::default() };
            self.scans.remove(&key);
            return self.chunks.push_back((key, chunk));
        }
        if let Some(counting) = scan.counting {
            return self.read_count_slice(key, counting, (log, now), rng);
        }
        if scan.left.is_none() {
            let up_to = scan.up_to.unwrap_or(log.last());
            scan.up_to = Some(up_to);
            let seen = (up_to, now.unix_s);
            let result = log.query(seen, &scan.query.filters, max);
            scan.left = Some(result.iter().copied().collect());
            if let Some(sub) = client_sub(&self.core, &mut self.sockets, key) {
                assert_eq!(result, log.wished(seen, &sub.wishes, max), "the query is as asked");
                (sub.snapshot, sub.stored) = (Some(up_to), result);
            }
        }
        let scan = self.scans.get_mut(&key).expect("looked up above");
        let left = scan.left.get_or_insert_default();
        let count = rng.below(5).min(left.len());
        let events = left.drain(..count).map(|n| pool()[n].bytes()).collect();
        let done = left.is_empty();
        let snapshot = scan.up_to.expect("the first slice fixed it");
        let examined = (count + rng.below(40)) as u64;
        let chunk = Chunk { snapshot, events, examined, done, ..Chunk::default() };
        self.chunks.push_back((key, chunk));
    }

    fn read_count_slice(
        &mut self,
        key: ScanKey,
        counting: Counting,
        (log, now): (&Log, Now),
        rng: &mut Rng,
    ) {
        let scan = self.scans.get_mut(&key).expect("a slice of a count");
        let up_to = *scan.up_to.get_or_insert(log.last());
        let counted = match rng.below(20) {
            0..8 => None,
            8 => Some(Counted::TooMany),
            _ => {
                let seen = (up_to, now.unix_s);
                let result = log.query(seen, &scan.query.filters, usize::MAX);
                if let Some((connection, nth)) = whose_count(&self.core, key) {
                    let (_, wishes) = &self.sockets[&connection].expect.counts[nth];
                    assert_eq!(result, log.wished(seen, wishes, usize::MAX), "as asked");
                }
                let sketch = counting.sketch.map(|offset| Box::new(Sketch::new(offset)));
                Some(Counted::Exactly { events: result.len() as u64, sketch })
            }
        };
        let done = counted.is_some();
        let examined = rng.below(40) as u64;
        let chunk = Chunk { snapshot: up_to, examined, done, counted, ..Chunk::default() };
        self.chunks.push_back((key, chunk));
    }

    /// A slice arrives; not before a commit that has begun is done.
    pub fn take_chunk(&mut self, now: Now) {
        if self.commit_at > 0 {
            return;
        }
        let Some((key, chunk)) = self.chunks.pop_front() else { return };
        if key.is_count() {
            return self.take_count_chunk(key, chunk, now);
        }
        let (done, failed) = (chunk.done, chunk.failed.is_some());
        let suppressed = self.core.counters.suppressed_live;
        let too_much = !failed && self.looks_at_too_much(key, &chunk, now);
        if let Some(sub) = client_sub(&self.core, &mut self.sockets, key).filter(|_| !too_much) {
            sub.read += chunk.events.len();
        }
        let wanted = self.core.handle_chunk(key, chunk, now);
        self.seen.add(Seen::LiveSuppressed, self.core.counters.suppressed_live - suppressed);
        self.seen.add(Seen::ScanFailed, u64::from(failed));
        assert!(!wanted || !too_much, "a query looks at no more than its connection may");
        self.seen.add(Seen::QueryCut, u64::from(too_much));
        self.seen.add(Seen::SliceLate, u64::from(!wanted && !failed && !too_much));
        let subscription = self.core.subscriptions.get(key.slot()).filter(|_| wanted);
        let waits = subscription.is_some_and(|s| s.stage == Stage::Paused);
        self.seen.add(Seen::ScanPaused, u64::from(waits));
        if !wanted || done {
            self.scans.remove(&key);
        }
        if failed || too_much {
            self.note_ended();
        }
    }

    fn take_count_chunk(&mut self, key: ScanKey, chunk: Chunk, now: Now) {
        let whose = whose_count(&self.core, key);
        let done = chunk.done;
        let mut too_much = false;
        if let Some((connection, _)) = whose {
            let limits = self.core.setup.limits.clone();
            let socket = self.sockets.get_mut(&connection).expect("an open connection");
            too_much = !socket.expect.charge(chunk.examined, &limits, now.ms) && !done;
        }
        if let (Some((connection, nth)), true) = (whose, done || too_much) {
            let (answer, prefix, seen) = match &chunk.counted {
                _ if too_much => (None, "rate-limited: the count ", Seen::CountCut),
                Some(Counted::Exactly { events, sketch: None }) => {
                    (Some(json!({"count": events})), "", Seen::CountAnswered)
                }
                Some(Counted::Exactly { events, sketch: Some(sketch) }) => {
                    let answer = json!({"count": events, "hll": sketch.to_hex()});
                    (Some(answer), "", Seen::CountAnswered)
                }
                Some(Counted::TooMany) => (None, "error: more than ", Seen::CountTooMany),
                None => (None, "error: the stored events ", Seen::ScanFailed),
            };
            self.seen.note(seen);
            let socket = self.sockets.get_mut(&connection).expect("an open connection");
            socket.expect.decide_count(nth, answer, prefix);
        }
        let wanted = self.core.handle_chunk(key, chunk, now);
        assert!(whose.is_some() || !wanted, "a count nobody waits for");
        assert!(!wanted || !too_much, "a count looks at no more than its connection may");
        self.seen.add(Seen::SliceLate, u64::from(whose.is_none()));
        if !wanted || done {
            self.scans.remove(&key);
        }
    }

    /// Whether a slice is the one that makes its query look at too much.
    fn looks_at_too_much(&mut self, key: ScanKey, chunk: &Chunk, now: Now) -> bool {
        let limits = self.core.setup.limits.clone();
        let Some((connection, name)) = whose(&self.core, key) else { return false };
        let socket = self.sockets.get_mut(&connection).expect("an open connection");
        !socket.expect.examined(name, chunk.examined, chunk.done, &limits, now.ms) && !chunk.done
    }

    /// Tells a client's expectations how far the stored queries of its new subscriptions will look.
    pub fn note_filed(&mut self, key: ConnectionKey) {
        let Some(session) = self.core.session(key) else { return };
        for slot in session.subscriptions.clone() {
            let subscription = &self.core.subscriptions[slot as usize];
            let scan = ScanKey::new(slot, subscription.generation);
            let filed_at = subscription.filed_at;
            if let Some(sub) = client_sub(&self.core, &mut self.sockets, scan) {
                sub.snapshot.get_or_insert(filed_at);
            }
        }
    }

    pub fn start_scan(&mut self, key: ScanKey, query: Query, log: &Log, now: Now) {
        let stops = self.scans_stop_where_filed;
        if let Some(chunk) = stops.then(|| self.core.recall(key, &query, now)).flatten() {
            self.seen.note(Seen::ScanRecalled);
            let max = usize::try_from(query.limit_max).expect("small");
            let seen = (chunk.snapshot, now.unix_s);
            let result = log.query(seen, &query.filters, max);
            let bytes = result.iter().map(|note| pool()[*note].bytes());
            assert!(chunk.events.iter().cloned().eq(bytes), "the newest events are all");
            if let Some(sub) = client_sub(&self.core, &mut self.sockets, key) {
                assert_eq!(result, log.wished(seen, &sub.wishes, max), "as it is asked");
                (sub.snapshot, sub.read) = (Some(chunk.snapshot), result.len());
                sub.stored = result;
            }
            assert!(!self.looks_at_too_much(key, &chunk, now), "it is done");
            assert!(self.core.handle_chunk(key, chunk, now), "it has just begun");
            return;
        }
        self.begin_scan(key, query, None);
    }

    pub fn begin_scan(&mut self, key: ScanKey, query: Query, counting: Option<Counting>) {
        let up_to = self.core.filed_at(key).filter(|_| self.scans_stop_where_filed);
        let state = ScanState { query, counting, up_to, left: None };
        assert!(self.scans.insert(key, state).is_none(), "a query starts once");
        self.slices.push_back(key);
    }
}

/// The subscription, as its client sees it, whose stored query this is, when it is still wanted.
fn client_sub<'a>(
    core: &Shard,
    sockets: &'a mut BTreeMap<ConnectionKey, Socket>,
    scan: ScanKey,
) -> Option<&'a mut Sub> {
    let (key, name) = whose(core, scan)?;
    let socket = sockets.get_mut(&key).expect("an open connection");
    Some(socket.expect.sub(name).expect("the client knows the subscription"))
}

/// Whose count this is, and which of those not decided, when it is still wanted.
fn whose_count(core: &Shard, scan: ScanKey) -> Option<(ConnectionKey, usize)> {
    let count = core.counts.get(scan.slot())?;
    let session = core.sessions.get(count.connection.slot())?;
    let is_it = |slot: &u32| *slot as usize == scan.slot();
    let nth = session.counts.iter().position(is_it).expect("its connection lists it");
    (count.generation == scan.generation()).then_some((count.connection, nth))
}

/// Whose stored query this is, when it is still wanted.
fn whose(core: &Shard, scan: ScanKey) -> Option<(ConnectionKey, usize)> {
    let subscription = core.subscriptions.get(scan.slot())?;
    let current = subscription.generation == scan.generation();
    let id = subscription.name.id().json();
    current.then(|| {
        let name = NAMES.iter().position(|name| name.as_bytes() == id).expect("a known name");
        (subscription.connection, name)
    })
}
