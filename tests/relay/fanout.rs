//! One publisher, 200 subscribers, 2,000 events, two shards: 400,000 deliveries, none twice, each
//! subscription's in the order they were published.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::support::raw::{Frame, HANDSHAKE, opcode};
use crate::support::{Author, Draft, Filter, Launch, PATIENCE, alone, client, now};

const SUBSCRIBERS: usize = 200;
const EVENTS: usize = 2_000;
/// Threads that read; each serves its share of the subscribers.
const READERS: usize = 2;

#[test]
fn every_delivery_once_and_in_order() {
    let _alone = alone();
    let server = Launch::default()
        .shards(2)
        .set("limits.live_queue_age_ms_max", 60_000)
        .set("limits.write_stall_ms_max", 60_000)
        .start();
    let author = Author::new(1);
    let started = now();
    let event = |n: usize| {
        let draft = Draft::new(1, started).tag(["t", "fanout"]).content(format!("{n:08}"));
        draft.sign(&author).message()
    };
    let messages: Vec<_> = (0..EVENTS).map(event).collect();
    let ready = Barrier::new(SUBSCRIBERS + 1);
    let (address, ready) = (server.address(), &ready);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| scope.spawn(move || read_all(address, SUBSCRIBERS / READERS, ready)))
            .collect();
        let mut publisher = server.connect();
        runtime().block_on(ready.wait());
        let from = Instant::now();
        for (n, chunk) in messages.chunks(100).enumerate() {
            publisher.send_all(chunk.iter().cloned());
            for _ in chunk {
                assert!(publisher.wait("OK", taken), "chunk {n}");
            }
        }
        let published = from.elapsed();
        let delivered: usize =
            readers.into_iter().map(|reader| reader.join().expect("no panic")).sum();
        assert_eq!(delivered, SUBSCRIBERS * EVENTS);
        let elapsed = from.elapsed();
        eprintln!("{delivered} deliveries in {elapsed:?}, published in {published:?}");
    });
    assert!(server.stop().success());
}

fn taken(answer: &crate::support::Answer) -> Option<bool> {
    match answer {
        crate::support::Answer::Ok { accepted, .. } => Some(*accepted),
        _ => None,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Reads with this many subscribers on one thread; how many events they got.
fn read_all(address: SocketAddr, subscribers: usize, ready: &Barrier) -> usize {
    let runtime = runtime();
    let all = (0..subscribers).map(|_| async {
        tokio::time::timeout(4 * PATIENCE, subscribe(address, ready)).await.expect("in time")
    });
    runtime.block_on(join_all(all)).into_iter().sum()
}

/// Polls all futures on this task until the last is done.
async fn join_all<F: Future<Output = usize>>(futures: impl Iterator<Item = F>) -> Vec<usize> {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

async fn subscribe(address: SocketAddr, ready: &Barrier) -> usize {
    let mut stream = TcpStream::connect(address).await.expect("the relay listens");
    stream.write_all(HANDSHAKE.as_bytes()).await.expect("an open connection");
    let request = client::req("s", &[Filter::default().tag('t', ["fanout"])]);
    stream.write_all(&Frame::new(opcode::TEXT, request).bytes()).await.expect("an open connection");
    let mut frames = Frames { stream, buffer: Vec::new(), at: 0 };
    frames.skip_head().await;
    assert!(frames.next().await.starts_with(b"[\"EOSE\",\"s\""));
    ready.wait().await;
    for expected in 0..EVENTS {
        let frame = frames.next().await;
        assert!(frame.starts_with(b"[\"EVENT\",\"s\",{"), "{}", String::from_utf8_lossy(frame));
        // …"content":"00000000","sig":"128 characters"}]
        let at = frame.len() - 3 - 128 - 9;
        let number = std::str::from_utf8(&frame[at - 8..at]).expect("digits");
        assert_eq!(number.parse(), Ok(expected));
    }
    let request = client::req("nothing else", &[Filter::nothing()]);
    let bytes = Frame::new(opcode::TEXT, request).bytes();
    frames.stream.write_all(&bytes).await.expect("an open connection");
    assert!(frames.next().await.starts_with(b"[\"EOSE\",\"nothing else\""));
    EVENTS
}

/// Text frames off a stream, without a copy of each.
struct Frames {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
}

impl Frames {
    async fn skip_head(&mut self) {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                self.at = end + 4;
                return;
            }
            self.fill().await;
        }
    }

    async fn next(&mut self) -> &[u8] {
        loop {
            let rest = &self.buffer[self.at..];
            let (head, len) = match rest {
                [0x81, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                [0x81, short @ ..=125, ..] => (2, usize::from(*short)),
                [0x81, 126, ..] | [0x81] | [] => (2, usize::MAX >> 1),
                other => panic!("no text frame: {:?}", &other[..2.min(other.len())]),
            };
            if rest.len() >= head + len {
                let from = self.at + head;
                self.at = from + len;
                return &self.buffer[from..from + len];
            }
            self.fill().await;
        }
    }

    async fn fill(&mut self) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.reserve(32 << 10);
        let n = self.stream.read_buf(&mut self.buffer).await.expect("an open connection");
        assert_ne!(n, 0, "the relay closed");
    }
}
