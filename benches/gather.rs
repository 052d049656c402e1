//! Many frames → one write: what filling a batch costs, what writing it costs, and from which size
//! on a payload is better chained than copied. CPU time of the sending thread, loopback TCP.
//!
//! `cargo bench --bench gather [-- sweep]`. On loopback the sender's CPU pays for the receiving side of TCP too.

#[path = "support/ring.rs"]
mod ring;
mod support;

use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::thread;

use bytes::Bytes;
use rheostr::nostr::SubscriptionId;
use rheostr::relay::outbox::{Name, Outbox, Payload};
use rheostr::relay::ports::ExpiringBytes;
use rheostr::wire::batch::Batch;
use rheostr::wire::frame::{Opcode, write_header};
use ring::{Message, Ring};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use support::Bench;

/// A frame of 425 bytes: its header, `["EVENT","sub",`, the event and `]`.
const EVENT_BYTES: usize = 405;
const PREFIX: &[u8] = br#"["EVENT","sub",""#;

/// A connection whose other end reads all it gets.
fn connection() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
    let (mut peer, _) = listener.accept().expect("a connection");
    thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while matches!(peer.read(&mut buffer), Ok(count) if count > 0) {}
    });
    stream.set_nodelay(true).expect("an open socket");
    stream
}

/// Sends all of `slices`; the socket blocks, so this is one call but for signals.
fn send_all(stream: &TcpStream, slices: &mut [IoSlice<'_>]) {
    let mut rest = slices;
    while !rest.is_empty() {
        let count =
            sendmsg(stream.as_fd(), rest, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
                .expect("the peer reads");
        IoSlice::advance_slices(&mut rest, count);
    }
}

fn send_batch(stream: &TcpStream, batch: &Batch) {
    let mut slices: Vec<_> = batch.unwritten().map(IoSlice::new).collect();
    send_all(stream, &mut slices);
}

fn fill(outbox: &mut Outbox, name: &Rc<Name>, event: &Payload, frames: usize, batch: &mut Batch) {
    for _ in 0..frames {
        outbox.push_event(name, event.clone());
    }
    batch.clear();
    black_box(outbox.fill(batch));
    assert_eq!(batch.frames() as usize, frames);
}

fn filling(bench: &mut Bench) {
    let name = Name::new(SubscriptionId::new("sub").expect("short"));
    let event = Rc::new(ExpiringBytes::new(vec![b'x'; EVENT_BYTES].into(), None));
    let (mut outbox, mut batch) = (Outbox::default(), Batch::default());
    for frames in [1, 16, 64] {
        let (measured, floor) = (
            format!("outbox and fill, {frames} frames"),
            format!("floor: copy of {frames} frames"),
        );
        bench.measure(&measured, frames, || fill(&mut outbox, &name, &event, frames, &mut batch));
        let mut copy = Vec::new();
        bench.measure(&floor, frames, || {
            copy.clear();
            (0..frames).for_each(|_| copy.extend_from_slice(black_box(&**event)));
            black_box(&copy);
        });
        bench.compare(&measured, &floor);
    }
}

fn sending(bench: &mut Bench) {
    let name = Name::new(SubscriptionId::new("sub").expect("short"));
    let event = Rc::new(ExpiringBytes::new(vec![b'x'; EVENT_BYTES].into(), None));
    let mut stream = connection();
    for frames in [1, 16, 64] {
        let (mut outbox, mut batch) = (Outbox::default(), Batch::default());
        let names = ["fill and sendmsg", "a send a frame", "floor: one send, prebuilt"]
            .map(|what| format!("{what}, {frames} frames"));
        bench.measure(&names[0], frames, || {
            fill(&mut outbox, &name, &event, frames, &mut batch);
            send_batch(&stream, &batch);
        });
        let built: Vec<u8> = batch.unwritten().flatten().copied().collect();
        let one = built.len() / frames;
        bench.measure(&names[1], frames, || {
            built.chunks(one).for_each(|frame| stream.write_all(frame).expect("the peer reads"));
        });
        bench.measure(&names[2], frames, || stream.write_all(&built).expect("the peer reads"));
        bench.compare(&names[0], &names[2]);
        bench.compare(&names[1], &names[2]);
    }
}

/// One batch of `frames` payloads, both ways, by `sendmsg(2)` and on the ring; as `wire::batch` builds
/// them, but for the threshold. The four ways of a payload size are measured in turn.
fn copying_and_chaining() {
    let stream = connection();
    let mut ring = Ring::new();
    println!(
        "payload  frames | sendmsg: copied ns  chained ns  ratio | ring: copied ns  chained ns  ratio"
    );
    for payload in [256, 512, 768, 1_024, 1_536, 2_048, 3_072, 4_096, 8_192, 16_384, 65_536] {
        let frames = (SWEEP_BYTES / payload).clamp(1, 16);
        // Events lie apart in memory, and more of them than the nearest cache holds.
        let events: Vec<_> = (0..4 * frames).map(|_| Bytes::from(vec![b'x'; payload])).collect();
        let mut taken = [const { Vec::new() }; 4];
        for turn in 0..SWEEP_TURNS {
            for (way, taken) in taken.iter_mut().enumerate() {
                let start = support::cpu_ns();
                for pass in 0..SWEEP_PASSES {
                    let events = &events[(turn + pass) % 4 * frames..][..frames];
                    let mut send = |slices: &mut [IoSlice<'_>]| {
                        if way < 2 {
                            send_all(&stream, slices);
                        } else {
                            ring.send(&mut [Message { socket: stream.as_fd(), slices }]);
                        }
                    };
                    if way % 2 == 0 {
                        copied(events, &mut send);
                    } else {
                        chained(events, &mut send);
                    }
                }
                taken.push((support::cpu_ns() - start) as f64 / (SWEEP_PASSES * frames) as f64);
            }
        }
        let ratio = |chained: usize| {
            let ratios = taken[chained].iter().zip(&taken[chained - 1]).map(|(a, b)| a / b);
            median(ratios.collect())
        };
        let ratios = [ratio(1), ratio(3)];
        let [a, b, c, d] = taken.map(median);
        let [on_sendmsg, on_ring] = ratios;
        println!(
            "{payload:>7}  {frames:>6} | {a:>18.0} {b:>11.0} {on_sendmsg:>6.2} | {c:>15.0} {d:>11.0} {on_ring:>6.2}"
        );
    }
}

/// Bytes of one batch of the sweep, about; its turns, and the batches of one sample.
const SWEEP_BYTES: usize = 64 << 10;
const SWEEP_TURNS: usize = 41;
const SWEEP_PASSES: usize = 40;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn copied(events: &[Bytes], send: &mut impl FnMut(&mut [IoSlice<'_>])) {
    let mut scratch = Vec::with_capacity(2 * SWEEP_BYTES);
    for event in events {
        write_header(&mut scratch, Opcode::Text, PREFIX.len() + event.len() + 1);
        scratch.extend_from_slice(PREFIX);
        scratch.extend_from_slice(event);
        scratch.push(b']');
    }
    send(&mut [IoSlice::new(&scratch)]);
}

fn chained(events: &[Bytes], send: &mut impl FnMut(&mut [IoSlice<'_>])) {
    let mut scratch = Vec::with_capacity(2 * SWEEP_BYTES);
    let mut ends = Vec::with_capacity(events.len());
    for event in events {
        // As in a batch: one piece holds the `]` of a frame and the header of the next.
        if !scratch.is_empty() {
            scratch.push(b']');
        }
        write_header(&mut scratch, Opcode::Text, PREFIX.len() + event.len() + 1);
        scratch.extend_from_slice(PREFIX);
        ends.push(scratch.len());
    }
    let shared = events.to_vec();
    let mut slices = Vec::with_capacity(2 * events.len() + 1);
    let mut from = 0;
    for (to, event) in ends.iter().zip(&shared) {
        slices.extend([IoSlice::new(&scratch[from..*to]), IoSlice::new(event)]);
        from = *to;
    }
    slices.push(IoSlice::new(b"]"));
    send(&mut slices);
}

fn main() {
    if !std::env::args().any(|argument| argument == "sweep") {
        let mut bench = Bench::new(40);
        filling(&mut bench);
        sending(&mut bench);
    }
    copying_and_chaining();
}
