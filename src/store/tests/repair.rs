//! `repair` makes a damaged store whole, and loses nothing that was signed.

use heed::RwTxn;

use crate::nostr::Filter;
use crate::nostr::event::Event;
use crate::store::environment::{Hold, Tables, hold_files};
use crate::store::schema::{ARCHIVED, CHECKSUM_BYTES, checksum};
use crate::store::testing::*;
use crate::store::{Options, Repaired, Store, StoreError};

fn options() -> Options {
    Options { map_bytes_max: 1 << 28, ..Options::default() }
}

/// Something in every table, and a mark whose version is gone.
fn furnished(dir: &Directory) -> Store {
    let store = Store::open(dir.path(), &options()).unwrap();
    let profile = hashed(3, 0, 50, &[]);
    let doomed = hashed(4, 1, 60, &[]);
    let article = format!("30023:{}:x", hex(&key(1)));
    let events = vec![
        hashed(1, 1, 100, &[["t", "a"], ["t", "a"], ["expiration", "900"]]),
        hashed(1, 30023, 100, &[["d", "y"]]),
        hashed(3, 0, 40, &[]),
        profile.clone(),
        doomed.clone(),
        hashed(2, 1, 100, &[["p", &hex(&key(1))]]),
        hashed(1, 5, 100, &[["a", &article], ["e", &hex(&id(9, 9))]]),
        hashed(3, 5, 100, &[["e", &hex(profile.view().id())]]),
        hashed(4, 5, 100, &[["e", &hex(doomed.view().id())]]),
        hashed(5, 62, 100, &[["relay", URL]]),
    ];
    apply(&store, &events, 10);
    assert_eq!(store.check().unwrap().differences, 0);
    store
}

fn damage(store: Store, damage: impl FnOnce(&Tables, &mut RwTxn<'_>)) {
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    damage(&environment.tables, &mut txn);
    txn.commit().unwrap();
}

fn repair(dir: &Directory) -> Repaired {
    Store::repair(dir.path(), &options(), &terms(), &mut |_| {}).unwrap()
}

/// Opens what was repaired: nothing is wrong with it.
fn whole(dir: &Directory) -> Store {
    let store = Store::open(dir.path(), &options()).unwrap();
    let report = store.check().unwrap();
    assert_eq!(report.differences, 0, "{:#?}", report.described);
    store
}

/// Every entry of every table.
fn everything(store: &Store) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let environment = store.environment().unwrap();
    let txn = environment.env.read_txn().unwrap();
    let mut all = Vec::new();
    for (name, table) in environment.tables.named() {
        for entry in table.iter(&txn).unwrap() {
            let (key, value) = entry.unwrap();
            all.push((name, key.to_vec(), value.to_vec()));
        }
    }
    all
}

#[test]
fn a_sound_store_comes_out_as_it_went_in() {
    let dir = Directory::new();
    let store = furnished(&dir);
    let (before, last) = (everything(&store), store.info().unwrap().last_sequence);
    // The highest sequence in use falls behind the last given.
    assert_eq!(
        delete(&store, &[Filter { kinds: Some(vec![62]), ..Filter::default() }], 1000, 10),
        1
    );
    let smaller = everything(&store);
    assert!(smaller.len() < before.len());
    drop(store);
    let repaired = repair(&dir);
    assert_eq!((repaired.events, repaired.left_out, repaired.made_anew), (6, 0, 0), "{repaired:?}");
    assert!(repaired.described.is_empty(), "{:?}", repaired.described);
    let store = whole(&dir);
    assert_eq!(everything(&store), smaller);
    assert_eq!(apply(&store, &[hashed(9, 1, 1, &[])], 10).last_sequence, last + 1);
}

#[test]
fn whatever_is_missing_or_wrong_in_an_index_comes_back() {
    for name in ["id", "time", "author_kind", "kind", "tag", "expire", "replace"] {
        for way in ["missing", "stray", "wrong", "all gone"] {
            let dir = Directory::new();
            let store = furnished(&dir);
            let before = everything(&store);
            damage(store, |tables, txn| {
                let (_, table) = tables.named().into_iter().find(|(n, _)| *n == name).unwrap();
                let (key, value) = table.first(txn).unwrap().unwrap();
                let (mut key, mut value) = (key.to_vec(), value.to_vec());
                match way {
                    "missing" => assert!(table.delete(txn, &key).unwrap()),
                    "all gone" => table.clear(txn).unwrap(),
                    "stray" => {
                        key[0] ^= 0x55;
                        table.put(txn, &key, &value).unwrap();
                    }
                    _ => {
                        value = vec![7; value.len() + 1];
                        table.put(txn, &key, &value).unwrap();
                    }
                }
            });
            let repaired = repair(&dir);
            assert_eq!(repaired.left_out, 0, "{name} {way}: {repaired:?}");
            let store = whole(&dir);
            if name == "replace" && way != "stray" {
                // Which version was deleted, nothing else says.
                assert_eq!(store.info().unwrap().events, 7);
            } else {
                assert_eq!(everything(&store), before, "{name} {way}");
            }
        }
    }
}

#[test]
fn a_record_is_made_from_what_was_signed_or_left_out() {
    let dir = Directory::new();
    let store = furnished(&dir);
    let before = everything(&store);
    let all = visible_ids(&store, 10);
    // The id in the header, the expiration in the header, the form of a tag.
    let header_only = [(1u64, 0usize), (2, 79), (6, crate::nostr::event::HEADER_BYTES + 1)];
    damage(store, |tables, txn| {
        for (seq, at) in header_only {
            let mut record = tables.event.get(txn, &seq.to_be_bytes()).unwrap().unwrap().to_vec();
            record[CHECKSUM_BYTES + at] ^= 0x11;
            tables.event.put(txn, &seq.to_be_bytes(), &record).unwrap();
        }
    });
    let repaired = repair(&dir);
    assert_eq!((repaired.made_anew, repaired.left_out), (3, 0), "{repaired:?}");
    let store = whole(&dir);
    assert_eq!(everything(&store), before);

    // The content, a record cut short, a key that is no sequence number.
    let mut gone = Vec::new();
    damage(store, |tables, txn| {
        let key = 1u64.to_be_bytes();
        let mut record = tables.event.get(txn, &key).unwrap().unwrap().to_vec();
        gone.push(<[u8; 32]>::try_from(&record[CHECKSUM_BYTES..][..32]).unwrap());
        let at = record.windows(4).position(|window| window == b"\"c\",").unwrap() + 1;
        record[at] = b'd';
        tables.event.put(txn, &key, &record).unwrap();
        let key = 6u64.to_be_bytes();
        let record = tables.event.get(txn, &key).unwrap().unwrap().to_vec();
        gone.push(<[u8; 32]>::try_from(&record[CHECKSUM_BYTES..][..32]).unwrap());
        tables.event.put(txn, &key, &record[..50]).unwrap();
        tables.event.put(txn, &[0; 8], &record).unwrap();
    });
    let repaired = repair(&dir);
    assert_eq!((repaired.events, repaired.left_out), (5, 3), "{repaired:?}");
    for said in [&format!("signed as {}", hex(&gone[0])), "event 6: not a record", "the key 0000"] {
        assert!(repaired.described.iter().any(|line| line.contains(said)), "{said}: {repaired:?}");
    }
    let store = whole(&dir);
    let left: Vec<_> = all.into_iter().filter(|id| !gone.contains(id)).collect();
    assert_eq!(visible_ids(&store, 10), left);
    // It may come again.
    let again = hashed(1, 1, 100, &[["t", "a"], ["t", "a"], ["expiration", "900"]]);
    assert_eq!(apply(&store, &[again], 10).stored.len(), 1);
}

#[test]
fn what_contradicts_the_rules_is_settled_by_them() {
    let dir = Directory::new();
    let store = furnished(&dir);
    let older = hashed(6, 10_000, 70, &[]);
    let newer = hashed(6, 10_000, 80, &[]);
    let first = apply(&store, std::slice::from_ref(&older), 10).last_sequence;
    damage(store, |tables, txn| {
        let put = |txn: &mut RwTxn<'_>, seq: u64, event: &Event| {
            let value = [&checksum(seq, event.record())[..], event.record()].concat();
            tables.event.put(txn, &seq.to_be_bytes(), &value).unwrap();
        };
        // A newer version beside the older one, one event twice, one that was deleted, one whose
        // key vanished; tombstones and a backlog that say nothing.
        put(txn, first + 1, &newer);
        put(txn, first + 2, &newer);
        put(txn, first + 3, &hashed(4, 1, 60, &[]));
        put(txn, first + 4, &hashed(5, 1, 100, &[]));
        tables.tomb_id.put(txn, &[1; 7], &[0; 8]).unwrap();
        tables.vanish.put(txn, &key(7), &[0; 3]).unwrap();
        tables.backlog.put(txn, &key(8), &[0; 28]).unwrap();
        tables.meta.put(txn, b"last_seq", &3u64.to_be_bytes()).unwrap();
    });
    let repaired = repair(&dir);
    assert_eq!((repaired.left_out, repaired.entries_left_out), (4, 3), "{repaired:?}");
    let store = whole(&dir);
    let ids = visible_ids(&store, 10);
    assert!(ids.contains(newer.view().id()) && !ids.contains(older.view().id()));
    assert_eq!(store.info().unwrap().last_sequence, first + 4);
}

#[test]
fn deletions_and_vanished_keys_stay_so() {
    let dir = Directory::new();
    let store = furnished(&dir);
    damage(store, |tables, txn| {
        // The requests are gone; what they did is known all the same.
        for seq in 7..=10u64 {
            tables.event.delete(txn, &seq.to_be_bytes()).unwrap();
        }
        tables.author_kind.clear(txn).unwrap();
    });
    repair(&dir);
    let store = whole(&dir);
    let again = [
        hashed(3, 0, 50, &[]),
        hashed(3, 0, 40, &[]),
        hashed(4, 1, 60, &[]),
        hashed(5, 1, 99, &[]),
    ];
    assert!(apply(&store, &again, 10).stored.is_empty());
}

/// Three versions of a profile and of an article, one of them expiring, and a deleted one.
fn archived(dir: &Directory) -> Store {
    let store = furnished(dir);
    let deleted = hashed(6, 0, 15, &[]);
    let events = [
        hashed(6, 0, 30, &[]),
        hashed(6, 0, 20, &[["expiration", "900"]]),
        deleted.clone(),
        hashed(6, 0, 10, &[]),
        hashed(6, 30023, 20, &[["d", "a"]]),
        hashed(6, 30023, 30, &[["d", "a"]]),
        hashed(6, 5, 40, &[["e", &hex(deleted.view().id())]]),
    ];
    apply_by(&keeping(), &store, &events, 10);
    assert_eq!(store.check().unwrap().differences, 0);
    assert_eq!(store.info().unwrap().replaced, 3);
    store
}

#[test]
fn the_archive_comes_along() {
    let dir = Directory::new();
    let store = archived(&dir);
    let before = everything(&store);
    drop(store);
    let repaired = repair(&dir);
    assert_eq!((repaired.replaced, repaired.left_out), (3, 0), "{repaired:?}");
    assert_eq!(everything(&whole(&dir)), before);
    for name in ["archive_id", "archive_expire", "archive_backlog"] {
        let store = Store::open(dir.path(), &options()).unwrap();
        damage(store, |tables, txn| {
            let (_, table) = tables.named().into_iter().find(|(n, _)| *n == name).unwrap();
            table.clear(txn).unwrap();
            table.put(txn, &[7; 40], &[7; 3]).unwrap();
        });
        assert_eq!(repair(&dir).left_out, 0, "{name}");
        assert_eq!(everything(&whole(&dir)), before, "{name}");
    }
}

#[test]
fn of_a_damaged_archive_what_can_be_read_is_kept_by_the_rules() {
    let dir = Directory::new();
    let store = archived(&dir);
    let newest = hashed(6, 0, 30, &[]);
    damage(store, |tables, txn| {
        let archive = tables.archive.unwrap();
        // Nothing knows of the newest profile any more, and one version of it is no record.
        tables.replace.clear(txn).unwrap();
        let seq = tables.id.get(txn, &newest.view().id()[..16]).unwrap().unwrap().to_vec();
        tables.event.delete(txn, &[&[0; 2][..], &seq].concat()).unwrap();
        let (key, record) = archive.archive.first(txn).unwrap().unwrap();
        let (key, record) = (key.to_vec(), record.to_vec());
        archive.archive.put(txn, &key, &record[..50]).unwrap();
        // One that was deleted, one that is stored, too.
        let request = hashed(6, 5, 40, &[]);
        let article = hashed(6, 30023, 30, &[["d", "a"]]);
        for (at, event) in [(1, hashed(6, 0, 15, &[])), (2, article), (3, request)] {
            let value = [&checksum(ARCHIVED, event.record())[..], event.record()].concat();
            archive.archive.put(txn, &[at; 87], &value).unwrap();
        }
    });
    let repaired = repair(&dir);
    let said = |text: &str| repaired.described.iter().any(|line| line.contains(text));
    assert!(said(": not a record") && said("was deleted") && said("stored twice"), "{repaired:?}");
    assert_eq!((repaired.replaced, repaired.left_out), (1, 3), "{repaired:?}");
    let store = whole(&dir);
    assert!(
        visible_ids(&store, 10).contains(hashed(6, 0, 20, &[["expiration", "900"]]).view().id())
    );
}

#[test]
fn a_repair_needs_the_directory_for_itself() {
    let dir = Directory::new();
    let repair = || Store::repair(dir.path(), &options(), &terms(), &mut |_| {});
    assert!(matches!(repair(), Err(StoreError::Missing { .. })));
    let store = furnished(&dir);
    assert!(matches!(repair(), Err(StoreError::Held { .. })));
    drop(store);
    {
        let _reader = hold_files(dir.path(), Hold::Shared).unwrap();
        assert!(matches!(repair(), Err(StoreError::Read { .. })));
    }
    assert_eq!(repair().unwrap().events, 7);
}

#[test]
fn many_events_take_many_transactions() {
    let dir = Directory::new();
    let store = Store::open(dir.path(), &options()).unwrap();
    let mut expected = Vec::new();
    for chunk in 0..9u64 {
        let events: Vec<Event> =
            (0..500).map(|n| hashed(1, 1, chunk * 500 + n, &[["t", "x"]])).collect();
        expected.extend(events.iter().map(|event| *event.view().id()));
        apply(&store, &events, 10);
    }
    expected.reverse();
    damage(store, |tables, txn| {
        tables.kind.clear(txn).unwrap();
        tables.time.clear(txn).unwrap();
    });
    let mut told = Vec::new();
    let done = Store::repair(dir.path(), &options(), &terms(), &mut |events| told.push(events));
    assert_eq!(done.unwrap().events, 4_500);
    assert_eq!(told, [2_000, 4_000, 4_500]);
    assert_eq!(visible_ids(&whole(&dir), 10), expected);
}
