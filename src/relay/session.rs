//! One connection's protocol state: what has been read, what is owed, what is subscribed.
//!
//! ```text
//!  Head ──handshake──▶ Open ──shutdown, client's close or end──▶ Draining ──all owed is sent──▶ Closing ──▶ gone
//!    │                   └──broken frame────────────────────────────────────────────────────────▶ ▲
//!    └──HTTP answer, bad request──────────────────────────────────────────────────────────────────┘
//! ```
//! From every state an abort (socket error, deadline) leads straight to gone.

use core::net::IpAddr;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::admission::Standing;
use super::budget::Examined;
#[cfg(any(test, feature = "echo-endpoint"))]
use super::echo::Echo;
use super::limits::Limits;
use super::outbox::{Name, Outbox, Payload};
use super::planted::{Bug, planted};
use super::ports::{ExpiringBytes, Query, Sequence};
use super::shard::Effect;
use crate::nostr::{Candidate, Event, Id, SubscriptionId};
use crate::wire::deflate::{Deflater, WindowBits};
use crate::wire::websocket::Decoder;

/// Names a connection for its shard: the slot in the low half, a generation in the high half, so a
/// late answer to a connection that is gone finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(pub u64);

impl ConnectionKey {
    /// The slot, which is reused.
    #[must_use]
    pub fn slot(self) -> usize {
        usize::try_from(self.0 & 0xffff_ffff).expect("32 bits")
    }

    pub(super) fn new(slot: usize, generation: u32) -> Self {
        let slot = u32::try_from(slot).expect("fewer connections than 2^32");
        Self(u64::from(generation) << 32 | u64::from(slot))
    }
}

/// See the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for the HTTP request.
    Head,
    /// WebSocket messages both ways.
    Open,
    /// Nothing more is read; answers and, unless the client sent a close frame, queued events still go
    /// out, then the farewell.
    Draining,
    /// The last frame is queued or sent; waiting for the peer to finish.
    Closing {
        /// The last byte has left for the socket and its writing side is shut.
        sent: bool,
    },
}

/// Why a connection ended; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The client closed or vanished.
    Client,
    /// One HTTP exchange, done.
    Http,
    /// Broken RFC 6455.
    Protocol,
    /// A message over the limit.
    TooLong,
    /// It acknowledged no byte in time.
    Stalled,
    /// It answered no ping in time.
    Silent,
    /// No request, or no end of closing, in time.
    Timeout,
    /// The relay stops.
    Shutdown,
    /// No room.
    Full,
    /// Its address has as many connections as it may have.
    PerIp,
}

/// One connection.
pub(super) struct Session {
    pub(super) key: ConnectionKey,
    /// The client's address, canonical; until the head is read a proxy's.
    pub(super) address: IpAddr,
    pub(super) standing: Standing,
    pub(super) phase: Phase,
    /// Why it is closing, once it is.
    pub(super) reason: CloseReason,
    /// The code a draining connection is closed with.
    pub(super) farewell: Option<u16>,
    pub(super) decoder: Decoder,
    /// Events are sent deflated, with this window.
    pub(super) deflate: Option<WindowBits>,
    /// Received bytes that are not decoded yet: a request head in parts, or what arrived after the
    /// last credit was used.
    pub(super) backlog: Vec<u8>,
    pub(super) outbox: Outbox,
    /// Slots of its subscriptions, in the order of their REQs.
    pub(super) subscriptions: Vec<u32>,
    /// Slots of its counts, in the order of their COUNTs.
    pub(super) counts: Vec<u32>,
    /// Those with events that wait for room in the outbox, served in turn.
    pub(super) waiting: VecDeque<u32>,
    /// How many subscriptions have a stored query that has not begun, and counts that have not.
    pub(super) unbegun: u32,
    /// How many of the other subscriptions have not had their EOSE queued, and the other counts.
    pub(super) queries: u32,
    /// What its stored queries have had the store look at.
    pub(super) examined: Examined,
    /// Live events in the queues of all its subscriptions.
    pub(super) live_waiting: u32,
    /// Messages read whose answer has not left for the socket.
    pub(super) replies_owed: u32,
    /// Events waiting for verification, since when (in microseconds), and their bytes.
    pub(super) verify: VecDeque<(Candidate, u64)>,
    pub(super) verify_bytes: usize,
    /// Whether it stands in the shard's verification round.
    pub(super) in_verify_round: bool,
    /// A batch is with the socket.
    pub(super) writing: bool,
    /// The driver has been told that something waits.
    pub(super) write_asked: bool,
    /// The reader was told to wait for credit.
    pub(super) paused: bool,
    /// The peer sends no more.
    pub(super) peer_done: bool,
    /// What still comes is not decoded: it is no WebSocket, its frames are broken, or its close frame
    /// was read.
    pub(super) deaf: bool,
    /// When the current phase began, in milliseconds.
    pub(super) phase_ms: u64,
    /// When the last byte came in, in milliseconds.
    pub(super) heard_ms: u64,
    /// Bytes the socket took that the peer had not acknowledged when the kernel was last asked, and
    /// those it took since.
    pub(super) unacked_bytes: u32,
    /// When the peer was last seen to acknowledge bytes, or the first were given to it, in
    /// milliseconds. Means something while a batch is out or bytes are unacknowledged.
    pub(super) progress_ms: u64,
    /// Since when something has been waiting in the outbox at most, and since when what is in the batch
    /// that is out had, in microseconds; and how many frames that is.
    pub(super) waiting_us: u64,
    pub(super) sending_us: u64,
    pub(super) sending_frames: u32,
    /// When the unanswered ping was sent, in milliseconds.
    pub(super) pinged_ms: Option<u64>,
    /// Its messages are answered with themselves.
    #[cfg(any(test, feature = "echo-endpoint"))]
    pub(super) echo: Option<Echo>,
}

impl Session {
    pub(super) fn new(
        key: ConnectionKey,
        address: IpAddr,
        standing: Standing,
        message_bytes_max: usize,
        now_ms: u64,
    ) -> Self {
        Self {
            key,
            address,
            standing,
            phase: Phase::Head,
            reason: CloseReason::Client,
            farewell: None,
            decoder: Decoder::new(message_bytes_max),
            deflate: None,
            backlog: Vec::new(),
            outbox: Outbox::default(),
            subscriptions: Vec::new(),
            counts: Vec::new(),
            waiting: VecDeque::new(),
            unbegun: 0,
            queries: 0,
            examined: Examined::default(),
            live_waiting: 0,
            replies_owed: 0,
            verify: VecDeque::new(),
            verify_bytes: 0,
            in_verify_round: false,
            writing: false,
            write_asked: false,
            paused: false,
            peer_done: false,
            deaf: false,
            phase_ms: now_ms,
            heard_ms: now_ms,
            unacked_bytes: 0,
            progress_ms: now_ms,
            waiting_us: 0,
            sending_us: 0,
            sending_frames: 0,
            pinged_ms: None,
            #[cfg(any(test, feature = "echo-endpoint"))]
            echo: None,
        }
    }

    /// Queues a live event; the outbox has room.
    pub(super) fn push_live(&mut self, name: &Rc<Name>, live: &LiveEvent, deflater: &mut Deflater) {
        match self.deflate.and_then(|window| live.deflated(window, deflater)) {
            Some(blocks) => self.outbox.push_deflated(name, blocks),
            None => self.outbox.push_event(name, live.json.clone()),
        }
    }

    /// Queues a stored event; the outbox has room.
    pub(super) fn push_stored(
        &mut self,
        name: &Rc<Name>,
        json: ExpiringBytes,
        deflater: &mut Deflater,
    ) {
        match self.deflate.and_then(|window| deflater.deflate(&json, b"]", window)) {
            Some(blocks) => self.outbox.push_deflated(name, Rc::new(json.made_into(blocks))),
            None => self.outbox.push_event(name, Rc::new(json)),
        }
    }

    /// Asks the driver, once, for a batch to be written.
    #[inline]
    pub(super) fn ask_write(&mut self, effects: &mut VecDeque<Effect>, turn_us: u64) {
        if !self.writing && !self.write_asked {
            self.write_asked = true;
            self.waiting_us = turn_us;
            effects.push_back(Effect::Write(self.key));
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, now_ms: u64) {
        self.phase = phase;
        self.phase_ms = now_ms;
    }

    /// Subscriptions and counts, and subscriptions the relay has ended whose CLOSED has not left.
    pub(super) fn places_taken(&self) -> usize {
        let counts = self.counts.len() * usize::from(!planted(Bug::CountsUnbounded));
        self.subscriptions.len() + counts + self.outbox.stream_closed()
    }

    /// Whether the peer owes an acknowledgement.
    pub(super) fn awaits_peer(&self) -> bool {
        self.writing || self.unacked_bytes > 0
    }

    /// Whether something is still to leave for a connection whose subscriptions are matched no more.
    pub(super) fn is_owed(&self) -> bool {
        self.replies_owed > 0
            || self.writing
            || !self.outbox.is_empty()
            || !self.subscriptions.is_empty()
    }

    /// Whether another message may be decoded: a reply slot is free and the events before it have
    /// not piled up.
    pub(super) fn has_credit(&self, limits: &Limits) -> bool {
        #[cfg(any(test, feature = "echo-endpoint"))]
        if !self.may_echo(limits) {
            return false;
        }
        (self.replies_owed < limits.replies_max || planted(Bug::ReadsOn))
            && self.verify_bytes < VERIFY_BYTES_MAX
    }

    /// Whether received messages wait to be decoded.
    pub(super) fn has_more(&self) -> bool {
        self.phase == Phase::Open && !self.backlog.is_empty()
    }

    /// Whether what was received waits for the answer to [`Effect::Admit`]. What follows a handshake may
    /// be more than one turn acts on, and only a reader that waits is told to go on.
    pub(super) fn is_asked(&self) -> bool {
        self.phase == Phase::Head && self.standing == Standing::Asked
    }

    /// Whether a paused reader may go on. Half of the credit must be back, so that what has been
    /// received is not moved about for one message at a time.
    pub(super) fn may_resume(&self, limits: &Limits) -> bool {
        self.paused
            && !planted(Bug::ReadsNoMore)
            && self.has_credit(limits)
            && self.replies_owed <= limits.replies_max / 2
            && self.verify_bytes <= VERIFY_BYTES_MAX / 2
    }
}

/// A submission whose verdict is awaited.
pub(super) struct Pending {
    pub(super) connection: ConnectionKey,
    pub(super) id: Id,
    pub(super) bytes: usize,
    /// When the turn began in which it was read, in microseconds.
    pub(super) received_us: u64,
    pub(super) ephemeral: Option<Hearing>,
}

/// The other shards' word on an ephemeral event.
pub(super) struct Hearing {
    pub(super) shards_left: u16,
    pub(super) heard: u64,
}

/// A connection whose unverified events hold this much is not read.
pub const VERIFY_BYTES_MAX: usize = 1 << 20;

/// A queue of live events has room for so many times those in it at most, but for a handful: the room of
/// a connection's queues is bounded with the events in them.
pub const LIVE_ROOM_FACTOR: usize = 4;

/// Where a subscription stands between stored and live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The stored query waits for others of its connection to end.
    Unbegun,
    /// A slice of the stored query is being read.
    Scanning,
    /// The slice before has been handed on; the next is asked for when there is room.
    Paused,
    /// The last slice has come; EOSE follows its events.
    Finishing,
    /// EOSE is queued; live events go straight to the outbox.
    Live,
    /// The relay stops: the query goes no further, and what it has read leaves without an EOSE.
    Cut,
}

/// A live event, shared by the subscriptions of one shard that wait to deliver it. While one does, its
/// bytes count.
pub(super) struct LiveEvent {
    json: Payload,
    /// Of the record that `json` is a part of, and keeps.
    pub(super) record_bytes: usize,
    /// `None` for an ephemeral event, which no stored query can have served.
    pub(super) sequence: Option<Sequence>,
    pub(super) received_ms: u64,
    /// What [`Deflater::deflate`] made of it, for each window size somebody here has asked for; their
    /// bytes count too.
    deflated: RefCell<Vec<(WindowBits, Option<Payload>)>>,
    held: LiveBytes,
}

/// Bytes of all the live events of one shard that wait, each counted once.
pub(super) type LiveBytes = Rc<Cell<usize>>;

impl LiveEvent {
    pub(super) fn new(
        event: &Event,
        sequence: Option<Sequence>,
        received_ms: u64,
        held: &LiveBytes,
    ) -> Rc<Self> {
        let (json, record_bytes) = (Rc::new(ExpiringBytes::from(event)), event.record().len());
        held.set(held.get() + record_bytes);
        let (deflated, held) = (RefCell::default(), held.clone());
        Rc::new(Self { json, record_bytes, sequence, received_ms, deflated, held })
    }

    /// The event's JSON and `]` as blocks, if they are shorter; made once.
    fn deflated(&self, window: WindowBits, deflater: &mut Deflater) -> Option<Payload> {
        let mut made = self.deflated.borrow_mut();
        if let Some((_, blocks)) = made.iter().find(|(of, _)| *of == window) {
            return blocks.clone();
        }
        let blocks = deflater.deflate(&self.json, b"]", window);
        let blocks = blocks.map(|blocks| Rc::new(self.json.made_into(blocks)));
        self.held.set(self.held.get() + blocks.as_ref().map_or(0, |blocks| blocks.len()));
        made.push((window, blocks.clone()));
        blocks
    }
}

impl LiveEvent {
    /// Bytes it counts with: its own, and those of what was deflated.
    pub(super) fn held_bytes(&self) -> usize {
        let deflated = self.deflated.borrow();
        let blocks = deflated.iter().flat_map(|(_, blocks)| blocks);
        self.record_bytes + blocks.map(|blocks| blocks.len()).sum::<usize>()
    }
}

impl Drop for LiveEvent {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.held_bytes());
    }
}

/// One subscription: the first level of the two queues before a socket.
pub(super) struct Subscription {
    pub(super) connection: ConnectionKey,
    pub(super) name: Rc<Name>,
    /// Tells this subscription's slices from those of an earlier one in the same slot.
    pub(super) generation: u32,
    /// The last sequence number the shard had been told of when this was filed in the index.
    pub(super) filed_at: Sequence,
    pub(super) stage: Stage,
    /// The stored query, until it begins.
    pub(super) query: Option<Box<Query>>,
    /// Index entries charged for it that its slices have not examined yet.
    pub(super) reserved: u64,
    /// Slots in the index.
    pub(super) filters: Box<[u32]>,
    /// The last sequence number its stored query covers, once its first slice has come.
    pub(super) snapshot: Option<Sequence>,
    /// When the turn began in which its REQ was read, in microseconds.
    pub(super) asked_us: u64,
    /// When EOSE was queued, in milliseconds.
    pub(super) live_ms: u64,
    /// Stored events of the last slice that found the outbox full.
    pub(super) stored: VecDeque<ExpiringBytes>,
    /// Live events that wait for EOSE or for room.
    pub(super) live: VecDeque<Rc<LiveEvent>>,
    /// Whether it stands in its connection's `waiting`.
    pub(super) is_waiting: bool,
}

impl Subscription {
    pub(super) fn is(&self, id: &SubscriptionId) -> bool {
        self.name.id() == id
    }

    /// Whether the stored query has served, or will serve, an event of this sequence number.
    pub(super) fn covers(&self, sequence: Option<Sequence>) -> bool {
        let reach = u64::from(planted(Bug::Gap));
        matches!((sequence, self.snapshot), (Some(at), Some(snapshot)) if at <= snapshot + reach)
            && !planted(Bug::Twice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::client::CLIENT;

    #[test]
    fn a_paused_reader_goes_on_when_half_of_its_slots_and_of_its_bytes_are_back() {
        let limits = Limits { replies_max: 8, ..Limits::default() };
        let key = ConnectionKey::new(0, 1);
        let mut session = Session::new(key, CLIENT, Standing::Settled, 1_000, 0);
        session.paused = true;
        for (replies, bytes, has_credit, may_resume) in [
            (4, VERIFY_BYTES_MAX / 2, true, true),
            (5, 0, true, false),
            (7, 0, true, false),
            (8, 0, false, false),
            (0, VERIFY_BYTES_MAX / 2 + 1, true, false),
            (0, VERIFY_BYTES_MAX - 1, true, false),
            (0, VERIFY_BYTES_MAX, false, false),
        ] {
            (session.replies_owed, session.verify_bytes) = (replies, bytes);
            let found = (session.has_credit(&limits), session.may_resume(&limits));
            assert_eq!(found, (has_credit, may_resume), "{replies} replies, {bytes} bytes");
        }
    }
}
