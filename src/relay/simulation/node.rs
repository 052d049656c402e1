//! One shard and what its driver would do for it: sockets, the writer's batches, slices, the bus.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::expect::{End, NAMES};
use super::model::{Log, NoteIndex, Rng, Trace, note_of, pool};
use super::socket::{Farewell, Socket};
use crate::nostr::Event;
use crate::relay::client::CLIENT;
use crate::relay::ports::{Chunk, CommitBatch, Query, Sequence, Submission, Verdict};
use crate::relay::session::{Phase, Stage};
use crate::relay::{Arrival, ConnectionKey, Effect, Now, Reading, ScanKey, Shard};
use crate::wire::batch::Batch;

/// What a socket's kernel holds for its peer.
const KERNEL_BYTES_MAX: usize = 30_000;

/// What shards say to each other.
pub enum BusMessage {
    Ephemeral { from: usize, token: u64, event: Event },
    Heard { token: u64, count: u64 },
}

/// What a shard hands to the world.
pub enum Outgoing {
    Submit(Submission),
    Publish { token: u64, event: Event },
}

/// A stored query between two slices.
pub struct ScanState {
    query: Query,
    snapshot: Option<Sequence>,
    left: VecDeque<NoteIndex>,
}

/// An ephemeral event whose OK waits for the other shards.
struct Hearing {
    key: ConnectionKey,
    note: NoteIndex,
    shards_left: usize,
    heard: u64,
}

/// See the module.
pub struct Node {
    pub core: Shard,
    shards: usize,
    pub sockets: BTreeMap<ConnectionKey, Socket>,
    /// Connections that were released; late calls for them must be harmless.
    pub gone: Vec<ConnectionKey>,
    pub commits: VecDeque<Rc<CommitBatch>>,
    pub slices: VecDeque<ScanKey>,
    pub scans: BTreeMap<ScanKey, ScanState>,
    pub chunks: VecDeque<(ScanKey, Chunk)>,
    pub bus: VecDeque<BusMessage>,
    tickets: BTreeMap<u64, (ConnectionKey, NoteIndex)>,
    /// Ephemeral events verified, in order, until their effect is seen.
    spoken: VecDeque<(ConnectionKey, NoteIndex, u64)>,
    hearings: BTreeMap<u64, Hearing>,
    pub trace: Trace,
}

impl Node {
    pub fn new(core: Shard, shards: usize) -> Self {
        Self {
            core,
            shards,
            sockets: BTreeMap::new(),
            gone: Vec::new(),
            commits: VecDeque::new(),
            slices: VecDeque::new(),
            scans: BTreeMap::new(),
            chunks: VecDeque::new(),
            bus: VecDeque::new(),
            tickets: BTreeMap::new(),
            spoken: VecDeque::new(),
            hearings: BTreeMap::new(),
            trace: Trace::default(),
        }
    }

    fn socket(&mut self, key: ConnectionKey) -> &mut Socket {
        self.sockets.get_mut(&key).expect("a socket lives until its release")
    }

    pub fn accept(&mut self, socket: Socket, room: bool, now: Now) {
        let arrival = if room { Arrival::Client } else { Arrival::Full };
        let key = self.core.handle_accept(CLIENT, arrival, now);
        assert!(self.sockets.insert(key, socket).is_none(), "a key is used once");
    }

    /// The relay reads up to `count` bytes.
    pub fn read(&mut self, key: ConnectionKey, count: usize, now: Now) {
        let socket = self.socket(key);
        if socket.reading != Reading::Ready || socket.eof {
            return;
        }
        let count = count.min(socket.inbound.len());
        if count == 0 {
            if socket.silent {
                socket.eof = true;
                self.end_of_input(key, now);
            }
            return;
        }
        let mut bytes: Vec<u8> = socket.inbound.drain(..count).collect();
        let before = self.core.counters.messages_in;
        let reading = self.core.handle_bytes(key, &mut bytes, now);
        self.after_reading(key, before, reading);
    }

    /// A client that has said its last word still reads ours.
    fn end_of_input(&mut self, key: ConnectionKey, now: Now) {
        let session = self.core.session(key).expect("a socket has its session");
        let owes = session.writing || !session.outbox.is_empty();
        let answers = session.replies_owed > 0 && session.phase == Phase::Open;
        let last_words = match session.phase {
            Phase::Head => false,
            Phase::Open => answers,
            Phase::Draining => true,
            Phase::Closing { .. } => owes,
        };
        self.core.handle_eof(key, now);
        assert_eq!(self.core.session(key).is_some(), last_words);
        let socket = self.socket(key);
        if answers && socket.expect.end == End::Open {
            socket.expect.close(None);
        }
    }

    /// The reader goes on after a pause.
    pub fn resume(&mut self, key: ConnectionKey, now: Now) {
        if std::mem::take(&mut self.socket(key).resume_due) {
            let before = self.core.counters.messages_in;
            let reading = self.core.handle_resumed(key, now);
            self.after_reading(key, before, reading);
        }
    }

    fn after_reading(&mut self, key: ConnectionKey, before: u64, reading: Reading) {
        let handled = self.core.counters.messages_in - before;
        let max = self.core.setup.limits.subscriptions_max as usize;
        let closing = self
            .core
            .session(key)
            .is_some_and(|s| matches!(s.phase, Phase::Draining | Phase::Closing { .. }));
        let socket = self.socket(key);
        socket.reading = reading;
        for _ in 0..handled {
            let message = socket.unhandled.pop_front().expect("only what was sent is handled");
            socket.expect.handled(message, max);
        }
        if closing
            && socket.expect.end == End::Open
            && let Some(Farewell(code)) = socket.farewell
        {
            socket.expect.close(code);
        }
    }

    /// The socket takes up to `count` bytes; a batch is filled first when none is with it.
    pub fn write(&mut self, key: ConnectionKey, count: usize, now: Now) {
        let socket = self.socket(key);
        if socket.batch.is_none() && std::mem::take(&mut socket.write_due) {
            self.fill(key, now);
        }
        let socket = self.socket(key);
        let Some(batch) = &mut socket.batch else { return };
        let count = count.min(batch.left()).min(KERNEL_BYTES_MAX - socket.unacked);
        if count == 0 {
            return;
        }
        let bytes = gather(batch);
        assert!(socket.unsent == bytes, "what was filled is what is sent");
        socket.unsent.drain(..count);
        batch.advance(count);
        let left = batch.left();
        if socket.unacked == 0 {
            socket.acked_ms = now.ms;
        }
        socket.unacked += count;
        self.core.handle_progress(key, count, now);
        if left > 0 {
            return;
        }
        self.socket(key).batch = None;
        self.core.handle_written(key, now);
        self.fill(key, now);
    }

    /// The client's kernel acknowledges up to `count` bytes.
    pub fn acknowledge(&mut self, key: ConnectionKey, count: usize, now: Now) {
        let socket = self.socket(key);
        let count = count.min(socket.unacked);
        if count > 0 {
            socket.unacked -= count;
            socket.acked_ms = now.ms;
        }
    }

    /// The shard asks how much is unacknowledged, and may end the connection for it.
    fn ask_unacked(&mut self, key: ConnectionKey, now: Now) {
        let socket = self.socket(key);
        let (unacked, acked_ms) = (socket.unacked, socket.acked_ms);
        let before = self.core.counters.closed_stalled;
        self.core.handle_unacked(key, u32::try_from(unacked).expect("small"), now);
        if self.core.counters.closed_stalled > before {
            let stalled_ms = now.ms - acked_ms;
            let stall_ms_max = u64::from(self.core.setup.limits.write_stall_ms_max);
            assert!(stalled_ms >= stall_ms_max, "its peer took bytes {stalled_ms} ms ago");
        }
    }

    /// No peer is waited for longer than the limit: a pause may pass before its last acknowledgement is
    /// seen, and another before the next question.
    pub fn check_stalled(&self, now: Now, pause_ms_max: u64) {
        let stall_ms_max = u64::from(self.core.setup.limits.write_stall_ms_max);
        let late_ms = stall_ms_max + stall_ms_max / 8 + 2 * pause_ms_max;
        for socket in self.sockets.values().filter(|socket| socket.unacked > 0) {
            assert!(now.ms < socket.acked_ms + late_ms, "a stalled peer is still there");
        }
    }

    fn fill(&mut self, key: ConnectionKey, now: Now) {
        let mut batch = Batch::default();
        if self.core.fill(key, &mut batch, now) {
            let bytes = gather(&batch);
            self.trace.add(&bytes);
            let socket = self.socket(key);
            socket.judge(&bytes);
            socket.unsent = bytes;
            socket.batch = Some(batch);
        } else {
            assert_eq!(batch.left(), 0, "an unfilled batch is empty");
        }
    }

    /// The socket fails.
    pub fn break_socket(&mut self, key: ConnectionKey) {
        self.core.handle_broken(key);
    }

    /// Verifies one event, if one waits.
    pub fn verify(&mut self, now: Now) {
        let core = &self.core;
        let next = core.verify_round.iter().find_map(|key| {
            let session = core.sessions.get(key.slot()).filter(|session| session.key == *key)?;
            let note = note_of(session.verify.front()?.event().view().id());
            Some((*key, note.expect("an event of the pool")))
        });
        let before = self.core.counters();
        self.core.verify(1, now);
        let after = self.core.counters();
        let (Some((key, note)), true) = (next, after.verify_waiting < before.verify_waiting) else {
            return;
        };
        if pool()[note].is_ephemeral() {
            let heard = self.published(&[(note, None)], &before);
            if self.shards == 1 {
                self.answer_ephemeral(key, note, heard);
            } else {
                self.spoken.push_back((key, note, heard));
            }
        }
    }

    fn answer_ephemeral(&mut self, key: ConnectionKey, note: NoteIndex, heard: u64) {
        let text = if heard > 0 { "" } else { "mute: nobody was listening" };
        self.answer(key, note, heard > 0, text);
    }

    fn answer(&mut self, key: ConnectionKey, note: NoteIndex, accepted: bool, text: &'static str) {
        // One that takes its leave is still given what it is owed.
        let leaving = self.core.session(key).is_some_and(|s| s.phase == Phase::Draining);
        if let Some(socket) = self.sockets.get_mut(&key)
            && (leaving || matches!(socket.expect.end, End::Open | End::Draining))
        {
            socket.expect.answer(note, accepted, text);
        }
    }

    /// Compares what the core matched since `before` with what the clients wished for.
    fn published(
        &mut self,
        notes: &[(NoteIndex, Option<Sequence>)],
        before: &crate::relay::counters::Counters,
    ) -> u64 {
        let mut wished = 0;
        for (note, sequence) in notes {
            for socket in self.sockets.values_mut() {
                wished += socket.expect.published(*note, *sequence);
            }
        }
        let after = self.core.counters();
        let matched = after.matched_live - before.matched_live;
        if after.subscriptions_slow == before.subscriptions_slow {
            assert_eq!(matched, wished, "who matches an event is told of it");
        } else {
            assert!(matched <= wished);
            self.note_ended();
        }
        matched
    }

    /// Tells the clients' expectations which subscriptions the core has ended.
    fn note_ended(&mut self) {
        let core = &self.core;
        for (key, socket) in &mut self.sockets {
            if socket.expect.end != End::Open {
                continue;
            }
            let held = |name: usize| stage(core, *key, name).is_some();
            socket.expect.note_ended(held);
        }
    }

    /// The next commit batch arrives.
    pub fn take_commit(&mut self, now: Now) {
        let Some(batch) = self.commits.pop_front() else { return };
        let before = self.core.counters();
        for (ticket, verdict) in &batch.verdicts {
            if ticket.origin != self.core.setup.origin {
                continue;
            }
            let ticket = self.tickets.remove(&ticket.token);
            let (key, note) = ticket.expect("a verdict for each submission, once");
            match verdict {
                Verdict::Stored => self.answer(key, note, true, ""),
                Verdict::Duplicate => self.answer(key, note, true, "duplicate: already stored"),
                _ => self.answer(key, note, false, "error: the event could not be stored"),
            }
        }
        let mut next = Some(0);
        while let Some(from) = next {
            next = self.core.handle_commit(&batch, from, 2, now);
        }
        let notes: Vec<_> = batch
            .stored
            .iter()
            .map(|(at, event)| (note_of(event.view().id()).expect("a known event"), Some(*at)))
            .collect();
        self.published(&notes, &before);
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
    pub fn read_slice(&mut self, log: &Log, rng: &mut Rng) {
        let Some(key) = self.slices.pop_front() else { return };
        let Some(scan) = self.scans.get_mut(&key) else { return };
        let max = usize::try_from(scan.query.limit_max).expect("small");
        if rng.chance(2) {
            let chunk = Chunk { failed: Some("disk".into()), done: true, ..Chunk::default() };
            self.scans.remove(&key);
            return self.chunks.push_back((key, chunk));
        }
        if scan.snapshot.is_none() {
            scan.snapshot = Some(log.last());
            scan.left = log.query(&scan.query.filters, max).into();
            let result: Vec<_> = scan.left.iter().copied().collect();
            if let Some((connection, name)) = whose(&self.core, key) {
                let socket = self.sockets.get_mut(&connection).expect("an open connection");
                let sub = socket.expect.sub(name).expect("the client knows the subscription");
                assert_eq!(result, log.wished(&sub.wishes, max), "the query is what was asked");
                (sub.snapshot, sub.stored) = (Some(log.last()), result);
            }
        }
        let scan = self.scans.get_mut(&key).expect("looked up above");
        let count = rng.below(5).min(scan.left.len());
        let events = scan.left.drain(..count).map(|n| pool()[n].json.clone().into()).collect();
        let done = scan.left.is_empty();
        let snapshot = scan.snapshot.expect("the first slice fixed it");
        self.chunks.push_back((key, Chunk { snapshot, events, done, failed: None }));
    }

    /// A slice arrives.
    pub fn take_chunk(&mut self, now: Now) {
        let Some((key, chunk)) = self.chunks.pop_front() else { return };
        let (done, failed) = (chunk.done, chunk.failed.is_some());
        let wanted = self.core.handle_chunk(key, chunk, now);
        if !wanted || done {
            self.scans.remove(&key);
        }
        if failed {
            self.note_ended();
        }
    }

    pub fn timer(&mut self, now: Now) {
        self.core.handle_timer(now);
        self.note_ended();
    }

    pub fn shutdown(&mut self, now: Now) {
        let core = &self.core;
        for (key, socket) in &mut self.sockets {
            if socket.expect.end == End::Open {
                socket.expect.stop(|name| stage(core, *key, name) == Some(Stage::Live));
            }
        }
        self.core.handle_shutdown(now);
    }

    /// Carries out what the core decided.
    pub fn act(&mut self, now: Now) -> Vec<Outgoing> {
        let mut out = Vec::new();
        while let Some(effect) = self.core.poll_effect() {
            self.trace.add(std::mem::discriminant(&effect));
            match effect {
                Effect::Submit(submission) => {
                    let token = submission.ticket.token;
                    let slot = usize::try_from(token).expect("a slab index");
                    let key = self.core.pending[slot].connection;
                    let note = note_of(submission.event.view().id()).expect("a known event");
                    assert_eq!(submission.event.view().json(), pool()[note].json.as_bytes());
                    assert!(self.tickets.insert(token, (key, note)).is_none(), "a fresh token");
                    out.push(Outgoing::Submit(submission));
                }
                Effect::PublishEphemeral { token, event } => {
                    let (key, note, heard) = self.spoken.pop_front().expect("it was verified");
                    let hearing = Hearing { key, note, heard, shards_left: self.shards - 1 };
                    self.hearings.insert(token, hearing);
                    out.push(Outgoing::Publish { token, event });
                }
                Effect::StartScan(key, query) => {
                    self.trace.add(key);
                    let state = ScanState { query, snapshot: None, left: VecDeque::new() };
                    assert!(self.scans.insert(key, state).is_none(), "a query starts once");
                    self.slices.push_back(key);
                }
                Effect::ResumeScan(key) => {
                    self.trace.add(key);
                    assert!(self.scans.contains_key(&key), "a query that goes on has begun");
                    self.slices.push_back(key);
                }
                Effect::CancelScan(key) => drop(self.scans.remove(&key)),
                Effect::Admit(..) => unreachable!("there is no proxy"),
                Effect::Write(key) => self.socket(key).write_due = true,
                Effect::ResumeRead(key) => self.socket(key).resume_due = true,
                Effect::Finish(key) => self.socket(key).finished = true,
                Effect::AskUnacked(key) => self.ask_unacked(key, now),
                Effect::Release { key, reset } => {
                    self.trace.add((key, reset));
                    assert!(self.sockets.remove(&key).is_some(), "released once");
                    self.gone.push(key);
                }
            }
        }
        out
    }

    /// Late calls of tasks whose connection is gone.
    pub fn haunt(&mut self, rng: &mut Rng, now: Now) {
        if self.gone.is_empty() {
            return;
        }
        let key = rng.pick(&self.gone);
        match rng.below(7) {
            0 => assert_eq!(self.core.handle_bytes(key, &mut [0x81], now), Reading::Gone),
            1 => assert_eq!(self.core.handle_resumed(key, now), Reading::Gone),
            2 => self.core.handle_eof(key, now),
            3 => self.core.handle_broken(key),
            4 => {
                self.core.handle_progress(key, 7, now);
                self.core.handle_unacked(key, 0, now);
            }
            5 => self.core.handle_written(key, now),
            _ => assert!(!self.core.fill(key, &mut Batch::default(), now)),
        }
    }
}

fn gather(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(batch.left());
    batch.unwritten().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// The stage of a connection's subscription of this name.
fn stage(core: &Shard, key: ConnectionKey, name: usize) -> Option<Stage> {
    let session = core.sessions.get(key.slot()).filter(|session| session.key == key)?;
    let mut subscriptions = session.subscriptions.iter().map(|s| &core.subscriptions[*s as usize]);
    let found = subscriptions.find(|s| s.name.id().json() == NAMES[name].as_bytes())?;
    Some(found.stage)
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
