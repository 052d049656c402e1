//! The production path: a relay with one shard, told of commits as the store's writer tells it. From
//! there on all is as in a relay: index, outboxes, batches, ring.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rheostr::driver::backend::Choice;
use rheostr::driver::places::Places;
use rheostr::driver::record::Recording;
use rheostr::driver::{self, Mesh};
use rheostr::nostr::Event;
use rheostr::nostr::event::{Fields, Kind};
use rheostr::relay::ports::{CommitBatch, Newest, Sequence};
use rheostr::relay::shard::SUBMISSIONS_MAX;
use rheostr::relay::{Accept, Limits, Pages, Tuning};
use rheostr::store::{Options, Readers, SliceBudget, Store, Terms, Writer, WriterOptions};
use tempfile::TempDir;

use crate::clients::Clients;
use crate::clock::ThreadClock;
use crate::{Contender, DRAIN_CORE, SENDER_CORE, SUBSCRIBERS, event_json, pin};

/// What a client sends first, and what it subscribes to, masked with zeros.
pub const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const REQUEST: &[u8] = br#"["REQ","sub",{"kinds":[1],"limit":0}]"#;

/// A relay that runs until this is dropped.
pub struct Relay {
    running: Option<driver::Running>,
    writer: Option<Writer>,
    readers: Option<Readers>,
    _directory: TempDir,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let (Some(running), Some(writer), Some(readers)) =
            (self.running.take(), self.writer.take(), self.readers.take())
        else {
            return;
        };
        running.shutdown();
        running.join();
        writer.close();
        readers.close();
    }
}

/// A relay on this backend, and its subscribers.
pub fn contender(name: &'static str, backend: Choice) -> (Relay, Contender) {
    let known = threads("shard-0");
    let mesh = Mesh::new(1);
    let sink = mesh.sinks().remove(0);
    // The shard pins itself to the first core this thread may run on.
    pin(SENDER_CORE);
    let sent: Arc<[AtomicU64; 2]> = Arc::default();
    let (relay, address) = start(backend, mesh, sent.clone());
    pin(DRAIN_CORE);
    let thread = *threads("shard-0").iter().find(|thread| !known.contains(thread)).expect("runs");
    let sockets = (0..SUBSCRIBERS).map(|_| subscribe(address)).collect();
    let events: Vec<Event> = (0..256).map(event).collect();
    let (sequence, next) = (Cell::<Sequence>::default(), Cell::<usize>::default());
    let go = move |frames: usize| {
        let from = sequence.get();
        let last = from + frames as u64;
        let stored = (from + 1..).zip(events.iter().cycle().skip(next.get()).take(frames).cloned());
        next.set((next.get() + frames) % events.len());
        sink.publish(&Arc::new(CommitBatch {
            last_sequence: last,
            stored: stored.collect(),
            ..CommitBatch::default()
        }));
        sequence.set(last);
    };
    let contender = Contender {
        name,
        clock: ThreadClock::of(thread),
        clients: Rc::new(RefCell::new(Clients::new(sockets))),
        go: Box::new(go),
        sent: Some(sent),
    };
    (relay, contender)
}

fn start(backend: Choice, mesh: Mesh, sent: Arc<[AtomicU64; 2]>) -> (Relay, std::net::SocketAddr) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(directory.path(), &Options::default()).expect("an empty store");
    let options = WriterOptions { queue_capacity: SUBMISSIONS_MAX, ..WriterOptions::default() };
    let writer =
        Writer::spawn(store.clone(), options, Terms::default(), Vec::new(), Box::new(|_| ()))
            .expect("a thread");
    let slice =
        SliceBudget { entries: 256, bytes: 256 << 10, events: 256, time: std::time::Duration::MAX };
    let readers = Readers::spawn(&store, 1, 16, slice).expect("a thread");
    let running = driver::start(driver::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        backend,
        verify: true,
        search: false,
        limits: Arc::new(Limits { ping_interval_ms: 0, ..Limits::default() }),
        tuning: Tuning::default(),
        pages: Arc::new(Pages { endpoint: "/".into(), ..Pages::default() }),
        deflate: Accept::Off,
        connections_max: 2 * SUBSCRIBERS,
        places: Places::new(1_000),
        proxies: Arc::default(),
        mesh,
        store,
        last_sequence: 0,
        newest: Newest::default(),
        submit: writer.handle(),
        read: readers.handle(),
        recording: Recording::default(),
        observe: vec![Box::new(move |counters, _| {
            sent[0].store(counters.frames_out, Ordering::Relaxed);
            sent[1].store(counters.batches_out, Ordering::Relaxed);
        })],
    })
    .expect("a relay");
    let address = running.address;
    let relay = Relay {
        running: Some(running),
        writer: Some(writer),
        readers: Some(readers),
        _directory: directory,
    };
    (relay, address)
}

fn subscribe(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("loopback");
    stream.write_all(HANDSHAKE).expect("an open socket");
    stream.write_all(&masked(REQUEST)).expect("an open socket");
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    while !received.ends_with(br#"["EOSE","sub"]"#) {
        let count = stream.read(&mut chunk).expect("an answer");
        assert!(count > 0, "{}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&chunk[..count]);
    }
    stream
}

/// A text frame whose mask is zero.
pub fn masked(text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("a short message");
    assert!(length < 126);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text].concat()
}

/// An event that every subscriber wants.
pub fn event(number: usize) -> Event {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    Event::build(&Fields {
        id,
        pubkey: [7; 32],
        created_at: 1_700_000_000,
        expiration: None,
        kind: Kind(1),
        protected: false,
        packed_tags: &[],
        json: &event_json(),
    })
}

/// This process's threads of that name.
fn threads(name: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted");
    let named = tasks.flatten().filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    named.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}
