//! Pings overtake what is queued.

use super::{KERNEL_BYTES_MAX, subscribe};
use crate::support::counts::{queues, queues_of};
use crate::support::listeners::Topic;
use crate::support::raw::{Frame, Raw, opcode};
use crate::support::{Launch, Server, alone, wait_until};

on_every_backend!(a_pong_leaves_with_the_next_send_however_much_is_queued);
on_every_backend!(a_ping_leaves_with_the_next_send_however_much_is_queued);

const CONTENT_BYTES: usize = 20_000;
const EVENTS: usize = 600;
/// What one send may carry: a batch takes no further frame beyond this.
const SEND_BYTES_MAX: usize = (128 << 10) + CONTENT_BYTES + 1_000;
const RECEIVE_BYTES: usize = 16 << 10;

/// A relay with one slow reader, whose stream lane is full and behind which events wait.
struct Flood {
    server: Server,
    topic: Topic,
    reader: Raw,
    /// Payload bytes read.
    bytes: usize,
    /// Events read.
    events: usize,
}

impl Flood {
    fn start(backend: &str, ping_interval_ms: u32) -> Self {
        let server = Launch::default()
            .shards(1)
            .backend(backend)
            .counted()
            .set("limits.ping_interval_ms", ping_interval_ms)
            .set("limits.live_queue_age_ms_max", 60_000)
            .set("limits.write_stall_ms_max", 60_000)
            .start();
        let topic = Topic::sign("flood", EVENTS, CONTENT_BYTES);
        let mut reader = Raw::narrow(server.address(), 2, RECEIVE_BYTES);
        reader.upgrade();
        subscribe(&mut reader, &topic.req("s"));
        topic.publish(&mut server.connect());
        let flood = Self { server, topic, reader, bytes: 0, events: 0 };
        wait_until("events to wait behind the lane", || flood.is_full());
        flood
    }

    /// An event waits behind the stream lane, so that is full.
    fn is_full(&self) -> bool {
        self.server.counts().waiting() > 0
    }

    /// Sends a frame, and returns once the relay has it.
    fn tell(&mut self, opcode: u8, payload: &[u8]) {
        let before = self.server.counts().get("received_bytes");
        let frame = Frame::new(opcode, payload).bytes();
        self.reader.send(&frame);
        let after = before + frame.len() as u64;
        wait_until("the frame to arrive", || self.server.counts().get("received_bytes") >= after);
    }

    /// Bytes that have left the relay and were not read: no frame can overtake them.
    fn on_the_way(&self) -> usize {
        let sent: usize = queues(self.server.address(), false).iter().map(|q| q.sent).sum();
        let received = queues_of(&self.reader.stream).received;
        assert!(sent <= KERNEL_BYTES_MAX, "{sent} bytes in the kernel");
        sent + received + self.reader.buffered()
    }

    /// Reads one frame; its opcode.
    fn read(&mut self) -> u8 {
        let (opcode, payload) = self.reader.frame().expect("an open connection");
        self.bytes += payload.len();
        if opcode == opcode::TEXT {
            assert_eq!(Topic::number(&payload), self.events);
            self.events += 1;
        }
        opcode
    }
}

/// Five times, the relay gets a ping while the lane is full; the pong comes behind no more than what had
/// left already and the one send under way.
fn a_pong_leaves_with_the_next_send_however_much_is_queued(backend: &str) {
    let _alone = alone();
    let mut flood = Flood::start(backend, 0);
    for n in 0..5 {
        assert!(flood.is_full(), "ping {n}");
        flood.tell(opcode::PING, b"now");
        let (from, overtaken_not_max) = (flood.bytes, flood.on_the_way() + SEND_BYTES_MAX);
        while flood.read() != opcode::PONG {}
        let behind = flood.bytes - from;
        eprintln!("{backend}: a pong behind {behind} bytes, at most {overtaken_not_max}");
        assert!(behind <= overtaken_not_max, "pong {n} came behind {behind} bytes");
        // Slowly on.
        for _ in 0..10 {
            flood.read();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    while flood.events < flood.topic.len() {
        flood.read();
    }
}

/// The relay's own ping falls due while the lane is full.
fn a_ping_leaves_with_the_next_send_however_much_is_queued(backend: &str) {
    const INTERVAL_MS: u32 = 500;
    let _alone = alone();
    let mut flood = Flood::start(backend, INTERVAL_MS);
    // An interval begins now.
    flood.tell(opcode::PONG, b"");
    std::thread::sleep(3 * std::time::Duration::from_millis(INTERVAL_MS.into()));
    assert!(flood.is_full());
    let overtaken_not_max = flood.on_the_way() + SEND_BYTES_MAX;
    let mut behind = Vec::new();
    while flood.events < flood.topic.len() {
        if flood.read() == opcode::PING {
            behind.push(flood.bytes);
        }
    }
    // Others may have fallen due while the lane filled; none does later, for this one is not answered.
    eprintln!("{backend}: pings behind {behind:?} bytes, at most {overtaken_not_max}");
    let last = *behind.last().expect("a ping");
    assert!(last <= overtaken_not_max, "a ping came behind {last} bytes");
}
