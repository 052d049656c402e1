//! Commands on a data directory that nobody else uses.

use std::io::Read;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{
    Directory, corpus_path, event, hex, id_of, ids, lines, newest_first, note, ok, ok_with,
    rheostr, run, run_with,
};

/// Notes of three authors, two at every second.
fn notes(count: u64) -> Vec<Value> {
    (0..count)
        .map(|n| {
            let author = u8::try_from(n % 3).unwrap() + 1;
            event(
                author,
                1_700_000_000 + n / 2,
                1,
                json!([["t", format!("{}", n % 5)]]),
                "hi \"you\"\n",
            )
        })
        .collect()
}

fn report(out: &str) -> Value {
    let report: Value = serde_json::from_str(out).unwrap();
    assert!(report["seconds"].as_f64().unwrap() >= 0.0);
    report
}

#[test]
fn what_goes_in_comes_out() {
    let dir = Directory::new();
    let data = dir.file("data");
    let events = notes(2_500);
    let report = report(&ok_with(&lines(&events), &["import", "--data", &data, "--json"]));
    assert_eq!((&report["read"], &report["imported"]), (&json!(2_500), &json!(2_500)));

    // Order and limit of NIP-01.
    let expected = newest_first(&events);
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), expected);
    assert_eq!(ids(&ok(&["scan", "--data", &data, r#"{"limit":7}"#])), expected[..7]);
    let tagged: Vec<Value> =
        events.iter().filter(|event| event["tags"][0][1] == "3").cloned().collect();
    let filter = r##"{"#t":["3"]}"##;
    assert_eq!(ids(&ok(&["scan", "--data", &data, filter])), newest_first(&tagged));
    assert_eq!(ok(&["count", "--data", &data, filter]), format!("{}\n", tagged.len()));
    let one = json!({"ids": [id_of(&events[9])]}).to_string();
    assert_eq!(ok(&["count", "--data", &data, filter, &one]), format!("{}\n", tagged.len() + 1));

    // What is printed is what was signed.
    let printed: Value = serde_json::from_str(&ok(&["scan", "--data", &data, &one])).unwrap();
    assert_eq!(printed, events[9]);

    // Export: oldest first, bounded, reversed, and good for another import.
    let exported = ok(&["export", "--data", &data]);
    let times = |out: &str| -> Vec<u64> {
        out.lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["created_at"].as_u64().unwrap()
            })
            .collect()
    };
    assert!(times(&exported).is_sorted() && exported.lines().count() == 2_500);
    let some = ["export", "--data", &data, "--since", "1700000010", "--until", "1700000019"];
    assert_eq!(times(&ok(&some)).len(), 20);
    let reversed = ok(&["export", "--data", &data, "--reverse"]);
    assert!(times(&reversed).is_sorted_by(|a, b| a >= b));
    let file = dir.file("export.jsonl");
    assert_eq!(ok(&["export", "--data", &data, &file]), "");
    let copy = dir.file("copy");
    ok(&["import", "--data", &copy, &file]);
    assert_eq!(ids(&ok(&["scan", "--data", &copy, "{}"])), expected);

    // Deletion honours the limit, and a dry run does nothing.
    let newest = r#"{"kinds":[1],"limit":10}"#;
    let dry = ok(&["delete", "--data", &data, "--filter", newest, "--dry-run"]);
    assert_eq!(dry, "10 events would be deleted\n");
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "2500\n");
    assert_eq!(ok(&["delete", "--data", &data, "--filter", newest]), "10 events deleted\n");
    assert_eq!(ids(&ok(&["scan", "--data", &data, "{}"])), expected[10..]);

    let info: Value = serde_json::from_str(&ok(&["info", "--data", &data, "--json"])).unwrap();
    assert_eq!((&info["events"], &info["relay"]), (&json!(2_490), &Value::Null));
    assert!(ok(&["info", "--data", &data]).contains("2490"));
    assert!(ok(&["check", "--data", &data]).contains("2490 events"));
}

#[test]
fn bad_lines_are_named_and_counted_and_stop_nothing() {
    let dir = Directory::new();
    let data = dir.file("data");
    let good = note(1_700_000_000, "good");
    let mut forged = note(1_700_000_001, "forged");
    forged["sig"] = json!(hex(&[7; 64]));
    let mut altered = note(1_700_000_002, "altered");
    altered["content"] = json!("something else");
    let old = event(2, 1_700_000_000, 0, json!([]), "old profile");
    let new = event(2, 1_700_000_001, 0, json!([]), "new profile");
    let ephemeral = event(2, 1_700_000_000, 20_001, json!([]), "");
    let expired = event(2, 1_700_000_000, 1, json!([["expiration", "1700000001"]]), "");
    let mut input = format!("{good}\n\n{good}\nnot json\n{forged}\n{altered}\n{new}\n{old}\n");
    input.push_str(&format!("{ephemeral}\n{expired}\n"));
    input.push_str(&"[]\n".repeat(30));
    input.push_str(&note(1_700_000_009, "the last one, without a line end").to_string());

    let done = run_with(&input, &["import", "--data", &data, "--json", "-"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let report = report(&done.out);
    assert_eq!(report["read"], json!(40));
    assert_eq!(report["imported"], json!(3));
    assert_eq!(report["duplicate"], json!(1));
    assert_eq!(report["superseded"], json!(1));
    assert_eq!(report["rejected"], json!(35));
    let said: Vec<&str> = done.err.lines().collect();
    for line in [
        "line 4: not JSON",
        "line 5: signature is wrong",
        "line 6: id is not the hash of the event",
        "line 9: an ephemeral event is not stored",
        "line 10: it has expired",
        "line 11: an event must be an object",
        "  30 rejected: an event must be an object",
        "  1 rejected: signature is wrong",
    ] {
        assert!(said.contains(&line), "{line} in\n{}", done.err);
    }
    assert_eq!(said.iter().filter(|line| line.starts_with("line ")).count(), 20);
    assert!(!done.err.contains('\u{1b}') && !done.err.contains('\r'), "no progress bar in a pipe");

    // Whoever trusts the signatures gets the forged one, and not the altered one.
    let trusted = ok_with(&input, &["import", "--data", &data, "--json", "--no-verify"]);
    assert_eq!(self::report(&trusted)["imported"], json!(1));
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "4\n");
    assert_eq!(run(&["import", "--data", &data, "/nonexistent"]).code, 1);
}

#[test]
fn a_reader_that_leaves_ends_a_command_quietly() {
    let dir = Directory::new();
    let data = dir.file("data");
    let large = "x".repeat(20_000);
    let events: Vec<Value> = (0..100).map(|n| note(1_700_000_000 + n, &large)).collect();
    ok_with(&lines(&events), &["import", "--data", &data]);
    for command in [&["export", "--data", &data][..], &["scan", "--data", &data, "{}"]] {
        let mut child =
            rheostr().args(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 100]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{command:?}");
    }
}

#[test]
fn where_no_store_is_there_is_nothing_to_read() {
    let dir = Directory::new();
    let data = dir.file("data");
    for command in [
        &["scan", "--data", &data, "{}"][..],
        &["count", "--data", &data, "{}"],
        &["export", "--data", &data],
        &["info", "--data", &data],
        &["check", "--data", &data],
        &["delete", "--data", &data, "--filter", "{}"],
        &["delete", "--data", &data, "--filter", "{}", "--dry-run"],
    ] {
        let done = run(command);
        assert_eq!((done.code, done.out.as_str()), (1, ""), "{command:?}");
        assert!(done.err.contains("there is no store in "), "{command:?}: {}", done.err);
        assert!(!std::path::Path::new(&data).exists(), "{command:?}");
    }
}

#[test]
fn filters_that_are_none_are_refused() {
    let dir = Directory::new();
    let data = dir.file("data");
    ok_with(&note(1, "a").to_string(), &["import", "--data", &data]);
    for filter in ["nonsense", "[]", r#"{"authors":["ABC"]}"#, r#"{"colour":1}"#] {
        for command in [
            &["scan", "--data", &data, filter][..],
            &["count", "--data", &data, filter],
            &["delete", "--data", &data, "--filter", filter],
        ] {
            let done = run(command);
            assert_eq!(done.code, 2, "{command:?}");
            assert!(done.err.contains("the filter "), "{}", done.err);
        }
    }
    assert_eq!(ok(&["count", "--data", &data, "{}"]), "1\n");
}

#[test]
fn check_finds_a_damaged_index() {
    let dir = Directory::new();
    let data = dir.file("data");
    let event = note(1_700_000_000, "the only one");
    ok_with(&event.to_string(), &["import", "--data", &data]);
    ok(&["check", "--data", &data]);
    // In an index the author's first 8 bytes are followed by a time, in the record by the rest.
    let mut pubkey = [0; 32];
    faster_hex::hex_decode(event["pubkey"].as_str().unwrap().as_bytes(), &mut pubkey).unwrap();
    let file = dir.file("data/data.mdb");
    let mut bytes = std::fs::read(&file).unwrap();
    let mut damaged = 0;
    for at in 0..bytes.len() - 40 {
        if bytes[at..].starts_with(&pubkey[..8]) && !bytes[at..].starts_with(&pubkey) {
            bytes[at + 14] ^= 1;
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    std::fs::write(&file, bytes).unwrap();
    let done = run(&["check", "--data", &data]);
    assert_eq!(done.code, 1, "{}", done.out);
    assert!(done.err.contains("differences") && done.out.lines().count() > 1, "{}", done.out);
}

#[test]
fn the_corpus_goes_in_once() {
    let Some(path) = corpus_path() else { return };
    let dir = Directory::new();
    let data = dir.file("data");
    let count = std::fs::read_to_string(&path).unwrap().lines().count();
    let first = report(&ok(&["import", "--data", &data, "--json", &path]));
    assert_eq!(first["read"], json!(count));
    assert_eq!(first["duplicate"], json!(0));
    assert!(first["imported"].as_u64().unwrap() > 0);
    ok(&["check", "--data", &data]);
    let visible = ok(&["count", "--data", &data, "{}"]);
    let second = report(&ok(&["import", "--data", &data, "--json", &path]));
    assert_eq!((&second["read"], &second["imported"]), (&json!(count), &json!(0)));
    assert_eq!(ok(&["count", "--data", &data, "{}"]), visible);
}
