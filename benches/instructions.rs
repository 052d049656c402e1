//! What pieces of the pure core execute, in instructions: steadier than time on a machine that is shared.
//!
//! `benches/instructions.py` runs this under callgrind, each case with two numbers of passes; the
//! difference is what a pass takes, without what it takes to begin. By hand:
//! `cargo bench --bench instructions -- CASE PASSES`, or without a case for their names.

#[path = "support/core.rs"]
mod core;

use std::hint::black_box;

use rheostr::nostr::message::FilterBounds;
use rheostr::nostr::{Event, Filter, MessageReader};
use rheostr::relay::subscriptions::SubscriptionIndex;
use rheostr::wire::deflate::Inflater;
use rheostr::wire::websocket::{Decoder, Item};

use self::core::{Core, commit, masked};

const BOUNDS: FilterBounds = FilterBounds { filters_max: 20, values_max: 10_000, search: false };

type Pass = Box<dyn FnMut()>;
type SetUp = fn() -> Pass;

/// Name, what is set up for it, and so the pass.
const CASES: [(&str, SetUp); 6] = [
    ("decode_64_frames", decode),
    ("read_event", || read(event_message())),
    ("read_req_50_authors", || read(req_message())),
    ("match_among_10000", matching),
    ("deliver_1_to_200", || deliver(1)),
    ("deliver_16_to_200", || deliver(16)),
];

/// An event's JSON of 426 bytes; the signature is not looked at.
fn event_message() -> String {
    let pubkey = "11".repeat(32);
    let make = |content: &str| {
        let text = format!(r#"[0,"{pubkey}",1700000000,1,[["t","x"]],"{content}"]"#);
        let id: [u8; 32] =
            sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(text)).into();
        let (id, sig) = (faster_hex::hex_string(&id), "00".repeat(64));
        format!(
            r#"["EVENT",{{"id":"{id}","pubkey":"{pubkey}","created_at":1700000000,"kind":1,"tags":[["t","x"]],"content":"{content}","sig":"{sig}"}}]"#
        )
    };
    let bare = make("").len();
    make(&"x".repeat(436_usize.saturating_sub(bare)))
}

fn req_message() -> String {
    let authors: Vec<_> = (0..50_u64).map(|n| faster_hex::hex_string(&key_of(n))).collect();
    serde_json::json!(["REQ", "s", { "authors": authors, "kinds": [1, 6, 7] }]).to_string()
}

fn key_of(number: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key
}

fn decode() -> Pass {
    let mut frame = masked(event_message().as_bytes());
    // A mask that is not zero changes the text, so it is put on first.
    let at = frame.len() - event_message().len();
    frame[at - 4..at].copy_from_slice(&[1, 2, 3, 4]);
    rheostr::wire::frame::unmask(&mut frame[at..], [1, 2, 3, 4], 0);
    let received = frame.repeat(64);
    let (mut decoder, mut inflater) = (Decoder::new(1 << 20), Inflater::default());
    let mut scratch = Vec::new();
    Box::new(move || {
        scratch.clear();
        scratch.extend_from_slice(&received);
        let mut input = &mut scratch[..];
        let mut texts = 0;
        while let Ok(Some(item)) = decoder.next(&mut input, &mut inflater) {
            texts += usize::from(matches!(item, Item::Text(_)));
        }
        assert_eq!(texts, 64);
    })
}

fn read(message: String) -> Pass {
    let (mut reader, mut scratch) = (MessageReader::default(), Vec::new());
    Box::new(move || {
        scratch.clear();
        scratch.extend_from_slice(message.as_bytes());
        assert!(black_box(reader.read(&mut scratch, BOUNDS)).is_ok());
    })
}

fn matching() -> Pass {
    let mut index = SubscriptionIndex::new(1);
    for number in 0..10_000_u32 {
        let authors = (0..5).map(|n| key_of(u64::from(number) * 5 + n)).collect();
        let filter =
            Filter { authors: Some(authors), kinds: Some(vec![1, 6]), ..Filter::default() };
        index.insert(number, &[filter]);
    }
    let mut reader = MessageReader::default();
    let text = event_message();
    let mut json = text.as_bytes()["[\"EVENT\",".len()..text.len() - 1].to_vec();
    let event: Event = reader.read_event(&mut json).expect("an event").event().clone();
    let mut found = Vec::new();
    Box::new(move || {
        index.matches(event.view(), &mut found);
        assert!(found.is_empty(), "of another author");
    })
}

fn deliver(events: usize) -> Pass {
    let mut core = Core::new();
    for _ in 0..200 {
        core.subscribe();
    }
    let commit = commit(events, 425);
    Box::new(move || assert_eq!(core.publish(&commit).0, 200 * events as u64))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [case, passes] = &arguments[..] else {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, set_up) = CASES.iter().find(|(name, _)| name == case).expect("a case of that name");
    let mut pass = set_up();
    (0..passes.parse::<u32>().expect("a number")).for_each(|_| pass());
}
