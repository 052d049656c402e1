//! Replaced versions: kept, exported, carried by copies, and never served.

use serde_json::{Value, json};

use crate::support::{Directory, Relay, event, id_of, ids, lines, ok, ok_with};

const KEEP: &[&str] = &["--set", "store.keep_replaced=true"];

/// Five versions of a profile and of an article; the newest of each first.
fn versions() -> Vec<Value> {
    let profile = |n: u64| event(1, 1_700_000_000 + n, 0, json!([]), "me");
    let article = |n: u64| event(2, 1_700_000_000 + n, 30_023, json!([["d", "x"]]), "text");
    (0..5).rev().flat_map(|n| [profile(n), article(n)]).collect()
}

fn import(data: &str, input: &str, more: &[&str]) -> Value {
    let arguments = [&["import", "--data", data, "--json"], more].concat();
    serde_json::from_str(&ok_with(input, &arguments)).unwrap()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn replaced(data: &str) -> String {
    ok(&["export", "--data", data, "--replaced"])
}

#[test]
fn what_was_replaced_is_exported_apart_and_makes_the_same_archive_elsewhere() {
    let dir = Directory::new();
    let [data, plain, again] = ["data", "plain", "again"].map(|name| dir.file(name));
    let mut versions = versions();
    let report = import(&data, &lines(&versions), KEEP);
    assert_eq!((&report["imported"], &report["superseded"]), (&json!(2), &json!(8)));
    let [stored, archive] = [ok(&["export", "--data", &data]), replaced(&data)];
    assert_eq!((stored.lines().count(), archive.lines().count()), (2, 8));
    let at = |n: u64| (1_700_000_000 + n).to_string();
    let some = ["export", "--data", &data, "--replaced", "--since", &at(1), "--until", &at(2)];
    assert_eq!(ids(&ok(&some)).len(), 4);
    let info: Value = serde_json::from_str(&ok(&["info", "--data", &data, "--json"])).unwrap();
    assert_eq!((&info["events"], &info["replaced"]), (&json!(2), &json!(8)));
    assert!(ok(&["info", "--data", &data]).contains("8 archived"));
    assert!(ok(&["check", "--data", &data]).contains("2 events, 8 replaced versions, "));

    // Without the switch they are gone, in whatever order they come.
    versions.reverse();
    import(&plain, &lines(&versions), &[]);
    assert_eq!(
        (replaced(&plain).as_str(), ok(&["export", "--data", &plain])),
        ("", stored.clone())
    );
    import(&again, &format!("{archive}{stored}"), KEEP);
    assert_eq!(sorted(&ok(&["export", "--data", &again])), sorted(&stored));
    assert_eq!(sorted(&replaced(&again)), sorted(&archive));
}

#[test]
fn copies_and_repairs_carry_the_archive() {
    let dir = Directory::new();
    let [data, file, copy] = ["data", "file.mdb", "copy"].map(|name| dir.file(name));
    import(&data, &lines(&versions()), KEEP);
    let archive = replaced(&data);
    ok(&["backup", "--data", &data, &file]);
    assert!(ok(&["restore", "--data", &copy, &file]).contains("8 replaced versions"));
    assert_eq!(replaced(&copy), archive);
    ok(&["compact", "--data", &data]);
    assert_eq!(replaced(&data), archive);
    let said = ok(&["check", "--data", &data, "--repair"]);
    assert!(said.contains("2 events and 8 replaced versions kept"), "{said}");
    assert_eq!(replaced(&data), archive);
}

#[test]
fn a_relay_that_keeps_replaced_versions_serves_the_newest() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, KEEP);
    let versions = versions();
    let report = import(&data, &lines(&versions), &[]);
    assert_eq!((&report["imported"], &report["superseded"]), (&json!(2), &json!(8)));
    let newer = event(1, 1_700_000_009, 0, json!([]), "me");
    let request = event(1, 1_700_000_010, 5, json!([["e", id_of(&versions[2])]]), "");
    import(&data, &lines(&[newer.clone(), request]), &[]);
    assert_eq!(ids(&ok(&["scan", "--data", &data, r#"{"kinds":[0]}"#])), [id_of(&newer)]);
    let archived = ids(&replaced(&data));
    assert_eq!(archived.len(), 8);
    assert!(archived.contains(&id_of(&versions[0])) && !archived.contains(&id_of(&versions[2])));
    assert_eq!(relay.stop().code, 0);
    ok(&["check", "--data", &data]);
}
