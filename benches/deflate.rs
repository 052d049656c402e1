//! Compression: what an event takes on the wire with and without, and the CPU a delivery costs in user
//! space when its event is deflated once for so many subscribers. The kernel's part of a send (see
//! `gather`) is not in these figures.
//!
//! `cargo bench --bench deflate`. Over real events where `RHEOSTR_CORPUS` or `../shared/corpus` has them,
//! else over made-up ones.

mod support;

use std::hint::black_box;
use std::rc::Rc;

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};
use rheostr::nostr::SubscriptionId;
use rheostr::relay::outbox::{Name, Outbox};
use rheostr::relay::ports::ExpiringBytes;
use rheostr::wire::batch::Batch;
use rheostr::wire::deflate::{Deflater, INPUT_BYTES_MAX, Inflater, WindowBits};
use support::Bench;

const EVENTS: usize = 1_000;

/// JSON texts of events, and where they are from.
fn events() -> (Vec<Bytes>, &'static str) {
    let path = std::env::var("RHEOSTR_CORPUS")
        .unwrap_or_else(|_| "../shared/corpus/real-events.jsonl".into());
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let fits = |line: &&str| line.len() < INPUT_BYTES_MAX;
            let copy = |line: &str| Bytes::copy_from_slice(line.as_bytes());
            (text.lines().filter(fits).take(EVENTS).map(copy).collect(), "real")
        }
        Err(_) => ((0..EVENTS).map(made_up).collect(), "made-up"),
    }
}

fn made_up(n: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let mut hex =
        |digits| -> String { std::iter::repeat_with(|| random.digit(16)).take(digits).collect() };
    let (id, author, signature) = (hex(64), hex(64), hex(128));
    let content = "a few words, as people write them. ".repeat(n % 20);
    let created_at = 1_700_000_000 + n;
    format!(
        r#"{{"id":"{id}","pubkey":"{author}","created_at":{created_at},"kind":1,"tags":[["t","x"]],"content":"{content}","sig":"{signature}"}}"#
    )
    .into()
}

/// One message as a client would send it.
fn client_message(json: &[u8]) -> Vec<u8> {
    let text = [b"[\"EVENT\",", json, b"]"].concat();
    let mut out = Vec::with_capacity(text.len() + 100);
    let mut stream = Compress::new(Compression::new(6), false);
    stream.compress_vec(&text, &mut out, FlushCompress::Sync).expect("a stream");
    out.truncate(out.len() - 4);
    out
}

fn sizes(events: &[Bytes]) {
    let mut table = Vec::new();
    for (from, to) in [(0, 600), (600, 2_000), (2_000, INPUT_BYTES_MAX), (0, INPUT_BYTES_MAX)] {
        let class: Vec<_> = events.iter().filter(|json| (from..to).contains(&json.len())).collect();
        let plain: usize = class.iter().map(|json| json.len() + 1).sum();
        let shares = [15, 12, 9].map(|bits| {
            let window = WindowBits::new(bits).expect("9 to 15");
            let mut deflater = Deflater::default();
            let mut deflated = |json: &Bytes| {
                deflater
                    .deflate(json, b"]", window)
                    .map_or(json.len() + 1, |blocks| blocks.len() + 5)
            };
            class.iter().map(|json| deflated(json)).sum::<usize>() as f64 / plain.max(1) as f64
        });
        table.push((from, to, class.len(), plain / class.len().max(1), shares));
    }
    println!("bytes of an event  events  mean  deflated to: 15 bits  12 bits  9 bits");
    for (from, to, count, mean, [full, middle, small]) in table {
        println!("{from:>8}–{to:<8} {count:>7} {mean:>5} {full:>21.2} {middle:>8.2} {small:>7.2}");
    }
}

/// Queues one event for `subscribers` and fills their batches.
fn deliver(
    outbox: &mut Outbox,
    batch: &mut Batch,
    subscribers: usize,
    mut push: impl FnMut(&mut Outbox),
) {
    for _ in 0..subscribers {
        push(outbox);
        batch.clear();
        black_box(outbox.fill(batch));
    }
}

fn deliveries(bench: &mut Bench, events: &[Bytes]) {
    let name: Rc<Name> = Name::new(SubscriptionId::new("sub").expect("short"));
    let (mut outbox, mut batch) = (Outbox::default(), Batch::default());
    let mut deflater = Deflater::default();
    let mut next = events.iter().cycle();
    for subscribers in [1, 10, 200] {
        let [plain, deflated] = ["plain", "deflated"]
            .map(|how| format!("a delivery, {how}, {subscribers} subscribers"));
        bench.measure(&plain, subscribers, || {
            let json = Rc::new(ExpiringBytes::new(next.next().expect("a cycle").clone(), None));
            deliver(&mut outbox, &mut batch, subscribers, |outbox| {
                outbox.push_event(&name, json.clone());
            });
        });
        bench.measure(&deflated, subscribers, || {
            let json = next.next().expect("a cycle");
            let blocks = deflater.deflate(json, b"]", WindowBits::MAX);
            let blocks = blocks.map(|blocks| Rc::new(ExpiringBytes::new(blocks, None)));
            let json = Rc::new(ExpiringBytes::new(json.clone(), None));
            deliver(&mut outbox, &mut batch, subscribers, |outbox| match &blocks {
                Some(blocks) => outbox.push_deflated(&name, blocks.clone()),
                None => outbox.push_event(&name, json.clone()),
            });
        });
        bench.compare(&deflated, &plain);
    }
}

fn inflating(bench: &mut Bench, events: &[Bytes]) {
    let messages: Vec<_> = events.iter().map(|json| client_message(json)).collect();
    let plain: Vec<_> = events.iter().map(|json| json.to_vec()).collect();
    let (mut inflater, mut at) = (Inflater::default(), 0);
    bench.measure("inflate an EVENT", messages.len(), || {
        for message in &messages {
            black_box(inflater.inflate(None, message, true, 1 << 20).expect("whole"));
        }
    });
    bench.measure("floor: check its UTF-8", plain.len(), || {
        for text in &plain {
            at += simdutf8::basic::from_utf8(black_box(text)).expect("text").len();
        }
    });
    black_box(at);
    bench.compare("inflate an EVENT", "floor: check its UTF-8");
}

fn main() {
    let (events, kind) = events();
    let bytes: usize = events.iter().map(Bytes::len).sum();
    println!("{} {kind} events of {} bytes on average", events.len(), bytes / events.len());
    sizes(&events);
    let mut bench = Bench::new(60);
    deliveries(&mut bench, &events);
    inflating(&mut bench, &events);
}
