//! Bad input: each malformed message, frame and request gets the answer that PROTOCOL names, and
//! harms nobody else.
//!
//! One table a layer ([`messages`], [`frames`], [`requests`]). After each case a connection that was
//! opened before still works, and where the case leaves its own connection open, so does that one,
//! with nothing sent beyond the expected answer.

mod events;
mod frames;
mod messages;
mod requests;

use crate::support::raw::{Frame, HANDSHAKE, Raw, Seen, opcode};
use crate::support::{Answer, Author, Client, Filter, Launch, Server, now};

/// One bad input.
struct Case {
    name: String,
    input: Input,
    expected: Expected,
}

enum Input {
    /// One text message of these bytes.
    Message(Vec<u8>),
    /// Bytes after the handshake.
    Frames(Vec<u8>),
    /// Bytes instead of the handshake.
    Request(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Expected {
    /// `OK` of this id: accepted or not, and the prefix (`""` = no text at all).
    Ok(String, bool, &'static str),
    /// `NOTICE` with this prefix.
    Notice(&'static str),
    /// `CLOSED` of this subscription with this prefix.
    Closed(String, &'static str),
    /// `EOSE` of this subscription.
    Eose(String),
    /// No answer, and the connection goes on.
    Nothing,
    /// A pong with this payload.
    Pong(Vec<u8>),
    /// A close frame with this code, and the end.
    Close(Option<u16>),
    /// An HTTP response of this status that holds these texts, and the end.
    Http(u16, Vec<&'static str>),
    /// Switching protocols.
    Open,
}

fn message(name: impl Into<String>, text: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name: name.into(), input: Input::Message(text.into()), expected }
}

fn frames(name: impl Into<String>, frames: &[Frame], expected: Expected) -> Case {
    let bytes = frames.iter().flat_map(Frame::bytes).collect();
    Case { name: name.into(), input: Input::Frames(bytes), expected }
}

fn request(name: impl Into<String>, bytes: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { name: name.into(), input: Input::Request(bytes.into()), expected }
}

/// Small limits, so that "too long" is short.
fn launch() -> Launch {
    Launch::default()
        .set("limits.message_bytes_max", MESSAGE_BYTES_MAX)
        .set("limits.event_tags_max", TAGS_MAX)
        .set("limits.created_at_age_s_max", AGE_S_MAX)
        .set("limits.created_at_ahead_s_max", AHEAD_S_MAX)
        .set("limits.handshake_ms_max", 1_500)
}

const MESSAGE_BYTES_MAX: usize = 200_000;
const TAGS_MAX: usize = 50;
const AGE_S_MAX: u64 = 1_000_000;
const AHEAD_S_MAX: u64 = 600;

/// Everything in the tables.
fn cases() -> Vec<Case> {
    [events::cases(), messages::cases(), frames::cases(), requests::cases()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn there_are_enough_cases_and_no_two_are_named_alike() {
    let cases = cases();
    assert!(cases.len() >= 120, "{}", cases.len());
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn over_tokio_uring() {
    run(launch().backend("tokio-uring"));
}

#[test]
fn over_epoll() {
    run(launch().backend("epoll").shards(2));
}

#[cfg(feature = "glommio")]
#[test]
fn over_glommio() {
    run(launch().backend("glommio").shards(2));
}

fn run(launch: Launch) {
    let mut server = launch.start();
    let mut bystander = Bystander::new(&server);
    let mut failures = Vec::new();
    for case in cases() {
        let outcome = attempt(&server, &case);
        assert!(server.is_alive(), "{}: the relay is gone", case.name);
        bystander.check(&case.name);
        if let Err(error) = outcome {
            failures.push(format!("{}: {error}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
    assert!(server.stop().success());
}

/// Runs one case; says what came instead of what was expected.
fn attempt(server: &Server, case: &Case) -> Result<(), String> {
    let mut raw = match &case.input {
        Input::Request(bytes) => {
            let mut raw = Raw::connect(server.address());
            raw.send(bytes);
            raw
        }
        Input::Message(bytes) => {
            let mut raw = Raw::open(server.address());
            raw.send(&Frame::new(opcode::TEXT, bytes.clone()).bytes());
            raw
        }
        Input::Frames(bytes) => {
            let mut raw = Raw::open(server.address());
            raw.send(bytes);
            raw
        }
    };
    match &case.expected {
        Expected::Http(status, parts) => {
            let response = String::from_utf8_lossy(&raw.rest()).into_owned();
            let head = format!("HTTP/1.1 {status} ");
            let missing = parts.iter().find(|part| !response.contains(*part));
            return match missing {
                None if response.starts_with(&head) => Ok(()),
                _ => Err(format!("expected {status} with {parts:?}, got {response:?}")),
            };
        }
        Expected::Open => {
            let head = raw.head();
            if !head.starts_with("HTTP/1.1 101 ") {
                return Err(format!("expected a WebSocket, got {head:?}"));
            }
        }
        Expected::Close(_) => {
            let seen = raw.next();
            expect(&case.expected, &seen)?;
            let end = raw.next();
            return if end == Seen::End {
                Ok(())
            } else {
                Err(format!("after the close: {end:?}"))
            };
        }
        Expected::Nothing => {}
        expected => expect(expected, &raw.next())?,
    }
    raw.text("[\"REQ\",\"still here\",{\"limit\":0}]");
    match raw.next() {
        Seen::Text(text) if text.starts_with("[\"EOSE\",\"still here\"") => Ok(()),
        other => Err(format!("the connection should go on without another word, got {other:?}")),
    }
}

fn expect(expected: &Expected, seen: &Seen) -> Result<(), String> {
    let starts = |text: &str, prefix: &str| match prefix {
        "" => text.is_empty(),
        prefix => text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(": ")),
    };
    let fits = match (expected, seen) {
        (Expected::Pong(expected), Seen::Pong(payload)) => expected == payload,
        (Expected::Close(expected), Seen::Close(code)) => expected == code,
        (_, Seen::Text(text)) => match (expected, Answer::read(text)) {
            (Expected::Ok(named, taken, prefix), Answer::Ok { id, accepted, text }) => {
                *named == id && *taken == accepted && starts(&text, prefix)
            }
            (Expected::Notice(prefix), Answer::Notice { text }) => starts(&text, prefix),
            (Expected::Closed(named, prefix), Answer::Closed { subscription, text }) => {
                *named == subscription && starts(&text, prefix)
            }
            (Expected::Eose(named), Answer::Eose { subscription }) => *named == subscription,
            _ => false,
        },
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("expected {expected:?}, got {seen:?}")) }
}

/// Someone who does nothing wrong, connected all the time.
struct Bystander {
    client: Client,
    author: Author,
    count: u64,
}

impl Bystander {
    fn new(server: &Server) -> Self {
        let mut client = server.connect();
        client.req("all", &[Filter::default().kinds([7777]).limit(0)]);
        assert_eq!(client.stored("all"), []);
        Self { client, author: Author::new(7777), count: 0 }
    }

    /// Publishes to itself.
    fn check(&mut self, after: &str) {
        self.count += 1;
        let draft = crate::support::Draft::new(7777, now());
        let event = draft.content(format!("{} {after}", self.count)).sign(&self.author);
        self.client.publish_ok(&event);
        assert_eq!(self.client.live("all"), event, "after {after}");
    }
}

#[test]
fn a_request_in_single_bytes_is_read() {
    let server = launch().start();
    let mut raw = Raw::connect(server.address());
    let first = Frame::new(opcode::TEXT, "[\"REQ\",\"s\",{\"limit\":0}]").bytes();
    for byte in HANDSHAKE.bytes().chain(first) {
        raw.send(&[byte]);
    }
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert!(matches!(raw.next(), Seen::Text(text) if text.starts_with("[\"EOSE\",\"s\"")));
}

#[test]
fn messages_sent_with_the_request_are_answered() {
    let server = launch().start();
    let mut raw = Raw::connect(server.address());
    let frame = Frame::new(opcode::TEXT, "[\"REQ\",\"s\",{\"limit\":0}]").bytes();
    raw.send(&[HANDSHAKE.as_bytes(), &frame, &frame[..7]].concat());
    assert!(raw.head().starts_with("HTTP/1.1 101 "));
    assert!(matches!(raw.next(), Seen::Text(text) if text.starts_with("[\"EOSE\",\"s\"")));
    raw.send(&frame[7..]);
    assert!(matches!(raw.next(), Seen::Text(text) if text.starts_with("[\"EOSE\",\"s\"")));
}
