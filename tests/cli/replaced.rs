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

    // Of an address whose newest version was deleted, what is left counts in a store that never saw it.
    let newest = id_of(versions.iter().rfind(|event| event["kind"] == 0).unwrap());
    let request = event(1, 1_700_000_009, 5, json!([["e", newest]]), "");
    import(&data, &request.to_string(), KEEP);
    assert_eq!(ok(&["count", "--data", &data, r#"{"kinds":[0]}"#]), "0\n");
    let both = ok(&["export", "--data", &data]) + &replaced(&data);
    let last = dir.file("last");
    import(&last, &both, KEEP);
    assert_eq!(ok(&["count", "--data", &last, r#"{"kinds":[0]}"#]), "1\n");
    assert_eq!(replaced(&last).lines().count(), 7);
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

#[test]
fn deletion_reaches_archived_versions_and_may_be_kept_to_them() {
    let dir = Directory::new();
    let data = dir.file("data");
    import(&data, &lines(&versions()), KEEP);
    let profiles = json!({"kinds": [0], "until": 1_700_000_002}).to_string();
    let articles = json!({"kinds": [30_023]}).to_string();
    let limited = json!({"kinds": [30_023], "limit": 9}).to_string();
    let delete = |filter: &str, more: &[&str]| {
        ok(&[&["delete", "--data", &data, "--filter", filter], more].concat())
    };
    let counts = || {
        let info: Value = serde_json::from_str(&ok(&["info", "--data", &data, "--json"])).unwrap();
        (info["events"].as_u64().unwrap(), info["replaced"].as_u64().unwrap())
    };
    assert_eq!(delete(&articles, &["--dry-run"]), "5 events would be deleted\n");
    assert_eq!(delete(&articles, &["--dry-run", "--replaced"]), "4 events would be deleted\n");
    assert_eq!(counts(), (2, 8));
    assert_eq!(delete(&profiles, &[]), "3 events deleted\n");
    assert_eq!(delete(&articles, &["--replaced"]), "4 events deleted\n");
    assert_eq!(counts(), (2, 1));
    // They may come again; a limit is about what is stored.
    import(&data, &lines(&versions()), KEEP);
    assert_eq!(delete(&limited, &[]), "1 events deleted\n");
    assert_eq!(counts(), (1, 8));

    let relay = Relay::start(&data, KEEP);
    assert_eq!(delete("{}", &["--replaced"]), "8 events deleted\n");
    assert_eq!(counts(), (1, 0));
    assert_eq!(relay.stop().code, 0);
    ok(&["check", "--data", &data]);
}

#[test]
fn rules_of_age_erase_archived_versions() {
    let dir = Directory::new();
    let data = dir.file("data");
    import(&data, &lines(&versions()), KEEP);
    let rule = "retention=[{kinds = [0], age_s_max = 1000}]";
    let dry = ok(&["retain", "--data", &data, "--set", rule, "--dry-run"]);
    assert!(dry.starts_with("5 events, "), "{dry}");
    let done = ok(&["retain", "--data", &data, "--set", rule]);
    assert_eq!(done, dry.replace("would be erased", "erased"));
    assert_eq!(replaced(&data).lines().count(), 4);
    ok(&["check", "--data", &data]);
}
