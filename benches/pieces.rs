//! Pieces of the way that `event_path` and `gather` leave out, in CPU time of one thread, each beside its
//! floor or a rival: `cargo bench --bench pieces`.

mod support;

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::sync::Arc;

use heed::types::Bytes;
use heed::{Database, EnvOpenOptions};
use rheostr::driver::bus::{self, FromThread};
use rheostr::nostr::event::{Fields, Kind};
use rheostr::nostr::{Event, Filter, MessageReader};
use rheostr::relay::ports::{CommitBatch, Query, Submission, Ticket};
use rheostr::store::{Options, SliceBudget, Store, Terms};
use rheostr::wire::deflate::Inflater;
use rheostr::wire::frame::unmask;
use rheostr::wire::websocket::{Decoder, Item};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::Bench;
use tungstenite::protocol::{Role, WebSocket};

const MASK: [u8; 4] = [1, 2, 3, 4];
const FRAMES: usize = 64;
const NOW_S: u64 = 1_700_000_000;

/// One masked text frame of 426 bytes of payload.
fn frame() -> Vec<u8> {
    let mut frame = vec![0x81, 0xfe, 1, 170];
    frame.extend_from_slice(&MASK);
    let mut payload = vec![b'x'; 426];
    unmask(&mut payload, MASK, 0);
    [frame, payload].concat()
}

/// A peer that says the same over and over.
struct Repeat {
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Repeat {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..][..count]);
        self.at = (self.at + count) % self.bytes.len();
        Ok(count)
    }
}

impl Write for Repeat {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decoding(bench: &mut Bench) {
    let received = frame().repeat(FRAMES);
    let (mut decoder, mut inflater) = (Decoder::new(1 << 20), Inflater::default());
    let mut scratch = Vec::new();
    bench.measure("decode a frame of 426 bytes", FRAMES, || {
        scratch.clear();
        scratch.extend_from_slice(&received);
        let mut input = &mut scratch[..];
        let mut texts = 0;
        while let Ok(Some(item)) = decoder.next(&mut input, &mut inflater) {
            texts += usize::from(matches!(item, Item::Text(_)));
        }
        assert_eq!(texts, FRAMES);
    });
    let mut copy = Vec::new();
    bench.measure("floor: copy, unmask, check UTF-8", FRAMES, || {
        copy.clear();
        copy.extend_from_slice(&received);
        for frame in copy.chunks_exact_mut(received.len() / FRAMES) {
            unmask(&mut frame[8..], MASK, 0);
            assert!(simdutf8::basic::from_utf8(&frame[8..]).is_ok());
        }
    });
    let mut rival =
        WebSocket::from_raw_socket(Repeat { bytes: received.clone(), at: 0 }, Role::Server, None);
    bench.measure("rival: tungstenite", FRAMES, || {
        for _ in 0..FRAMES {
            assert!(black_box(rival.read()).expect("a message").is_text());
        }
    });
    bench.compare("decode a frame of 426 bytes", "floor: copy, unmask, check UTF-8");
    bench.compare("decode a frame of 426 bytes", "rival: tungstenite");
}

fn unmasking(bench: &mut Bench) {
    for len in [426, 16_384] {
        let names = ["unmask", "rival: byte by byte", "floor: copy"]
            .map(|what| format!("{what}, {len} bytes"));
        let mut payload = vec![b'x'; len];
        bench.measure(&names[0], 1, || unmask(black_box(&mut payload), MASK, 1));
        bench.measure(&names[1], 1, || {
            let keys = MASK.iter().cycle().skip(1);
            black_box(&mut payload).iter_mut().zip(keys).for_each(|(byte, key)| *byte ^= key);
        });
        let mut copy = vec![0; len];
        bench.measure(&names[2], 1, || copy.copy_from_slice(black_box(&payload)));
        bench.compare(&names[0], &names[1]);
        bench.compare(&names[0], &names[2]);
    }
}

/// The id of an event whose text has escapes and keys in another order than they are hashed in.
fn canonical_id(bench: &mut Bench) {
    let content = "a \"quoted\" line\nand é, 多 times: ".repeat(8);
    let event = json!({
        "sig": "00".repeat(64), "content": content, "kind": 1, "tags": [["t", "a\\b"], ["e", "x"]],
        "pubkey": "11".repeat(32), "created_at": NOW_S, "id": "",
    });
    let hashed = |event: &Value| {
        let list = [
            &event["pubkey"],
            &event["created_at"],
            &event["kind"],
            &event["tags"],
            &event["content"],
        ];
        let text = json!([0, list[0], list[1], list[2], list[3], list[4]]).to_string();
        (faster_hex::hex_string(&Sha256::digest(&text)), text)
    };
    let (id, text) = hashed(&event);
    let mut event = event;
    event["id"] = id.clone().into();
    let json = event.to_string();
    let (mut reader, mut scratch) = (MessageReader::default(), Vec::new());
    bench.measure("event with escapes: its id", 1, || {
        scratch.clear();
        scratch.extend_from_slice(json.as_bytes());
        assert!(black_box(reader.read_event(&mut scratch)).is_ok());
    });
    bench.measure("rival: serde_json and sha2", 1, || {
        let event: Value = serde_json::from_str(black_box(&json)).expect("JSON");
        assert_eq!(hashed(&event).0, id);
    });
    bench.measure("floor: sha2 of what is hashed", 1, || {
        black_box(Sha256::digest(black_box(&text)));
    });
    bench.compare("event with escapes: its id", "rival: serde_json and sha2");
    bench.compare("event with escapes: its id", "floor: sha2 of what is hashed");
}

/// A commit to a shard that is awake, and taken.
fn bus(bench: &mut Bench) {
    let (address, mailbox) = bus::open(1);
    let commit = Arc::new(CommitBatch::default());
    bench.measure("bus: send and take a commit", FRAMES, || {
        for _ in 0..FRAMES {
            assert!(address.send(FromThread::Commit(commit.clone())).is_ok());
        }
        while let Some(message) = mailbox.from_threads() {
            black_box(message);
        }
    });
    let (sender, receiver) = flume::bounded(256);
    bench.measure("floor: bare flume", FRAMES, || {
        for _ in 0..FRAMES {
            assert!(sender.send(commit.clone()).is_ok());
        }
        while let Ok(message) = receiver.try_recv() {
            black_box(message);
        }
    });
    bench.compare("bus: send and take a commit", "floor: bare flume");
}

/// The event of this number, of one of a hundred authors.
fn event(number: u64) -> Event {
    let key_of = |number: u64| -> [u8; 32] { Sha256::digest(number.to_le_bytes()).into() };
    let mut packed = Vec::new();
    rheostr::nostr::tag::pack(&mut packed, b'p', &faster_hex::hex_string(&key_of(number % 977)));
    Event::build(&Fields {
        id: key_of(number),
        pubkey: key_of(number % 100),
        created_at: NOW_S + number / 10,
        expiration: None,
        kind: Kind(1),
        protected: false,
        packed_tags: &packed,
        json: &[b' '; 426],
    })
}

/// Events of one commit.
const COMMIT: usize = 100;

fn storing(bench: &mut Bench) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path(), &Options::default()).expect("an empty store");
    let terms = Terms::default();
    let mut next = 0;
    let mut commit = |store: &Store| {
        let ticket = Ticket { origin: 0, token: 0 };
        let batch: Vec<_> =
            (next..).take(COMMIT).map(|n| Submission { event: event(n), ticket }).collect();
        next += COMMIT as u64;
        let committed = store.apply(&batch, NOW_S, &terms).expect("it is stored");
        assert_eq!(committed.stored.len(), COMMIT);
    };
    bench.measure("store an event, 100 a commit", COMMIT, || commit(&store));

    let bare_directory = tempfile::tempdir().expect("a directory");
    let mut options = EnvOpenOptions::new();
    options.map_size(64 << 30).max_dbs(1);
    #[allow(unsafe_code)]
    // SAFETY: the directory is new, and nobody else opens it.
    let bare = unsafe { options.open(bare_directory.path()) }.expect("an environment");
    let mut transaction = bare.write_txn().expect("a transaction");
    let table: Database<Bytes, Bytes> =
        bare.create_database(&mut transaction, Some("event")).expect("a table");
    transaction.commit().expect("it is made");
    let mut next_bare = 0;
    bench.measure("floor: bare LMDB, records appended", COMMIT, || {
        let mut transaction = bare.write_txn().expect("a transaction");
        for number in (next_bare..).take(COMMIT) {
            let event = event(number);
            table.put(&mut transaction, &number.to_be_bytes(), event.record()).expect("room");
        }
        next_bare += COMMIT as u64;
        transaction.commit().expect("it is stored");
    });
    bench.compare("store an event, 100 a commit", "floor: bare LMDB, records appended");

    (0..100).for_each(|_| commit(&store));
    let budget =
        SliceBudget { entries: 256, bytes: 256 << 10, events: 256, time: std::time::Duration::MAX };
    let author: [u8; 32] = Sha256::digest(7_u64.to_le_bytes()).into();
    let filter = Filter { authors: Some(vec![author]), limit: Some(100), ..Filter::default() };
    let query = Query { filters: vec![filter], limit_max: 500 };
    bench.measure("scan an event of an author, limit 100", 100, || {
        let mut scan = store.scan(query.clone()).expect("a query");
        let mut events = 0;
        while !scan.is_done() {
            events += black_box(scan.slice(&store, &budget, NOW_S).expect("a slice")).events.len();
        }
        assert_eq!(events, 100);
    });
    bench.measure("floor: bare LMDB, records copied in turn", 100, || {
        let transaction = bare.read_txn().expect("a transaction");
        for record in table.iter(&transaction).expect("a cursor").take(100) {
            black_box(record.expect("one").1.to_vec());
        }
    });
    bench.compare(
        "scan an event of an author, limit 100",
        "floor: bare LMDB, records copied in turn",
    );
}

fn main() {
    let mut bench = Bench::new(40);
    decoding(&mut bench);
    unmasking(&mut bench);
    canonical_id(&mut bench);
    bus(&mut bench);
    storing(&mut bench);
}
