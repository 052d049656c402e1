//! One shard in situations made by hand: what a client sees, and when.

mod admission;
mod budget;
mod counts;
mod deflate;
mod delivery;
mod ends;
mod expiry;
mod timings;

use std::sync::Arc;

use super::client::CLIENT;
use super::ports::{Chunk, CommitBatch, ExpiringBytes, Submission, Verdict};
use super::{
    Accept, Arrival, ConnectionKey, Effect, Limits, Now, Pages, Proxies, Reading, ScanKey, Setup,
    Shard,
};
use crate::nostr::Event;
use crate::nostr::testing::Draft;
use crate::wire::batch::Batch;
use crate::wire::frame::{Opcode, unmask, write_header};

/// A shard, its clock, and what a driver would do for it.
struct Relay {
    core: Shard,
    now: Now,
    effects: Vec<Effect>,
    sequence: u64,
}

const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: r\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";

impl Relay {
    fn new(limits: Limits) -> Self {
        Self::with_shards(limits, 1)
    }

    fn with_shards(limits: Limits, shards: u16) -> Self {
        let pages = Pages {
            endpoint: "/".into(),
            document: r#"{"name":"r"}"#.into(),
            page: "<p>hello".into(),
        };
        let core = Shard::new(Setup {
            origin: 0,
            shards,
            verify: true,
            search: false,
            limits: Arc::new(limits),
            pages: Arc::new(pages),
            deflate: Accept::Off,
            proxies: Proxies::parse(["10.0.0.0/8"]).unwrap().into(),
            hash_seed: 1,
        });
        let now = Now { ms: 50_000, unix_s: 1_700_000_000 };
        Self { core, now, effects: Vec::new(), sequence: 0 }
    }

    fn send(&mut self, key: ConnectionKey, bytes: &[u8]) -> Reading {
        let reading = self.core.handle_bytes(key, &mut bytes.to_vec(), self.now);
        self.act();
        reading
    }

    fn frame(&mut self, key: ConnectionKey, opcode: Opcode, payload: &[u8]) -> Reading {
        self.send(key, &masked(opcode, payload))
    }

    fn say(&mut self, key: ConnectionKey, text: &str) -> Reading {
        self.frame(key, Opcode::Text, text.as_bytes())
    }

    /// An open WebSocket.
    fn connect(&mut self) -> ConnectionKey {
        let key = self.core.handle_accept(CLIENT, Arrival::Client, self.now);
        self.send(key, HANDSHAKE.as_bytes());
        assert!(self.hear_raw(key).starts_with(b"HTTP/1.1 101 "));
        key
    }

    fn act(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            self.effects.push(effect);
        }
    }

    /// Takes the effects so far that `pick` recognizes; the others are forgotten.
    fn take<T>(&mut self, pick: impl Fn(Effect) -> Option<T>) -> Vec<T> {
        self.act();
        self.effects.drain(..).filter_map(pick).collect()
    }

    fn fill(&mut self, key: ConnectionKey) -> Option<Vec<u8>> {
        let mut batch = Batch::default();
        let filled = self.core.fill(key, &mut batch, self.now);
        self.act();
        filled.then(|| batch.unwritten().flatten().copied().collect())
    }

    fn written(&mut self, key: ConnectionKey) {
        self.core.handle_written(key, self.now);
        self.act();
    }

    fn hear_raw(&mut self, key: ConnectionKey) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.fill(key) {
            all.extend_from_slice(&bytes);
            self.written(key);
        }
        all
    }

    /// All frames that wait, as words.
    fn hear(&mut self, key: ConnectionKey) -> Vec<String> {
        frames(&self.hear_raw(key))
    }

    fn pass(&mut self, ms: u64) {
        self.now = Now { ms: self.now.ms + ms, unix_s: self.now.unix_s + ms / 1_000 };
        self.core.handle_timer(self.now);
        self.act();
    }

    /// Commits an event nobody here submitted.
    fn publish(&mut self, event: &Event) {
        self.sequence += 1;
        let stored = vec![(self.sequence, event.clone())];
        let batch = CommitBatch { last_sequence: self.sequence, stored, ..CommitBatch::default() };
        self.core.handle_commit(&batch, 0, u64::MAX, self.now);
        self.act();
    }

    fn judge(&mut self, submission: &Submission, verdict: Verdict) {
        let batch =
            CommitBatch { verdicts: vec![(submission.ticket, verdict)], ..CommitBatch::default() };
        self.core.handle_commit(&batch, 0, u64::MAX, self.now);
        self.act();
    }

    fn verify(&mut self) -> Vec<Submission> {
        while self.core.verify(1, self.now) {}
        self.take(|effect| match effect {
            Effect::Submit(submission) => Some(submission),
            _ => None,
        })
    }

    fn was_released(&mut self, key: ConnectionKey) -> bool {
        self.take(|effect| {
            matches!(effect, Effect::Release { key: k, .. } if k == key).then_some(())
        })
        .len()
            == 1
    }

    fn scans(&mut self) -> Vec<ScanKey> {
        self.take(|effect| match effect {
            Effect::StartScan(key, _) | Effect::StartCount(key, ..) | Effect::ResumeScan(key) => {
                Some(key)
            }
            _ => None,
        })
    }

    fn chunk(&mut self, scan: ScanKey, events: &[Event], done: bool) {
        let events = events.iter().map(ExpiringBytes::from).collect();
        let chunk = Chunk { snapshot: self.sequence, events, done, ..Chunk::default() };
        assert!(self.core.handle_chunk(scan, chunk, self.now));
        self.act();
    }
}

fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    write_header(&mut wire, opcode, payload.len());
    wire[1] |= 0x80;
    wire.extend_from_slice(&[1, 2, 3, 4]);
    let at = wire.len();
    wire.extend_from_slice(payload);
    unmask(&mut wire[at..], [1, 2, 3, 4], 0);
    wire
}

fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (at, len) = match bytes[1] {
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            short => (2, usize::from(short)),
        };
        let payload = &bytes[at..at + len];
        let text = String::from_utf8_lossy(payload).into_owned();
        out.push(match bytes[0] & 15 {
            8 if payload.is_empty() => String::new(),
            8 => {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                format!("close {code} {}", String::from_utf8_lossy(&payload[2..]))
            }
            9 => "ping".into(),
            10 => format!("pong {text}"),
            _ if text.starts_with("[\"EVENT\"") => {
                let message: serde_json::Value = serde_json::from_str(&text).unwrap();
                format!("{} {}", message[1].as_str().unwrap(), message[2]["content"])
            }
            _ => text,
        });
        bytes = &bytes[at + len..];
    }
    out
}

fn event(content: &str) -> Event {
    Draft::saying(content).candidate().event().clone()
}

fn events(count: usize) -> Vec<Event> {
    (0..count).map(|n| event(&n.to_string())).collect()
}

fn id(event: &Event) -> String {
    faster_hex::hex_string(event.view().id())
}

const LIVE: &str = r#"["REQ","s",{"limit":0}]"#;
const EOSE: &str = r#"["EOSE","s"]"#;
const SLOW: &str = r#"["CLOSED","s","error: slow consumer"]"#;
