//! A shard's core without a relay around it: subscribers, commits brought to it, batches that leave and
//! are taken whole.

use std::sync::Arc;

use rheostr::nostr::Event;
use rheostr::nostr::event::{Fields, Kind};
use rheostr::relay::ports::{CommitBatch, Sequence};
use rheostr::relay::{Accept, Arrival, ConnectionKey, Effect, Limits, Now, Pages, Setup, Shard};
use rheostr::wire::batch::Batch;

const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const NOW: Now = Now { ms: 1_000, unix_s: 1_700_000_000 };

/// A core, and what a driver keeps for it.
pub struct Core {
    shard: Shard,
    batch: Batch,
}

impl Core {
    /// A core without connections; signatures are not checked.
    pub fn new() -> Self {
        let shard = Shard::new(Setup {
            origin: 0,
            shards: 1,
            verify: false,
            limits: Arc::new(Limits { ping_interval_ms: 0, ..Limits::default() }),
            pages: Arc::new(Pages { endpoint: "/".into(), ..Pages::default() }),
            deflate: Accept::Off,
            proxies: Arc::default(),
            hash_seed: 1,
        });
        Self { shard, batch: Batch::default() }
    }

    /// An open WebSocket.
    pub fn connect(&mut self) -> ConnectionKey {
        let peer = [127, 0, 0, 1].into();
        let key = self.shard.handle_accept(peer, Arrival::Client, NOW);
        self.shard.handle_bytes(key, &mut HANDSHAKE.to_vec(), NOW);
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
        self.shard.handle_bytes(key, bytes, NOW);
        self.drain();
    }

    /// Brings a commit to all subscribers, to the last byte; how many frames and bytes that were.
    pub fn publish(&mut self, commit: &CommitBatch) -> (u64, u64) {
        let before = self.shard.counters();
        assert_eq!(self.shard.handle_commit(commit, 0, u64::MAX, NOW), None);
        self.drain();
        let after = self.shard.counters();
        (after.frames_out - before.frames_out, after.bytes_out - before.bytes_out)
    }

    /// Writes what the core wants written; sockets take everything.
    fn drain(&mut self) {
        while let Some(effect) = self.shard.poll_effect() {
            let Effect::Write(key) = effect else { continue };
            while self.shard.fill(key, &mut self.batch, NOW) {
                let bytes = self.batch.left();
                self.batch.clear();
                self.shard.handle_progress(key, bytes, NOW);
                self.shard.handle_written(key, NOW);
            }
        }
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
    let length = u16::try_from(text.len()).expect("a short message");
    let header = match u8::try_from(length) {
        Ok(short @ 0..126) => vec![0x81, 0x80 | short],
        _ => [&[0x81, 0xfe], &length.to_be_bytes()[..]].concat(),
    };
    [&header, &[0; 4][..], text].concat()
}
