//! Backup, restore and compaction: what they hold, what they refuse, what a crash leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::nostr::Filter;
use crate::nostr::event::Event;
use crate::store::environment::{Hold, hold_files, lock_directory};
use crate::store::testing::*;
use crate::store::{Copied, Options, Store, StoreError};

fn options() -> Options {
    Options { map_bytes_max: 1 << 28, ..Options::default() }
}

/// The `number`th event: later than those before it.
fn nth(number: u32) -> Event {
    event(id(1, number), 1, 1, 100 + u64::from(number), &[["t", "x"], ["e", &hex(&id(9, number))]])
}

fn nths(numbers: std::ops::Range<u32>) -> Vec<Event> {
    numbers.map(nth).collect()
}

fn backup(store: &Store, to: &Path) -> Result<Copied, StoreError> {
    store.backup(to, &mut |_| {}).map(|backup| backup.copied)
}

fn restore(from: &Path, dir: &Path) -> Result<Copied, StoreError> {
    Store::restore(from, dir, &options(), &mut |_| {})
}

fn compact(dir: &Path) -> Result<u64, StoreError> {
    Store::compact(dir, &options(), &mut |_| {}).map(|done| done.bytes_before - done.copied.bytes)
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

fn entries(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| name(entry).unwrap()).collect();
    names.sort();
    names
}

/// Tells a thread to stop, also when the test fails: it would be waited for in vain.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_backup_is_one_moment_of_a_store_that_is_written() {
    let (store, _dir) = store();
    apply(&store, &nths(0..3_000), 10);
    let files = Directory::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut next = 3_000;
            while !stop.load(Ordering::Relaxed) {
                apply(&store, &nths(next..next + 20), 10);
                next += 20;
            }
            next
        });
        let stopping = Stop(&stop);
        let mut seen = 0;
        for round in 0..5 {
            let file = files.path().join(format!("{round}.mdb"));
            let mut told = 0;
            let done = store.backup(&file, &mut |bytes| told = bytes).unwrap().copied;
            assert_eq!((done.bytes, told), (fs::metadata(&file).unwrap().len(), done.bytes));
            assert!(
                done.events >= seen && done.events.is_multiple_of(20),
                "a commit is in it or is not"
            );
            assert_eq!(done.last_sequence, done.events);
            seen = done.events;

            let dir = files.path().join(format!("{round}/data"));
            assert_eq!(restore(&file, &dir).unwrap(), done);
            let copy = Store::open(&dir, &options()).unwrap();
            let expected = (0..u32::try_from(done.events).unwrap()).rev().map(|n| id(1, n));
            assert!(visible_ids(&copy, 10).into_iter().eq(expected));
            assert_sound(&copy);
            // It is a store like any other: sequences go on, hashes find what they found.
            assert_eq!(apply(&copy, &[nth(900_000)], 10).last_sequence, done.events + 1);
            let filter = Filter { tags: vec![(b't', vec![tag("x")])], ..Filter::default() };
            assert_eq!(copy.count(&[filter], 10).unwrap(), done.events + 1);
        }
        drop(stopping);
        let written = writer.join().unwrap();
        assert!(u64::from(written) > seen, "it went on meanwhile");
    });
    assert_sound(&store);
    let left: Vec<_> = entries(files.path()).into_iter().filter(|n| n.ends_with("tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn tag(value: &str) -> crate::nostr::TagValue {
    crate::nostr::TagValue::new(value)
}

#[test]
fn a_backup_overwrites_nothing_but_what_an_interrupted_one_left() {
    let (store, _dir) = store();
    apply(&store, &nths(0..10), 10);
    let files = Directory::new();
    let file = files.path().join("b.mdb");
    let beside = files.path().join("b.mdb.tmp");
    fs::create_dir(&beside).unwrap();
    fs::write(beside.join("data.mdb"), "half").unwrap();
    {
        let _other = hold_files(&beside, Hold::Alone).unwrap();
        let error = backup(&store, &file).unwrap_err();
        assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
    }
    assert_eq!(backup(&store, &file).unwrap().events, 10);
    assert_eq!(entries(files.path()), ["b.mdb"]);
    let before = fs::read(&file).unwrap();
    for taken in [&file, &files.path().to_owned()] {
        let error = backup(&store, taken).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    }
    assert!(fs::read(&file).unwrap() == before);
    let nowhere = backup(&store, &files.path().join("none/b.mdb")).unwrap_err();
    assert!(matches!(nowhere, StoreError::Io { .. }), "{nowhere}");
}

#[test]
fn a_file_that_appears_meanwhile_is_not_overwritten() {
    let (store, _dir) = store();
    apply(&store, &nths(0..10), 10);
    let files = Directory::new();
    let file = files.path().join("b.mdb");
    let error = store.backup(&file, &mut |_| fs::write(&file, "mine").unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert_eq!(entries(files.path()), ["b.mdb"]);
}

#[test]
fn only_a_whole_backup_is_restored_and_only_where_nothing_is() {
    let (store, _dir) = store();
    apply(&store, &nths(0..500), 10);
    let files = Directory::new();
    let good = files.path().join("good.mdb");
    backup(&store, &good).unwrap();
    let bytes = fs::read(&good).unwrap();
    let dir = files.path().join("data");

    let bad = files.path().join("bad.mdb");
    for (content, why) in [
        (&b""[..], "empty"),
        (b"{\"id\":\"00\"}\n", "LMDB"),
        (&bytes[..100], "LMDB"),
        (&bytes[..8192], "8192 bytes are there of"),
        (&bytes[..bytes.len() / 2], "bytes are there of"),
        (&bytes[..bytes.len() - 1], "bytes are there of"),
    ] {
        fs::write(&bad, content).unwrap();
        let error = restore(&bad, &dir).unwrap_err();
        assert!(matches!(&error, StoreError::NoBackup { path, .. } if *path == bad), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(entries(&dir), ["writer.lock"]);
    }
    let error = restore(files.path(), &dir).unwrap_err();
    assert!(error.to_string().contains("a directory"), "{error}");
    assert!(matches!(restore(&files.path().join("x"), &dir), Err(StoreError::Io { .. })));

    for taken in ["data.mdb", "notes.txt"] {
        let taken_dir = files.path().join(format!("with-{taken}"));
        fs::create_dir(&taken_dir).unwrap();
        fs::write(taken_dir.join(taken), "mine").unwrap();
        let error = restore(&good, &taken_dir).unwrap_err();
        assert!(error.to_string().contains(taken), "{error}");
        assert_eq!(entries(&taken_dir), [taken], "nothing was touched");
    }
    // What an interrupted restore left is no obstacle; one under way is.
    fs::create_dir(dir.join("rebuild.tmp")).unwrap();
    fs::write(dir.join("rebuild.tmp/data.mdb"), &bytes[..5_000]).unwrap();
    {
        let _other = lock_directory(&dir).unwrap();
        assert!(matches!(restore(&good, &dir), Err(StoreError::Held { .. })));
    }
    assert_eq!(restore(&good, &dir).unwrap().events, 500);
    assert_eq!((mode(&good), mode(&dir.join("data.mdb"))), (0o600, 0o600));
    assert_eq!(entries(&dir), ["data.mdb", "writer.lock"]);
    assert!(matches!(restore(&good, &dir), Err(StoreError::NotEmpty { .. })));
}

#[test]
fn a_backup_of_another_schema_is_refused_by_its_name() {
    let (store, _dir) = store();
    let files = Directory::new();
    for (found, build) in [(0u64, "an older"), (77, "a newer")] {
        let environment = store.environment().unwrap();
        let mut txn = environment.env.write_txn().unwrap();
        environment.tables.meta.put(&mut txn, b"schema", &found.to_be_bytes()).unwrap();
        txn.commit().unwrap();
        let file = files.path().join(format!("{found}.mdb"));
        // A backup of this very process: nobody opens a store of another schema.
        let error = backup(&store, &file).unwrap_err();
        assert!(error.to_string().contains(build), "{error}");
        assert!(!file.exists());
    }
}

/// A store of which most was deleted.
fn thinned(dir: &Path) -> Vec<[u8; 32]> {
    let store = Store::open(dir, &options()).unwrap();
    for chunk in 0..10 {
        apply(&store, &nths(chunk * 300..(chunk + 1) * 300), 10);
    }
    delete(&store, &[Filter { since: Some(400), ..Filter::default() }], 1000, 10);
    visible_ids(&store, 10)
}

#[test]
fn compaction_gives_free_pages_back_and_keeps_everything_else() {
    let dir = Directory::new();
    let expected = thinned(dir.path());
    let before = fs::metadata(dir.path().join("data.mdb")).unwrap().len();
    let info = || Store::open_read_only(dir.path(), &options()).unwrap().info().unwrap();
    let free = info().free_bytes;
    let file = dir.path().join("data.mdb");
    assert_eq!(mode(&file), 0o600, "as LMDB makes it");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let saved = compact(dir.path()).unwrap();
    assert_eq!(mode(&file), 0o640);
    let after = fs::metadata(dir.path().join("data.mdb")).unwrap().len();
    assert_eq!(before - after, saved);
    assert!(after < before / 4, "{before} → {after}");
    // Pages that were allocated and freed at once never reach the file.
    assert!(saved <= free && free < saved + saved / 10, "{free} free, {saved} saved");
    assert_eq!((info().free_bytes, info().disk_bytes), (0, after));
    assert_eq!(compact(dir.path()).unwrap(), 0, "nothing more to save");
    let store = Store::open(dir.path(), &options()).unwrap();
    assert_eq!(visible_ids(&store, 10), expected);
    assert_eq!(store.info().unwrap().last_sequence, 3_000);
    assert_eq!(apply(&store, &[nth(5_000)], 10).last_sequence, 3_001);
    assert_sound(&store);
    store.reopen().unwrap();
    assert_eq!(visible_ids(&store, 10).len(), expected.len() + 1);
}

#[test]
fn who_replaces_the_data_file_is_alone_with_it() {
    let dir = Directory::new();
    let missing = compact(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    assert!(entries(dir.path()).is_empty());
    thinned(dir.path());
    {
        let _writer = Store::open(dir.path(), &options()).unwrap();
        assert!(matches!(compact(dir.path()), Err(StoreError::Held { .. })));
    }
    {
        let _reader = Store::open_read_only(dir.path(), &options()).unwrap();
        assert!(matches!(compact(dir.path()), Err(StoreError::Read { .. })));
    }
    {
        let _other = hold_files(dir.path(), Hold::Alone).unwrap();
        for open in [Store::open, Store::open_read_only] {
            let error = open(dir.path(), &options()).unwrap_err();
            assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
        }
    }
    compact(dir.path()).unwrap();
}

#[test]
fn whatever_a_crash_leaves_the_store_opens_and_the_rest_is_swept_away() {
    let dir = Directory::new();
    let expected = thinned(dir.path());
    let file = |name: &str| -> PathBuf { dir.path().join(name) };
    let whole = fs::read(file("data.mdb")).unwrap();
    let compacted = {
        compact(dir.path()).unwrap();
        fs::read(file("data.mdb")).unwrap()
    };
    // (what lies beside, what is in place)
    let states: [(Option<&[u8]>, &[u8]); 5] = [
        (None, &whole),
        (Some(b""), &whole),
        (Some(&compacted[..compacted.len() / 2]), &whole),
        (Some(&compacted), &whole),
        (None, &compacted),
    ];
    for (beside, in_place) in states {
        for open in [Store::open, Store::open_read_only] {
            let _ = fs::create_dir(file("rebuild.tmp"));
            fs::write(file("rebuild.tmp/lock.mdb"), "x").unwrap();
            if let Some(beside) = beside {
                fs::write(file("rebuild.tmp/data.mdb"), beside).unwrap();
            }
            fs::write(file("data.mdb"), in_place).unwrap();
            let store = open(dir.path(), &options()).unwrap();
            assert_eq!(visible_ids(&store, 10), expected);
            assert_sound(&store);
        }
        assert!(file("rebuild.tmp").exists(), "a reader removes nothing");
        compact(dir.path()).unwrap();
        assert!(!file("rebuild.tmp").exists());
        drop(Store::open(dir.path(), &options()).unwrap());
    }
    fs::create_dir(file("rebuild.tmp")).unwrap();
    fs::write(file("rebuild.tmp/data.mdb"), "x").unwrap();
    drop(Store::open(dir.path(), &options()).unwrap());
    assert!(!file("rebuild.tmp").exists(), "a writer makes room");
}
