//! Compression: who gets which bytes, how often they are made, and what a turn may cost.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::*;
use crate::wire::frame::DEFLATED_BIT;

/// A connection that offers compression; with the relay's answer.
fn offer(relay: &mut Relay, parameters: &str) -> (ConnectionKey, String) {
    let key = relay.core.handle_accept(CLIENT, Arrival::Client, relay.now);
    let head = HANDSHAKE.strip_suffix("\r\n").unwrap();
    let field = format!("Sec-WebSocket-Extensions: permessage-deflate{parameters}");
    relay.send(key, format!("{head}{field}\r\n\r\n").as_bytes());
    (key, String::from_utf8(relay.hear_raw(key)).unwrap())
}

fn relay(deflate: Accept) -> Relay {
    let mut relay = Relay::new(Limits::default());
    relay.core.setup.deflate = deflate;
    relay
}

fn connect(relay: &mut Relay, parameters: &str) -> ConnectionKey {
    let (key, response) = offer(relay, parameters);
    assert!(response.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; "), "{response}");
    key
}

fn compress(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 100);
    let mut stream = Compress::new(Compression::new(6), false);
    stream.compress_vec(payload, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(Opcode::Text, &compress(payload));
    frame[0] |= DEFLATED_BIT;
    frame
}

/// The frames as a client reads them, those that came compressed in brackets.
fn read(mut bytes: &[u8], bits: u8) -> Vec<String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (at, len) = match bytes[1] {
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            short => (2, usize::from(short)),
        };
        let (frame, rest) = bytes.split_at(at + len);
        bytes = rest;
        if frame[0] & DEFLATED_BIT == 0 {
            out.extend(frames(frame));
            continue;
        }
        let mut stream = Decompress::new_with_window_bits(false, bits);
        let mut text = Vec::with_capacity(1 << 20);
        let whole = [&frame[at..], &[0, 0, 0xff, 0xff]].concat();
        stream.decompress_vec(&whole, &mut text, FlushDecompress::Sync).unwrap();
        let mut plain = Vec::new();
        write_header(&mut plain, Opcode::Text, text.len());
        plain.extend(text);
        out.extend(frames(&plain).into_iter().map(|words| format!("[{words}]")));
    }
    out
}

/// An event that is worth deflating.
fn long_event(n: usize, len: usize) -> Event {
    event(&format!("{n} {}", "lorem ipsum ".repeat(len / 12)))
}

fn shortened(words: &[String]) -> Vec<String> {
    words.iter().map(|words| words.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn an_offer_is_answered_as_configured() {
    let field = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover";
    let cases = [
        (Accept::Off, "", None),
        (Accept::On, "", Some("; client_no_context_takeover")),
        (
            Accept::On,
            "; server_max_window_bits=10; client_max_window_bits",
            Some("; client_no_context_takeover; server_max_window_bits=10"),
        ),
        (Accept::On, "; server_max_window_bits=8", None),
        (Accept::ClientContext, "", Some("")),
    ];
    for (accept, parameters, answer) in cases {
        let (_, response) = offer(&mut relay(accept), parameters);
        assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\n"));
        let expected = answer.map(|answer| format!("\r\n{field}{answer}\r\n\r\n"));
        match expected {
            Some(expected) => assert!(response.ends_with(&expected), "{response}"),
            None => assert!(!response.contains("Extensions"), "{response}"),
        }
    }
    let (_, response) = offer(&mut relay(Accept::Off), "; =");
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[test]
fn compressed_messages_are_protocol_errors_where_none_were_agreed_on() {
    let mut relay = relay(Accept::On);
    let key = relay.connect();
    relay.send(key, &deflated(LIVE.as_bytes()));
    assert_eq!(relay.hear(key), ["close 1002 broken frame"]);
}

#[test]
fn an_event_is_deflated_once_a_window_size_and_means_the_same_to_all() {
    let mut relay = relay(Accept::On);
    let plain = relay.connect();
    let small = connect(&mut relay, "; server_max_window_bits=9");
    let large: Vec<_> = (0..3).map(|_| connect(&mut relay, "")).collect();
    relay.say(plain, LIVE);
    for key in large.iter().chain([&small]) {
        relay.send(*key, &deflated(LIVE.as_bytes()));
    }
    for key in large.iter().chain([&plain, &small]) {
        assert_eq!(relay.hear(*key), [EOSE], "short answers are not compressed");
    }
    let event = long_event(1, 600);
    relay.publish(&event);
    let once = event.json().len() as u64 + 1;
    assert_eq!(relay.core.deflater.taken_bytes(), 2 * once, "for two window sizes");
    let bytes = relay.hear_raw(plain);
    let text = frames(&bytes);
    let compressed = vec![format!("[{}]", text[0])];
    for (key, bits) in large.iter().map(|key| (*key, 15)).chain([(small, 9)]) {
        let shorter = relay.hear_raw(key);
        assert!(shorter.len() < bytes.len() / 2, "{} of {}", shorter.len(), bytes.len());
        assert_eq!(read(&shorter, bits), compressed);
    }
    assert_eq!(relay.core.counters().delivered_live, 5);
}

#[test]
fn a_live_event_that_waits_is_not_deflated_again() {
    let limits = Limits { outbox_messages_max: 1, ..Limits::default() };
    let mut relay = relay(Accept::On);
    relay.core.setup.limits = Arc::new(limits);
    let keys: Vec<_> = (0..4).map(|_| connect(&mut relay, "")).collect();
    for key in &keys {
        relay.say(*key, LIVE);
        relay.hear(*key);
    }
    let events: Vec<_> = (0..3).map(|n| long_event(n, 600)).collect();
    events.iter().for_each(|event| relay.publish(event));
    for key in keys {
        let bytes = relay.hear_raw(key);
        assert_eq!(shortened(&read(&bytes, 15)), ["[s \"0", "[s \"1", "[s \"2"]);
    }
    let once: usize = events.iter().map(|event| event.json().len() + 1).sum();
    assert_eq!(relay.core.deflater.taken_bytes(), once as u64);
}

#[test]
fn a_commit_stops_early_when_deflating_takes_its_time() {
    let mut relay = relay(Accept::On);
    let key = connect(&mut relay, "");
    relay.say(key, LIVE);
    relay.hear(key);
    let stored = (1..).zip((0..10).map(|n| long_event(n, 8_000))).collect();
    let batch = CommitBatch { last_sequence: 10, stored, ..CommitBatch::default() };
    let next = relay.core.handle_commit(&batch, 0, 2_500, relay.now);
    assert_eq!(next, Some(3), "8 KB count as a thousand deliveries");
    assert_eq!(relay.core.handle_commit(&batch, 3, u64::MAX, relay.now), None);
    assert_eq!(read(&relay.hear_raw(key), 15).len(), 10);
}

#[test]
fn deflating_what_another_shard_sent_is_work_too() {
    let mut relay = relay(Accept::On);
    let key = connect(&mut relay, "");
    relay.say(key, LIVE);
    let before = relay.core.worked();
    assert_eq!(relay.core.handle_ephemeral(&long_event(0, 8_000), relay.now), 1);
    let worked = relay.core.worked() - before;
    assert!((1_000..1_200).contains(&worked), "8 KB count as a thousand deliveries: {worked}");
}

#[test]
fn stored_events_are_deflated_a_batch_at_a_time() {
    let mut relay = relay(Accept::On);
    let key = connect(&mut relay, "");
    relay.say(key, r#"["REQ","s",{}]"#);
    let scan = relay.scans()[0];
    let events: Vec<_> = (0..60).map(|n| long_event(n, 4_000)).collect();
    relay.chunk(scan, &events, true);
    let (mut batches, mut seen) = (0, Vec::new());
    let mut deflated = 0;
    while let Some(bytes) = relay.fill(key) {
        batches += 1;
        seen.extend(read(&bytes, 15));
        relay.written(key);
        let taken = relay.core.deflater.taken_bytes();
        // The slice, and what the batch made room for before and after it was filled.
        let turns = if batches == 1 { 3 } else { 2 };
        assert!(taken - deflated <= turns * ((32 << 10) + 4_500), "{} at once", taken - deflated);
        deflated = taken;
    }
    assert!(batches > 2, "{batches} batches");
    let expected: Vec<_> = (0..60).map(|n| format!("[s \"{n}")).chain([EOSE.into()]).collect();
    assert_eq!(shortened(&seen), expected);
}

#[test]
fn inflating_for_one_connection_leaves_the_others_their_turn() {
    let mut relay = relay(Accept::On);
    let (bomber, other) = (connect(&mut relay, ""), relay.connect());
    // 100 KB each, of which 150 bytes are sent.
    let one = deflated(&vec![b' '; 100_000]);
    assert!(one.len() < 200);
    let mut reading = relay.send(bomber, &one.repeat(10));
    let mut turns = vec![relay.core.counters().messages_in];
    while reading == Reading::Paused {
        let resume = |effect| matches!(effect, Effect::ResumeRead(k) if k == bomber).then_some(());
        assert_eq!(relay.take(resume).len(), 1);
        assert_eq!(relay.say(other, "[]"), Reading::Ready);
        reading = relay.core.handle_resumed(bomber, relay.now);
        relay.act();
        turns.push(relay.core.counters().messages_in);
    }
    assert_eq!(turns, [3, 7, 11, 13], "three a turn, and the other's one between");
    assert_eq!(relay.hear(bomber).len(), 10, "each has its notice");
    assert_eq!(relay.hear(other).len(), 3);
}

#[test]
fn a_message_that_inflates_beyond_the_limit_is_closed_with_1009() {
    let mut relay = relay(Accept::On);
    relay.core.setup.limits = Arc::new(Limits { message_bytes_max: 50_000, ..Limits::default() });
    let key = connect(&mut relay, "");
    relay.send(key, &deflated(&vec![b' '; 50_001]));
    assert_eq!(relay.hear(key), ["close 1009 message too long"]);
    let key = connect(&mut relay, "");
    let mut frame = masked(Opcode::Text, b"\x07");
    frame[0] |= DEFLATED_BIT;
    relay.send(key, &frame);
    assert_eq!(relay.hear(key), ["close 1007 bad compressed data"]);
    assert_eq!(relay.core.counters().subscriptions, 0);
}

#[test]
fn what_comes_while_the_relay_stops_is_not_inflated() {
    let mut relay = relay(Accept::ClientContext);
    let key = connect(&mut relay, "");
    let bomb = deflated(&vec![b' '; 400_000]);
    let half = &bomb[..bomb.len() - 5];
    relay.send(key, half);
    relay.core.handle_shutdown(relay.now);
    assert_eq!(relay.hear(key), ["close 1001 relay is stopping"]);
    relay.send(key, &bomb[half.len()..]);
    relay.send(key, &bomb.repeat(20));
    relay.send(key, &masked(Opcode::Close, &1000_u16.to_be_bytes()));
    assert_eq!(relay.core.inflater.worked_bytes(), 0);
    assert!(relay.was_released(key), "the client's close was found behind them");
}
