//! A shard's core without a relay around it: subscribers, commits brought to it, batches that leave and
//! are taken whole. Each program uses a part of it.
#![allow(dead_code)]

use std::sync::Arc;

use rheostr::nostr::Event;
use rheostr::nostr::event::{Fields, Kind};
use rheostr::relay::counters::Counters;
use rheostr::relay::ports::{Chunk, CommitBatch, Sequence, Submission, Verdict};
use rheostr::relay::{
    Accept, Arrival, ConnectionKey, Effect, Limits, Now, Pages, ScanKey, Setup, Shard,
};
use rheostr::wire::batch::Batch;

const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const NOW: Now = Now { ms: 1_000, unix_s: 1_700_000_000 };

/// A core, and what a driver keeps for it.
pub struct Core {
    shard: Shard,
    batch: Batch,
    now: Now,
    sequence: Sequence,
    /// What the core wants stored, and the stored queries it asks for.
    submitted: Vec<Submission>,
    scans: Vec<ScanKey>,
}

impl Core {
    /// A core without connections; signatures are not checked.
    pub fn new() -> Self {
        Self::verifying(false)
    }

    /// A core without connections.
    pub fn verifying(verify: bool) -> Self {
        let shard = Shard::new(Setup {
            origin: 0,
            shards: 1,
            verify,
            search: false,
            limits: Arc::new(Limits {
                ping_interval_ms: 0,
                created_at_ahead_s_max: 0,
                ..Limits::default()
            }),
            pages: Arc::new(Pages { endpoint: "/".into(), ..Pages::default() }),
            deflate: Accept::Off,
            proxies: Arc::default(),
            hash_seed: 1,
        });
        let (submitted, scans) = (Vec::new(), Vec::new());
        Self { shard, batch: Batch::default(), now: NOW, sequence: 0, submitted, scans }
    }

    /// An open WebSocket.
    pub fn connect(&mut self) -> ConnectionKey {
        let peer = [127, 0, 0, 1].into();
        let key = self.shard.handle_accept(peer, Arrival::Client, self.now);
        self.shard.handle_bytes(key, &mut HANDSHAKE.to_vec(), self.now);
        self.drain();
        key
    }

    /// A connection that hears every event of kind 1 from now on.
    pub fn subscribe(&mut self) -> ConnectionKey {
        let key = self.connect();
        self.read(key, &mut masked(br#"["REQ","sub",{"kinds":[1],"limit":0}]"#));
        key
    }

    /// Hands received bytes to a connection.
    pub fn read(&mut self, key: ConnectionKey, bytes: &mut [u8]) {
        self.shard.handle_bytes(key, bytes, self.now);
        self.drain();
    }

    /// Brings a commit to all subscribers, to the last byte; how many frames and bytes that were.
    pub fn publish(&mut self, commit: &CommitBatch) -> (u64, u64) {
        let before = self.shard.counters();
        assert_eq!(self.shard.handle_commit(commit, 0, u64::MAX, self.now), None);
        self.drain();
        let after = self.shard.counters();
        (after.frames_out - before.frames_out, after.bytes_out - before.bytes_out)
    }

    /// Writes what the core wants written; sockets take everything.
    fn drain(&mut self) {
        while let Some(effect) = self.shard.poll_effect() {
            match effect {
                Effect::Write(key) => self.write(key),
                Effect::Submit(submission) => self.submitted.push(submission),
                Effect::StartScan(key, _)
                | Effect::StartCount(key, ..)
                | Effect::ResumeScan(key) => self.scans.push(key),
                Effect::ResumeRead(key) => drop(self.shard.handle_resumed(key, self.now)),
                _ => {}
            }
        }
    }

    fn write(&mut self, key: ConnectionKey) {
        while self.shard.fill(key, &mut self.batch, self.now) {
            let bytes = self.batch.left();
            self.batch.clear();
            self.shard.handle_progress(key, bytes, self.now);
            self.shard.handle_written(key, self.now);
        }
    }

    /// Says how late it is, in microseconds since the beginning.
    pub fn pass_to(&mut self, us: u64) {
        let ms = us / 1_000;
        self.now = Now { ms: NOW.ms + ms, unix_s: NOW.unix_s + ms / 1_000 };
        self.shard.begin_turn(us);
    }

    /// Does all that is left to do: verifies, stores at once what is to be stored, finds nothing stored.
    pub fn settle(&mut self) {
        loop {
            let more = self.shard.verify(64, self.now);
            self.drain();
            let idle = self.submitted.is_empty() && self.scans.is_empty();
            for scan in std::mem::take(&mut self.scans) {
                let chunk = Chunk { snapshot: self.sequence, done: true, ..Chunk::default() };
                self.shard.handle_chunk(scan, chunk, self.now);
            }
            self.commit();
            self.drain();
            if idle && !more {
                return;
            }
        }
    }

    fn commit(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let submitted = std::mem::take(&mut self.submitted);
        let verdicts = submitted.iter().map(|s| (s.ticket, Verdict::Stored)).collect();
        let stored = (self.sequence + 1..).zip(submitted.into_iter().map(|s| s.event)).collect();
        let mut batch = CommitBatch { stored, verdicts, ..CommitBatch::default() };
        self.sequence += batch.stored.len() as u64;
        batch.last_sequence = self.sequence;
        assert_eq!(self.shard.handle_commit(&batch, 0, u64::MAX, self.now), None);
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        self.shard.counters()
    }
}

/// A commit of so many events of kind 1, each with so many bytes of JSON.
pub fn commit(events: usize, json_bytes: usize) -> CommitBatch {
    let event = |number: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        Event::build(&Fields {
            id,
            pubkey: [7; 32],
            created_at: NOW.unix_s,
            expiration: None,
            kind: Kind(1),
            protected: false,
            packed_tags: &[],
            json: &vec![b' '; json_bytes],
        })
    };
    let stored: Vec<(Sequence, Event)> = (1..).zip((0..events).map(event)).collect();
    CommitBatch { last_sequence: events as Sequence, stored, ..CommitBatch::default() }
}

/// A text frame of a client whose mask is zero.
pub fn masked(text: &[u8]) -> Vec<u8> {
    let header = match (u8::try_from(text.len()), u16::try_from(text.len())) {
        (Ok(short @ 0..126), _) => vec![0x81, 0x80 | short],
        (_, Ok(length)) => [&[0x81, 0xfe], &length.to_be_bytes()[..]].concat(),
        _ => [&[0x81, 0xff], &(text.len() as u64).to_be_bytes()[..]].concat(),
    };
    [&header, &[0; 4][..], text].concat()
}
