//! One simulated socket and the client behind it: raw masked frames in, gather batches out.

use std::cell::RefCell;

use super::expect::{End, Expect, NAMES, Sent};
use super::model::{NoteIndex, Rng, Wish, pool};
use crate::relay::outbox::PONGS_MAX;
use crate::relay::{Now, Reading};
use crate::wire::batch::Batch;
use crate::wire::deflate::Inflater;
use crate::wire::frame::{Opcode, unmask, write_header};

const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n";

/// What clients offer of compression.
pub const OFFERS: [&str; 4] = [
    "",
    "",
    "Sec-WebSocket-Extensions: permessage-deflate\r\n",
    "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n",
];

thread_local! {
    /// For all clients: no message refers to an earlier one.
    static INFLATER: RefCell<Inflater> = RefCell::default();
}

/// How a client greets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    WebSocket,
    /// One page, then nothing.
    Page,
    /// No HTTP.
    Noise,
    /// Nothing at all.
    Silence,
}

/// How a client ended the connection: the code of the relay's close frame, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Farewell(pub Option<u16>);

/// See the module.
pub struct Socket {
    /// Bytes the client sent and the relay has not read.
    pub inbound: Vec<u8>,
    /// Text messages the relay has not handled, in order.
    pub unhandled: std::collections::VecDeque<Sent>,
    pub reading: Reading,
    /// The reader was told to go on.
    pub resume_due: bool,
    /// A writer was asked for.
    pub write_due: bool,
    /// The batch with the socket.
    pub batch: Option<Batch>,
    /// Bytes of that batch as they were filled and are not taken yet.
    pub unsent: Vec<u8>,
    /// Bytes the socket took that the client has not acknowledged, and when it last did, or was first
    /// given some.
    pub unacked: usize,
    pub acked_ms: u64,
    /// Since when some have been outstanding without a break.
    pub behind_ms: Option<u64>,
    /// When the relay last read something, or began to read again.
    pub heard_ms: u64,
    /// The socket has failed.
    pub broken: bool,
    /// The client reads nothing.
    pub stuck: bool,
    /// The client has shut its writing side; nothing follows `inbound`.
    pub silent: bool,
    /// The reader was told of the end.
    pub eof: bool,
    /// The relay has shut its writing side.
    pub finished: bool,
    /// The client answers no ping.
    pub mute: bool,
    /// The client answers a close frame with its own, and then leaves its TCP connection open.
    pub polite: bool,
    /// The close code the relay is to answer with to what the client ended the connection with.
    pub farewell: Option<Farewell>,
    greeting: Greeting,
    answered: bool,
    /// The relay may send it compressed messages.
    inflates: bool,
    pub expect: Expect,
}

impl Socket {
    pub fn new(greeting: Greeting, offer: &str) -> Self {
        let inbound = match greeting {
            Greeting::WebSocket => [HANDSHAKE, offer, "\r\n"].concat().into_bytes(),
            Greeting::Page => b"GET / HTTP/1.1\r\nHost: relay.example\r\n\r\n".to_vec(),
            Greeting::Noise => b"\x16\x03\x01 hello\r\n\r\n".to_vec(),
            Greeting::Silence => Vec::new(),
        };
        Self {
            inbound,
            unhandled: std::collections::VecDeque::new(),
            reading: Reading::Ready,
            resume_due: false,
            write_due: false,
            batch: None,
            unsent: Vec::new(),
            unacked: 0,
            acked_ms: 0,
            behind_ms: None,
            heard_ms: 0,
            broken: false,
            stuck: false,
            silent: false,
            eof: false,
            finished: false,
            mute: false,
            polite: false,
            farewell: None,
            greeting,
            answered: false,
            inflates: false,
            expect: Expect::default(),
        }
    }

    pub fn may_speak(&self) -> bool {
        self.greeting == Greeting::WebSocket && !self.silent && self.farewell.is_none()
    }

    /// The client sends one message.
    pub fn say(&mut self, message: Sent, rng: &mut Rng) {
        let text = match &message {
            Sent::Event(note) => format!("[\"EVENT\",{}]", pool()[*note].json),
            Sent::Forged(note) => {
                let json = pool()[*note].json.replacen("\"content\":\"", "\"content\":\"x", 1);
                format!("[\"EVENT\",{json}]")
            }
            Sent::Req(name, wishes) => ask("REQ", *name, wishes),
            Sent::Count(name, wishes) => ask("COUNT", *name, wishes),
            Sent::BadReq(name) => format!("[\"REQ\",{},{{\"search\":\"x\"}}]", NAMES[*name]),
            Sent::BadCount(name) => {
                format!("[\"COUNT\",{},{{}},{{\"search\":\"x\"}}]", NAMES[*name])
            }
            Sent::Close(name) => format!("[\"CLOSE\",{}]", NAMES[*name]),
            Sent::Junk => "[\"HELLO\"]".to_owned(),
        };
        self.unhandled.push_back(message);
        let text = text.as_bytes();
        if rng.chance(10) {
            let (head, tail) = text.split_at(rng.below(text.len()));
            self.send_frame(false, Opcode::Text, head);
            if rng.chance(30) {
                for _ in 0..rng.pick(&[1, 1, 50]) {
                    self.send_frame(true, Opcode::Ping, b"seen?");
                }
            }
            self.send_frame(true, Opcode::Continuation, tail);
        } else {
            self.send_frame(true, Opcode::Text, text);
        }
    }

    pub fn send_frame(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) {
        let out = &mut self.inbound;
        let at = out.len();
        write_header(out, opcode, payload.len());
        if !fin {
            out[at] &= 0x7f;
        }
        out[at + 1] |= 0x80;
        let mask = [0xa5, 0x01, 0x7f, 0xfe];
        out.extend_from_slice(&mask);
        let from = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[from..], mask, 0);
    }

    /// Judges the frames of a batch as it is filled; whether a ping or pong goes before others.
    pub fn judge(&mut self, bytes: &[u8], now: Now) -> bool {
        self.expect.unix_s = now.unix_s;
        let mut rest = bytes;
        if !self.answered {
            self.answered = true;
            if rest.starts_with(b"HTTP/1.1 101 ") {
                assert_eq!(self.greeting, Greeting::WebSocket);
                let end = rest.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head");
                self.inflates = rest[..end].windows(18).any(|w| w == b"permessage-deflate");
                rest = &rest[end + 4..];
            } else {
                assert!(rest.starts_with(b"HTTP/1.1 "));
                self.expect.end = End::Closed;
                return false;
            }
        }
        let (mut controls, mut pongs, mut lane) = (0, 0, Lane::Control);
        while !rest.is_empty() {
            let opcode = match rest[0] {
                0x81 => Opcode::Text,
                DEFLATED_TEXT if self.inflates => Opcode::Text,
                0x88 => Opcode::Close,
                0x89 => Opcode::Ping,
                0x8a => Opcode::Pong,
                other => panic!("a frame that begins with {other:#x}"),
            };
            let (at, len) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                127 => panic!("no frame here is that long"),
                short => (2, usize::from(short)),
            };
            let inflated;
            let payload = match rest[0] {
                DEFLATED_TEXT => {
                    inflated = inflate(&rest[at..at + len]);
                    &inflated[..]
                }
                _ => &rest[at..at + len],
            };
            let next = Lane::of(opcode, payload).unwrap_or(lane);
            assert!(next >= lane, "control frames go first, then replies, then subscriptions");
            lane = next;
            controls += usize::from(lane == Lane::Control);
            pongs += usize::from(opcode == Opcode::Pong);
            assert!(pongs <= PONGS_MAX, "more pongs wait than may");
            self.expect.frame(opcode, payload);
            if opcode == Opcode::Close && self.polite && self.may_speak() {
                self.send_frame(true, Opcode::Close, &rest[at..at + len]);
                self.farewell = Some(Farewell(None));
            }
            if opcode == Opcode::Ping && !self.mute && self.may_speak() {
                self.send_frame(true, Opcode::Pong, b"");
            }
            rest = &rest[at + len..];
        }
        controls > 0 && lane > Lane::Control
    }
}

fn ask(verb: &str, name: usize, wishes: &[Wish]) -> String {
    let filters: Vec<_> = wishes.iter().map(|wish| wish.json().to_string()).collect();
    format!("[\"{verb}\",{},{}]", NAMES[name], filters.join(","))
}

/// The first byte of a compressed text message.
const DEFLATED_TEXT: u8 = 0xc1;

fn inflate(payload: &[u8]) -> Vec<u8> {
    INFLATER.with_borrow_mut(|inflater| {
        let text = inflater.inflate(None, payload, true, 1 << 20);
        text.expect("what is sent compressed can be inflated").to_vec()
    })
}

/// The lanes of an outbox, in the order in which they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Control,
    Replies,
    Stream,
    Last,
}

impl Lane {
    /// The lane of a frame; a CLOSED may be in either of two.
    fn of(opcode: Opcode, payload: &[u8]) -> Option<Self> {
        match opcode {
            Opcode::Ping | Opcode::Pong => Some(Self::Control),
            Opcode::Close => Some(Self::Last),
            _ if payload.starts_with(b"[\"CLOSED\"") => None,
            _ if payload.starts_with(b"[\"E") => Some(Self::Stream),
            _ => Some(Self::Replies),
        }
    }
}

/// A message of a random kind.
pub fn random_message(rng: &mut Rng, names: usize) -> Sent {
    let note: NoteIndex = rng.below(pool().len());
    let name = rng.below(names);
    let wishes = |rng: &mut Rng| (0..=rng.below(3)).map(|_| Wish::random(rng)).collect();
    match rng.below(100) {
        0..49 => Sent::Event(note),
        49..52 => Sent::Forged(note),
        52..78 => Sent::Req(name, wishes(rng)),
        78..82 => Sent::Count(name, wishes(rng)),
        82..84 => Sent::BadReq(name),
        84..86 => Sent::BadCount(name),
        86..96 => Sent::Close(name),
        _ => Sent::Junk,
    }
}
