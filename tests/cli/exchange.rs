//! JSON lines from one store to another, and from other relays.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Directory, corpus_path, event, lines, note, ok, ok_with, rheostr};

/// The order in which this relay, and NIP-01, name the fields.
const CANONICAL: [&str; 7] = ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"];

/// As strfry exports them: by name.
const BY_NAME: [&str; 7] = ["content", "created_at", "id", "kind", "pubkey", "sig", "tags"];

/// As others do: the fields in this order, with this behind each comma and colon.
fn line(event: &Value, order: [&str; 7], space: &str) -> String {
    let fields = order.map(|name| format!("\"{name}\":{space}{}", event[name]));
    format!("{{{}}}\n", fields.join(&format!(",{space}")))
}

fn parsed(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a new store exports that has imported `input`.
fn through_a_store(input: &str) -> String {
    let dir = Directory::new();
    let data = dir.file("data");
    ok_with(input, &["import", "--data", &data, "--no-verify"]);
    ok(&["export", "--data", &data])
}

/// Texts with all that JSON escapes, and all that it does not.
fn made() -> Vec<Value> {
    let contents = [
        "plain",
        "\"quoted\" \\ / back\\slash",
        "line\nend\r\ttab\u{8}\u{c}",
        "\u{1}\u{1f}\u{7f}",
        "多 é 🌊 \u{2028}\u{feff}",
        "",
    ];
    let tags = json!([["e", "ab".repeat(32), "wss://x", ""], ["t", "a\"b\\\u{3}"], ["x"], ["-"]]);
    let made =
        |(n, content): (u64, &&str)| event(1, 1_700_000_000 + n / 2, 1, tags.clone(), content);
    (0..).zip(&contents).map(made).collect()
}

/// In the order they are exported: oldest first, highest id first on a tie.
fn oldest_first(mut events: Vec<Value>) -> Vec<Value> {
    events.sort_by_key(|event| {
        let id = std::cmp::Reverse(event["id"].as_str().unwrap().to_owned());
        (event["created_at"].as_u64(), id)
    });
    events
}

#[test]
fn canonical_lines_come_out_as_they_went_in() {
    let canonical: String =
        oldest_first(made()).iter().map(|event| line(event, CANONICAL, "")).collect();
    assert_eq!(through_a_store(&canonical), canonical);
}

#[test]
fn lines_of_other_relays_are_the_same_events() {
    let canonical: String =
        oldest_first(made()).iter().map(|event| line(event, CANONICAL, "")).collect();
    let mut reversed = CANONICAL;
    reversed.reverse();
    for (order, space) in [(BY_NAME, ""), (reversed, " "), (BY_NAME, "\t \r")] {
        let foreign: String = made().iter().map(|event| line(event, order, space)).collect();
        assert_eq!(through_a_store(&foreign), canonical, "{order:?}");
    }
    // Everything that need not be ASCII escaped, solidus included.
    let escape = |text: char| match text {
        '/' => "\\/".to_owned(),
        _ if text.is_ascii() => text.to_string(),
        _ => text.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04X}")).collect(),
    };
    let escaped: String = canonical.chars().map(escape).collect();
    assert_eq!(through_a_store(&escaped), canonical);
}

#[test]
fn real_events_go_from_store_to_store_unchanged() {
    let Some(path) = corpus_path() else { return };
    let corpus = std::fs::read_to_string(path).unwrap();
    let first = through_a_store(&corpus);
    assert_eq!(through_a_store(&first), first);
    let foreign: String = parsed(&first).iter().map(|event| line(event, BY_NAME, "")).collect();
    assert_eq!(through_a_store(&foreign), first);
    // What came out is among what went in, field by field.
    let went_in = parsed(&corpus);
    let known = |event: &Value| went_in.iter().any(|other| other == event);
    let exported = parsed(&first);
    assert!(exported.len() * 10 > went_in.len() * 8 && exported.iter().step_by(7).all(known));
}

#[test]
fn a_dry_run_judges_lines_and_opens_no_store() {
    let dir = Directory::new();
    let data = dir.file("data");
    let mut forged = note(1_700_000_001, "forged");
    forged["sig"] = json!("07".repeat(64));
    let input = lines(&[note(1_700_000_000, "good"), forged]);
    let out = ok_with(&input, &["import", "--data", &data, "--dry-run", "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["imported"], &report["rejected"]), (&json!(1), &json!(1)));
    assert!(!std::path::Path::new(&data).exists());
}

#[test]
fn an_export_holds_no_more_than_a_chunk() {
    const ANONYMOUS_KB_MAX: u64 = 24 << 10;
    let dir = Directory::new();
    let data = dir.file("data");
    let content = "x".repeat(20_000);
    let events: Vec<Value> = (0..2_500).map(|n| note(1_700_000_000 + n, &content)).collect();
    ok_with(&lines(&events), &["import", "--data", &data, "--no-verify"]);
    let mut child =
        rheostr().args(["export", "--data", &data]).stdout(Stdio::piped()).spawn().unwrap();
    let mut exported = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2_400 {
        exported.next().unwrap().unwrap();
    }
    // It waits for the pipe: 48 MB are behind it, 2 MB before it.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let anonymous_kb: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert_eq!(exported.count(), 100);
    assert!(child.wait().unwrap().success());
    assert!(anonymous_kb < ANONYMOUS_KB_MAX, "{anonymous_kb} kB");
}
