//! What one connection is owed, and whether what leaves for it is that.
//!
//! Judged when a batch is filled, against what the relay has handled until then: a frame that is
//! allowed in a batch is on its way, whatever the client says later.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

use super::coverage::Seen;
use super::model::{NoteIndex, Wish, note_of, pool};
use crate::nostr::tag::decode_hex32;
use crate::relay::ports::Sequence;
use crate::relay::{Limits, Now};
use crate::wire::frame::Opcode;

/// The subscription ids clients use, as JSON text.
pub const NAMES: [&str; 5] = [
    r#""a""#,
    r#""b""#,
    r#""q\"uo\\te""#,
    "\"é😀\"",
    r#""sixty-four-characters-are-the-most-an-id-may-have-and-these-are-""#,
];

/// A message a client has sent.
#[derive(Debug)]
pub enum Sent {
    Event(NoteIndex),
    /// An event whose id is not its hash.
    Forged(NoteIndex),
    Req(usize, Vec<Wish>),
    /// A REQ with a filter nobody knows.
    BadReq(usize),
    Close(usize),
    Count(usize, Vec<Wish>),
    /// A COUNT with a filter nobody knows.
    BadCount(usize),
    /// No message at all.
    Junk,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    #[default]
    Open,
    /// The relay stops, or the client has ended its side; what was matched or queued is still owed.
    Draining,
    /// What was answered still comes, then the close frame.
    Closing,
    /// The close frame has left.
    Closed,
}

/// One subscription as the client sees it.
#[derive(Debug, Default)]
pub struct Sub {
    pub wishes: Vec<Wish>,
    /// The last sequence number the stored query covers, once its first slice was read.
    pub snapshot: Option<Sequence>,
    /// The stored query's result, once its first slice was read.
    pub stored: Vec<NoteIndex>,
    /// How many of them the relay has been handed.
    pub read: usize,
    /// Index entries charged for the stored query that it has not looked at.
    reserved: u64,
    /// How many of them have left, or expired.
    stored_got: usize,
    eose: bool,
    /// Live events not yet on their way.
    live: VecDeque<NoteIndex>,
    /// No more than what was read comes: the query was stopped.
    stopped: bool,
    /// The relay has ended it; CLOSED is queued.
    pub ended: bool,
}

impl Sub {
    fn has_scan(&self) -> bool {
        self.wishes.iter().any(Wish::wants_stored)
    }

    /// Whether the event is one for the live part: after what the stored query saw.
    fn wants_live(&self, note: NoteIndex, sequence: Option<Sequence>) -> bool {
        let after = match sequence {
            Some(at) if self.has_scan() => self.snapshot.is_some_and(|snapshot| at > snapshot),
            _ => true,
        };
        after && self.matches(note)
    }

    fn matches(&self, note: NoteIndex) -> bool {
        self.wishes.iter().any(|wish| wish.matches(note))
    }

    fn is_settled(&self, unix_s: u64) -> bool {
        let is_expired = |note: &NoteIndex| pool()[*note].is_expired(unix_s);
        self.eose && self.live.iter().all(is_expired) && !self.ended
    }

    /// Passes over stored events that have expired and come no more.
    fn pass_expired(&mut self, unix_s: u64) {
        let left = self.stored[self.stored_got..].iter();
        self.stored_got += left.take_while(|note| pool()[**note].is_expired(unix_s)).count();
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Expect {
    /// OKs that are decided and have not left, by event.
    answers: BTreeMap<NoteIndex, VecDeque<(bool, &'static str)>>,
    /// EVENTs handled whose OK has not left.
    oks_owed: usize,
    /// Events handled that are not verified.
    pub unverified: VecDeque<NoteIndex>,
    /// COUNTs that are not decided, in the order they were handled.
    pub counts: Vec<(usize, Vec<Wish>)>,
    /// Answers to COUNTs that are decided and have not left.
    counted: BTreeMap<usize, VecDeque<Value>>,
    /// CLOSEDs of refused REQs and COUNTs that have not left: the prefixes of their texts.
    refusals: BTreeMap<usize, VecDeque<&'static str>>,
    notices_owed: usize,
    subs: BTreeMap<usize, Sub>,
    /// What stored queries were charged with or given back, and when, in milliseconds.
    charges: Vec<(u64, i64)>,
    /// When the batch that is judged was filled, in seconds.
    pub unix_s: u64,
    /// EVENTs that have left.
    pub events: u64,
    pub end: End,
    /// The code the close frame must carry.
    pub close_code: Option<u16>,
}

impl Expect {
    /// The relay has handled a message; what became of stored queries by it.
    pub fn handled(&mut self, message: Sent, limits: &Limits, now: Now) -> Vec<Seen> {
        let now_ms = now.ms;
        let mut ends = |name: usize, seen| {
            let sub = self.subs.remove(&name)?;
            (sub.has_scan() && !sub.eose && !sub.ended).then_some(seen)
        };
        match message {
            Sent::Event(note) if pool()[note].is_expired(now.unix_s) => {
                self.oks_owed += 1;
                self.answer(note, false, "invalid: event has expired");
                Vec::new()
            }
            Sent::Event(note) => {
                self.oks_owed += 1;
                self.unverified.push_back(note);
                Vec::new()
            }
            Sent::Forged(note) => {
                self.oks_owed += 1;
                self.answer(note, false, "invalid: id is not the hash of the event");
                Vec::new()
            }
            Sent::Req(name, wishes) => {
                let mut seen = Vec::from_iter(ends(name, Seen::ReplacedMidScan));
                let cost: u64 = wishes.iter().map(|wish| wish.cost(limits.filter_limit_max)).sum();
                let reserved = cost.min(limits.connection_query_entries_max);
                let full = self.subs.len() + self.counts.len() >= limits.subscriptions_max as usize;
                let too_much = !full && !self.may_ask(reserved, limits, now_ms);
                if full || too_much {
                    self.refuse(name, "rate-limited: ");
                } else {
                    self.subs.insert(name, Sub { wishes, reserved, ..Sub::default() });
                }
                seen.extend(too_much.then_some(Seen::QueryRefused));
                seen
            }
            Sent::BadReq(name) => {
                let seen = ends(name, Seen::ReplacedMidScan);
                self.refuse(name, "unsupported: ");
                Vec::from_iter(seen)
            }
            Sent::Close(name) => Vec::from_iter(ends(name, Seen::ClosedMidScan)),
            Sent::Count(name, wishes) => {
                let full = self.subs.len() + self.counts.len() >= limits.subscriptions_max as usize;
                let charged = limits.connection_query_entries_max.min(1);
                if !full && self.may_ask(charged, limits, now_ms) {
                    self.counts.push((name, wishes));
                    return Vec::new();
                }
                self.refuse(name, "rate-limited: ");
                vec![Seen::CountRefused]
            }
            Sent::BadCount(name) => {
                self.refuse(name, "unsupported: ");
                Vec::new()
            }
            Sent::Junk => {
                self.notices_owed += 1;
                Vec::new()
            }
        }
    }

    /// Thousandths of index entries that stored queries are behind with.
    fn behind(&self, limits: &Limits, now_ms: u64) -> u64 {
        let per_ms = u64::from(limits.connection_query_entries_per_s);
        let (mut behind, mut at_ms) = (0u64, 0);
        for (ms, entries) in self.charges.iter().copied().chain([(now_ms, 0)]) {
            behind =
                behind.saturating_sub((ms - at_ms) * per_ms).saturating_add_signed(1_000 * entries);
            at_ms = ms;
        }
        behind
    }

    /// Charges a stored query or a count; whether it may go on.
    pub fn charge(&mut self, entries: u64, limits: &Limits, now_ms: u64) -> bool {
        self.charges.push((now_ms, i64::try_from(entries).expect("a few")));
        let max = limits.connection_query_entries_max;
        max == 0 || self.behind(limits, now_ms) <= 1_000 * max
    }

    /// Charges a stored query, unless that is too much.
    fn may_ask(&mut self, entries: u64, limits: &Limits, now_ms: u64) -> bool {
        let (behind, max) = (self.behind(limits, now_ms), limits.connection_query_entries_max);
        let may = entries == 0 || behind + 1_000 * entries <= 1_000 * max;
        if may {
            self.charge(entries, limits, now_ms);
        }
        may
    }

    /// The relay is handed a slice; whether the query may go on.
    pub fn examined(
        &mut self,
        name: usize,
        entries: u64,
        done: bool,
        limits: &Limits,
        now_ms: u64,
    ) -> bool {
        let sub = self.subs.get_mut(&name).expect("the client knows the subscription");
        let of_reserve = sub.reserved.min(entries);
        sub.reserved -= of_reserve;
        let left = if done { std::mem::take(&mut sub.reserved) } else { 0 };
        let goes_on = self.charge(entries - of_reserve, limits, now_ms);
        self.charges.push((now_ms, -i64::try_from(left).expect("a few")));
        goes_on
    }

    /// The relay knows how to answer an EVENT.
    pub fn answer(&mut self, note: NoteIndex, accepted: bool, text: &'static str) {
        self.answers.entry(note).or_default().push_back((accepted, text));
    }

    fn refuse(&mut self, name: usize, prefix: &'static str) {
        self.refusals.entry(name).or_default().push_back(prefix);
    }

    /// The relay knows how to answer one of `counts`; `None` = it does not, for a reason that begins so.
    pub fn decide_count(&mut self, nth: usize, answer: Option<Value>, prefix: &'static str) {
        let (name, _) = self.counts.remove(nth);
        match answer {
            Some(answer) => self.counted.entry(name).or_default().push_back(answer),
            None => self.refuse(name, prefix),
        }
    }

    /// The relay publishes an event; returns how many subscriptions it matches.
    pub fn published(&mut self, note: NoteIndex, sequence: Option<Sequence>) -> u64 {
        if self.end != End::Open {
            return 0;
        }
        let mut matched = 0;
        for sub in self.subs.values_mut().filter(|sub| !sub.ended) {
            matched += u64::from(sub.matches(note));
            if sub.wants_live(note, sequence) {
                sub.live.push_back(note);
            }
        }
        matched
    }

    /// The subscription of this name.
    pub fn sub(&mut self, name: usize) -> Option<&mut Sub> {
        self.subs.get_mut(&name)
    }

    /// The relay no longer holds the subscriptions that `held` denies: CLOSED is queued for them.
    pub fn note_ended(&mut self, held: impl Fn(usize) -> bool) {
        for (name, sub) in &mut self.subs {
            sub.ended |= !held(*name);
        }
    }

    /// Nothing more is matched, and the connection is closed with `code` once all is sent: to the
    /// subscriptions that `goes_on` names what waits for them, to the others what was queued.
    pub fn stop(&mut self, code: Option<u16>, goes_on: impl Fn(usize) -> bool) {
        (self.end, self.close_code) = (End::Draining, code);
        for (name, sub) in &mut self.subs {
            sub.stopped = !sub.ended && !goes_on(*name);
        }
    }

    /// The connection ends by its client's word or fault.
    pub fn close(&mut self, code: Option<u16>) {
        self.end = End::Closing;
        self.close_code = code;
        self.counts.clear();
        self.subs.retain(|_, sub| sub.ended);
    }

    /// Judges one frame that leaves.
    pub fn frame(&mut self, opcode: Opcode, payload: &[u8]) {
        assert_ne!(self.end, End::Closed, "a frame after the close frame");
        match opcode {
            Opcode::Text => self.text(std::str::from_utf8(payload).expect("text is UTF-8")),
            Opcode::Ping => assert!(payload.is_empty()),
            Opcode::Pong => assert_eq!(payload, b"seen?"),
            Opcode::Close => self.close_frame(payload),
            Opcode::Binary | Opcode::Continuation => panic!("the relay sends whole text messages"),
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(rest) = text.strip_prefix("[\"EVENT\",") {
            let name = NAMES.iter().position(|name| rest.starts_with(name)).expect("a known name");
            let json = rest[NAMES[name].len()..].strip_prefix(',').expect("an event follows");
            let json = json.strip_suffix(']').expect("nothing follows the event");
            let id = decode_hex32(&json.as_bytes()[7..71]).expect("an id");
            let note = note_of(&id).expect("an event somebody sent");
            assert_eq!(json, pool()[note].json);
            return self.event(name, note);
        }
        let message: Vec<Value> = serde_json::from_str(text).expect("a message is an array");
        let string = |at: usize| message[at].as_str().expect("a string").to_owned();
        let name = || {
            let id = message[1].to_string();
            NAMES.iter().position(|name| *name == id).expect("a known name")
        };
        match (string(0).as_str(), message.len()) {
            ("OK", 4) => {
                let id = decode_hex32(string(1).as_bytes()).expect("an id");
                self.ok(note_of(&id).expect("a known event"), message[2] == true, &string(3));
            }
            ("EOSE", 2) => self.eose(name()),
            ("COUNT", 3) => {
                let decided = self.counted.get_mut(&name()).and_then(VecDeque::pop_front);
                assert_eq!(message[2], decided.expect("an answer follows its count, once"));
            }
            ("CLOSED", 3) => self.closed(name(), &string(2)),
            ("NOTICE", 2) => {
                self.notices_owed = self.notices_owed.checked_sub(1).expect("a NOTICE was owed");
            }
            _ => panic!("not a message of a relay: {text}"),
        }
    }

    fn ok(&mut self, note: NoteIndex, accepted: bool, text: &str) {
        let decided = self.answers.get_mut(&note).and_then(VecDeque::pop_front);
        let (as_expected, expected) = decided.expect("an OK follows its verdict, once");
        assert_eq!((accepted, text), (as_expected, expected));
        self.oks_owed = self.oks_owed.checked_sub(1).expect("an OK was owed");
    }

    fn event(&mut self, name: usize, note: NoteIndex) {
        self.events += 1;
        let sub = self.subs.get_mut(&name).expect("an event for a subscription that is open");
        assert!(!sub.ended, "an event after the subscription ended");
        let is_expired = |note: NoteIndex| pool()[note].is_expired(self.unix_s);
        assert!(!is_expired(note), "an event that has expired");
        if sub.eose {
            let mut live = std::iter::from_fn(|| sub.live.pop_front());
            let next = live.find(|next| !is_expired(*next)).expect("a live event after EOSE, once");
            assert_eq!(note, next, "live events come in the order of commits");
        } else {
            sub.pass_expired(self.unix_s);
            assert_eq!(Some(&note), sub.stored.get(sub.stored_got), "stored events in order");
            sub.stored_got += 1;
        }
    }

    fn eose(&mut self, name: usize) {
        let sub = self.subs.get_mut(&name).expect("EOSE for a subscription that is open");
        assert!(!sub.ended && !sub.eose, "one EOSE a REQ");
        assert!(!sub.has_scan() || sub.snapshot.is_some(), "EOSE before the stored query ran");
        sub.pass_expired(self.unix_s);
        assert_eq!(sub.stored_got, sub.stored.len(), "stored events come before EOSE");
        sub.eose = true;
    }

    fn closed(&mut self, name: usize, text: &str) {
        let ends = [
            "error: slow consumer",
            "error: the stored events could not be read",
            "rate-limited: the query looks at too many stored events",
        ];
        if ends.contains(&text) {
            let sub = self.subs.remove(&name).expect("CLOSED for a subscription that was open");
            assert!(sub.ended || self.end == End::Draining, "CLOSED for a healthy subscription");
        } else {
            let prefix = self.refusals.get_mut(&name).and_then(VecDeque::pop_front);
            assert!(text.starts_with(prefix.expect("a REQ or COUNT was refused")), "{text}");
        }
    }

    fn close_frame(&mut self, payload: &[u8]) {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        assert_eq!(code, self.close_code);
        if self.end == End::Draining {
            assert!(self.owes_no_answer(), "answers come before the close: {self:?}");
            for (name, sub) in &mut self.subs {
                sub.pass_expired(self.unix_s);
                let is_settled = match sub.stopped {
                    true => sub.stored_got >= sub.read,
                    false => sub.is_settled(self.unix_s),
                };
                assert!(is_settled, "what was queued comes before the close: {name} {sub:?}");
            }
        }
        self.end = End::Closed;
    }

    fn owes_no_answer(&self) -> bool {
        self.oks_owed == 0
            && self.notices_owed == 0
            && self.counts.is_empty()
            && self.counted.values().all(VecDeque::is_empty)
            && self.refusals.values().all(VecDeque::is_empty)
            && self.answers.values().all(VecDeque::is_empty)
    }

    /// All is still and the client has read all: nothing may be owed.
    pub fn check_settled(&self, unix_s: u64) {
        assert!(self.owes_no_answer(), "answers are missing: {self:?}");
        for sub in self.subs.values() {
            assert!(sub.is_settled(unix_s), "a subscription is owed something: {sub:?}");
        }
    }
}
