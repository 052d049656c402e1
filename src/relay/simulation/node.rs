//! One shard and what its driver would do for it: sockets, the writer's batches, slices, the bus.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::coverage::{Coverage, Seen};
use super::expect::{End, NAMES};
use super::intake::{BusMessage, Hearing, ScanState};
use super::model::{Log, NoteIndex, Rng, Trace, note_of, pool};
use super::socket::{Farewell, Socket};
use crate::nostr::Event;
use crate::relay::client::CLIENT;
use crate::relay::counters::Counters;
use crate::relay::planted::{Bug, planted};
use crate::relay::ports::{Chunk, CommitBatch, Sequence, Submission};
use crate::relay::session::{LiveEvent, Phase, Session, Stage, Subscription};
use crate::relay::{Arrival, ConnectionKey, Effect, Now, Reading, ScanKey, Shard};
use crate::wire::batch::Batch;

/// What a socket's kernel holds for its peer.
const KERNEL_BYTES_MAX: usize = 6_000;

/// What a shard hands to the world.
pub enum Outgoing {
    Submit(Submission),
    Publish { token: u64, event: Event },
}

/// See the module.
pub struct Node {
    pub core: Shard,
    pub shards: usize,
    pub sockets: BTreeMap<ConnectionKey, Socket>,
    /// Connections that were released; late calls for them must be harmless.
    pub gone: Vec<ConnectionKey>,
    pub commits: VecDeque<Rc<CommitBatch>>,
    /// The event of the first of the commits to go on at.
    pub commit_at: usize,
    pub slices: VecDeque<ScanKey>,
    pub scans: BTreeMap<ScanKey, ScanState>,
    pub chunks: VecDeque<(ScanKey, Chunk)>,
    pub bus: VecDeque<BusMessage>,
    /// What this shard waits to send; it waits only where [`Bug::BusWaits`] is planted.
    pub unsent: VecDeque<(usize, BusMessage)>,
    pub tickets: BTreeMap<u64, (ConnectionKey, NoteIndex)>,
    /// Ephemeral events verified, in order, until their effect is seen.
    spoken: VecDeque<(ConnectionKey, NoteIndex, u64)>,
    pub hearings: BTreeMap<u64, Hearing>,
    /// A stored query looks as far as the shard knew when it was filed, as the driver has it, and not
    /// at all there is when its first slice is read.
    pub scans_stop_where_filed: bool,
    /// Connections released after their client's end or their socket's failure.
    left_by_client: u64,
    /// EVENTs in all batches.
    pub events_left: u64,
    pub trace: Trace,
    pub seen: Coverage,
}

impl Node {
    pub fn new(core: Shard, shards: usize, scans_stop_where_filed: bool) -> Self {
        Self {
            core,
            shards,
            sockets: BTreeMap::new(),
            gone: Vec::new(),
            commits: VecDeque::new(),
            commit_at: 0,
            slices: VecDeque::new(),
            scans: BTreeMap::new(),
            chunks: VecDeque::new(),
            bus: VecDeque::new(),
            unsent: VecDeque::new(),
            tickets: BTreeMap::new(),
            spoken: VecDeque::new(),
            hearings: BTreeMap::new(),
            scans_stop_where_filed,
            left_by_client: 0,
            events_left: 0,
            trace: Trace::default(),
            seen: Coverage::default(),
        }
    }

    fn socket(&mut self, key: ConnectionKey) -> &mut Socket {
        self.sockets.get_mut(&key).expect("a socket lives until its release")
    }

    pub fn accept(&mut self, mut socket: Socket, room: bool, now: Now) {
        let arrival = if room { Arrival::Client } else { Arrival::Full };
        let key = self.core.handle_accept(CLIENT, arrival, now);
        socket.heard_ms = now.ms;
        self.seen.add(Seen::Refused, u64::from(!room));
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
        socket.heard_ms = now.ms;
        let before = self.core.counters();
        let pinged = self.core.session(key).is_some_and(|session| session.pinged_ms.is_some());
        self.seen.add(Seen::PingAnswered, u64::from(pinged));
        let reading = self.core.handle_bytes(key, &mut bytes, now);
        self.after_reading(key, &before, reading, now);
    }

    /// A client that has said its last word still reads ours.
    fn end_of_input(&mut self, key: ConnectionKey, now: Now) {
        let session = self.core.session(key).expect("a socket has its session");
        let owes = session.writing || !session.outbox.is_empty();
        let (open, answers) = (session.phase == Phase::Open, session.replies_owed > 0);
        let slots = session.subscriptions.clone();
        let phase = session.phase;
        let waits = |slot: &u32| {
            let subscription = &self.core.subscriptions[*slot as usize];
            subscription.stage != Stage::Live || !subscription.live.is_empty()
        };
        let stored = slots.iter().any(waits);
        let last_words = match phase {
            Phase::Head => false,
            Phase::Open => owes || answers || stored,
            Phase::Draining => true,
            Phase::Closing { .. } => owes,
        };
        self.seen.add(Seen::EndWithAnswersOwed, u64::from(open && answers));
        self.seen.add(Seen::EndWithEventsOwed, u64::from(open && stored));
        self.seen.add(Seen::EndIdle, u64::from(open && !last_words));
        self.core.handle_eof(key, now);
        assert_eq!(self.core.session(key).is_some(), last_words);
        let socket = self.socket(key);
        if open && socket.expect.end == End::Open {
            socket.expect.stop(None, |_| true);
        }
    }

    /// The reader goes on after a pause.
    pub fn resume(&mut self, key: ConnectionKey, now: Now) {
        if std::mem::take(&mut self.socket(key).resume_due) {
            self.seen.note(Seen::ReadResumed);
            let before = self.core.counters();
            let reading = self.core.handle_resumed(key, now);
            self.after_reading(key, &before, reading, now);
        }
    }

    fn after_reading(&mut self, key: ConnectionKey, before: &Counters, reading: Reading, now: Now) {
        let after = self.core.counters();
        let handled = after.messages_in - before.messages_in;
        self.seen.add(Seen::ReadPaused, after.reads_paused - before.reads_paused);
        self.seen.add(Seen::Purged, after.purged_events - before.purged_events);
        self.seen.add(Seen::PongReplaced, after.pongs_replaced - before.pongs_replaced);
        let limits = self.core.setup.limits.clone();
        let closing = self
            .core
            .session(key)
            .is_some_and(|s| matches!(s.phase, Phase::Draining | Phase::Closing { .. }));
        let unbegun = self.core.session(key).map_or(0, |session| session.unbegun);
        self.seen.add(Seen::ScanUnbegun, u64::from(unbegun > 0));
        let waits = |session: &Session| {
            session.counts.iter().any(|slot| self.core.counts[*slot as usize].unbegun.is_some())
        };
        let waits = self.core.sessions.get(key.slot()).is_some_and(waits);
        self.seen.add(Seen::CountUnbegun, u64::from(waits));
        let mut seen = Vec::new();
        let socket = self.socket(key);
        socket.reading = reading;
        for _ in 0..handled {
            let message = socket.unhandled.pop_front().expect("only what was sent is handled");
            seen.extend(socket.expect.handled(message, &limits, now));
        }
        if closing
            && socket.expect.end == End::Open
            && let Some(Farewell(code)) = socket.farewell
        {
            socket.expect.close(code);
            let owed = self.core.session(key).is_some_and(|session| session.replies_owed > 0);
            self.seen.add(Seen::CloseWithAnswersOwed, u64::from(owed));
        }
        seen.into_iter().for_each(|what| self.seen.note(what));
        if self.scans_stop_where_filed {
            self.note_filed(key);
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
            return self.seen.note(Seen::KernelFull);
        }
        let chained = batch.unwritten().count() > 1;
        let bytes = gather(batch);
        assert!(socket.unsent == bytes, "what was filled is what is sent");
        socket.unsent.drain(..count);
        batch.advance(count - usize::from(planted(Bug::WrongByte) && count < batch.left()));
        let left = batch.left();
        if socket.unacked == 0 {
            socket.acked_ms = now.ms;
        }
        socket.behind_ms.get_or_insert(now.ms);
        socket.unacked += count;
        self.core.handle_progress(key, count, now);
        if left > 0 {
            self.seen.add(Seen::SendChained, u64::from(chained));
            return self.seen.note(Seen::SendPartial);
        }
        self.socket(key).batch = None;
        if self.core.handle_written(key, now) {
            self.fill(key, now);
        }
    }

    /// The client's kernel acknowledges up to `count` bytes.
    pub fn acknowledge(&mut self, key: ConnectionKey, count: usize, now: Now) {
        let socket = self.socket(key);
        let count = count.min(socket.unacked);
        if count > 0 {
            socket.unacked -= count;
            socket.acked_ms = now.ms;
        }
        if socket.unacked == 0 {
            socket.behind_ms = None;
        }
    }

    /// The shard asks how much is unacknowledged, and may end the connection for it.
    fn ask_unacked(&mut self, key: ConnectionKey, now: Now) {
        let socket = self.socket(key);
        let (unacked, acked_ms, behind_ms) = (socket.unacked, socket.acked_ms, socket.behind_ms);
        let before = self.core.counters.closed_stalled;
        let stall_ms_max = u64::from(self.core.setup.limits.write_stall_ms_max);
        self.core.handle_unacked(key, u32::try_from(unacked).expect("small"), now);
        if self.core.counters.closed_stalled > before {
            let stalled_ms = now.ms - acked_ms;
            assert!(stalled_ms >= stall_ms_max, "its peer took bytes {stalled_ms} ms ago");
            self.seen.note(Seen::Stalled);
        } else if behind_ms.is_some_and(|ms| now.ms - ms >= stall_ms_max) {
            self.seen.note(Seen::SlowKept);
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
        let before = self.core.counters.expired_events;
        let filled = self.core.fill(key, &mut batch, now);
        let expired = self.core.counters.expired_events - before;
        self.seen.add(Seen::Expired, expired);
        self.seen.add(Seen::AllExpired, u64::from(expired > 0 && !filled));
        if filled {
            let bytes = gather(&batch);
            self.trace.add(&bytes);
            let socket = self.socket(key);
            let drains = socket.expect.end == End::Draining;
            let events = socket.expect.events;
            let overtakes = socket.judge(&bytes, now);
            let events = socket.expect.events - events;
            let drained = drains && socket.expect.end == End::Closed;
            socket.unsent = bytes;
            socket.batch = Some(batch);
            self.events_left += events;
            self.seen.add(Seen::Drained, u64::from(drained));
            self.seen.add(Seen::ControlOvertakes, u64::from(overtakes));
        } else {
            assert_eq!(batch.left(), 0, "an unfilled batch is empty");
        }
    }

    /// The socket fails.
    pub fn break_socket(&mut self, key: ConnectionKey) {
        let phase = self.core.session(key).expect("a socket has its session").phase;
        self.seen.note(match phase {
            Phase::Head => Seen::AbortHead,
            Phase::Open => Seen::AbortOpen,
            Phase::Draining => Seen::AbortDraining,
            Phase::Closing { sent: false } => Seen::AbortClosing,
            Phase::Closing { sent: true } => Seen::AbortClosed,
        });
        let socket = self.socket(key);
        socket.broken = true;
        let sending = socket.batch.is_some();
        self.seen.add(Seen::AbortSending, u64::from(sending));
        self.core.handle_broken(key);
    }

    /// Verifies one event, if one waits.
    pub fn verify(&mut self, now: Now) {
        let core = &self.core;
        let next = core.verify_round.iter().find_map(|key| {
            let session = core.sessions.get(key.slot()).filter(|session| session.key == *key)?;
            let note = note_of(session.verify.front()?.0.event().view().id());
            Some((*key, note.expect("an event of the pool")))
        });
        let before = self.core.counters();
        self.core.verify(1, now);
        let after = self.core.counters();
        let held = next.is_some() && after.verify_waiting == before.verify_waiting;
        self.seen.add(Seen::SubmissionsFull, u64::from(held));
        let (Some((key, note)), true) = (next, after.verify_waiting < before.verify_waiting) else {
            return;
        };
        if pool()[note].is_ephemeral() {
            self.leaves_verification(key, note);
            let heard = self.published(&[(note, None)], &before);
            if self.shards == 1 {
                self.answer_ephemeral(key, note, heard);
            } else {
                self.spoken.push_back((key, note, heard));
            }
        }
    }

    /// A connection's events are verified in the order in which they were sent.
    fn leaves_verification(&mut self, key: ConnectionKey, note: NoteIndex) {
        if let Some(socket) = self.sockets.get_mut(&key) {
            assert_eq!(socket.expect.unverified.pop_front(), Some(note), "a client's own order");
        }
    }

    pub fn answer_ephemeral(&mut self, key: ConnectionKey, note: NoteIndex, heard: u64) {
        self.seen.note(if heard > 0 { Seen::Heard } else { Seen::Mute });
        let text = if heard > 0 { "" } else { "mute: nobody was listening" };
        self.answer(key, note, heard > 0, text);
    }

    pub fn answer(
        &mut self,
        key: ConnectionKey,
        note: NoteIndex,
        accepted: bool,
        text: &'static str,
    ) {
        // One that takes its leave is still given what it is owed.
        let leaving = self.core.session(key).is_some_and(|s| s.phase == Phase::Draining);
        if let Some(socket) = self.sockets.get_mut(&key)
            && (leaving || matches!(socket.expect.end, End::Open | End::Draining))
        {
            socket.expect.answer(note, accepted, text);
        }
    }

    /// Compares what the core matched since `before` with what the clients wished for.
    pub fn published(&mut self, notes: &[(NoteIndex, Option<Sequence>)], before: &Counters) -> u64 {
        let mut wished = 0;
        for (note, sequence) in notes {
            for socket in self.sockets.values_mut() {
                wished += socket.expect.published(*note, *sequence);
            }
        }
        let after = self.core.counters();
        let matched = after.matched_live - before.matched_live;
        self.seen.add(Seen::LiveSuppressed, after.suppressed_live - before.suppressed_live);
        if after.subscriptions_slow == before.subscriptions_slow {
            assert_eq!(matched, wished, "who matches an event is told of it");
        } else {
            // An event has more bytes than this: no queue is full before that many wait.
            let limits = &self.core.setup.limits;
            let by_bytes = limits.live_bytes_max < 300 * limits.live_queue_events_max;
            let by_number = limits.connection_live_events_max < limits.live_queue_events_max;
            self.seen.note(match (by_bytes, by_number) {
                (true, _) => Seen::LiveBytesFull,
                (_, true) => Seen::LiveTooMany,
                _ => Seen::LiveTooLong,
            });
            assert!(matched <= wished);
            self.note_ended();
        }
        matched
    }

    /// Tells the clients' expectations which subscriptions the core has ended.
    pub fn note_ended(&mut self) {
        let core = &self.core;
        for (key, socket) in &mut self.sockets {
            if socket.expect.end != End::Open {
                continue;
            }
            let held = |name: usize| stage(core, *key, name).is_some();
            socket.expect.note_ended(held);
        }
    }

    pub fn timer(&mut self, now: Now) {
        let before = self.core.counters();
        let limits = self.core.setup.limits.clone();
        let late = |ms: u64, max: u32| now.ms - ms >= u64::from(max);
        let too_old = |subscription: &Subscription| {
            let since = |event: &Rc<LiveEvent>| event.received_ms.max(subscription.live_ms);
            let oldest = subscription.live.front().map(since);
            let is_live = subscription.stage == Stage::Live;
            is_live && oldest.is_some_and(|ms| late(ms, limits.live_queue_age_ms_max))
        };
        let slow = self.core.subscriptions.iter().filter(|(_, s)| too_old(s)).count() as u64;
        let quiet = |socket: &&Socket| late(socket.heard_ms, limits.pong_wait_ms_max);
        let silent = self.sockets.values().filter(quiet).count() as u64;
        let late_head = |session: &Session| {
            session.phase == Phase::Head && late(session.phase_ms, limits.handshake_ms_max)
        };
        let no_request = self.core.sessions.iter().filter(|(_, s)| late_head(s)).count() as u64;
        self.core.handle_timer(now);
        let after = self.core.counters();
        let ended = after.subscriptions_slow - before.subscriptions_slow;
        assert!(ended <= slow, "a subscription ended before its time");
        let left = self.core.subscriptions.iter().any(|(_, s)| too_old(s));
        assert!(!left, "an event has waited too long");
        let closing = |session: &Session| !matches!(session.phase, Phase::Head | Phase::Open);
        let kept =
            |session: &Session| closing(session) && late(session.phase_ms, limits.drain_ms_max);
        assert!(!self.core.sessions.iter().any(|(_, s)| kept(s)), "its end has taken too long");
        let unanswered = after.closed_silent - before.closed_silent;
        assert!(unanswered <= silent, "a connection that was heard is not silent");
        self.seen.add(Seen::LiveTooOld, ended);
        self.seen.add(Seen::Silent, unanswered);
        self.seen.add(Seen::HandshakeLate, no_request);
        self.seen.add(Seen::DrainLate, after.closed_timeout - before.closed_timeout);
        self.note_ended();
    }

    /// Nobody who is read stays silent for longer than the limits: a pause may pass before the ping is
    /// due is seen, and another before its answer is.
    pub fn check_silent(&mut self, now: Now, pause_ms_max: u64) {
        let limits = self.core.setup.limits.clone();
        let wait_ms = u64::from(limits.ping_interval_ms + limits.pong_wait_ms_max);
        for (key, socket) in &self.sockets {
            let session = self.core.session(*key).expect("a socket has its session");
            if session.phase == Phase::Open && socket.reading == Reading::Ready {
                let quiet_ms = now.ms - socket.heard_ms;
                assert!(quiet_ms < wait_ms + 2 * pause_ms_max, "a silent peer is still there");
            }
        }
    }

    pub fn shutdown(&mut self, now: Now) {
        let core = &mut self.core;
        for (key, socket) in &mut self.sockets {
            if socket.expect.end == End::Open {
                let has_all =
                    |name| matches!(stage(core, *key, name), Some(Stage::Finishing | Stage::Live));
                socket.expect.stop(Some(1001), has_all);
                for _ in 0..socket.expect.counts.len() {
                    self.seen.note(Seen::CountStopped);
                    socket.expect.decide_count(0, None, "error: the relay is stopping");
                }
            }
            let session = &core.sessions[key.slot()];
            let (stream, owed) = (session.outbox.stream_len(), session.replies_owed);
            self.seen.add(Seen::DrainWithEvents, u64::from(stream > 0));
            self.seen.add(Seen::DrainWithAnswers, u64::from(owed > 0));
            for slot in &session.subscriptions {
                let waits = !core.subscriptions[*slot as usize].stored.is_empty();
                self.seen.add(Seen::DrainWithStored, u64::from(waits));
            }
        }
        self.core.handle_shutdown(now);
    }

    /// Carries out what the core decided.
    pub fn act(&mut self, log: &Log, now: Now) -> Vec<Outgoing> {
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
                    self.leaves_verification(key, note);
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
                    self.start_scan(key, query, log, now);
                }
                Effect::StartCount(key, query, counting) => {
                    self.trace.add(key);
                    self.begin_scan(key, query, Some(counting));
                }
                Effect::ResumeScan(key) => {
                    self.trace.add(key);
                    self.seen.note(Seen::ScanResumed);
                    assert!(self.scans.contains_key(&key), "a query that goes on has begun");
                    self.slices.push_back(key);
                }
                Effect::CancelScan(key) => drop(self.scans.remove(&key)),
                Effect::Admit(..) => unreachable!("there is no proxy"),
                Effect::Write(key) => {
                    let sending = self.socket(key).batch.is_some();
                    self.socket(key).write_due = !sending;
                    if sending {
                        let filled = self.core.fill(key, &mut Batch::default(), now);
                        assert!(!filled, "one write in flight a socket");
                    }
                }
                Effect::ResumeRead(key) => {
                    let socket = self.socket(key);
                    (socket.resume_due, socket.heard_ms) = (true, now.ms);
                }
                Effect::Finish(key) => self.socket(key).finished = true,
                Effect::GiveBack => {}
                Effect::AskUnacked(key) => self.ask_unacked(key, now),
                Effect::Release { key, reset } => {
                    self.trace.add((key, reset));
                    let socket = self.sockets.remove(&key).expect("released once");
                    self.left_by_client += u64::from(socket.broken || socket.eof);
                    self.gone.push(key);
                }
            }
        }
        let left = self.core.counters.closed_by_client;
        assert!(left <= self.left_by_client, "a connection ends for a reason");
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
            5 => assert!(!self.core.handle_written(key, now)),
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
