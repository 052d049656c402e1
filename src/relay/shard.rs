//! One shard's decisions, without a socket, clock, channel or thread: inputs through `handle_*`,
//! outputs through [`Shard::poll_effect`] and [`Shard::fill`].
//!
//! Owner: the shard's thread. The driver calls, in this order within a tick: `handle_*` for all that
//! arrived, [`Shard::verify`] for a bounded number of events, then `poll_effect` until `None`. An
//! [`Effect::Write`] names each connection with something to send once, however much was queued.
//!
//! Invariants: every message that gets an answer reserved its reply slot when it was decoded; a
//! subscription's matched live events are each delivered, suppressed, or counted as abandoned; a
//! removed connection leaves nothing in the index.

use core::net::IpAddr;
use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use super::admission::{Arrival, Standing};
use super::capture::Captured;
use super::client::Proxies;
use super::counters::Counters;
use super::counts::Count;
use super::limits::Limits;
use super::planted::{Bug, planted};
use super::ports::{
    CommitBatch, Counting, Newest, Origin, Query, ScanKey, Sequence, Submission, Ticket, Verdict,
};
use super::recent::{LOOKS_PER_TURN, MOVED_PER_DELIVERY, Recent};
use super::session::{
    CloseReason, ConnectionKey, LiveBytes, LiveEvent, Pending, Phase, Session, Subscription,
};
use super::subscriptions::SubscriptionIndex;
use super::tide::{Arrivals, Tide};
use super::timings::Timings;
use crate::nostr::{Event, MessageReader, RelayMessage, Verifier};
use crate::wire::batch::Batch;
use crate::wire::deflate::{Accept, Deflater, Inflater};

/// The time, as the driver read it for this tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub ms: u64,
    /// Seconds since the epoch.
    pub unix_s: u64,
}

/// What a shard is told once.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its number, below `shards`.
    pub origin: Origin,
    /// How many shards there are.
    pub shards: u16,
    /// Whether signatures are checked.
    pub verify: bool,
    /// Whether a REQ may search.
    pub search: bool,
    /// The bounds in force.
    pub limits: Arc<Limits>,
    /// What HTTP requests are answered with.
    pub pages: Arc<Pages>,
    /// Which offers of compression are accepted.
    pub deflate: Accept,
    /// Who is believed when it names the client it speaks for.
    pub proxies: Arc<Proxies>,
    /// Seed of the index's hash; secret and random.
    pub hash_seed: u64,
}

/// What HTTP requests are answered with.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// The one path served, `/` unless the relay's URL has another.
    pub endpoint: String,
    /// The NIP-11 document.
    pub document: String,
    /// The page for people.
    pub page: String,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Effect {
    /// Hand the event to the store's writer.
    Submit(Submission),
    /// Begin a stored query and read its first slice.
    StartScan(ScanKey, Query),
    /// Begin to count and read the first slice; it goes on as a scan does.
    StartCount(ScanKey, Query, Counting),
    /// Read the next slice.
    ResumeScan(ScanKey),
    /// Forget the query; a slice on its way is ignored when it comes.
    CancelScan(ScanKey),
    /// Hand the event to every other shard; each answers with [`Shard::handle_heard`].
    PublishEphemeral {
        /// Comes back with the answers.
        token: u64,
        /// The event.
        event: Event,
    },
    /// The client behind a proxy is this one: count its connection and answer with
    /// [`Shard::handle_admission`].
    Admit(ConnectionKey, IpAddr),
    /// Something waits for this socket, and no batch is with it.
    Write(ConnectionKey),
    /// The reader may decode and read again.
    ResumeRead(ConnectionKey),
    /// Ask the kernel what it holds for this socket that the peer has not acknowledged; the answer
    /// goes to [`Shard::handle_unacked`].
    AskUnacked(ConnectionKey),
    /// Shut the socket's writing side.
    Finish(ConnectionKey),
    /// Much of what was held is gone: give the memory back.
    GiveBack,
    /// The connection is gone: shut the socket both ways and let it go.
    Release {
        /// Which.
        key: ConnectionKey,
        /// The peer takes nothing, or too slowly: what the kernel holds for it is dropped too.
        reset: bool,
    },
}

/// What a reader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Read the socket.
    Ready,
    /// Wait for [`Effect::ResumeRead`].
    Paused,
    /// The connection is gone.
    Gone,
}

/// Submissions at the writer beyond which a shard verifies no further event.
pub const SUBMISSIONS_MAX: usize = 4096;

/// Bytes of those submissions beyond which a shard verifies no further event.
pub const SUBMISSION_BYTES_MAX: usize = 16 << 20;

/// Looking at this many filters takes about as long as one delivery.
const LOOKS_PER_DELIVERY: u64 = 8;

/// Deflating this much takes about as long as one delivery.
const DEFLATED_BYTES_PER_DELIVERY: u64 = 8;

/// The state machine over all connections of one shard.
pub struct Shard {
    pub(super) setup: Setup,
    pub(super) sessions: Slab<Session>,
    pub(super) subscriptions: Slab<Subscription>,
    pub(super) counts: Slab<Count>,
    pub(super) index: SubscriptionIndex,
    pub(super) pending: Slab<Pending>,
    pub(super) pending_bytes: usize,
    /// [`SUBMISSIONS_MAX`], but in simulations.
    pub(super) submissions_max: usize,
    /// Connections with events to verify, served in turn.
    pub(super) verify_round: VecDeque<ConnectionKey>,
    pub(super) effects: VecDeque<Effect>,
    pub(super) reader: MessageReader,
    pub(super) verifier: Verifier,
    /// Lent to one compressed message at a time.
    pub(super) inflater: Inflater,
    pub(super) deflater: Deflater,
    pub(super) counters: Counters,
    pub(super) timings: Timings,
    /// When this turn began, in microseconds.
    pub(super) turn_us: u64,
    pub(super) generation: u32,
    /// The last sequence number whose commit has been handled.
    pub(super) last_sequence: Sequence,
    pub(super) recent: Recent,
    /// What looking there may still cost in this turn.
    pub(super) recall_looks: usize,
    pub(super) stopping: bool,
    pub(super) live_bytes: LiveBytes,
    pub(super) tide: Tide,
    pub(super) arrivals: Arrivals,
    /// Scratch of one match.
    pub(super) matched: Vec<u32>,
    /// What clients said in this turn, if anybody wants to know.
    pub(super) captured: Option<Captured>,
}

impl Shard {
    /// A shard with no connection.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Limits { recent_events_max, recent_bytes_max, .. } = *setup.limits;
        Self {
            index: SubscriptionIndex::new(setup.hash_seed),
            recent: Recent::new(recent_events_max, recent_bytes_max),
            recall_looks: LOOKS_PER_TURN,
            setup,
            sessions: Slab::new(),
            subscriptions: Slab::new(),
            counts: Slab::new(),
            pending: Slab::new(),
            pending_bytes: 0,
            submissions_max: SUBMISSIONS_MAX,
            verify_round: VecDeque::new(),
            effects: VecDeque::new(),
            reader: MessageReader::default(),
            verifier: Verifier::default(),
            inflater: Inflater::default(),
            deflater: Deflater::default(),
            counters: Counters::default(),
            timings: Timings::default(),
            turn_us: 0,
            generation: 0,
            last_sequence: 0,
            stopping: false,
            live_bytes: LiveBytes::default(),
            tide: Tide::default(),
            arrivals: Arrivals::default(),
            matched: Vec::new(),
            captured: None,
        }
    }

    /// Tells the last sequence number in use before the first commit this shard will be told of.
    #[must_use]
    pub fn from_sequence(self, last_sequence: Sequence) -> Self {
        Self { last_sequence, ..self }
    }

    /// Tells the newest events of the store before that commit.
    #[must_use]
    pub fn remembering(mut self, newest: &Newest) -> Self {
        self.recent.begin(newest);
        self
    }

    /// Keeps what clients say from now on, for [`Shard::take_captured`].
    #[must_use]
    pub fn capturing(self) -> Self {
        Self { captured: Some(Captured::default()), ..self }
    }

    /// What clients have said since this was last asked.
    pub fn take_captured(&mut self) -> Captured {
        self.captured.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What has been counted, gauges included.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.connections = self.sessions.len() as u64;
        counters.subscriptions = self.subscriptions.len() as u64;
        counters.index_filters = self.index.len() as u64;
        counters.index_keys = self.index.keys() as u64;
        counters.submissions_waiting = self.pending.len() as u64;
        let (events, bytes) = self.recent.held();
        (counters.recent_events, counters.recent_bytes) = (events as u64, bytes as u64);
        counters.live_bytes = self.live_bytes.get() as u64;
        let settled = counters.delivered_live + counters.suppressed_live + counters.abandoned_live;
        counters.live_waiting = counters.matched_live.saturating_sub(settled);
        counters.slow_closed = counters.subscriptions_slow + counters.closed_stalled;
        counters
    }

    /// What has been timed.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Tells the time, in microseconds of a clock that never goes back, at which the thread last began
    /// to work after it had waited for something. All that follows is timed as if it happened then.
    /// Nothing is decided by it.
    pub fn begin_turn(&mut self, us: u64) {
        self.turn_us = us;
        self.recall_looks = LOOKS_PER_TURN;
    }

    /// The next thing to do, in the order it was decided.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front()?;
        if let Effect::Write(key) = effect
            && let Some(session) = self.session(key)
        {
            session.write_asked = false;
        }
        Some(effect)
    }

    /// Takes a connection in, from the address of its peer. One that is not wanted is told why and
    /// closed.
    pub fn handle_accept(&mut self, peer: IpAddr, arrival: Arrival, now: Now) -> ConnectionKey {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.sessions.vacant_entry();
        let key = ConnectionKey::new(entry.key(), self.generation);
        let message_bytes_max = self.setup.limits.message_bytes_max as usize;
        let (peer, standing) = (peer.to_canonical(), arrival.standing());
        entry.insert(Session::new(key, peer, standing, message_bytes_max, now.ms));
        self.counters.accepted += 1;
        if let Some((error, reason)) = arrival.refusal() {
            self.answer_http(key, error.response(), reason, now);
        }
        key
    }

    /// Notes that the peer sends no more. What it sent before is still answered, stored queries up to
    /// their EOSE; no event is matched any more. All of it has to leave within `drain_ms_max`.
    pub fn handle_eof(&mut self, key: ConnectionKey, now: Now) {
        let Some(session) = self.session(key) else { return };
        session.peer_done = true;
        let owes = session.writing || !session.outbox.is_empty();
        match session.phase {
            Phase::Closing { .. } if owes => session.phase_ms = now.ms,
            Phase::Open if !planted(Bug::EndForgetsAnswers) => self.take_last_words(key, now),
            Phase::Draining => {}
            Phase::Head if session.standing == Standing::Asked => {}
            _ => self.remove(key),
        }
    }

    /// Notes that the socket failed: the connection is gone.
    pub fn handle_broken(&mut self, key: ConnectionKey) {
        self.remove(key);
    }

    /// Moves what waits for a socket into an empty `batch`, but for events that have expired meanwhile;
    /// `false` when nothing does. While a batch is out, nobody else may fill one: one write in flight per
    /// socket.
    pub fn fill(&mut self, key: ConnectionKey, batch: &mut Batch, now: Now) -> bool {
        // A purge may have made room for subscriptions that wait since the write was asked for.
        self.pump(key, now);
        let turn_us = self.turn_us;
        let Some(session) = self.session(key) else { return false };
        if session.writing && !planted(Bug::TwoWrites) || session.outbox.is_empty() {
            return false;
        }
        if session.outbox.may_have_expired(now.unix_s) {
            self.drop_expired(key, now);
            return self.fill(key, batch, now);
        }
        let filled = session.outbox.fill(batch);
        if !session.awaits_peer() {
            session.progress_ms = now.ms;
        }
        session.writing = true;
        // What gathers behind this batch has waited no longer than since now.
        session.sending_us = std::mem::replace(&mut session.waiting_us, turn_us);
        session.sending_frames = batch.frames();
        session.replies_owed -= filled.replies;
        if filled.last {
            session.enter(Phase::Closing { sent: true }, now.ms);
        }
        self.counters.frames_out += u64::from(batch.frames());
        self.counters.batches_out += 1;
        self.counters.bytes_out += batch.left() as u64;
        self.pump(key, now);
        self.resume_if_credit(key, now);
        true
    }

    /// Takes what has expired out of an outbox, and of what moves up behind it.
    fn drop_expired(&mut self, key: ConnectionKey, now: Now) {
        while let Some(session) = self.session(key)
            && session.outbox.may_have_expired(now.unix_s)
        {
            self.counters.expired_events += session.outbox.drop_expired(now.unix_s);
            self.pump(key, now);
        }
        // It may have been the last that was owed, and no write ends.
        self.finish_draining(key, now);
    }

    /// Notes that the socket took `bytes` of the batch. That is no progress, unless they are the first:
    /// the kernel takes some for a peer that reads nothing.
    pub fn handle_progress(&mut self, key: ConnectionKey, bytes: usize, now: Now) {
        if let Some(session) = self.session(key) {
            if session.unacked_bytes == 0 || planted(Bug::SentIsProgress) {
                session.progress_ms = now.ms;
            }
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            session.unacked_bytes = session.unacked_bytes.saturating_add(bytes);
        }
    }

    /// Takes the kernel's word on [`Effect::AskUnacked`]: bytes the peer has not acknowledged. Ends a
    /// connection whose peer has acknowledged none for too long; one that takes a few now and then is
    /// slow, and stays.
    pub fn handle_unacked(&mut self, key: ConnectionKey, bytes: u32, now: Now) {
        let stall_ms_max = u64::from(self.setup.limits.write_stall_ms_max);
        let Some(session) = self.session(key) else { return };
        if bytes < session.unacked_bytes {
            session.unacked_bytes = bytes;
            if !planted(Bug::SlowClosed) {
                session.progress_ms = now.ms;
            }
        } else if session.awaits_peer()
            && now.ms.saturating_sub(session.progress_ms) >= stall_ms_max
            && !planted(Bug::StalledKept)
        {
            session.reason = CloseReason::Stalled;
            self.remove(key);
        }
    }

    /// Notes that the socket took the whole batch; whether there is more to [`fill`](Self::fill) the next
    /// with.
    pub fn handle_written(&mut self, key: ConnectionKey, now: Now) -> bool {
        let Some(session) = self.session(key) else { return false };
        session.writing = false;
        let (since_us, frames) = (session.sending_us, session.sending_frames);
        let more = !session.outbox.is_empty();
        let finished = matches!(session.phase, Phase::Closing { sent: true });
        let peer_done = session.peer_done;
        self.timings.sent.observe(since_us, self.turn_us, frames.into());
        if more {
            return true;
        }
        if finished && peer_done {
            self.remove(key);
        } else if finished {
            self.effects.push_back(Effect::Finish(key));
        } else {
            self.finish_draining(key, now);
        }
        false
    }

    /// Takes one durable commit: answers this shard's submissions, delivers to its subscriptions.
    ///
    /// Begins at the stored event number `from` and stops once it has matched `deliveries_max`
    /// subscriptions, or looked at filters for as long as that takes, so that a large commit with many
    /// listeners does not hold up the shard; returns the number to go on at, before any other commit or slice is handed in, or `None` when it is done.
    pub fn handle_commit(
        &mut self,
        batch: &CommitBatch,
        from: usize,
        deliveries_max: u64,
        now: Now,
    ) -> Option<usize> {
        if from == 0 {
            if let Some(newest) = &batch.renewed {
                self.recent.renew(newest);
            }
            self.recent.forget(batch);
            for (ticket, verdict) in &batch.verdicts {
                if ticket.origin == self.setup.origin {
                    self.handle_verdict(*ticket, verdict, batch.durable_us);
                }
            }
        }
        let (mut deliveries, mut moved, mut events, mut next) = (0, 0, 0, None);
        for (at, (sequence, event)) in batch.stored.iter().enumerate().skip(from) {
            if deliveries + moved / MOVED_PER_DELIVERY >= deliveries_max {
                next = Some(at);
                break;
            }
            let worked = self.worked();
            let matched = self.publish(event, Some(*sequence), now);
            events += u64::from(matched > 0);
            deliveries += self.worked() - worked;
            self.last_sequence = self.last_sequence.max(*sequence);
            moved += self.recent.keep(*sequence, event, batch);
        }
        if events > 0 {
            self.timings.enqueue.observe(batch.durable_us, self.turn_us, events);
        }
        if next.is_none() {
            self.last_sequence = self.last_sequence.max(batch.last_sequence);
        }
        next
    }

    fn handle_verdict(&mut self, ticket: Ticket, verdict: &Verdict, durable_us: u64) {
        let Some(pending) = self.take_pending(ticket.token) else { return };
        let counters = &mut self.counters;
        let failed;
        let (counter, accepted, text) = match verdict {
            Verdict::Stored => {
                self.timings.commit.observe(pending.received_us, durable_us, 1);
                (&mut counters.events_stored, true, "")
            }
            Verdict::Duplicate => {
                (&mut counters.events_duplicate, true, "duplicate: already stored")
            }
            Verdict::Superseded => {
                (&mut counters.events_superseded, false, "duplicate: a newer version is stored")
            }
            Verdict::Deleted => {
                (&mut counters.events_deleted, false, "blocked: its deletion was requested")
            }
            Verdict::Vanished => {
                (&mut counters.events_vanished, false, "blocked: its author asked to vanish")
            }
            Verdict::Expired => (&mut counters.events_expired, false, "invalid: event has expired"),
            Verdict::Failed(why) => {
                failed = format!("error: the event could not be stored: {why}");
                (&mut counters.events_failed, false, &*failed)
            }
        };
        *counter += 1;
        self.reply(pending.connection, RelayMessage::Ok { id: &pending.id, accepted, text });
    }

    /// Takes an ephemeral event from another shard; returns how many subscriptions here match.
    pub fn handle_ephemeral(&mut self, event: &Event, now: Now) -> u64 {
        self.publish(event, None, now)
    }

    /// What matching and deflating have cost so far, in deliveries.
    #[must_use]
    pub fn worked(&self) -> u64 {
        self.index.evaluated() / LOOKS_PER_DELIVERY
            + self.deflater.taken_bytes() / DEFLATED_BYTES_PER_DELIVERY
            + self.counters.matched_live
    }

    /// Takes another shard's word on an ephemeral event of ours.
    pub fn handle_heard(&mut self, token: u64, heard: u64) {
        let slot = usize::try_from(token).expect("a slab index");
        let Some(Pending { ephemeral: Some(hearing), .. }) = self.pending.get_mut(slot) else {
            return;
        };
        hearing.heard += heard;
        hearing.shards_left -= 1;
        if hearing.shards_left == 0 || planted(Bug::HeardTooSoon) {
            self.answer_ephemeral(token);
        }
    }

    pub(super) fn answer_ephemeral(&mut self, token: u64) {
        let Some(pending) = self.take_pending(token) else { return };
        let heard = pending.ephemeral.is_some_and(|hearing| hearing.heard > 0);
        let (accepted, text) = if heard {
            self.counters.events_ephemeral += 1;
            (true, "")
        } else {
            self.counters.events_mute += 1;
            (false, "mute: nobody was listening")
        };
        self.reply(pending.connection, RelayMessage::Ok { id: &pending.id, accepted, text });
    }

    fn take_pending(&mut self, token: u64) -> Option<Pending> {
        let pending = self.pending.try_remove(usize::try_from(token).expect("a slab index"))?;
        self.pending_bytes -= pending.bytes;
        Some(pending)
    }

    /// Matches one event against this shard's subscriptions and queues it for each; returns how many.
    pub(super) fn publish(&mut self, event: &Event, sequence: Option<u64>, now: Now) -> u64 {
        let mut matched = std::mem::take(&mut self.matched);
        self.index.matches(event.view(), &mut matched);
        let count = matched.len() as u64;
        if count > 0 {
            let live = LiveEvent::new(event, sequence, now.ms, &self.live_bytes);
            for slot in matched.drain(..) {
                self.deliver(slot, &live);
                let waits = |s: &Subscription| !s.live.is_empty();
                let stuck = self.subscriptions.get(slot as usize).is_some_and(waits);
                if stuck && planted(Bug::StuckStopsAll) {
                    break;
                }
            }
            drop(live);
            self.end_furthest_behind();
        }
        self.matched = matched;
        self.counters.matched_live += count;
        count
    }

    pub(super) fn keys(&self) -> Vec<ConnectionKey> {
        self.sessions.iter().map(|(_, session)| session.key).collect()
    }

    pub(super) fn session(&mut self, key: ConnectionKey) -> Option<&mut Session> {
        let stranger = planted(Bug::WordToStranger);
        self.sessions.get_mut(key.slot()).filter(|session| session.key == key || stranger)
    }

    /// Queues an answer whose slot was reserved. Its connection may be gone.
    pub(super) fn reply(&mut self, key: ConnectionKey, message: RelayMessage<'_>) {
        let Some(session) = self.session(key) else { return };
        debug_assert!(session.replies_owed > 0, "an answer without a reserved slot");
        let overflow = planted(Bug::OverflowUnanswered) && session.outbox.replies_len() > 2;
        if matches!(session.phase, Phase::Open | Phase::Draining) && !overflow {
            session.outbox.push_reply(message);
            self.ask_write(key);
        }
    }

    /// Asks the driver, once, for a batch to be written.
    pub(super) fn ask_write(&mut self, key: ConnectionKey) {
        let stranger = planted(Bug::WordToStranger);
        let session = self.sessions.get_mut(key.slot());
        if let Some(session) = session.filter(|session| session.key == key || stranger) {
            session.ask_write(&mut self.effects, self.turn_us);
        }
    }
}
