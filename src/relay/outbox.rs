//! The write queue of one connection: what waits for its socket, in lanes.
//!
//! | lane | carries | bound |
//! |---|---|---|
//! | control | ping, pong | one ping; [`PONGS_MAX`] pongs, then a new one replaces the oldest |
//! | replies | OK, COUNT, NOTICE, CLOSED of a refused REQ or COUNT | one slot an inbound message, reserved when it is read |
//! | stream | EVENT, EOSE, CLOSED of a subscription | `outbox_messages_max`, `outbox_bytes_max`; EOSE and CLOSED always fit: one EOSE an open subscription, and a subscription the relay has ended keeps its place among `subscriptions_max` until its CLOSED is in a batch |
//! | last | close | one, after all else |
//!
//! A batch takes the lanes in this order, so a pong overtakes what waits, though not what is already
//! on its way. Producers add here and never touch the socket.
//!
//! The single-writer pattern this stems from has one bounded queue of `WriteRequest`s, each with a kind
//! and a deadline, before one writer. The same contract here:
//!
//! | `WriteRequest` | here |
//! |---|---|
//! | text | [`push_reply`](Lanes::push_reply), [`push_event`](Lanes::push_event), [`push_eose`](Lanes::push_eose), [`push_closed`](Lanes::push_closed) |
//! | binary | none: NIP-01 is text |
//! | ping, every 30 s | [`push_ping`](Lanes::push_ping), `ping_interval_ms`, answered within `pong_wait_ms_max` (60 s) |
//! | pong | [`push_pong`](Lanes::push_pong) |
//! | close | [`push_close`](Lanes::push_close), after all that was queued, within `drain_ms_max` |
//! | deadline of one write, 10 s | `write_stall_ms_max`: the peer acknowledges something within it |
//! | queue of 100 | `outbox_messages_max`, and `outbox_bytes_max` |
//! | queue timeout, 3 s | `live_queue_age_ms_max`: a live event that finds no room for so long ends its subscription; a stored query and a reader that publishes wait instead |
//! | answer to the producer | none is needed: a full stream is seen before it is pushed to, and the end of a connection takes its subscriptions along |

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use bytes::Bytes;

use super::planted::{Bug, planted};
use super::ports::ExpiringBytes;
use crate::nostr::{RelayMessage, SubscriptionId};
/// What a batch takes from here at a time.
use crate::wire::batch::Batch;
use crate::wire::frame::{CONTROL_BYTES_MAX, Opcode};

/// A subscription as its frames name it. Two subscriptions of one id are two names, so purging the
/// old one's frames cannot touch the new one's.
#[derive(Debug)]
pub struct Name {
    id: SubscriptionId,
    /// `["EVENT",id,`
    event_prefix: Box<[u8]>,
}

impl Name {
    /// The name of a new subscription.
    #[must_use]
    pub fn new(id: SubscriptionId) -> Rc<Self> {
        let event_prefix = [b"[\"EVENT\",", id.json(), b","].concat().into();
        Rc::new(Self { id, event_prefix })
    }

    /// The subscription id.
    #[must_use]
    pub fn id(&self) -> &SubscriptionId {
        &self.id
    }
}

/// What frames of one shard share. [`Bytes`] counts its owners with atomics, for all shards; a frame for
/// each of hundreds of subscribers is counted without.
pub type Payload = Rc<ExpiringBytes>;

/// A payload that is no event's.
fn lasting(bytes: impl Into<Bytes>) -> Payload {
    Rc::new(ExpiringBytes::new(bytes.into(), None))
}

/// Small, since hundreds of queues in turn take one for each event.
#[derive(Debug)]
struct StreamFrame {
    name: Rc<Name>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// The event's JSON, shared by every subscriber.
    Event(Payload),
    /// The event's JSON and `]`, deflated once for all subscribers of a window size.
    Deflated(Payload),
    /// The whole EOSE.
    Eose(Payload),
    /// The whole CLOSED of a subscription the relay has ended.
    Closed(Payload),
    /// A message on its way back.
    #[cfg(any(test, feature = "echo-endpoint"))]
    Echo(Opcode, Payload),
}

/// A close frame's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// RFC 6455 §7.4; `None` answers a close without a code.
    pub code: Option<u16>,
    /// For people; at most 123 bytes.
    pub reason: &'static str,
}

impl Close {
    fn payload(self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(2 + self.reason.len());
        if let Some(code) = self.code {
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(self.reason.as_bytes());
        }
        payload
    }
}

/// What waits for one socket. While nothing does it owns no memory, once it has [rested](Self::rest);
/// changing its lanes allocates them.
#[derive(Debug, Default)]
pub struct Outbox(Option<Box<Lanes>>);

impl Outbox {
    /// Gives the memory of empty lanes back.
    pub fn rest(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}

impl Deref for Outbox {
    type Target = Lanes;

    fn deref(&self) -> &Lanes {
        self.0.as_deref().unwrap_or(Lanes::EMPTY)
    }
}

impl DerefMut for Outbox {
    fn deref_mut(&mut self) -> &mut Lanes {
        self.0.get_or_insert_default()
    }
}

/// The lanes of an [`Outbox`].
#[derive(Debug)]
pub struct Lanes {
    pongs: VecDeque<Box<[u8]>>,
    ping: bool,
    raw: Option<Box<[u8]>>,
    replies: VecDeque<Box<[u8]>>,
    stream: VecDeque<StreamFrame>,
    /// Bytes of the stream's payloads.
    stream_bytes: usize,
    /// CLOSEDs in the stream.
    stream_closed: usize,
    /// Nothing in the stream expires before, in seconds since the epoch.
    expires_at: u64,
    end: Option<End>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self::NEW
    }
}

/// How the bytes for this socket end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With a close frame.
    Frame(Close),
    /// With the last byte of an HTTP response.
    Response,
}

/// What [`Lanes::fill`] moved into a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Replies: their slots are free again.
    pub replies: u32,
    /// The close frame, or the last byte of an HTTP response, is in the batch.
    pub last: bool,
}

impl Lanes {
    const EMPTY: &Self = &Self::NEW;

    const NEW: Self = Self {
        pongs: VecDeque::new(),
        ping: false,
        raw: None,
        replies: VecDeque::new(),
        stream: VecDeque::new(),
        stream_bytes: 0,
        stream_closed: 0,
        expires_at: u64::MAX,
        end: None,
    };

    /// Queues bytes that are no frame: the handshake's response.
    pub fn push_raw(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.raw.is_none(), "one HTTP exchange a connection");
        self.raw = Some(bytes.into());
    }

    /// Queues a pong. Of more than [`PONGS_MAX`] the oldest is dropped: who sends that many pings
    /// before reading gets the answers to the newest, the last among them (RFC 6455 §5.5.3). Returns
    /// whether one was dropped.
    pub fn push_pong(&mut self, payload: &[u8]) -> bool {
        let full = self.pongs.len() == PONGS_MAX && !planted(Bug::PongsUnbounded);
        if full {
            self.pongs.pop_front();
        }
        self.pongs.push_back(payload.into());
        full
    }

    /// Queues a ping, if none waits.
    pub fn push_ping(&mut self) {
        self.ping = true;
    }

    /// Queues the answer to a message whose slot was reserved.
    pub fn push_reply(&mut self, message: RelayMessage<'_>) {
        self.replies.push_back(message.to_json().into());
    }

    /// Whether the stream takes another event.
    #[must_use]
    pub fn has_room(&self, messages_max: usize, bytes_max: usize) -> bool {
        self.stream.len() < messages_max
            && (self.stream_bytes < bytes_max || planted(Bug::BytesUnbounded))
    }

    /// Queues an event of a subscription.
    pub fn push_event(&mut self, name: &Rc<Name>, json: Payload) {
        self.push_frame(name, Body::Event(json));
    }

    /// Queues an event that [`Deflater::deflate`](crate::wire::deflate::Deflater::deflate) has made
    /// blocks of, with the `]` behind it.
    pub fn push_deflated(&mut self, name: &Rc<Name>, blocks: Payload) {
        self.push_frame(name, Body::Deflated(blocks));
    }

    /// Queues the EOSE of a subscription.
    pub fn push_eose(&mut self, name: &Rc<Name>) {
        let eose = RelayMessage::Eose { subscription: name.id(), finished: None };
        self.push_frame(name, Body::Eose(lasting(eose.to_json())));
    }

    /// Queues the CLOSED of a subscription the relay has ended.
    pub fn push_closed(&mut self, name: &Rc<Name>, text: &str) {
        let closed = RelayMessage::Closed { subscription: name.id(), text };
        self.stream_closed += 1;
        self.push_frame(name, Body::Closed(lasting(closed.to_json())));
    }

    fn push_frame(&mut self, name: &Rc<Name>, body: Body) {
        let payload = body.payload();
        self.stream_bytes += payload.len();
        self.expires_at = self.expires_at.min(payload.expires_at());
        self.stream.push_back(StreamFrame { name: name.clone(), body });
    }

    /// Queues an echo.
    #[cfg(any(test, feature = "echo-endpoint"))]
    pub(super) fn push_echo(&mut self, name: &Rc<Name>, opcode: Opcode, payload: Bytes) {
        self.push_frame(name, Body::Echo(opcode, lasting(payload)));
    }

    /// Drops the frames of a subscription that wait; returns how many events were among them.
    pub fn purge(&mut self, name: &Rc<Name>) -> u64 {
        let by_id = planted(Bug::PurgeById);
        self.purge_if(|frame| {
            Rc::ptr_eq(&frame.name, name) || by_id && frame.name.id() == name.id()
        })
    }

    /// Drops what waits for any subscription of this id: the CLOSED of one the relay has ended.
    pub fn purge_id(&mut self, id: &SubscriptionId) {
        self.purge_if(|frame| frame.name.id() == id);
    }

    fn purge_if(&mut self, gone: impl Fn(&StreamFrame) -> bool) -> u64 {
        let mut events = 0;
        let (bytes, closed) = (&mut self.stream_bytes, &mut self.stream_closed);
        self.stream.retain(|frame| {
            let keep = !gone(frame);
            if !keep {
                events += u64::from(frame.body.is_event());
                *closed -= usize::from(matches!(frame.body, Body::Closed(_)));
                *bytes -= frame.body.len();
            }
            keep
        });
        events
    }

    /// Whether events may be in the stream that have expired at `unix_s`.
    #[must_use]
    pub fn may_have_expired(&self, unix_s: u64) -> bool {
        self.expires_at <= unix_s && !planted(Bug::ExpiredSent)
    }

    /// Drops them; returns how many there were.
    pub fn drop_expired(&mut self, unix_s: u64) -> u64 {
        let events = self.purge_if(|frame| frame.body.payload().is_expired(unix_s));
        let left = self.stream.iter().map(|frame| frame.body.payload().expires_at());
        self.expires_at = left.min().unwrap_or(u64::MAX);
        events
    }

    /// Drops the whole stream; returns how many events were in it.
    pub fn purge_all(&mut self) -> u64 {
        let events = self.purge_if(|_| true);
        self.stream = VecDeque::new();
        events
    }

    /// Queues the close frame, which leaves after all else. A second one changes nothing.
    pub fn push_close(&mut self, close: Close) {
        self.end.get_or_insert(End::Frame(close));
    }

    /// Queues an HTTP response, after which nothing follows.
    pub fn push_response(&mut self, bytes: Vec<u8>) {
        self.push_raw(bytes);
        self.end.get_or_insert(End::Response);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pongs.is_empty()
            && !self.ping
            && self.raw.is_none()
            && self.replies.is_empty()
            && self.stream.is_empty()
            && self.end.is_none()
    }

    /// Frames in the stream lane.
    #[must_use]
    pub fn stream_len(&self) -> usize {
        self.stream.len()
    }

    /// Bytes of the payloads in it.
    #[must_use]
    pub fn stream_bytes(&self) -> usize {
        self.stream_bytes
    }

    /// Subscriptions the relay has ended whose CLOSED waits in it.
    #[must_use]
    pub fn stream_closed(&self) -> usize {
        self.stream_closed
    }

    /// Answers that wait.
    #[must_use]
    pub fn replies_len(&self) -> usize {
        self.replies.len()
    }

    /// Moves what waits into `batch`, as much as it takes.
    pub fn fill(&mut self, batch: &mut Batch) -> Filled {
        let mut filled = Filled::default();
        if let Some(raw) = self.raw.take() {
            batch.push_raw(&raw);
        }
        let in_line = planted(Bug::PingInLine);
        if !in_line {
            self.fill_control(batch);
        }
        while batch.has_room()
            && let Some(reply) = self.replies.pop_front()
        {
            batch.push_small(Opcode::Text, &reply);
            filled.replies += 1;
        }
        while batch.has_room()
            && let Some(frame) = self.stream.pop_front()
        {
            self.stream_bytes -= frame.body.len();
            match &frame.body {
                Body::Event(json) => {
                    batch.push_frame(Opcode::Text, &frame.name.event_prefix, json, b"]");
                }
                Body::Deflated(blocks) => {
                    batch.push_deflated(Opcode::Text, &frame.name.event_prefix, blocks);
                }
                Body::Eose(text) => batch.push_small(Opcode::Text, text),
                Body::Closed(text) => {
                    batch.push_small(Opcode::Text, text);
                    self.stream_closed -= 1;
                }
                #[cfg(any(test, feature = "echo-endpoint"))]
                Body::Echo(opcode, payload) => {
                    let (prefix, body, suffix) = super::echo::parts(payload);
                    batch.push_frame(*opcode, prefix, &body, suffix);
                }
            }
        }
        if in_line {
            self.fill_control(batch);
        }
        if self.replies.is_empty()
            && self.stream.is_empty()
            && let Some(end) = self.end.take()
        {
            if let End::Frame(close) = end {
                batch.push_small(Opcode::Close, &close.payload());
            }
            filled.last = true;
        }
        filled
    }

    fn fill_control(&mut self, batch: &mut Batch) {
        for pong in std::mem::take(&mut self.pongs) {
            batch.push_small(Opcode::Pong, &pong);
        }
        if std::mem::take(&mut self.ping) {
            batch.push_small(Opcode::Ping, &[]);
        }
    }
}

/// Most pongs that wait for one socket.
pub const PONGS_MAX: usize = 16;
/// Most bytes of their payloads.
pub const PONGS_BYTES_MAX: usize = PONGS_MAX * CONTROL_BYTES_MAX;

impl Body {
    fn is_event(&self) -> bool {
        matches!(self, Self::Event(_) | Self::Deflated(_))
    }

    fn len(&self) -> usize {
        self.payload().len()
    }

    fn payload(&self) -> &Payload {
        match self {
            Self::Event(payload)
            | Self::Deflated(payload)
            | Self::Eose(payload)
            | Self::Closed(payload) => payload,
            #[cfg(any(test, feature = "echo-endpoint"))]
            Self::Echo(_, payload) => payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000;

    fn payload(bytes: &[u8]) -> Payload {
        lasting(Bytes::copy_from_slice(bytes))
    }

    fn text(batch: &Batch) -> String {
        let bytes: Vec<u8> = batch.unwritten().flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn order(batch: &Batch, words: &[&str]) -> bool {
        let text = text(batch);
        let places: Option<Vec<_>> = words.iter().map(|word| text.find(word)).collect();
        places.is_some_and(|places| places.is_sorted())
    }

    #[test]
    fn control_overtakes_replies_overtake_the_stream_and_close_is_last() {
        let mut outbox = Outbox::default();
        let name = Name::new(SubscriptionId::new("s\"1").unwrap());
        outbox.push_event(&name, payload(b"{\"first\":1}"));
        outbox.push_eose(&name);
        outbox.push_close(Close { code: Some(1001), reason: "bye" });
        outbox.push_close(Close { code: Some(1002), reason: "late" });
        outbox.push_reply(RelayMessage::Notice { text: "note" });
        outbox.push_pong(b"pong");
        let mut batch = Batch::default();
        assert_eq!(outbox.fill(&mut batch), Filled { replies: 1, last: true });
        assert!(outbox.is_empty());
        let words =
            ["pong", "NOTICE", r#"["EVENT","s\"1",{"first":1}]"#, r#"["EOSE","s\"1"]"#, "bye"];
        assert!(order(&batch, &words), "{}", text(&batch));
        assert!(!text(&batch).contains("late"));
        assert_eq!(batch.frames(), 5);
    }

    #[test]
    fn each_ping_is_answered_until_too_many_wait() {
        let mut outbox = Outbox::default();
        let pongs = |outbox: &mut Outbox, count: usize| {
            let replaced =
                (0..count).filter(|n| outbox.push_pong(format!("<{n}>").as_bytes())).count();
            assert_eq!(replaced, count.saturating_sub(PONGS_MAX));
            let mut batch = Batch::default();
            assert_eq!(outbox.fill(&mut batch), Filled::default());
            assert!(outbox.is_empty());
            (batch.frames() as usize, text(&batch))
        };
        let (frames, all) = pongs(&mut outbox, PONGS_MAX);
        assert_eq!(frames, PONGS_MAX);
        assert!(all.find("<0>") < all.find("<1>") && all.contains("<15>"), "{all}");
        let (frames, newest) = pongs(&mut outbox, PONGS_MAX + 3);
        assert_eq!(frames, PONGS_MAX);
        assert!(!newest.contains("<2>") && newest.contains("<3>"), "{newest}");
        assert!(newest.ends_with("<18>"), "{newest}");
    }

    #[test]
    fn a_purge_takes_one_subscription_only() {
        let mut outbox = Outbox::default();
        let id = || SubscriptionId::new("s").unwrap();
        let (old, new) = (Name::new(id()), Name::new(id()));
        outbox.push_event(&old, payload(b"{\"old\":1}"));
        outbox.push_event(&new, payload(b"{\"new\":1}"));
        outbox.push_eose(&old);
        assert_eq!(outbox.purge(&old), 1);
        let mut batch = Batch::default();
        outbox.fill(&mut batch);
        assert!(text(&batch).contains("new") && !text(&batch).contains("old"));
        assert_eq!((batch.frames(), outbox.stream_bytes), (1, 0));
    }

    #[test]
    fn room_ends_at_the_message_limit_and_at_the_byte_limit() {
        let mut outbox = Outbox::default();
        let name = Name::new(SubscriptionId::new("s").unwrap());
        for n in 0..3 {
            assert!(outbox.has_room(3, 1000), "{n}");
            outbox.push_event(&name, payload(&[b'x'; 10]));
        }
        assert_eq!((outbox.stream_len(), outbox.stream_bytes()), (3, 30));
        assert!(!outbox.has_room(3, 1000));
        assert!(outbox.has_room(4, 31));
        assert!(!outbox.has_room(4, 30));
    }

    #[test]
    fn lanes_that_are_empty_can_be_given_back() {
        let mut outbox = Outbox::default();
        assert!(outbox.is_empty() && outbox.0.is_none(), "looking allocates nothing");
        let name = Name::new(SubscriptionId::new("s").unwrap());
        outbox.push_eose(&name);
        outbox.rest();
        assert_eq!(outbox.stream_len(), 1);
        outbox.fill(&mut Batch::default());
        outbox.rest();
        assert!(outbox.is_empty() && outbox.0.is_none());
    }

    #[test]
    fn close_waits_for_what_the_batch_could_not_take() {
        let mut outbox = Outbox::default();
        let name = Name::new(SubscriptionId::new("s").unwrap());
        for _ in 0..40 {
            outbox.push_event(&name, payload(&[b'x'; 8000]));
        }
        outbox.push_close(Close { code: Some(1001), reason: "" });
        let mut batches = 0;
        loop {
            let mut batch = Batch::default();
            batches += 1;
            if outbox.fill(&mut batch).last {
                break;
            }
        }
        assert!(batches > 1 && outbox.is_empty());
    }

    #[test]
    fn what_has_expired_is_dropped_and_nothing_else() {
        let mut outbox = Outbox::default();
        let name = Name::new(SubscriptionId::new("s").unwrap());
        for (text, at) in [("before", NOW - 1), ("now", NOW), ("after", NOW + 1)] {
            let bytes = Bytes::from_static(text.as_bytes());
            let payload = Rc::new(ExpiringBytes::new(bytes, Some(at)));
            outbox.push_event(&name, payload.clone());
            outbox.push_deflated(&name, payload);
        }
        outbox.push_eose(&name);
        assert!(!outbox.may_have_expired(NOW - 2) && outbox.may_have_expired(NOW));
        assert_eq!(outbox.drop_expired(NOW), 4);
        assert!(!outbox.may_have_expired(NOW) && outbox.may_have_expired(NOW + 1));
        let mut batch = Batch::default();
        outbox.fill(&mut batch);
        assert_eq!((batch.frames(), outbox.stream_bytes()), (3, 0));
        assert!(order(&batch, &["after", "EOSE"]) && !text(&batch).contains("now"));
        assert_eq!(outbox.drop_expired(NOW + 1), 0, "it has left");
        assert!(!outbox.may_have_expired(u64::MAX - 1));
    }
}
