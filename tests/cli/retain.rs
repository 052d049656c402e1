//! Retention by `retain`, and by a relay with rules.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Directory, Relay, event, ids, lines, newest_first, note, ok, ok_with, run};

const RULES: &str =
    "retention=[{kinds = [1], author_events_max = 30}, {kinds = [7], age_s_max = 1000}]";

/// Stores 100 notes of one author, 20 reactions of long ago, 5 profiles; returns what the rules keep.
fn fill(data: &str) -> Vec<String> {
    let mut events: Vec<_> = (0..100).map(|n| note(1_700_000_000 + n, "x")).collect();
    let reaction = |n: u64| event(1, 1_700_000_000 + n, 7, json!([]), "+");
    events.extend((0..20).map(reaction));
    events.extend((1..6).map(|author| event(author, 1_600_000_000, 0, json!([]), "")));
    ok_with(&lines(&events), &["import", "--data", data]);
    events.drain(100..120);
    events.drain(..70);
    newest_first(&events)
}

#[test]
fn what_would_go_is_told_and_goes() {
    let dir = Directory::new();
    let data = dir.file("data");
    let kept = fill(&data);
    let dry = ok(&["retain", "--data", &data, "--set", RULES, "--dry-run"]);
    let told: Vec<_> = dry.lines().collect();
    assert!(told[0].starts_with("70 events, ") && told[1].starts_with("20 events, "), "{dry}");
    assert!(
        told[0].ends_with(" would be erased by { author_events_max = 30, kinds = [1] }"),
        "{dry}"
    );
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "125\n");
    let done = ok(&["retain", "--data", &data, "--set", RULES]);
    assert_eq!(done, dry.replace("would be erased", "erased"));
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), kept);
    ok(&["check", "--data", &data]);
    assert!(ok(&["retain", "--data", &data, "--set", RULES]).starts_with("0 events, 0 B erased"));
}

#[test]
fn what_a_rule_of_age_would_erase_is_not_imported() {
    let dir = Directory::new();
    let data = dir.file("data");
    let events: Vec<_> = (0..3).map(|n| event(1, 1_700_000_000 + n, 7, json!([]), "+")).collect();
    for arguments in [&["--dry-run"][..], &[]] {
        let all = [&["import", "--data", &data, "--set", RULES, "--json"], arguments].concat();
        let report: serde_json::Value =
            serde_json::from_str(&ok_with(&lines(&events), &all)).unwrap();
        assert_eq!((&report["imported"], &report["rejected"]), (&json!(0), &json!(3)));
    }
    ok_with(&lines(&events), &["import", "--data", &data]);
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "3\n", "without rules");
}

#[test]
fn a_relay_with_rules_applies_them() {
    let dir = Directory::new();
    let data = dir.file("data");
    let kept = fill(&data);
    let relay = Relay::start(&data, &["--set", RULES]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while ok(&["count", "--data", &data, "{}"]) != "35\n" {
        assert!(Instant::now() < deadline, "the first pass begins at once");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), kept);
    // Beside it what would go can be told, and nothing else be done.
    let dry = ok(&["retain", "--data", &data, "--set", RULES, "--dry-run"]);
    assert!(dry.lines().all(|line| line.starts_with("0 events")), "{dry}");
    let refused = run(&["retain", "--data", &data, "--set", RULES]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains(&format!("pid {}", relay.pid())), "{}", refused.err);
    assert_eq!(relay.stop().code, 0);
    ok(&["check", "--data", &data]);
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let dir = Directory::new();
    let data = dir.file("data");
    fill(&data);
    let none = run(&["retain", "--data", &data]);
    assert_eq!(none.code, 2);
    assert!(none.err.contains("no [[retention]] rule"), "{}", none.err);
    let two = run(&["retain", "--data", &data, "--set", "retention=[{age_s_max=1, bytes_max=1}]"]);
    assert_eq!(two.code, 2);
    let why = "one of age_s_max, author_events_max and bytes_max in each rule (rule 1)";
    assert!(two.err.contains(why), "{}", two.err);
    std::fs::write(dir.file("c.toml"), "[[retention]]\nage_s_max = 5\n\n[[retention]]\nage = 5\n")
        .unwrap();
    let unknown = run(&["config", "check", "--config", &dir.file("c.toml")]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("unknown field `age`"), "{}", unknown.err);
    assert!(unknown.err.contains("c.toml:"), "{}", unknown.err);
}
