//! A shard from bytes to frames: what is stored, then what is live.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::*;
use crate::relay::client::CLIENT;
use crate::relay::ports::{CommitBatch, Submission, Verdict};
use crate::relay::{Arrival, Limits, Pages, Setup};
use crate::wire::batch::Batch;
use crate::wire::deflate::Accept;
use crate::wire::frame::{Opcode, write_header};

const NOW: Now = Now { ms: 1_000, unix_s: 1_700_000_000 };

fn shard() -> Shard {
    Shard::new(Setup {
        origin: 0,
        shards: 1,
        verify: false,
        search: false,
        limits: Arc::new(Limits::default()),
        pages: Arc::new(Pages { endpoint: "/".into(), ..Pages::default() }),
        deflate: Accept::Off,
        proxies: Arc::default(),
        hash_seed: 1,
    })
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_header(&mut out, opcode, payload.len());
    out[1] |= 0x80;
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
    out
}

fn event(created_at: u64) -> Vec<u8> {
    let key = "11".repeat(32);
    let serialized = format!(r#"[0,"{key}",{created_at},1,[],""]"#);
    let (id, sig) = (faster_hex::hex_string(&Sha256::digest(serialized)), "00".repeat(64));
    let text = format!(
        r#"["EVENT",{{"id":"{id}","pubkey":"{key}","created_at":{created_at},"kind":1,"tags":[],"content":"","sig":"{sig}"}}]"#
    );
    frame(Opcode::Text, text.as_bytes())
}

fn connect(shard: &mut Shard) -> ConnectionKey {
    let key = shard.handle_accept(CLIENT, Arrival::Client, NOW);
    let mut head = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        .to_vec();
    shard.handle_bytes(key, &mut head, NOW);
    assert!(written(shard, key).starts_with("HTTP/1.1 101"));
    key
}

fn written(shard: &mut Shard, key: ConnectionKey) -> String {
    let mut text = String::new();
    let mut batch = Batch::default();
    while shard.fill(key, &mut batch, NOW) {
        let bytes: Vec<u8> = batch.unwritten().flatten().copied().collect();
        text.push_str(&String::from_utf8_lossy(&bytes));
        batch.clear();
        shard.handle_written(key, NOW);
    }
    text
}

fn effects(shard: &mut Shard) -> Vec<Effect> {
    std::iter::from_fn(|| shard.poll_effect()).collect()
}

fn commit(shard: &mut Shard, first: u64, submitted: Vec<Submission>) {
    let count = submitted.len() as u64;
    let verdicts = submitted.iter().map(|s| (s.ticket, Verdict::Stored)).collect();
    let stored = (first..).zip(submitted.into_iter().map(|s| s.event)).collect();
    let batch = CommitBatch {
        last_sequence: first + count - 1,
        stored,
        verdicts,
        ..CommitBatch::default()
    };
    assert_eq!(shard.handle_commit(&batch, 0, u64::MAX, NOW), None);
    assert_eq!(shard.last_sequence, first + count - 1);
}

fn submitted(shard: &mut Shard) -> Vec<Submission> {
    let submission = |effect| match effect {
        Effect::Submit(submission) => Some(submission),
        _ => None,
    };
    effects(shard).into_iter().filter_map(submission).collect()
}

#[test]
fn what_came_before_a_close_or_an_end_is_answered() {
    for close in [true, false] {
        let mut shard = shard();
        let key = connect(&mut shard);
        let mut bytes: Vec<u8> = (0..5).flat_map(event).collect();
        if close {
            bytes.extend(frame(Opcode::Close, &4000_u16.to_be_bytes()));
        }
        shard.handle_bytes(key, &mut bytes, NOW);
        if !close {
            shard.handle_eof(key, NOW);
        }
        assert_eq!(written(&mut shard, key), "");
        assert!(!shard.verify(10, NOW));
        let submitted = submitted(&mut shard);
        assert_eq!(submitted.len(), 5);
        commit(&mut shard, 1, submitted);
        let text = written(&mut shard, key);
        assert_eq!(text.matches(",true,").count(), 5, "{text}");
        assert!(text.ends_with(if close { "\u{2}\u{f}\u{fffd}" } else { "\u{0}" }), "{text:?}");
        let released = |effect: &Effect| matches!(effect, Effect::Release { .. });
        if close {
            shard.handle_eof(key, NOW);
        }
        assert!(effects(&mut shard).iter().any(released));
        assert_eq!(shard.counters().connections, 0);
    }
}

#[test]
fn what_is_committed_after_a_req_is_live_whatever_its_query_sees() {
    let mut shard = shard().from_sequence(7);
    let key = connect(&mut shard);
    let req = br#"["REQ","s",{"kinds":[1],"limit":1}]"#;
    let mut bytes = [frame(Opcode::Text, req), event(5)].concat();
    shard.handle_bytes(key, &mut bytes, NOW);
    let scan = effects(&mut shard).into_iter().find_map(|effect| match effect {
        Effect::StartScan(scan, _) => Some(scan),
        _ => None,
    });
    let scan = scan.unwrap();
    assert_eq!(shard.filed_at(scan), Some(7));
    shard.verify(10, NOW);
    let submitted = submitted(&mut shard);
    commit(&mut shard, 8, submitted);
    let chunk = Chunk { snapshot: 7, done: true, ..Chunk::default() };
    assert!(shard.handle_chunk(scan, chunk, NOW));
    let text = written(&mut shard, key);
    let (eose, live) = (text.find("EOSE").unwrap(), text.find(r#""created_at":5"#).unwrap());
    assert!(eose < live, "{text}");
    assert_eq!(shard.filed_at(scan), Some(7));
}

#[test]
fn the_live_events_of_a_shard_are_bounded_in_bytes_and_who_is_furthest_behind_pays() {
    let mut shard = shard();
    let keys = [connect(&mut shard), connect(&mut shard)];
    let req = |id: &str| frame(Opcode::Text, format!("[\"REQ\",\"{id}\",{{}}]").as_bytes());
    shard.handle_bytes(keys[0], &mut req("early"), NOW);
    shard.handle_bytes(keys[0], &mut event(5), NOW);
    shard.verify(10, NOW);
    let event = submitted(&mut shard).remove(0).event;
    let bytes = event.record().len();
    shard.setup.limits =
        Arc::new(Limits { live_bytes_max: u32::try_from(8 * bytes).unwrap(), ..Limits::default() });
    // Their stored queries have not come back, so all of it waits, each event once for both.
    let publish = |shard: &mut Shard, at: u64| {
        let now = Now { ms: NOW.ms + at, ..NOW };
        assert!(shard.publish(&event, Some(at), now) > 0);
    };
    (1..6).for_each(|at| publish(&mut shard, at));
    shard.handle_bytes(keys[1], &mut req("late"), NOW);
    (6..9).for_each(|at| publish(&mut shard, at));
    assert_eq!((shard.live_bytes.get(), shard.counters().subscriptions), (8 * bytes, 2));
    publish(&mut shard, 9);
    assert!(written(&mut shard, keys[0]).contains(r#"["CLOSED","early","error: slow"#));
    assert_eq!(written(&mut shard, keys[1]), "", "one was enough to end: four events wait");
    assert_eq!(shard.counters().subscriptions_slow, 1);
    assert_eq!(shard.live_bytes.get(), 4 * bytes);
}
