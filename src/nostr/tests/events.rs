//! Shape, canonical text and id of events.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::nostr::parse::TIME_END;
use crate::nostr::testing::{Controls, Draft, read_event};
use crate::nostr::{Event, KindClass, TagRef, TagValue};

fn read(event: &Value) -> Result<Event, &'static str> {
    read_event(&event.to_string()).map(|candidate| candidate.event().clone())
}

fn value_of(event: &Event) -> Value {
    serde_json::from_slice(event.view().json()).expect("what is stored is JSON")
}

/// The draft's event with one field replaced; `Null` takes it out.
fn with(key: &str, value: Value) -> Value {
    let mut event = Draft::default().event();
    match value {
        Value::Null => drop(event.as_object_mut().unwrap().remove(key)),
        value => event[key] = value,
    }
    event
}

const ID: &str = "id must be 64 lowercase hex characters";
const PUBKEY: &str = "pubkey must be 64 lowercase hex characters";
const CREATED_AT: &str = "created_at must be an unsigned integer below 2^40";
const KIND: &str = "kind must be an integer from 0 to 65535";
const CONTENT: &str = "content must be a string";
const SIG: &str = "sig must be 128 lowercase hex characters";
const TAGS: &str = "tags must be an array of arrays of at least one string";
const HASH: &str = "id is not the hash of the event";

#[test]
fn each_wrong_field_is_named() {
    let upper = |key: &str| json!(Draft::default().event()[key].as_str().unwrap().to_uppercase());
    let short = |key: &str| json!(Draft::default().event()[key].as_str().unwrap()[1..]);
    let cases = [
        ("id", json!(1), ID),
        ("id", Value::Null, ID),
        ("id", upper("id"), ID),
        ("id", short("id"), ID),
        ("id", json!("0".repeat(64)), HASH),
        ("pubkey", Value::Null, PUBKEY),
        ("pubkey", upper("pubkey"), PUBKEY),
        ("pubkey", short("pubkey"), PUBKEY),
        ("pubkey", json!("0".repeat(64)), HASH),
        ("created_at", Value::Null, CREATED_AT),
        ("created_at", json!("1700000000"), CREATED_AT),
        ("created_at", json!(-1), CREATED_AT),
        ("created_at", json!(1.7e9), CREATED_AT),
        ("created_at", json!(TIME_END), CREATED_AT),
        ("created_at", json!(u64::MAX), CREATED_AT),
        ("created_at", json!(1_700_000_001), HASH),
        ("kind", Value::Null, KIND),
        ("kind", json!(65_536), KIND),
        ("kind", json!(-1), KIND),
        ("kind", json!("1"), KIND),
        ("kind", json!(2), HASH),
        ("tags", Value::Null, "tags must be an array"),
        ("tags", json!({}), TAGS),
        ("tags", json!([[]]), TAGS),
        ("tags", json!(["t"]), TAGS),
        ("tags", json!([["t", 1]]), TAGS),
        ("tags", json!([[1, "t"]]), TAGS),
        ("tags", json!([["t", null]]), TAGS),
        ("tags", json!([["t", ["x"]]]), TAGS),
        ("tags", json!([["t"]]), HASH),
        ("content", Value::Null, CONTENT),
        ("content", json!(["hello"]), CONTENT),
        ("content", json!("hellO"), HASH),
        ("sig", Value::Null, SIG),
        ("sig", upper("sig"), SIG),
        ("sig", short("sig"), SIG),
    ];
    for (key, value, reason) in cases {
        assert_eq!(read(&with(key, value.clone())), Err(reason), "{key}: {value}");
    }
    assert_eq!(read(&json!([])), Err("an event must be an object"));
    assert_eq!(read(&json!({})), Err(ID));
    assert!(read(&Draft::default().event()).is_ok());
}

/// Each number as text, in the place of `created_at` and of `kind`.
#[test]
fn numbers_are_plain() {
    let event = Draft { created_at: 7, kind: 7, ..Draft::default() }.event().to_string();
    assert!(read_event(&event).is_ok());
    for number in ["7.0", "7e0", "-0", "-7", "\"7\"", "[7]", "true", "null", "18446744073709551615"]
    {
        for (key, reason) in [("created_at", CREATED_AT), ("kind", KIND)] {
            let text = event.replace(&format!("\"{key}\":7"), &format!("\"{key}\":{number}"));
            assert_eq!(read_event(&text).err(), Some(reason), "{number}");
        }
    }
    for number in ["18446744073709551616", "07", "+7", "7.", ".7", "0x7", "1e400"] {
        let text = event.replace("\"kind\":7", &format!("\"kind\":{number}"));
        assert_eq!(read_event(&text).err(), Some("not JSON"), "{number}");
    }
}

#[test]
fn the_largest_and_the_smallest_are_taken() {
    for (created_at, kind) in [(0, 0), (TIME_END - 1, 65_535)] {
        let event = Draft { created_at, kind, ..Draft::default() }.event();
        let read = read(&event).unwrap();
        let view = read.view();
        assert_eq!((view.created_at(), u64::from(view.kind().0)), (created_at, kind));
        assert_eq!(value_of(&read), event);
    }
}

#[test]
fn keys_come_in_any_order_and_unknown_ones_are_dropped() {
    let event = Draft::tagged(&[&["t", "x"]]).event();
    let mut keys: Vec<_> = event.as_object().unwrap().clone().into_iter().collect();
    let canonical = read(&event).unwrap();
    for turn in 0..keys.len() {
        keys.rotate_left(1);
        keys.swap(0, turn);
        let fields: Vec<_> =
            keys.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        let text = format!(
            " {{ {},\n\"relays\" : [{{}}], \"x\": {{\"id\":1,\"id\":2}} }} ",
            fields.join(" , ")
        );
        let read = read_event(&text).unwrap();
        assert_eq!(read.event(), &canonical);
    }
    assert_eq!(value_of(&canonical), event);
}

#[test]
fn a_key_twice_is_refused() {
    let event = Draft::default().event().to_string();
    let open = event.strip_suffix('}').unwrap();
    for again in ["\"kind\":1", "\"content\":\"hello\"", "\"x\":1,\"x\":1", "\"\\u006bind\":1"] {
        assert_eq!(read_event(&format!("{open},{again}}}")).err(), Some("a key is there twice"));
    }
}

#[test]
fn both_ways_to_hash_a_control_character_are_taken() {
    let content: String = (0..0x20_u8).chain([0x7f]).map(char::from).collect();
    let mut draft = Draft::tagged(&[&["t\u{1}", "\u{0}\u{1f}"], &["\u{b}"]]);
    draft.content = content + "\u{80}\u{2028}\\u0001\\\"";
    assert_ne!(draft.id(Controls::Raw), draft.id(Controls::Escaped));
    for controls in [Controls::Raw, Controls::Escaped] {
        let event = draft.event_with(controls);
        let read = read(&event).unwrap();
        assert_eq!(value_of(&read), event, "{controls:?}");
        assert!(read.view().json().iter().all(|byte| *byte >= 0x20), "JSON has no raw control");
        assert_eq!(
            read_event(&String::from_utf8_lossy(read.view().json())).unwrap().event(),
            &read
        );
    }
    let mut event = draft.event();
    event["content"] = json!("\u{2}");
    assert_eq!(read(&event), Err(HASH));
}

#[test]
fn only_content_or_only_tags_may_have_them() {
    for draft in [Draft::saying("\u{1}"), Draft::tagged(&[&["t", "\u{1}"]])] {
        for controls in [Controls::Raw, Controls::Escaped] {
            assert!(read(&draft.event_with(controls)).is_ok());
        }
    }
}

/// However a string is escaped on its way in, the id is of the same text.
#[test]
fn escapes_on_the_way_in_change_nothing() {
    let draft = Draft::saying("a/b 😀 é \u{8}\u{c}\n\r\t\"\\");
    let event = draft.event();
    let canonical = read(&event).unwrap();
    let escaped = r#""\u0061\/b \ud83d\ude00 \u00E9 \u0008\u000C\u000a\u000d\u0009\u0022\u005c""#;
    for content in
        [escaped, r#""a/b 😀 é \b\f\n\r\t\"\\""#, r#""a\/b \uD83D\uDE00 é \b\f\n\r\t\"\\""#]
    {
        let text = event.to_string().replace(&event["content"].to_string(), content);
        assert_eq!(read_event(&text).unwrap().event(), &canonical, "{content}");
    }
    for broken in
        [r#""\ud83d""#, r#""\ude00\ud83d""#, r#""\u12""#, r#""\a""#, "\"\u{1}\"", "\"\n\""]
    {
        let text = event.to_string().replace(&event["content"].to_string(), broken);
        assert_eq!(read_event(&text).err(), Some("not JSON"), "{broken}");
    }
}

#[test]
fn expiration_is_the_first_plain_number() {
    let cases: [(&[&[&str]], Option<u64>); 12] = [
        (&[], None),
        (&[&["expiration"]], None),
        (&[&["expiration", ""]], None),
        (&[&["expiration", "soon"]], None),
        (&[&["expiration", "-1"]], None),
        (&[&["expiration", "1.5"]], None),
        (&[&["expiration", "+5"]], None),
        (&[&["expiration", "0"]], Some(1)),
        (&[&["expiration", "1700000000", "x"]], Some(1_700_000_000)),
        (&[&["expiration", "5"], &["expiration", "6"]], Some(5)),
        (&[&["expiration", "99999999999999999999"]], Some(TIME_END)),
        (&[&["Expiration", "5"]], None),
    ];
    for (tags, expected) in cases {
        let event = read(&Draft::tagged(tags).event()).unwrap();
        assert_eq!(event.view().expiration(), expected, "{tags:?}");
    }
    let event = read(&Draft::tagged(&[&["expiration", "100"]]).event()).unwrap();
    let expired = [99, 100, 101].map(|now| event.view().is_expired(now));
    assert_eq!(expired, [false, true, true]);
}

#[test]
fn the_first_d_tag_counts_wherever_it_stands() {
    let hex = "ab".repeat(32);
    let cases: [(&[&[&str]], &str); 6] = [
        (&[], ""),
        (&[&["d"]], ""),
        (&[&["d", ""], &["d", "late"]], ""),
        (&[&["t", "x"], &["D", "no"], &["d", "name", "more"], &["d", "late"]], "name"),
        (&[&["dd", "no"], &["d", "é\u{1}"]], "é\u{1}"),
        (&[&["d", &hex]], &hex),
    ];
    for (tags, expected) in cases {
        let event = read(&Draft::tagged(tags).event()).unwrap();
        assert_eq!(event.view().d_tag().to_text(), expected, "{tags:?}");
    }
}

#[test]
fn only_the_first_value_of_letters_is_indexed() {
    let hex = "0f".repeat(32);
    let long = "x".repeat(300);
    let tags: &[&[&str]] = &[
        &["e", &hex, "wss://x"],
        &["p", "not hex"],
        &["Z", &long],
        &["t"],
        &["1", "digit"],
        &["é", "not ascii"],
        &["tt", "two"],
        &["t", ""],
    ];
    let event = read(&Draft::tagged(tags).event()).unwrap();
    let seen: Vec<_> = event.view().tags().map(|(l, v)| (char::from(l), v.to_text())).collect();
    let expected = [('e', hex.clone()), ('p', "not hex".into()), ('Z', long), ('t', String::new())];
    assert_eq!(seen, expected);
    let first = event.view().tags().next().unwrap().1;
    assert!(matches!(first, TagRef::Hex(_)) && first == TagValue::new(&hex).as_ref());
}

#[test]
fn a_dash_protects_and_the_shape_is_counted() {
    for (tags, protected) in
        [(&[&["-"][..]][..], true), (&[&["-", "x"]], true), (&[&["t", "-"]], false)]
    {
        let event = read(&Draft::tagged(tags).event()).unwrap();
        assert_eq!(event.view().is_protected(), protected, "{tags:?}");
    }
    let mut draft = Draft::tagged(&[&["a"], &["b", "c"]]);
    draft.content = "é😀x".into();
    let shape = draft.candidate().shape();
    assert_eq!((shape.tags, shape.content_chars), (2, 3));
}

#[test]
fn kinds_have_their_classes() {
    use KindClass::{Addressable, Ephemeral, Regular, Replaceable};
    let cases = [
        (0, Replaceable),
        (1, Regular),
        (2, Regular),
        (3, Replaceable),
        (4, Regular),
        (9_999, Regular),
        (10_000, Replaceable),
        (19_999, Replaceable),
        (20_000, Ephemeral),
        (29_999, Ephemeral),
        (30_000, Addressable),
        (39_999, Addressable),
        (40_000, Regular),
        (65_535, Regular),
    ];
    for (kind, class) in cases {
        assert_eq!(crate::nostr::Kind(kind).class(), class, "{kind}");
    }
}

#[test]
fn a_record_comes_back_and_a_broken_one_does_not() {
    let event = read(&Draft::tagged(&[&["t", "x"]]).event()).unwrap();
    let record = event.record().clone();
    assert_eq!(Event::from_record(record.clone()), Some(event));
    for cut in [0, 1, 87, 88] {
        assert_eq!(Event::from_record(record.slice(..cut)), None, "{cut}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[\\x00-\\x20\"\\\\/é😀\\x7f]{0,12}",
        prop::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
        "[0-9a-f]{64}",
    ]
}

proptest! {
    #[test]
    fn whatever_a_model_hashes_is_read_and_kept(
        author in 1_u8..5,
        created_at in prop_oneof![0..TIME_END, 0_u64..3],
        kind in 0_u64..65_536,
        tags in prop::collection::vec(prop::collection::vec(any_text(), 1..4), 0..5),
        content in any_text(),
        raw: bool,
        pretty: bool,
    ) {
        let draft = Draft { author, created_at, kind, tags, content };
        let event = draft.event_with(if raw { Controls::Raw } else { Controls::Escaped });
        let text = if pretty { serde_json::to_string_pretty(&event).unwrap() } else { event.to_string() };
        let candidate = read_event(&text).map_err(TestCaseError::fail)?;
        let kept = candidate.event();
        prop_assert_eq!(&value_of(kept), &event);
        let view = kept.view();
        prop_assert_eq!(*view.id(), draft.id(if raw { Controls::Raw } else { Controls::Escaped }));
        prop_assert_eq!(*view.pubkey(), draft.pubkey());
        prop_assert_eq!((view.created_at(), u64::from(view.kind().0)), (created_at, kind));
        let letters = draft.tags.iter().filter(|tag| {
            tag.len() > 1 && tag[0].len() == 1 && tag[0].as_bytes()[0].is_ascii_alphabetic()
        });
        let indexed: Vec<_> = letters.map(|tag| (tag[0].as_bytes()[0], tag[1].clone())).collect();
        let seen: Vec<_> = view.tags().map(|(letter, value)| (letter, value.to_text())).collect();
        prop_assert_eq!(seen, indexed);
        // What is kept reads back as itself.
        let again = read_event(std::str::from_utf8(view.json()).unwrap()).map_err(TestCaseError::fail)?;
        prop_assert_eq!(again.event(), kept);
    }

    #[test]
    fn one_changed_byte_is_never_taken_for_another_event(at: prop::sample::Index, byte in 0x20_u8..0x7f) {
        let event = Draft::tagged(&[&["t", "x"], &["-"]]).event();
        let original = read(&event).unwrap();
        let mut text = event.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(candidate) = read_event(&String::from_utf8(text).unwrap()) {
            // A signature is checked later; all else is under the hash.
            let (mut seen, mut expected) = (value_of(candidate.event()), value_of(&original));
            seen["sig"].take();
            expected["sig"].take();
            prop_assert_eq!(seen, expected);
        }
    }
}
