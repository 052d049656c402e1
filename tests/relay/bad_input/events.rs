//! EVENTs that are wrong in one respect, and the odd ones that are right.

use sha2::{Digest, Sha256};

use super::{AGE_S_MAX, AHEAD_S_MAX, Case, Expected, MESSAGE_BYTES_MAX, TAGS_MAX, message};
use crate::support::event::Controls;
use crate::support::{Author, Draft, now};

/// The fields of an event as raw JSON; id and signature are made to fit whatever they are.
#[derive(Clone)]
struct Raw {
    created_at: String,
    kind: String,
    tags: String,
    content: String,
    /// Keys before and after the rest.
    before: String,
    after: String,
}

impl Raw {
    fn new(content: &str) -> Self {
        Self {
            created_at: now().to_string(),
            kind: "1".into(),
            tags: "[]".into(),
            content: format!("\"{content}\""),
            before: String::new(),
            after: String::new(),
        }
    }

    /// The id and the whole message.
    fn build(&self) -> (String, String) {
        let author = Author::new(1);
        let Self { created_at, kind, tags, content, before, after } = self;
        let pubkey = author.hex();
        let hashed = format!("[0,\"{pubkey}\",{created_at},{kind},{tags},{content}]");
        let id: [u8; 32] = Sha256::digest(&hashed).into();
        let (id, sig) = (faster_hex::hex_string(&id), author.sign(id));
        let text = format!(
            "[\"EVENT\",{{{before}\"id\":\"{id}\",\"pubkey\":\"{pubkey}\",\"created_at\":{created_at},\
             \"kind\":{kind},\"tags\":{tags},\"content\":{content},\"sig\":\"{sig}\"{after}}}]"
        );
        (id, text)
    }

    fn case(&self, name: impl Into<String>, accepted: bool, prefix: &'static str) -> Case {
        let (id, text) = self.build();
        message(name, text, Expected::Ok(id, accepted, prefix))
    }

    fn invalid(&self, name: impl Into<String>) -> Case {
        self.case(name, false, "invalid")
    }

    fn good(&self, name: impl Into<String>) -> Case {
        self.case(name, true, "")
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(numbers());
    cases.extend(shapes());
    cases.extend(strings());
    cases.extend(hex());
    cases.extend(texts());
    cases.extend(limits());
    cases
}

fn numbers() -> Vec<Case> {
    let mut cases = Vec::new();
    let bad = [
        "1e9",
        "1.0",
        "-0",
        "-1",
        "01700000000",
        "18446744073709551616",
        "1e400",
        "\"1700000000\"",
        "null",
        "true",
        "[1]",
        "{}",
        "1700000000.5",
        "+1",
        "0x10",
        "NaN",
        "Infinity",
        "1_000",
        "1099511627776",
        "18446744073709551615",
    ];
    for value in bad {
        let raw = Raw { created_at: value.into(), ..Raw::new("t") };
        cases.push(raw.invalid(format!("created_at {value}")));
    }
    for value in ["65536", "-1", "-0", "1.0", "1e0", "01", "\"1\"", "null", "[]", "false"] {
        let raw = Raw { kind: value.into(), ..Raw::new("k") };
        cases.push(raw.invalid(format!("kind {value}")));
    }
    cases.push(Raw { kind: "65535".into(), ..Raw::new("k") }.good("kind 65535"));
    cases
}

fn shapes() -> Vec<Case> {
    let mut cases = Vec::new();
    let tags = [
        "{}",
        "null",
        "\"\"",
        "1",
        "[[]]",
        "[\"e\"]",
        "[[1]]",
        "[[\"e\",1]]",
        "[[\"e\",null]]",
        "[[[\"e\"]]]",
        "[{}]",
        "[null]",
        "[[\"t\",\"a\"],[]]",
        "[[\"t\",[\"a\"]]]",
        "[[\"t\"],]",
        "[[\"t\",{}]]",
        "[[true]]",
    ];
    for value in tags {
        let raw = Raw { tags: value.into(), ..Raw::new("g") };
        cases.push(raw.invalid(format!("tags {value}")));
    }
    for value in ["null", "1", "[]", "{}", "true"] {
        let raw = Raw { content: value.into(), ..Raw::new("") };
        cases.push(raw.invalid(format!("content {value}")));
    }
    for key in ["pubkey", "created_at", "kind", "tags", "content", "sig"] {
        let (id, text) = Raw::new("missing").build();
        let text = text.replace(&format!("\"{key}\":"), "\"other\":");
        let expected = Expected::Ok(id, false, "invalid");
        cases.push(message(format!("without {key}"), text, expected));
    }
    let (_, text) = Raw::new("missing").build();
    cases.push(message(
        "without id",
        text.replace("\"id\"", "\"no\""),
        Expected::Notice("invalid"),
    ));
    for (key, value) in [
        ("kind", "1"),
        ("content", "\"x\""),
        ("tags", "[]"),
        ("created_at", "1"),
        ("x", "1"),
        ("sig", "\"\""),
        ("pubkey", "\"\""),
    ] {
        let twice = format!(",\"{key}\":{value}");
        let after = if key == "x" { format!("{twice}{twice}") } else { twice };
        let raw = Raw { after, ..Raw::new("duplicate key") };
        cases.push(raw.invalid(format!("{key} twice")));
    }
    let raw = Raw { before: "\"content\":\"\",".into(), ..Raw::new("duplicate key") };
    cases.push(raw.invalid("content twice, the first before all"));
    let (id, text) = Raw::new("the same id twice").build();
    let text = text.replace("\"kind\"", &format!("\"id\":\"{id}\",\"kind\""));
    cases.push(message("id twice", text, Expected::Ok(id, false, "invalid")));
    let raw = Raw { after: ",\"extra\":[{\"a\":[]},null,1.5e3]".into(), ..Raw::new("extra") };
    cases.push(raw.good("unknown keys are ignored"));
    let long = "a".repeat(300);
    let tags = format!("[[\"e\",\"not hex\"],[\"p\",\"{long}\"],[\"d\"],[\"\"],[\"\",\"\"]]");
    cases.push(Raw { tags, ..Raw::new("g") }.good("tags of any length and form"));
    cases
}

fn strings() -> Vec<Case> {
    let mut cases = Vec::new();
    let bad = [
        ("a raw NUL", "a\0b"),
        ("a raw newline", "a\nb"),
        ("a raw tab", "a\tb"),
        ("a raw escape", "a\u{1b}b"),
        ("a raw unit separator", "a\u{1f}b"),
        ("a lone high surrogate", "\\ud800"),
        ("a lone low surrogate", "\\udc00"),
        ("two high surrogates", "\\ud83d\\ud83d"),
        ("surrogates in the wrong order", "\\udc00\\ud800"),
        ("a high surrogate before text", "\\ud83dxyzabc"),
        ("an unknown escape", "\\x41"),
        ("an escaped quote that ends the text", "\\"),
        ("a short unicode escape", "\\u12"),
        ("an unicode escape that is not hex", "\\u12g4"),
        ("an upper-case escape", "\\N"),
    ];
    for (name, content) in bad {
        cases.push(Raw::new(content).invalid(format!("content with {name}")));
    }
    let raw = Raw { tags: "[[\"t\",\"\\ud800\"]]".into(), ..Raw::new("") };
    cases.push(raw.invalid("a tag with a lone surrogate"));
    let raw = Raw { tags: "[[\"t\",\"a\0\"]]".into(), ..Raw::new("") };
    cases.push(raw.invalid("a tag with a raw NUL"));
    for controls in [Controls::Verbatim, Controls::Escaped] {
        let content: String =
            (0..0x20_u8).map(char::from).chain("\u{7f}\u{2028}\"\\/".chars()).collect();
        let event = Draft::new(1, now())
            .content(content.clone())
            .tag(["t", &content])
            .sign_over(&Author::new(1), controls);
        let expected = Expected::Ok(event.id.clone(), true, "");
        cases.push(message(
            format!("control characters hashed {controls:?}"),
            event.message(),
            expected,
        ));
    }
    let event = Author::new(1).note(now(), "a/b \u{1f600} \u{e9}");
    let text = event.message().replace("a/b", "a\\/b").replace('\u{1f600}', "\\ud83d\\uDE00");
    let text = text.replace('\u{e9}', "\\u00e9").replace("\"kind\"", "\"\\u006bind\"");
    let expected = Expected::Ok(event.id.clone(), true, "");
    cases.push(message("needless escapes, in a key too", text, expected));
    let event = Author::new(1).note(now(), "space");
    let text = event.message().replace(',', " ,\r\n\t ").replace(':', "\n: ");
    cases.push(message("whitespace everywhere", text, Expected::Ok(event.id, true, "")));
    cases
}

fn hex() -> Vec<Case> {
    let mut cases = Vec::new();
    let event = Author::new(1).note(now(), "hex");
    let other = Author::new(1).note(now(), "another");
    let stranger = Author::new(2).hex();
    let not_a_point = "f".repeat(64);
    let refused = || Expected::Ok(event.id.clone(), false, "invalid");
    let mut replace = |name: &str, from: &str, to: &str, expected: Expected| {
        assert!(event.message().contains(from));
        cases.push(message(name, event.message().replacen(from, to, 1), expected));
    };
    let (id, pubkey, sig) = (&event.id[..], &event.pubkey[..], &event.sig[..]);
    let upper = |text: &str| text.to_uppercase();
    replace("id in upper case", id, &upper(id), Expected::Notice("invalid"));
    replace("id too short", id, &id[..63], Expected::Notice("invalid"));
    replace("id too long", id, &format!("{id}0"), Expected::Notice("invalid"));
    replace("id not hex", id, &format!("{}g", &id[..63]), Expected::Notice("invalid"));
    replace("id empty", id, "", Expected::Notice("invalid"));
    replace("id a number", &format!("\"{id}\""), "5", Expected::Notice("invalid"));
    replace("id null", &format!("\"{id}\""), "null", Expected::Notice("invalid"));
    let wrong = Expected::Ok(other.id.clone(), false, "invalid");
    replace("id of another event", id, &other.id, wrong);
    replace("pubkey in upper case", pubkey, &upper(pubkey), refused());
    replace("pubkey too short", pubkey, &pubkey[..62], refused());
    replace("pubkey not hex", pubkey, &"z".repeat(64), refused());
    replace("pubkey of another", pubkey, &stranger, refused());
    replace("pubkey not on the curve", pubkey, &not_a_point, refused());
    replace("pubkey a number", &format!("\"{pubkey}\""), "7", refused());
    replace("sig in upper case", sig, &upper(sig), refused());
    replace("sig too short", sig, &sig[..126], refused());
    replace("sig too long", sig, &format!("{sig}00"), refused());
    replace("sig not hex", sig, &"x".repeat(128), refused());
    replace("sig empty", sig, "", refused());
    replace("sig null", &format!("\"{sig}\""), "null", refused());
    replace("sig of another event", sig, &other.sig, refused());
    replace("sig of zeros", sig, &"0".repeat(128), refused());
    replace("sig of ones", sig, &"f".repeat(128), refused());
    let flipped = if sig.ends_with('0') { "1" } else { "0" };
    replace("sig with one bit wrong", sig, &format!("{}{flipped}", &sig[..127]), refused());
    replace("content changed", "hex", "hey", refused());
    replace("created_at changed", "\"created_at\":1", "\"created_at\":2", refused());
    let now = now();
    let hashed = format!("[0,\"{not_a_point}\",{now},1,[],\"\"]");
    let id = faster_hex::hex_string(&Sha256::digest(hashed));
    let text = format!(
        "[\"EVENT\",{{\"id\":\"{id}\",\"pubkey\":\"{not_a_point}\",\"created_at\":{now},\"kind\":1,\
         \"tags\":[],\"content\":\"\",\"sig\":\"{sig}\"}}]"
    );
    cases.push(message(
        "right id of a key not on the curve",
        text,
        Expected::Ok(id, false, "invalid"),
    ));
    cases
}

/// Text that is no JSON, though an id can be read in it.
fn texts() -> Vec<Case> {
    let event = Author::new(1).note(now(), "text");
    let (id, text) = (event.id.clone(), event.message());
    let refused = || Expected::Ok(id.clone(), false, "invalid");
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let nested = |n: usize| text.replace("\"tags\":[]", &format!("\"tags\":{}", deep(n)));
    vec![
        message("cut in the middle of the event", &text[..text.len() - 50], refused()),
        message("cut before the last bracket", &text[..text.len() - 1], refused()),
        message("bytes after the message", format!("{text}x"), refused()),
        message("a second message after it", format!("{text}{text}"), refused()),
        message("a comma at the end", text.replace("}]", "},]"), refused()),
        message("a comma at the end of the event", text.replace("}]", ",}]"), refused()),
        message("single quotes", text.replace("\"text\"", "'text'"), refused()),
        message("a comment", text.replace("}]", "}/**/]"), refused()),
        message("NUL after the message", format!("{text}\0"), refused()),
        message("two events", text.replace("}]", "},{}]"), refused()),
        message("tags 1,000 deep", nested(1_000), refused()),
        message("tags 40,000 deep", nested(40_000), refused()),
        message("brackets never closed", nested(9).replace(']', ""), refused()),
    ]
}

fn limits() -> Vec<Case> {
    let now = now();
    let at = |created_at: u64| Raw { created_at: created_at.to_string(), ..Raw::new("limits") };
    let tags =
        |n: usize| Raw { tags: format!("[{}]", vec!["[\"t\"]"; n].join(",")), ..Raw::new("") };
    let tag = |tag: &str| Raw { tags: format!("[{tag}]"), ..Raw::new("") };
    vec![
        at(now + AHEAD_S_MAX + 100).invalid("too far ahead"),
        at(now - AGE_S_MAX - 100).invalid("too long ago"),
        at(0).invalid("at the epoch"),
        at(now - AGE_S_MAX + 1_000).good("old enough"),
        tags(TAGS_MAX + 1).invalid("one tag too many"),
        tags(TAGS_MAX).good("as many tags as allowed"),
        tag(&format!("[\"expiration\",\"{}\"]", now - 1)).invalid("expired"),
        tag("[\"expiration\",\"0\"]").invalid("expired at the epoch"),
        tag(&format!("[\"expiration\",\"{}\"]", now + 3_600)).good("not expired yet"),
        tag("[\"expiration\",\"soon\"]").good("an expiration that is no number"),
        tag("[\"-\"]").case("protected", false, "restricted"),
        Raw { kind: "22242".into(), ..Raw::new("") }.invalid("kind 22242 outside AUTH"),
        Raw { kind: "20001".into(), ..Raw::new("") }.case("ephemeral, unheard", false, "mute"),
        message("as long as allowed", good_of(MESSAGE_BYTES_MAX).1, good_of(MESSAGE_BYTES_MAX).0),
        message("one byte too long", good_of(MESSAGE_BYTES_MAX + 1).1, Expected::Close(Some(1009))),
    ]
}

/// An event whose whole message has this many bytes.
fn good_of(bytes: usize) -> (Expected, String) {
    let created_at = now() - 500_000 + bytes as u64 % 2;
    let raw = |n: usize| Raw { created_at: created_at.to_string(), ..Raw::new(&"a".repeat(n)) };
    let empty = raw(0).build().1.len();
    let (id, text) = raw(bytes - empty).build();
    assert_eq!(text.len(), bytes);
    (Expected::Ok(id, true, ""), text)
}
