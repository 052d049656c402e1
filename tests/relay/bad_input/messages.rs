//! REQ, CLOSE and messages of no known kind.

use super::{Case, Expected, message};

fn notice(name: &str, text: impl Into<Vec<u8>>) -> Case {
    message(name, text, Expected::Notice("invalid"))
}

fn unsupported(name: &str, text: &str) -> Case {
    message(name, text, Expected::Notice("unsupported"))
}

/// `["REQ","s",filter]` must be answered `CLOSED "s" "prefix: …"`.
fn closed(filter: &str, prefix: &'static str) -> Case {
    let text = format!("[\"REQ\",\"s\",{filter}]");
    let name = format!("filter {}", filter.chars().take(60).collect::<String>());
    message(name, text, Expected::Closed("s".into(), prefix))
}

/// `["REQ","s",filter]` is odd but right.
fn fine(filter: &str) -> Case {
    let text = format!("[\"REQ\",\"s\",{filter}]");
    message(format!("fine filter {filter}"), text, Expected::Eose("s".into()))
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(no_messages());
    cases.extend(subscription_ids());
    cases.extend(filters());
    cases.extend(other_verbs());
    cases
}

fn no_messages() -> Vec<Case> {
    vec![
        notice("empty", ""),
        notice("a space", " "),
        notice("no JSON", "hello"),
        notice("a NUL", "\0"),
        notice("a byte order mark", "\u{feff}[\"CLOSE\",\"s\"]"),
        notice("an object", "{}"),
        notice("a string", "\"EVENT\""),
        notice("a number", "1"),
        notice("null", "null"),
        notice("an empty array", "[]"),
        notice("an array of an array", "[[]]"),
        notice("a number for a type", "[1]"),
        notice("null for a type", "[null,{}]"),
        notice("EVENT alone", "[\"EVENT\"]"),
        notice("EVENT of a number", "[\"EVENT\",1]"),
        notice("EVENT of null", "[\"EVENT\",null]"),
        notice("EVENT of an array", "[\"EVENT\",[]]"),
        notice("EVENT of a string", "[\"EVENT\",\"{}\"]"),
        notice("EVENT of an empty object", "[\"EVENT\",{}]"),
        notice("brackets without end", "[".repeat(100_000)),
        notice("braces without end", "{\"a\":".repeat(20_000)),
        notice("an unfinished string", "[\"REQ"),
        notice("an unfinished escape", "[\"REQ\\"),
        notice("a lone surrogate for a type", "[\"\\ud800\"]"),
        notice("a number out of range", "[\"REQ\",\"s\",{\"since\":18446744073709551616}]"),
        notice("a number beyond floating point", "[\"REQ\",\"s\",{\"since\":1e999}]"),
        notice("a leading zero", "[\"REQ\",\"s\",{\"since\":01}]"),
        notice("a comma too many", "[\"REQ\",\"s\",{},]"),
        notice("a comma too few", "[\"REQ\" \"s\",{}]"),
        notice("a raw newline in an id", "[\"REQ\",\"a\nb\",{}]"),
        notice("two messages in one", "[\"CLOSE\",\"s\"][\"CLOSE\",\"s\"]"),
    ]
}

fn subscription_ids() -> Vec<Case> {
    let req = |id: &str| format!("[\"REQ\",{id},{{\"limit\":0}}]");
    let mut cases = vec![
        notice("REQ alone", "[\"REQ\"]"),
        notice("REQ with an empty id", req("\"\"")),
        notice("REQ with 65 characters", req(&format!("\"{}\"", "a".repeat(65)))),
        notice("REQ with 65 emoji", req(&format!("\"{}\"", "\u{1f600}".repeat(65)))),
        notice("REQ with a number", req("1")),
        notice("REQ with null", req("null")),
        notice("REQ with an array", req("[\"s\"]")),
        notice("REQ with a lone surrogate", req("\"\\udc00\"")),
        message("REQ without a filter", "[\"REQ\",\"s\"]", Expected::Closed("s".into(), "invalid")),
    ];
    for (name, json, id) in [
        ("64 characters", format!("\"{}\"", "a".repeat(64)), "a".repeat(64)),
        ("64 emoji", format!("\"{}\"", "\u{1f600}".repeat(64)), "\u{1f600}".repeat(64)),
        ("a quote and a backslash", r#""a\"b\\c""#.into(), "a\"b\\c".into()),
        ("an escaped NUL", "\"a\\u0000b\"".into(), "a\0b".into()),
        ("escaped letters", "\"\\u0061\\/\"".into(), "a/".into()),
        ("an escaped emoji", "\"\\ud83d\\ude00\"".into(), "\u{1f600}".into()),
        ("newlines", "\"\\n\\r\\t\\b\\f\"".into(), "\n\r\t\u{8}\u{c}".into()),
        ("markup", "\"</script>\"".into(), "</script>".into()),
    ] {
        let expected = Expected::Eose(id.clone());
        cases.push(message(format!("an id of {name}"), req(&json), expected));
        let text = format!("[\"REQ\",{json},1]");
        let expected = Expected::Closed(id, "invalid");
        cases.push(message(format!("a refusal to an id of {name}"), text, expected));
    }
    cases
}

fn filters() -> Vec<Case> {
    let mut cases = Vec::new();
    for filter in ["[]", "1", "\"x\"", "null", "true", "{\"limit\":0},1", "{\"limit\":0},null"] {
        cases.push(closed(filter, "invalid"));
    }
    for key in
        ["search", "id", "author", "#", "#ee", "#1", "##", "#\u{e9}", "", "Kinds", "e", "until "]
    {
        cases.push(closed(&format!("{{\"{key}\":[\"x\"]}}"), "unsupported"));
    }
    cases.push(closed("{\"search\":\"nostr\",\"limit\":1}", "unsupported"));
    let (short, long, upper) = ("a".repeat(63), "a".repeat(65), "A".repeat(64));
    for key in ["ids", "authors", "#e", "#p"] {
        for value in ["1", "\"x\"", "{}", "null", "[1]", "[null]", "[[]]", "[\"\"]", "[\"abc\"]"] {
            cases.push(closed(&format!("{{\"{key}\":{value}}}"), "invalid"));
        }
        for (name, value) in [("short", &short), ("long", &long), ("upper", &upper)] {
            let mut case = closed(&format!("{{\"{key}\":[\"{value}\"]}}"), "invalid");
            case.name = format!("{key} with {name} hex");
            cases.push(case);
        }
        cases.push(fine(&format!("{{\"{key}\":[]}}")));
    }
    for value in
        ["1", "[\"1\"]", "[-1]", "[-0]", "[65536]", "[1.0]", "[1e0]", "[null]", "{}", "null"]
    {
        cases.push(closed(&format!("{{\"kinds\":{value}}}"), "invalid"));
    }
    for key in ["since", "until", "limit"] {
        for value in ["-1", "-0", "1.5", "1.0", "1e3", "\"1\"", "null", "[]", "{}", "true"] {
            cases.push(closed(&format!("{{\"{key}\":{value}}}"), "invalid"));
        }
        cases.push(fine(&format!("{{\"{key}\":18446744073709551615,\"kinds\":[]}}")));
    }
    for value in ["\"a\"", "[1]", "[null]", "{}", "[[\"a\"]]"] {
        cases.push(closed(&format!("{{\"#t\":{value}}}"), "invalid"));
    }
    cases.push(closed("{\"limit\":1,\"limit\":1}", "invalid"));
    cases.push(closed("{\"#t\":[],\"#t\":[]}", "invalid"));
    let many = |n: usize| vec!["{\"limit\":0}"; n].join(",");
    let mut too_many = closed(&many(21), "invalid");
    too_many.name = "21 filters".into();
    cases.push(too_many);
    let values: Vec<_> = (0..10_001).map(|n| format!("\"{n}\"")).collect();
    let mut too_many = closed(&format!("{{\"#t\":[{}]}}", values.join(",")), "invalid");
    too_many.name = "10,001 values".into();
    cases.push(too_many);
    cases.push(fine("{\"#t\":[\"\"],\"limit\":0}"));
    cases.push(fine("{\"#T\":[\"\\u0000\",\"\\\"\"],\"limit\":0}"));
    cases.push(fine("{\"kinds\":[1,1,1],\"limit\":0}"));
    cases.push(fine("{\"since\":5,\"until\":4}"));
    cases
}

fn other_verbs() -> Vec<Case> {
    vec![
        notice("CLOSE alone", "[\"CLOSE\"]"),
        notice("CLOSE of a number", "[\"CLOSE\",1]"),
        notice("CLOSE of nothing", "[\"CLOSE\",\"\"]"),
        notice("CLOSE of two", "[\"CLOSE\",\"a\",\"b\"]"),
        message("CLOSE of a subscription nobody opened", "[\"CLOSE\",\"x\"]", Expected::Nothing),
        notice("AUTH of a number", "[\"AUTH\",1]"),
        notice("AUTH of a challenge", "[\"AUTH\",\"challenge\"]"),
        unsupported("lower case", "[\"req\",\"s\",{}]"),
        unsupported("an unknown type", "[\"HELLO\",\"world\"]"),
        unsupported("an empty type", "[\"\"]"),
        unsupported("a long type", &format!("[\"{}\"]", "A".repeat(5_000))),
        unsupported("a relay's OK", "[\"OK\",\"x\",true,\"\"]"),
        unsupported("a relay's EOSE", "[\"EOSE\",\"x\"]"),
        unsupported("a type with a NUL", "[\"\\u0000\"]"),
        unsupported("a type with quotes", "[\"\\\"\\\\\"]"),
    ]
}
