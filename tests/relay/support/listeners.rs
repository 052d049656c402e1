//! Many subscribers on few threads: each gets every event once, in the order they were published.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use super::raw::{Frame, HANDSHAKE, opcode};
use super::{Answer, Author, Client, Draft, Filter, PATIENCE, client, now};

/// Events of one topic, numbered in their content; each holds so many bytes more than its frame.
pub struct Topic {
    name: &'static str,
    messages: Vec<String>,
}

impl Topic {
    /// Signs `count` events with `filler` bytes of content before the number.
    pub fn sign(name: &'static str, count: usize, filler: usize) -> Self {
        let (author, signed, filler) = (Author::new(1), now(), "x".repeat(filler));
        let event = |n: usize| {
            let draft = Draft::new(1, signed).tag(["t", name]).content(format!("{filler}{n:08}"));
            draft.sign(&author).message()
        };
        Self { name, messages: (0..count).map(event).collect() }
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// A REQ for it.
    pub fn req(&self, subscription: &str) -> String {
        client::req(subscription, &[Filter::default().tag('t', [self.name])])
    }

    /// Publishes all of it, a hundred at a time.
    pub fn publish(&self, publisher: &mut Client) {
        for (n, chunk) in self.messages.chunks(100).enumerate() {
            publisher.send_all(chunk.iter().cloned());
            for _ in chunk {
                assert!(publisher.wait("OK", taken), "chunk {n}");
            }
        }
    }

    /// Publishes one of it.
    pub fn publish_one(&self, publisher: &mut Client, n: usize) {
        publisher.send_all([self.messages[n].clone()]);
        assert!(publisher.wait("OK", taken));
    }

    /// The number in `["EVENT","…",{…"content":"…00000000","sig":"128 characters"}]`.
    pub fn number(frame: &[u8]) -> usize {
        let at = frame.len() - 3 - 128 - 9;
        let number = std::str::from_utf8(&frame[at - 8..at]).expect("digits");
        number.parse().expect("digits")
    }
}

fn taken(answer: &Answer) -> Option<bool> {
    match answer {
        Answer::Ok { accepted, .. } => Some(*accepted),
        _ => None,
    }
}

/// A runtime for one thread.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// How long all of them may take together.
const PATIENCE_ALL: std::time::Duration = PATIENCE.saturating_mul(20);

/// Reads with this many subscribers on one thread; how many events they got.
pub fn read_all(address: SocketAddr, subscribers: usize, topic: &Topic, ready: &Barrier) -> usize {
    let runtime = runtime();
    let all = (0..subscribers).map(|_| async {
        let one = subscribe(address, topic, ready);
        tokio::time::timeout(PATIENCE_ALL, one).await.expect("in time")
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

async fn subscribe(address: SocketAddr, topic: &Topic, ready: &Barrier) -> usize {
    let mut stream = TcpStream::connect(address).await.expect("the relay listens");
    stream.write_all(HANDSHAKE.as_bytes()).await.expect("an open connection");
    stream
        .write_all(&Frame::new(opcode::TEXT, topic.req("s")).bytes())
        .await
        .expect("an open connection");
    let mut frames = Frames { stream, buffer: Vec::new(), at: 0 };
    frames.skip_head().await;
    assert!(frames.next().await.starts_with(b"[\"EOSE\",\"s\""));
    ready.wait().await;
    for expected in 0..topic.len() {
        let frame = frames.next().await;
        assert!(frame.starts_with(b"[\"EVENT\",\"s\",{"), "{}", String::from_utf8_lossy(frame));
        assert_eq!(Topic::number(frame), expected);
    }
    let request = client::req("nothing else", &[Filter::nothing()]);
    let bytes = Frame::new(opcode::TEXT, request).bytes();
    frames.stream.write_all(&bytes).await.expect("an open connection");
    assert!(frames.next().await.starts_with(b"[\"EOSE\",\"nothing else\""));
    topic.len()
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
