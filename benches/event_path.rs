//! What one event costs on its way through the core, in CPU time of one thread.
//!
//! `cargo bench --bench event_path`. Each figure is printed against a floor of the same run: work that
//! cannot be avoided, done by the library alone.

mod support;

use std::hint::black_box;

use rheostr::nostr::message::FilterBounds;
use rheostr::nostr::{Event, Filter, MessageReader, TagValue, Verifier};
use rheostr::relay::{Limits, policy, subscriptions::SubscriptionIndex};
use secp256k1::{Keypair, schnorr};
use serde_json::json;
use sha2::{Digest, Sha256};
use support::Bench;

const BOUNDS: FilterBounds = FilterBounds { filters_max: 20, values_max: 10_000, search: false };

/// A stream of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn key_of(number: u64) -> [u8; 32] {
    Sha256::digest(number.to_le_bytes()).into()
}

/// A signed event, padded to 426 bytes where it is shorter.
fn event_text(keys: &Keypair, tags: &serde_json::Value) -> String {
    let hex = |bytes: &[u8]| faster_hex::hex_string(bytes);
    let pubkey = hex(&keys.x_only_public_key().0.to_byte_array());
    let make = |content: &str| {
        let hashed = json!([0, pubkey, 1_700_000_000, 1, tags, content]).to_string();
        let id: [u8; 32] = Sha256::digest(hashed).into();
        let sig = schnorr::sign_no_aux_rand(&id, keys).to_byte_array();
        format!(
            r#"{{"id":"{}","pubkey":"{pubkey}","created_at":1700000000,"kind":1,"tags":{tags},"content":"{content}","sig":"{}"}}"#,
            hex(&id),
            hex(&sig)
        )
    };
    let bare = make("").len();
    make(&"x".repeat(426_usize.saturating_sub(bare)))
}

fn reading(bench: &mut Bench, text: &str) {
    let mut reader = MessageReader::default();
    let message = format!("[\"EVENT\",{text}]");
    let mut scratch = Vec::new();
    bench.measure("read EVENT of 426 bytes", 1, || {
        scratch.clear();
        scratch.extend_from_slice(message.as_bytes());
        assert!(black_box(reader.read(&mut scratch, BOUNDS)).is_ok());
    });
    bench.measure("floor: sha2 of the same bytes", 1, || {
        black_box(Sha256::digest(black_box(text)));
    });
    bench.compare("read EVENT of 426 bytes", "floor: sha2 of the same bytes");

    let authors: Vec<_> = (0..500).map(|n| faster_hex::hex_string(&key_of(n))).collect();
    let message = json!(["REQ", "s", { "authors": authors, "kinds": [1, 6, 7] }]).to_string();
    bench.measure("read REQ of 500 authors", 1, || {
        scratch.clear();
        scratch.extend_from_slice(message.as_bytes());
        assert!(black_box(reader.read(&mut scratch, BOUNDS)).is_ok());
    });
    bench.measure("floor: hex decoding of 500 keys", 1, || {
        for author in &authors {
            let mut raw = [0; 32];
            faster_hex::hex_decode(author.as_bytes(), &mut raw).expect("hex");
            black_box(raw);
        }
    });
    bench.compare("read REQ of 500 authors", "floor: hex decoding of 500 keys");
}

fn verifying(bench: &mut Bench, text: &str) {
    let candidate =
        MessageReader::default().read_event(&mut text.as_bytes().to_vec()).expect("an event");
    let limits = Limits::default();
    bench.measure("policy", 1, || {
        assert!(policy::judge(black_box(&candidate), &limits, 1_700_000_000).is_ok());
    });
    let mut verifier = Verifier::default();
    bench.measure("verify, author known", 1, || {
        assert!(black_box(verifier.verify(candidate.clone())).is_ok());
    });
    let event: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let mut sig = [0; 64];
    faster_hex::hex_decode(event["sig"].as_str().expect("hex").as_bytes(), &mut sig).expect("hex");
    let view = candidate.event().view();
    let key = secp256k1::XOnlyPublicKey::from_byte_array(*view.pubkey()).expect("a point");
    let sig = schnorr::Signature::from_byte_array(sig);
    bench.measure("floor: schnorr::verify, key parsed", 1, || {
        assert!(schnorr::verify(black_box(&sig), view.id(), &key).is_ok());
    });
    bench.compare("verify, author known", "floor: schnorr::verify, key parsed");
    bench.compare("policy", "floor: schnorr::verify, key parsed");
}

/// Follow lists, notifications, threads and single events, over ten authors a subscription.
fn subscription(random: &mut Random, authors: u64) -> Filter {
    let keys = |random: &mut Random, count: u64| {
        let mut keys: Vec<_> = (0..count).map(|_| key_of(random.below(authors))).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let mut filter = Filter { kinds: Some(vec![1, 6, 7]), ..Filter::default() };
    match random.below(100) {
        0..60 => filter.authors = Some(keys(random, 5)),
        60..85 => filter.tags = vec![(b'p', vec![TagValue::Hex(key_of(random.below(authors)))])],
        85..95 => filter.tags = vec![(b'e', vec![TagValue::Hex(key_of(random.next()))])],
        _ => filter.ids = Some(keys(random, 1)),
    }
    filter
}

fn matching(bench: &mut Bench, random: &mut Random) {
    for count in [1_000_u32, 10_000, 100_000] {
        let authors = u64::from(count) * 10;
        let filters: Vec<_> = (0..count).map(|_| subscription(random, authors)).collect();
        let mut index = SubscriptionIndex::new(random.next());
        for (number, filter) in (0..).zip(&filters) {
            index.insert(number, std::slice::from_ref(filter));
        }
        let events: Vec<Event> = (0..64).map(|_| tagged_event(random, authors)).collect();
        let mut found = Vec::new();
        let mut hits = 0;
        for event in &events {
            index.matches(event.view(), &mut found);
            hits += found.len();
            found.clear();
        }
        println!("{count} subscriptions: {:.2} matches an event", hits as f64 / 64.0);
        let (indexed, naive) =
            (format!("match, {count} subscriptions"), format!("naive scan of {count}"));
        let mut at = 0;
        bench.measure(&indexed, 1, || {
            at = (at + 1) % events.len();
            index.matches(events[at].view(), &mut found);
            black_box(&found);
            found.clear();
        });
        bench.measure(&naive, 1, || {
            at = (at + 1) % events.len();
            let event = events[at].view();
            found.extend((0..count).filter(|n| filters[*n as usize].matches(event)));
            black_box(&found);
            found.clear();
        });
        bench.compare(&indexed, &naive);
    }
}

/// An event of a known author with two tags; its signature is never looked at.
fn tagged_event(random: &mut Random, authors: u64) -> Event {
    use rheostr::nostr::event::{Fields, Kind};
    let mut packed = Vec::new();
    for letter in [b'e', b'p'] {
        let value = faster_hex::hex_string(&key_of(random.below(authors)));
        rheostr::nostr::tag::pack(&mut packed, letter, &value);
    }
    Event::build(&Fields {
        id: key_of(random.next()),
        pubkey: key_of(random.below(authors)),
        created_at: 1_700_000_000,
        expiration: None,
        kind: Kind(1),
        protected: false,
        packed_tags: &packed,
        json: b"{}",
    })
}

fn main() {
    let mut bench = Bench::new(60);
    let keys = Keypair::from_secret_bytes([7; 32]).expect("a secret key");
    let text = event_text(&keys, &json!([["t", "x"]]));
    reading(&mut bench, &text);
    verifying(&mut bench, &text);
    matching(&mut bench, &mut Random(1));
}
