//! `backup`, `restore` and `compact`, beside a running relay and without one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Directory, Relay, corpus_path, ids, lines, note, ok, ok_with, rheostr, run, run_with,
};

/// As `export` writes them: every visible event, oldest first.
fn exported(data: &str) -> String {
    ok(&["export", "--data", data])
}

/// Real events where there are some, else as many notes.
fn events() -> Vec<Value> {
    let made = || (0..2_000).map(|n| note(1_700_000_000 + n, "made")).collect();
    let Some(path) = corpus_path() else { return made() };
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The first of them, where fewer do.
fn some(count: usize) -> Vec<Value> {
    events().into_iter().take(count).collect()
}

/// Tells a thread to stop, also when the test fails: it would be waited for in vain.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_backup_beside_a_running_relay_restores_to_what_was_committed() {
    let dir = Directory::new();
    let data = dir.file("data");
    let relay = Relay::start(&data, &[]);
    ok_with(&lines(&events()), &["import", "--no-verify", "--data", &data]);
    let before: BTreeSet<String> = ids(&exported(&data)).into_iter().collect();
    assert!(!before.is_empty());

    let stop = AtomicBool::new(false);
    let mut backups = Vec::new();
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut at = 1_800_000_000;
            while !stop.load(Ordering::Relaxed) {
                let more: Vec<Value> = (at..at + 50).map(|at| note(at, "meanwhile")).collect();
                ok_with(&lines(&more), &["import", "--data", &data]);
                at += 50;
            }
            at - 1_800_000_000
        });
        let stopping = Stop(&stop);
        let said = ok(&["backup", "--data", &data, dir.path().to_str().unwrap()]);
        backups.push(said.split(": ").next().unwrap().to_owned());
        for n in 0..3 {
            backups.push(dir.file(&format!("{n}.mdb")));
            ok(&["backup", "--data", &data, backups.last().unwrap()]);
        }
        drop(stopping);
        assert!(publisher.join().unwrap() > 0);
    });
    assert!(backups[0].starts_with(&dir.file("rheostr-")), "{}", backups[0]);
    let again = run(&["backup", "--data", &data, &backups[1]]);
    assert_eq!((again.code, again.out.as_str()), (1, ""));
    assert!(again.err.contains("1.mdb exists") || again.err.contains("0.mdb exists"));

    let mut more = 0;
    for (n, backup) in backups.iter().enumerate() {
        let copy = dir.file(&format!("copy-{n}/data"));
        let said = ok(&["restore", "--data", &copy, backup]);
        assert!(said.contains(" 0 differences\n"), "{said}");
        let restored: BTreeSet<String> = ids(&exported(&copy)).into_iter().collect();
        assert!(restored.is_superset(&before));
        let meanwhile = restored.len() - before.len();
        assert!(meanwhile >= more && meanwhile.is_multiple_of(50), "a commit is in it or is not");
        more = meanwhile;
    }
    // The last one once more, onto what is there, and a relay on it.
    let copy = dir.file("copy-3/data");
    let refused = run(&["restore", "--data", &copy, &backups[3]]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("is not empty"), "{}", refused.err);
    assert_eq!(relay.stop().code, 0);
    let relay = Relay::start(&copy, &[]);
    ok_with(&note(1_900_000_000, "later").to_string(), &["import", "--data", &copy]);
    assert_eq!(ids(&exported(&copy)).len(), before.len() + more + 1);
    assert_eq!(relay.stop().code, 0);
}

#[test]
fn restoring_checks_unless_told_not_to() {
    let dir = Directory::new();
    let data = dir.file("data");
    ok_with(&lines(&some(500)), &["import", "--data", &data]);
    let backup = dir.file("b.mdb");
    ok(&["backup", "--data", &data, &backup]);
    // A byte of a content: the pages are whole, the record is not what was signed.
    let mut bytes = std::fs::read(&backup).unwrap();
    let at = bytes.windows(10).position(|window| window == b"\"content\":").unwrap();
    bytes[at] = b'_';
    std::fs::write(&backup, bytes).unwrap();
    let first = dir.file("first");
    let unchecked = ok(&["restore", "--no-check", "--data", &first, &backup]);
    assert_eq!(unchecked.lines().count(), 1);
    let checked = run(&["restore", "--data", &dir.file("second"), &backup]);
    assert_eq!(checked.code, 1, "{}", checked.out);
    assert!(checked.err.contains("differences"), "{}", checked.err);
}

#[test]
fn compaction_needs_the_directory_for_itself() {
    let dir = Directory::new();
    let data = dir.file("data");
    let events: Vec<Value> = (0..2_000).map(|n| note(1_700_000_000 + n, "x")).collect();
    ok_with(&lines(&events), &["import", "--data", &data]);
    ok(&["delete", "--data", &data, "--filter", r#"{"since":1700000100}"#]);
    let expected = exported(&data);

    let relay = Relay::start(&data, &[]);
    let refused = run(&["compact", "--data", &data]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains(&format!("pid {}", relay.pid())), "{}", refused.err);
    assert_eq!(relay.stop().code, 0);

    let info = || serde_json::from_str::<Value>(&ok(&["info", "--data", &data, "--json"])).unwrap();
    let free = info()["free_bytes"].as_u64().unwrap();
    assert_eq!(info()["oldest_reader"], Value::Null);
    let size = || std::fs::metadata(dir.path().join("data/data.mdb")).unwrap().len();
    let before = size();
    let said = ok(&["compact", "--data", &data]);
    let told = format!("100 events; {before} bytes before, {} after", size());
    assert!(said.starts_with(&told), "{said}");
    assert!(size() < before / 4, "{said}");
    assert!(free > before / 2, "{free} of {before}");
    assert_eq!(info()["free_bytes"], 0);
    assert_eq!(exported(&data), expected);
    ok(&["check", "--data", &data]);
    let none = run_with("", &["compact", "--data", &dir.file("none")]);
    assert!(none.err.contains("there is no store in "), "{}", none.err);
}

#[test]
fn a_compaction_that_is_killed_leaves_a_whole_store() {
    let dir = Directory::new();
    let data = dir.file("data");
    ok_with(&lines(&some(1_500)), &["import", "--no-verify", "--data", &data]);
    let expected = exported(&data);
    let started = Instant::now();
    ok(&["compact", "--data", &data]);
    let whole = started.elapsed();
    // Kills spread over the time that one takes, and a little beyond.
    let mut killed = 0;
    for step in 0..15u32 {
        let mut child = rheostr()
            .args(["compact", "--data", &data])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep((whole * step / 12).min(Duration::from_secs(2)));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        assert!(ok(&["check", "--data", &data]).contains(" 0 differences"), "step {step}");
        assert_eq!(exported(&data), expected, "step {step}");
    }
    assert!(killed > 0, "no kill came in time");
    ok(&["compact", "--data", &data]);
    assert!(!dir.path().join("data/rebuild.tmp").exists());
}

/// Changes the bytes of a file at these places; answers how many.
fn overwrite(file: &str, places: impl Fn(&[u8]) -> Vec<usize>) -> usize {
    let mut bytes = std::fs::read(file).unwrap();
    let places = places(&bytes);
    for &at in &places {
        bytes[at] ^= 1;
    }
    std::fs::write(file, bytes).unwrap();
    places.len()
}

#[test]
fn a_repair_makes_indexes_anew_and_leaves_out_what_was_not_signed() {
    let dir = Directory::new();
    let data = dir.file("data");
    ok_with(&lines(&some(2_000)), &["import", "--no-verify", "--data", &data]);
    let whole = exported(&data);
    let relay = Relay::start(&data, &[]);
    let refused = run(&["check", "--repair", "--data", &data]);
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(refused.err.contains(&format!("pid {}", relay.pid())), "{}", refused.err);
    assert_eq!(relay.stop().code, 0);

    // A sound store stays as it is.
    let said = ok(&["check", "--repair", "--data", &data]);
    assert!(said.contains("(0 records made anew), 0 left out; 0 other"), "{said}");
    assert!(said.ends_with(" 0 differences\n"), "{said}");
    assert_eq!(exported(&data), whole);

    // The index entries of one author: there, 8 bytes of the key are followed by a time.
    let file = dir.file("data/data.mdb");
    let author: Value = serde_json::from_str(whole.lines().next().unwrap()).unwrap();
    let mut pubkey = [0; 32];
    faster_hex::hex_decode(author["pubkey"].as_str().unwrap().as_bytes(), &mut pubkey).unwrap();
    let entries = overwrite(&file, |bytes| {
        let starts = (0..bytes.len() - 40).filter(|&at| {
            bytes[at..].starts_with(&pubkey[..8]) && !bytes[at..].starts_with(&pubkey)
        });
        starts.map(|at| at + 14).collect()
    });
    assert!(entries > 0);
    assert_eq!(run(&["check", "--data", &data]).code, 1);
    let said = ok(&["check", "--repair", "--data", &data]);
    assert!(said.contains(" 0 left out; "), "{said}");
    assert_eq!(exported(&data), whole);

    // The first letter of every hundredth content: but for the id, nothing says that it is wrong.
    let lines_before: Vec<&str> = whole.lines().collect();
    let contents = overwrite(&file, |bytes| {
        let needle = b",\"content\":\"";
        let starts = (0..bytes.len() - 64).filter(|&at| {
            bytes[at..].starts_with(needle) && bytes[at + needle.len()].is_ascii_lowercase()
        });
        starts.step_by(100).map(|at| at + needle.len()).collect()
    });
    assert!(contents > 0);
    let found = run(&["check", "--data", &data]);
    assert_eq!(found.code, 1);
    assert!(found.out.contains("not what was signed"), "{}", found.out);
    let said = ok(&["check", "--repair", "--data", &data]);
    let left = exported(&data);
    let left: BTreeSet<&str> = left.lines().collect();
    let gone: Vec<_> = lines_before.iter().filter(|line| !left.contains(*line)).collect();
    assert!(!gone.is_empty() && gone.len() <= contents, "{} of {contents}", gone.len());
    assert!(said.contains(&format!(" {} left out; 0 other", gone.len())), "{said}");
    // Named, so that they may be fetched again; and taken when they come.
    for line in &gone[..gone.len().min(50)] {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(said.contains(event["id"].as_str().unwrap()), "{line}");
    }
    let again: String = gone.iter().map(|line| format!("{line}\n")).collect();
    ok_with(&again, &["import", "--data", &data]);
    assert_eq!(exported(&data), whole);
    ok(&["check", "--data", &data]);
}
