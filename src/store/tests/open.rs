//! Opening: who may, who may not, and what stays when a store is opened again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::nostr::Filter;
use crate::nostr::event::Event;
use crate::relay::ports::Verdict;
use crate::store::testing::*;
use crate::store::{Options, Reader, Store, StoreError, readers};

fn small() -> Options {
    Options { map_bytes_max: 1 << 20, ..Options::default() }
}

#[test]
fn a_second_writer_is_told_who_holds_the_directory() {
    let (store, dir) = store();
    let error = Store::open(dir.path(), &small()).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, StoreError::Held { pid: Some(held), .. } if held == pid), "{error}");
    assert!(error.to_string().contains(&format!("(pid {pid})")), "{error}");
    drop(store);
    Store::open(dir.path(), &small()).expect("let go of");
}

#[test]
fn reading_needs_a_store_and_never_writes() {
    let dir = Directory::new();
    let error = Store::open_read_only(dir.path(), &small()).unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    let events = [event(id(1, 1), 1, 1, 100, &[])];
    apply(&Store::open(dir.path(), &small()).unwrap(), &events, 10);
    let store = Store::open_read_only(dir.path(), &small()).unwrap();
    assert_eq!(visible_ids(&store, 10), [id(1, 1)]);
    let error = store.apply(&submit(&events), 10, &terms()).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
    assert!(store.maintain(10, 1).is_err());
}

#[test]
fn an_older_and_a_newer_schema_are_refused_with_what_to_do() {
    for (version, build) in [(0u64, "an older build"), (77, "a newer build")] {
        let dir = Directory::new();
        let store = Store::open(dir.path(), &small()).unwrap();
        let environment = store.environment().unwrap();
        let mut txn = environment.env.write_txn().unwrap();
        environment.tables.meta.put(&mut txn, b"schema", &version.to_be_bytes()).unwrap();
        txn.commit().unwrap();
        drop((environment, store));
        for open in [Store::open, Store::open_read_only] {
            let error = open(dir.path(), &small()).unwrap_err();
            let found = matches!(error, StoreError::Schema { found, .. } if found == version);
            assert!(found, "{error}");
            let text = error.to_string();
            let said = [build, "export it with the build that wrote it and import it here"];
            assert!(said.iter().all(|said| text.contains(said)), "{text}");
        }
    }
}

#[test]
fn everything_is_there_after_opening_again_and_no_sequence_comes_twice() {
    let dir = Directory::new();
    let mut last = 0;
    for round in 0..4u32 {
        let store = Store::open(dir.path(), &small()).unwrap();
        assert_eq!(store.info().unwrap().last_sequence, last);
        assert_eq!(store.info().unwrap().events, u64::from(round.min(1)));
        // All but the newest go, so that the highest sequence in use falls behind the last given.
        let events: Vec<Event> =
            (0..3).map(|n| event(id(1, round * 3 + n), 1, 1, 100, &[["t", "x"]])).collect();
        let batch = apply(&store, &events, 10);
        assert_eq!(batch.stored[0].0, last + 1);
        last = batch.last_sequence;
        let gone = visible_ids(&store, 10).split_off(1);
        let mut gone = Filter { ids: Some(gone), ..Filter::default() };
        gone.ids.iter_mut().for_each(|ids| ids.sort_unstable());
        delete(&store, &[gone], 1000, 10);
        store.reopen().unwrap();
        assert_sound(&store);
    }
}

#[test]
fn a_full_map_costs_the_batch_and_nothing_else() {
    let dir = Directory::new();
    let store = Store::open(dir.path(), &small()).unwrap();
    let text = "x".repeat(20_000);
    let large = |n: u32| event(id(1, n), 1, 1, 100 + u64::from(n), &[["x", &text]]);
    let mut stored = 0;
    let error = loop {
        match store.apply(&submit(&[large(stored)]), 10, &terms()) {
            Ok(batch) => assert_eq!(batch.verdicts[0].1, Verdict::Stored),
            Err(error) => break error,
        }
        stored += 1;
        assert!(stored < 100, "1 MiB holds no two");
    };
    assert!(matches!(error, StoreError::Full { map_bytes_max: 1_048_576 }), "{error}");
    assert!(!store.is_lost());
    assert_eq!(store.info().unwrap().last_sequence, u64::from(stored));
    assert_eq!(visible_ids(&store, 10).len(), stored as usize);
    assert_sound(&store);
    assert_eq!(verdicts(&store, &[large(0)], 10), [Verdict::Duplicate]);
    assert!(matches!(store.probe(), Err(StoreError::Full { .. })), "there is no room for events");
    drop(store);
    let store = Store::open(dir.path(), &Options::default()).unwrap();
    assert_eq!(apply(&store, &[large(stored)], 10).last_sequence, u64::from(stored) + 1);
    assert_sound(&store);
}

/// What erasing copies first finds room: all of a full store can be taken out of it, here of the smallest
/// that a configuration allows.
#[test]
fn a_full_store_can_be_emptied() {
    let dir = Directory::new();
    let options = Options { map_bytes_max: 16 << 20, ..Options::default() };
    let store = Store::open(dir.path(), &options).unwrap();
    let values: Vec<_> = (0..40).map(|n| format!("value {n}")).collect();
    let tags: Vec<_> = values.iter().map(|value| ["t", value.as_str()]).collect();
    let batch = |from: u32, count: u32| -> Vec<Event> {
        let at = |n: u32| u64::from(n * 7919 % 1000);
        (from..from + count).map(|n| event(id(1, n), (n % 50) as u8, 1, at(n), &tags)).collect()
    };
    let mut stored = 0;
    for count in [50, 1] {
        while store.apply(&submit(&batch(stored, count)), 10, &terms()).is_ok() {
            stored += count;
        }
    }
    assert!(stored > 500, "{stored}");
    assert_eq!(delete(&store, &[Filter::default()], 1000, 10), u64::from(stored));
    assert_eq!(store.info().unwrap().events, 0);
    assert_sound(&store);
    store.probe().unwrap();
    assert_eq!(apply(&store, &batch(0, 50), 10).stored.len(), 50);
}

#[test]
fn what_must_never_be_stored_is_an_error() {
    let (store, _dir) = store();
    for bad in [event(id(1, 1), 1, 20_001, 100, &[]), event(id(1, 1), 1, 1, 1 << 40, &[])] {
        let error = store.apply(&submit(&[bad]), 10, &terms()).unwrap_err();
        assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
    }
    let latest = event(id(1, 1), 1, 1, (1 << 40) - 1, &[]);
    assert_eq!(verdicts(&store, &[latest], 10), [Verdict::Stored]);
    let beyond = |since, until| Filter { since, until, ..Filter::default() };
    let scan = |filter| scan_ids(&store, &[filter], 10, &WHOLE, 10).len();
    assert_eq!(scan(beyond(None, Some(u64::MAX))), 1);
    assert_eq!(scan(beyond(Some((1 << 40) - 1), None)), 1);
    assert_eq!(scan(beyond(Some(1 << 40), None)), 0);
}

const HELPER_DIR: &str = "RHEOSTR_TEST_WRITER_DIR";

/// The other process: opens the directory, stores an event for every line it reads.
#[test]
#[ignore = "a process, which another_process_may_read_beside_the_writer_but_not_write starts"]
fn writer_process() {
    let Ok(dir) = std::env::var(HELPER_DIR) else { return };
    let store = Store::open(dir, &small()).unwrap();
    let mut out = std::io::stdout();
    for n in 0.. {
        apply(&store, &[event(id(1, n), 1, 1, 100, &[])], 10);
        writeln!(out, "stored").unwrap();
        if std::io::stdin().lines().next().is_none() {
            return;
        }
    }
}

#[test]
fn another_process_may_read_beside_the_writer_but_not_write() {
    let dir = Directory::new();
    let (mut writer, mut wait) = start("writer_process", &dir, false, "stored");
    let error = Store::open(dir.path(), &small()).unwrap_err();
    let held = matches!(&error, StoreError::Held { pid, .. } if *pid == Some(writer.id()));
    assert!(held, "{error}");

    let reader = Store::open_read_only(dir.path(), &small()).unwrap();
    assert_eq!(visible_ids(&reader, 10).len(), 1);
    writeln!(writer.stdin.as_mut().unwrap()).unwrap();
    wait();
    assert_eq!(visible_ids(&reader, 10).len(), 2);
    assert_sound(&reader);
    drop(reader);

    writer.kill().unwrap();
    writer.wait().unwrap();
    let store = Store::open(dir.path(), &small()).expect("a killed writer lets go");
    assert_eq!(visible_ids(&store, 10).len(), 2);
    assert_sound(&store);
}

/// The other process: reads, and holds a transaction open until its input ends, if told to.
#[test]
#[ignore = "a process, which an_old_reader_is_named_and_one_that_was_killed_is_cleared starts"]
fn reader_process() {
    let Ok(dir) = std::env::var(HELPER_DIR) else { return };
    let store = Store::open_read_only(dir, &small()).unwrap();
    let environment = store.environment().unwrap();
    let txn = std::env::var(HELPER_HOLDS).ok().map(|_| environment.env.read_txn().unwrap());
    println!("open");
    let _ = std::io::stdin().lines().next();
    drop(txn);
}

const HELPER_HOLDS: &str = "RHEOSTR_TEST_READER_HOLDS";

/// Starts this test's other process and waits for its first word.
fn start(name: &str, dir: &Directory, holds: bool, word: &str) -> (Child, impl FnMut() + use<>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::tests::open::{name}"), "--ignored", "--nocapture"]);
    command.env(HELPER_DIR, dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    if holds {
        command.env(HELPER_HOLDS, "1");
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let word = word.to_owned();
    let mut wait = move || assert!(lines.any(|line| line.unwrap().ends_with(&word)));
    wait();
    (child, wait)
}

#[test]
fn an_old_reader_is_named_and_one_that_was_killed_is_cleared() {
    let dir = Directory::new();
    assert_eq!(readers(dir.path()).unwrap(), []);
    let (mut writer, mut stored) = start("writer_process", &dir, false, "stored");
    let (mut idle, _) = start("reader_process", &dir, false, "open");
    assert_eq!(readers(dir.path()).unwrap(), []);
    let (mut reader, _) = start("reader_process", &dir, true, "open");
    for behind in 0..3 {
        let expected = Reader { pid: reader.id(), behind, alive: true };
        assert_eq!(readers(dir.path()).unwrap(), [expected]);
        writeln!(writer.stdin.as_mut().unwrap()).unwrap();
        stored();
    }
    reader.kill().unwrap();
    reader.wait().unwrap();
    writer.kill().unwrap();
    writer.wait().unwrap();
    let dead = Reader { pid: reader.id(), behind: 3, alive: false };
    assert_eq!(readers(dir.path()).unwrap(), [dead]);

    // The idle reader keeps the table from being made anew.
    let store = Store::open(dir.path(), &small()).unwrap();
    assert!(matches!(readers(dir.path()), Err(StoreError::AlreadyOpen { .. })));
    drop(store);
    assert_eq!(readers(dir.path()).unwrap(), []);
    idle.kill().unwrap();
    idle.wait().unwrap();
}

#[test]
fn nothing_is_written_to_a_file_that_was_found_damaged() {
    let (store, _dir) = store();
    let event = event(id(1, 1), 1, 1, 10, &[]);
    store.note(StoreError::map_full());
    assert_eq!(
        verdicts(&store, std::slice::from_ref(&event), 20),
        [Verdict::Stored],
        "full is not damaged"
    );
    store.note(heed::Error::Mdb(heed::MdbError::Corrupted).into());
    assert!(store.damage().is_some_and(|damage| damage.contains("rheostr check")));
    let refused = store.apply(&submit(&[event]), 20, &terms());
    assert!(matches!(refused, Err(StoreError::Damaged(_))), "{refused:?}");
}
