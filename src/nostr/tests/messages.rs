//! What a message says, whom a refusal names, and what the relay writes.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::nostr::message::{FilterBounds, Refused};
use crate::nostr::testing::{BOUNDS, Draft};
use crate::nostr::{
    ClientMessage, Filter, MessageReader, RelayMessage, Sketch, SketchOffset, SubscriptionId,
    TagValue,
};

fn read(text: &str) -> Result<ClientMessage, Refused> {
    MessageReader::default().read(&mut text.as_bytes().to_vec(), BOUNDS)
}

fn refused(text: &str) -> Refused {
    read(text).expect_err(text)
}

fn notice(text: &str) -> String {
    match refused(text) {
        Refused::Message { reason } => reason,
        other => panic!("{text}: {other:?}"),
    }
}

/// The text of the CLOSED for a REQ of subscription `s` with these filters.
fn closed(filters: &str) -> String {
    match refused(&format!("[\"REQ\",\"s\"{filters}]")) {
        Refused::Subscription { subscription, reason } => {
            assert_eq!(subscription, SubscriptionId::new("s").unwrap());
            reason
        }
        other => panic!("{filters}: {other:?}"),
    }
}

/// The one filter of a REQ.
fn filter(text: &str) -> Filter {
    match read(&format!("[\"REQ\",\"s\",{text}]")) {
        Ok(ClientMessage::Req { mut filters, .. }) => filters.pop().unwrap(),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn what_names_nobody_is_answered_with_a_notice() {
    let id = "\"".to_owned() + &"x".repeat(65) + "\"";
    let cases = [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ("[", "not JSON"),
        ("[\"REQ\",\"s\",{}] x", "not JSON"),
        ("{}", "a message must be an array"),
        ("\"EVENT\"", "a message must be an array"),
        ("7", "a message must be an array"),
        ("null", "a message must be an array"),
        ("[]", "a message must begin with its type"),
        ("[1]", "a message must begin with its type"),
        ("[[\"REQ\"]]", "a message must begin with its type"),
        ("[\"EVENT\"]", "EVENT needs an event"),
        ("[\"EVENT\",1]", "an event must be an object"),
        ("[\"EVENT\",\"s\",{}]", "an event must be an object"),
        ("[\"EVENT\",{}]", "id must be 64 lowercase hex characters"),
        ("[\"REQ\"]", "a subscription id must be a string of 1 to 64 characters"),
        ("[\"REQ\",1,{}]", "a subscription id must be a string of 1 to 64 characters"),
        ("[\"REQ\",\"\",{}]", "a subscription id must be a string of 1 to 64 characters"),
        ("[\"REQ\",{},{}]", "a subscription id must be a string of 1 to 64 characters"),
        (
            &format!("[\"REQ\",{id},{{}}]"),
            "a subscription id must be a string of 1 to 64 characters",
        ),
        ("[\"COUNT\",null,{}]", "a subscription id must be a string of 1 to 64 characters"),
        ("[\"CLOSE\"]", "a subscription id must be a string of 1 to 64 characters"),
        ("[\"CLOSE\",\"s\",1]", "CLOSE takes one subscription id"),
        ("[\"AUTH\"]", "AUTH needs an event"),
        ("[\"AUTH\",\"challenge\"]", "AUTH needs an event"),
    ];
    for (text, reason) in cases {
        assert_eq!(notice(text), format!("invalid: {reason}"), "{text}");
    }
    assert_eq!(notice("[\"NEG-OPEN\",\"s\"]"), "unsupported: no message type \"NEG-OPEN\"");
    assert_eq!(notice("[\"event\",{}]"), "unsupported: no message type \"event\"");
    let long = notice(&format!("[\"{}\"]", "é".repeat(1000)));
    assert_eq!(long, format!("unsupported: no message type \"{}\"", "é".repeat(20)));
}

#[test]
fn an_event_that_can_be_named_is_answered_with_an_ok() {
    let event = Draft::default().event();
    let id = *Draft::default().candidate().event().view().id();
    let named = |text: &str, expected: &str| {
        let reason = expected.to_owned();
        assert_eq!(refused(text), Refused::Event { id, reason }, "{text}");
    };
    let mut bare = json!({ "id": event["id"] });
    named(
        &json!(["EVENT", bare]).to_string(),
        "invalid: pubkey must be 64 lowercase hex characters",
    );
    bare["pubkey"] = event["pubkey"].clone();
    bare["created_at"] = json!(1);
    named(&json!(["EVENT", bare]).to_string(), "invalid: kind must be an integer from 0 to 65535");
    let mut forged = event.clone();
    forged["content"] = json!("x");
    named(&json!(["EVENT", forged]).to_string(), "invalid: id is not the hash of the event");
    named(&json!(["EVENT", event, 1]).to_string(), "invalid: EVENT takes one event");
    let twice = event.to_string().replacen('{', "{\"x\":1,\"x\":1,", 1);
    named(&format!("[\"EVENT\",{twice}]"), "invalid: a key is there twice");
    let auth = json!(["AUTH", event]).to_string();
    named(&auth, "error: this relay does not ask for authentication");
}

#[test]
fn the_id_is_found_in_text_that_is_not_json() {
    let event = Draft::default().event();
    let id = *Draft::default().candidate().event().view().id();
    let text = json!(["EVENT", event]).to_string();
    let named = |text: &str| match refused(text) {
        Refused::Event { id, reason } => {
            assert_eq!(reason, "invalid: not JSON", "{text}");
            Some(id)
        }
        Refused::Message { reason } => {
            assert_eq!(reason, "invalid: not JSON", "{text}");
            None
        }
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(named(&format!(" {text}x")), Some(id));
    assert_eq!(named(&text[..text.len() - 2]), Some(id));
    assert_eq!(named(&text.replace("hello", "a\nb")), Some(id));
    assert_eq!(named(&text.replace("hello", "\\ud800")), Some(id));
    let raw = event["id"].as_str().unwrap();
    assert_eq!(named(&text.replace(raw, &raw.to_uppercase()).replace("hello", "\n")), None);
    assert_eq!(named(&text.replace(raw, &raw[1..]).replace("hello", "\n")), None);
    assert_eq!(named(&format!("[\"REQ\",\"s\",{event}x")), None);
    // An event inside the content does not lend its id.
    let inner = Draft::saying("inner").event().to_string();
    let repost = Draft::saying(&inner);
    let outer = *repost.candidate().event().view().id();
    for text in [json!(["EVENT", repost.event()]).to_string() + "x", {
        let content = json!(inner);
        format!(
            "[\"EVENT\",{{\"content\":{content},\"id\":\"{}\",x",
            faster_hex::hex_string(&outer)
        )
    }] {
        let named = named(&text);
        assert!(named.is_none_or(|id| id == outer), "{text}");
    }
}

#[test]
fn a_refused_req_or_count_is_answered_with_closed() {
    let many = |n: usize| ",{}".repeat(n);
    let cases = [
        ("", "invalid: REQ needs a filter"),
        (",1", "invalid: a filter must be an object"),
        (",[]", "invalid: a filter must be an object"),
        (",{},null", "invalid: a filter must be an object"),
        (&many(21), "invalid: at most 20 filters in a REQ"),
        (r#",{"kinds":[1],"kinds":[2]}"#, "invalid: a filter has a key twice"),
        (r#",{"search":"x"}"#, "unsupported: no filter field \"search\""),
        (r##",{"#ab":["x"]}"##, "unsupported: no filter field \"#ab\""),
        (r##",{"#1":["x"]}"##, "unsupported: no filter field \"#1\""),
        (r##",{"#":["x"]}"##, "unsupported: no filter field \"#\""),
        (r#",{"":1}"#, "unsupported: no filter field \"\""),
        (r##",{"#é":["x"]}"##, "unsupported: no filter field \"#é\""),
        (
            r#",{"ids":"x"}"#,
            "invalid: ids must be an array of strings of 64 lowercase hex characters",
        ),
        (
            r#",{"ids":["ab"]}"#,
            "invalid: ids must be an array of strings of 64 lowercase hex characters",
        ),
        (
            r#",{"authors":[1]}"#,
            "invalid: authors must be an array of strings of 64 lowercase hex characters",
        ),
        (
            r##",{"#e":["x"]}"##,
            "invalid: #e must be an array of strings of 64 lowercase hex characters",
        ),
        (
            r##",{"#p":[""]}"##,
            "invalid: #p must be an array of strings of 64 lowercase hex characters",
        ),
        (r##",{"#t":[1]}"##, "invalid: #t must be an array of strings"),
        (r##",{"#t":"x"}"##, "invalid: #t must be an array of strings"),
        (r#",{"kinds":[65536]}"#, "invalid: kinds must be an array of integers from 0 to 65535"),
        (r#",{"kinds":["1"]}"#, "invalid: kinds must be an array of integers from 0 to 65535"),
        (r#",{"kinds":[1.0]}"#, "invalid: kinds must be an array of integers from 0 to 65535"),
        (r#",{"kinds":null}"#, "invalid: kinds must be an array of integers from 0 to 65535"),
        (r#",{"since":-1}"#, "invalid: since must be an unsigned integer"),
        (r#",{"until":"1"}"#, "invalid: until must be an unsigned integer"),
        (r#",{"limit":1.5}"#, "invalid: limit must be an unsigned integer"),
        (r#",{"limit":null}"#, "invalid: limit must be an unsigned integer"),
    ];
    for (filters, reason) in cases {
        assert_eq!(closed(filters), reason, "{filters}");
    }
    let upper = "AB".repeat(32);
    assert!(closed(&format!(",{{\"authors\":[\"{upper}\"]}}")).starts_with("invalid: authors"));
}

#[test]
fn a_count_reads_its_filters_as_a_req_does() {
    let count = |rest: &str| read(&format!("[\"COUNT\",\"c\"{rest}]"));
    let Ok(ClientMessage::Count { query, filters, sketch }) =
        count(r#",{"kinds":[1]},{"limit":3}"#)
    else {
        panic!("two filters")
    };
    assert_eq!((query, sketch), (SubscriptionId::new("c").unwrap(), None));
    assert_eq!(filters, [filter(r#"{"kinds":[1]}"#), filter(r#"{"limit":3}"#)]);
    for (rest, reason) in [
        ("", "invalid: COUNT needs a filter"),
        (&",{}".repeat(21), "invalid: at most 20 filters in a COUNT"),
        (r#",{"search":"x"}"#, "unsupported: no filter field \"search\""),
        (r#",{"kinds":"1"}"#, "invalid: kinds must be an array of integers from 0 to 65535"),
    ] {
        let query = SubscriptionId::new("c").unwrap();
        let refused = Refused::Count { query, reason: reason.into() };
        assert_eq!(count(rest).map(|_| ()), Err(refused), "{rest}");
    }
}

/// Keys and values are sorted in a filter; the sketch goes by the order in which they were sent.
#[test]
fn the_first_tag_value_as_written_says_where_a_sketch_looks() {
    let sketch = |filters: &str| match read(&format!("[\"COUNT\",\"c\",{filters}]")) {
        Ok(ClientMessage::Count { sketch, .. }) => sketch,
        other => panic!("{other:?}"),
    };
    let of = |value: &str| Some(SketchOffset::of(value));
    let (low, high) = ("0".repeat(64), "f".repeat(64));
    assert_ne!(of(&low), of(&high));
    assert_eq!(sketch(&format!("{{\"#p\":[\"{high}\",\"{low}\"]}}")), of(&high));
    assert_eq!(sketch(&format!("{{\"kinds\":[7],\"#t\":[\"x\"],\"#e\":[\"{low}\"]}}")), of("x"));
    assert_eq!(sketch("{\"#t\":[\"\\u0041\"]}"), of("A"));
    for filters in ["{}", "{\"#t\":[]}", "{\"kinds\":[1]}", "{\"#t\":[\"x\"]},{\"#t\":[\"x\"]}"] {
        assert_eq!(sketch(filters), None, "{filters}");
    }
}

#[test]
fn values_are_counted_over_all_lists_of_a_req() {
    let bounds = FilterBounds { filters_max: 2, values_max: 4, search: false };
    let try_read = |text: &str| {
        MessageReader::default().read(&mut text.as_bytes().to_vec(), bounds).map(|_| ())
    };
    let hex = "0".repeat(64);
    for fits in [
        r##"["REQ","s",{"kinds":[1,2],"#t":["a"]},{"kinds":[1]}]"##,
        r#"["REQ","s",{"kinds":[1,1,1,1],"since":1,"until":2,"limit":3}]"#,
        r#"["REQ","s",{},{}]"#,
    ] {
        assert!(try_read(fits).is_ok(), "{fits}");
    }
    for too_many in [
        r##"["REQ","s",{"kinds":[1,2],"#t":["a"]},{"kinds":[1,2]}]"##.to_owned(),
        r#"["REQ","s",{"kinds":[1,1,1,1,1]}]"#.to_owned(),
        format!(
            r#"["REQ","s",{{"ids":["{hex}","{hex}","{hex}"]}},{{"authors":["{hex}","{hex}"]}}]"#
        ),
    ] {
        let Err(Refused::Subscription { reason, .. }) = try_read(&too_many) else { panic!() };
        assert_eq!(reason, "invalid: at most 4 values in a REQ");
    }
}

#[test]
fn lists_are_sorted_and_free_of_repeats_and_empty_ones_match_nothing() {
    let (low, high) = ("00".repeat(32), "ff".repeat(32));
    let text = format!(
        r##"{{"kinds":[7,1,7],"ids":["{high}","{low}","{high}"],"#t":["b","a","b","{low}"],
            "#A":[],"#e":["{high}"],"since":0,"until":18446744073709551615,"limit":0}}"##
    );
    let filter = filter(&text);
    assert_eq!(filter.kinds, Some(vec![1, 7]));
    assert_eq!(filter.ids, Some(vec![[0; 32], [255; 32]]));
    assert_eq!(filter.authors, None);
    let letters: Vec<_> = filter.tags.iter().map(|(letter, _)| char::from(*letter)).collect();
    assert_eq!(letters, ['A', 'e', 't']);
    let values = &filter.tags[2].1;
    assert!(values.is_sorted() && values.len() == 3 && values.contains(&TagValue::new(&low)));
    assert_eq!((filter.since, filter.until, filter.limit), (Some(0), Some(u64::MAX), Some(0)));
    assert!(filter.is_unsatisfiable());
    assert!(!super::messages::filter("{}").is_unsatisfiable());
    for nothing in
        [r#"{"ids":[]}"#, r#"{"authors":[]}"#, r#"{"kinds":[]}"#, r#"{"since":2,"until":1}"#]
    {
        assert!(super::messages::filter(nothing).is_unsatisfiable(), "{nothing}");
    }
}

#[test]
fn each_field_of_a_filter_narrows() {
    let mut draft = Draft::tagged(&[&["t", "x"], &["t", "y"], &["p", "not hex"], &["e"]]);
    draft.created_at = 100;
    let event = draft.candidate().event().clone();
    let hex = |raw: &[u8; 32]| faster_hex::hex_string(raw);
    let (id, author, other) = (hex(event.view().id()), hex(event.view().pubkey()), "0".repeat(64));
    let cases = [
        ("{}".to_owned(), true),
        (format!(r#"{{"ids":["{id}","{other}"]}}"#), true),
        (format!(r#"{{"ids":["{other}"]}}"#), false),
        (format!(r#"{{"authors":["{author}"]}}"#), true),
        (format!(r#"{{"authors":["{id}"]}}"#), false),
        (r#"{"kinds":[0,1]}"#.into(), true),
        (r#"{"kinds":[0]}"#.into(), false),
        (r#"{"since":100,"until":100,"limit":0}"#.into(), true),
        (r#"{"since":101}"#.into(), false),
        (r#"{"until":99}"#.into(), false),
        (r##"{"#t":["z","y"]}"##.into(), true),
        (r##"{"#t":["x"],"#a":["x"]}"##.into(), false),
        (r##"{"#T":["x"]}"##.into(), false),
        (r##"{"#t":[]}"##.into(), false),
        (format!(r##"{{"#e":["{other}"]}}"##), false),
        (format!(r##"{{"authors":["{author}"],"kinds":[1],"#t":["x"],"since":99}}"##), true),
        (format!(r##"{{"authors":["{author}"],"kinds":[2],"#t":["x"],"since":99}}"##), false),
    ];
    for (text, expected) in cases {
        assert_eq!(filter(&text).matches(event.view()), expected, "{text}");
    }
}

#[test]
fn subscription_ids_are_any_text_of_1_to_64_characters() {
    let long = |n: usize| "😀".repeat(n);
    for text in ["s", "q\"uo\\te", "\u{0}\u{1f}\u{7f}", "é\n", " ", &long(64)] {
        let json = json!(["CLOSE", text]).to_string();
        let Ok(ClientMessage::Close { subscription }) = read(&json) else { panic!("{json}") };
        assert_eq!(serde_json::from_slice::<String>(subscription.json()).unwrap(), text);
        // However it was escaped, it is the same id.
        let escaped: Vec<_> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let json = format!("[\"CLOSE\",\"{}\"]", escaped.concat());
        let Ok(ClientMessage::Close { subscription: same }) = read(&json) else { panic!("{json}") };
        assert_eq!(same, subscription);
    }
    assert!(SubscriptionId::new(&long(65)).is_none() && SubscriptionId::new("").is_none());
}

#[test]
fn what_the_relay_says_is_json() {
    let id = [0xab; 32];
    let subscription = &SubscriptionId::new("q\"\\\u{1}").unwrap();
    let text = "invalid: \"é\n\\";
    let hex = "ab".repeat(32);
    let sketch = Sketch::new(SketchOffset::of("x"));
    let cases = [
        (RelayMessage::Ok { id: &id, accepted: true, text: "" }, json!(["OK", hex, true, ""])),
        (RelayMessage::Ok { id: &id, accepted: false, text }, json!(["OK", hex, false, text])),
        (RelayMessage::Eose { subscription, finished: None }, json!(["EOSE", "q\"\\\u{1}"])),
        (
            RelayMessage::Eose { subscription, finished: Some(true) },
            json!(["EOSE", "q\"\\\u{1}", ["finish"]]),
        ),
        (
            RelayMessage::Eose { subscription, finished: Some(false) },
            json!(["EOSE", "q\"\\\u{1}", ["more"]]),
        ),
        (RelayMessage::Closed { subscription, text }, json!(["CLOSED", "q\"\\\u{1}", text])),
        (RelayMessage::Notice { text }, json!(["NOTICE", text])),
        (
            RelayMessage::Count { query: subscription, events: 7, sketch: None },
            json!(["COUNT", "q\"\\\u{1}", {"count": 7}]),
        ),
        (
            RelayMessage::Count { query: subscription, events: 7, sketch: Some(&sketch) },
            json!(["COUNT", "q\"\\\u{1}", {"count": 7, "hll": "0".repeat(512)}]),
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(serde_json::from_slice::<Value>(&message.to_json()).unwrap(), expected);
    }
}

proptest! {
    /// One reader serves a whole shard: what a message leaves in its buffers must not reach the next.
    #[test]
    fn a_reader_forgets_what_it_read(texts in prop::collection::vec(any_message(), 1..8)) {
        let mut reader = MessageReader::default();
        for text in texts {
            let kept = format!("{:?}", reader.read(&mut text.clone().into_bytes(), BOUNDS));
            prop_assert_eq!(kept, format!("{:?}", read(&text)));
        }
    }

    #[test]
    fn no_text_panics(text in any_message(), cut: prop::sample::Index, byte: u8) {
        let mut bytes = text.into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes.clone()) {
            let _ = read(&text);
        }
        bytes.truncate(at);
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = read(&text);
        }
    }
}

fn any_message() -> impl Strategy<Value = String> {
    let event = (".{0,20}", 0_u64..65_536, prop::collection::vec(".{0,5}", 1..3));
    prop_oneof![
        event.prop_map(|(content, kind, tag)| {
            let draft = Draft { content, kind, tags: vec![tag], ..Draft::default() };
            json!(["EVENT", draft.event()]).to_string()
        }),
        (".{0,70}", prop::collection::vec(any::<u32>(), 0..4), any::<i32>()).prop_map(
            |(id, kinds, limit)| {
                json!(["REQ", id, {"kinds": kinds, "#t": [id], "limit": limit}]).to_string()
            }
        ),
        r#"\[("EVENT"|"REQ"|"CLOSE"|"AUTH"|"COUNT"),("s"|\{\}|\[\]|1)(,\{"(kinds":\[1|.t":\["a")\]\})?[\]x]"#,
    ]
}

#[test]
fn a_search_loses_its_extensions_and_is_its_filters_own() {
    let bounds = FilterBounds { search: true, ..BOUNDS };
    let read = |text: &str| match MessageReader::default()
        .read(&mut text.as_bytes().to_vec(), bounds)
    {
        Ok(ClientMessage::Req { mut filters, .. }) => Ok(filters.pop().unwrap().search),
        Err(Refused::Subscription { reason, .. } | Refused::Count { reason, .. }) => Err(reason),
        other => panic!("{other:?}"),
    };
    let req = |search: &str| read(&json!(["REQ", "s", {"search": search}]).to_string());
    assert_eq!(req("best  apps"), Ok(Some("best apps".into())));
    assert_eq!(req("apps include:spam language:en"), Ok(Some("apps".into())));
    let kept = "https://relay.example :) a:";
    assert_eq!(req(kept), Ok(Some(kept.into())));
    assert_eq!(req("domain:example.com"), Ok(None));
    assert_eq!(req("nostr:npub1x at 12:30"), Ok(Some("nostr:npub1x at 12:30".into())));
    let quoted = r#"in "see ref:abc here" language:en"#;
    assert_eq!(req(quoted), Ok(Some(r#"in "see ref:abc here""#.into())));
    assert_eq!(req(""), Ok(None));
    assert!(read(r#"["REQ","s",{"search":7}]"#).unwrap_err().starts_with("invalid: "));
    let two = read(r#"["REQ","s",{"kinds":[1]},{"search":"x"}]"#);
    assert_eq!(two.unwrap_err(), "unsupported: a REQ that searches has one filter");
    let counted = read(r#"["COUNT","s",{"search":"x"}]"#);
    assert_eq!(counted.unwrap_err(), "unsupported: no filter field \"search\"");
}
