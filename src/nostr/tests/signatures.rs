//! Signatures: right ones, and every way to be wrong.

use serde_json::{Value, json};

use crate::nostr::testing::{Draft, read_event};
use crate::nostr::{VerifiedEvent, Verifier};

fn verify(verifier: &mut Verifier, event: &Value) -> bool {
    let candidate = read_event(&event.to_string()).expect("the shape is right");
    let id = *candidate.event().view().id();
    verifier.verify(candidate).is_ok_and(|event| *event.into_event().view().id() == id)
}

fn with_sig(event: &Value, sig: &[u8]) -> Value {
    let mut event = event.clone();
    event["sig"] = json!(faster_hex::hex_string(sig));
    event
}

fn sig(event: &Value) -> Vec<u8> {
    let text = event["sig"].as_str().unwrap();
    let mut raw = vec![0; 64];
    faster_hex::hex_decode(text.as_bytes(), &mut raw).unwrap();
    raw
}

/// The order of the group and the field's prime, big-endian.
const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
const PRIME: &str = "fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f";

#[test]
fn a_right_signature_passes_and_each_flipped_bit_fails() {
    let event = Draft::default().event();
    let verifier = &mut Verifier::default();
    assert!(verify(verifier, &event));
    let right = sig(&event);
    for bit in (0..512).step_by(7) {
        let mut wrong = right.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert!(!verify(verifier, &with_sig(&event, &wrong)), "bit {bit}");
    }
    assert!(verify(verifier, &event), "failures leave no trace");
}

#[test]
fn parts_out_of_range_fail() {
    let event = Draft::default().event();
    let right = faster_hex::hex_string(&sig(&event));
    let verifier = &mut Verifier::default();
    for (r, s) in [
        (PRIME, &right[64..]),
        (&right[..64], ORDER),
        (&right[..64], &"0".repeat(64)),
        (&"0".repeat(64), &right[64..]),
        (&"f".repeat(64), &"f".repeat(64)),
        (&right[64..], &right[..64]),
    ] {
        let mut wrong = event.clone();
        wrong["sig"] = json!(format!("{r}{s}"));
        assert!(!verify(verifier, &wrong), "{r} {s}");
    }
}

#[test]
fn another_keys_and_another_events_signatures_fail() {
    let event = Draft::default().event();
    let verifier = &mut Verifier::default();
    for other in [Draft { author: 2, ..Draft::default() }, Draft::saying("other")] {
        assert!(verify(verifier, &other.event()));
        assert!(!verify(verifier, &with_sig(&event, &sig(&other.event()))));
    }
}

#[test]
fn a_key_that_is_no_point_fails() {
    // About half of all x have no point; these and the prime have none for certain.
    let keys = [PRIME.to_owned(), "f".repeat(64), "0".repeat(64), format!("{:0>64}", "5")];
    for key in keys {
        let verifier = &mut Verifier::default();
        let draft = Draft::default();
        let hashed = json!([0, key, draft.created_at, draft.kind, draft.tags, draft.content]);
        let id = <sha2::Sha256 as sha2::Digest>::digest(hashed.to_string());
        let mut event = draft.event();
        event["pubkey"] = json!(key);
        event["id"] = json!(faster_hex::hex_string(&id));
        assert!(!verify(verifier, &event), "{key}");
        assert!(verify(verifier, &draft.event()));
    }
}

/// Enough authors that some share a slot: it never vouches for its last guest.
#[test]
fn authors_who_share_a_slot_of_the_key_cache_are_told_apart() {
    let verifier = &mut Verifier::default();
    let events: Vec<_> =
        (1..=254).map(|author| Draft { author, ..Draft::default() }.event()).collect();
    for _ in 0..2 {
        for event in &events {
            assert!(verify(verifier, event));
        }
    }
    for (event, next) in events.iter().zip(&events[1..]) {
        assert!(!verify(verifier, &with_sig(event, &sig(next))));
    }
}

#[test]
fn two_keys_of_one_slot_do_not_answer_for_each_other() {
    use secp256k1::{Keypair, schnorr};
    // Direct-mapped by the first ten bits: a pair is found among a few dozen keys.
    let mut seen = std::collections::BTreeMap::new();
    let (a, b) = (1_u32..)
        .find_map(|n| {
            let mut secret = [0; 32];
            secret[28..].copy_from_slice(&n.to_be_bytes());
            let keys = Keypair::from_secret_bytes(secret).unwrap();
            let key = keys.x_only_public_key().0.to_byte_array();
            let slot = u16::from_le_bytes([key[0], key[1]]) & 1023;
            seen.insert(slot, keys).map(|other| (other, keys))
        })
        .unwrap();
    let event = |keys: &Keypair, signer: &Keypair| {
        let pubkey = faster_hex::hex_string(&keys.x_only_public_key().0.to_byte_array());
        let hashed = json!([0, pubkey, 1, 1, [], ""]).to_string();
        let id = <sha2::Sha256 as sha2::Digest>::digest(hashed);
        let sig = schnorr::sign_no_aux_rand(&id, signer).to_byte_array();
        json!({"id": faster_hex::hex_string(&id), "pubkey": pubkey, "created_at": 1, "kind": 1,
            "tags": [], "content": "", "sig": faster_hex::hex_string(&sig)})
    };
    let verifier = &mut Verifier::default();
    for _ in 0..2 {
        assert!(verify(verifier, &event(&a, &a)));
        assert!(!verify(verifier, &event(&b, &a)), "the slot holds a's key");
        assert!(verify(verifier, &event(&b, &b)));
        assert!(!verify(verifier, &event(&a, &b)), "the slot holds b's key");
    }
}

#[test]
fn trust_is_only_for_who_asks_for_it() {
    let mut event = Draft::default().event();
    event["sig"] = json!("0".repeat(128));
    let candidate = read_event(&event.to_string()).unwrap();
    assert!(Verifier::default().verify(candidate.clone()).is_err());
    assert_eq!(VerifiedEvent::trust(candidate.clone()).into_event(), *candidate.event());
}
