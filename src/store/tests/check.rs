//! `check` sees every kind of damage.

use heed::RwTxn;

use crate::nostr::event::Event;
use crate::store::Store;
use crate::store::check::check;
use crate::store::environment::Tables;
use crate::store::schema::CHECKSUM_BYTES;
use crate::store::schema::{ARCHIVED, record_of, seal};
use crate::store::testing::*;

/// One event for each index, an address, a deletion and a vanish that waits to be erased.
fn furnished() -> (Store, Directory) {
    let (store, dir) = store();
    let address = format!("30023:{}:x", hex(&key(1)));
    let doomed = hex(&id(9, 9));
    let events: Vec<Event> = vec![
        event(id(1, 1), 1, 1, 100, &[["t", "a"], ["t", "a"], ["expiration", "900"]]),
        event(id(1, 2), 1, 30023, 100, &[["d", "y"]]),
        event(id(1, 3), 1, 5, 100, &[["a", &address], ["e", &doomed]]),
        event(id(1, 4), 2, 1, 100, &[]),
        event(id(1, 5), 2, 62, 100, &[["relay", URL]]),
        event(id(1, 6), 3, 1059, 100, &[["p", &hex(&key(4))]]),
        event(id(1, 7), 3, 0, 99, &[["expiration", "900"]]),
        event(id(1, 8), 3, 0, 100, &[]),
        event(id(1, 9), 6, 0, 99, &[]),
        event(id(2, 1), 6, 0, 100, &[]),
        event(id(2, 2), 6, 62, 99, &[["relay", URL]]),
    ];
    apply_by(&keeping(), &store, &events, 10);
    assert_sound(&store);
    (store, dir)
}

fn damage(store: &Store, damage: impl FnOnce(&Tables, &mut RwTxn<'_>)) {
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    damage(&environment.tables, &mut txn);
    txn.commit().unwrap();
}

fn differences(store: &Store) -> u64 {
    let report = check(&store.environment().unwrap(), None).unwrap();
    assert_eq!(report.described.is_empty(), report.differences == 0);
    report.differences
}

/// Tables whose entries follow from the events, by name.
const DERIVED: [&str; 10] = [
    "id",
    "time",
    "author_kind",
    "kind",
    "tag",
    "expire",
    "replace",
    "archive",
    "archive_id",
    "archive_expire",
];

#[test]
fn a_missing_entry_is_seen_in_every_table() {
    for name in DERIVED.into_iter().chain(["event", "vanish", "tomb_addr", "archive_backlog"]) {
        let (store, _dir) = furnished();
        damage(&store, |tables, txn| {
            let (_, table) = tables.named().into_iter().find(|(n, _)| *n == name).unwrap();
            let first = table.first(txn).unwrap().unwrap().0.to_vec();
            assert!(table.delete(txn, &first).unwrap());
        });
        assert!(differences(&store) > 0, "{name}");
    }
}

#[test]
fn a_stray_entry_is_seen_in_every_table() {
    let others = ["event", "backlog", "tomb_id", "tomb_addr", "vanish", "archive_backlog"];
    for name in DERIVED.into_iter().chain(others) {
        let (store, _dir) = furnished();
        damage(&store, |tables, txn| {
            let (_, table) = tables.named().into_iter().find(|(n, _)| *n == name).unwrap();
            let (key, value) = match table.first(txn).unwrap() {
                Some((key, value)) => (key.to_vec(), value.to_vec()),
                None => (vec![0; 64], vec![0; 8]),
            };
            // As long as the others, with another beginning.
            let mut stray = key.clone();
            match name {
                "event" => stray = 99u64.to_be_bytes().into(),
                "tomb_id" | "tomb_addr" | "vanish" => stray.truncate(7),
                _ => stray[0] ^= 0x55,
            }
            table.put(txn, &stray, &value).unwrap();
        });
        assert!(differences(&store) > 0, "{name}");
    }
}

#[test]
fn a_stray_entry_that_makes_up_for_a_missing_one_is_seen_twice() {
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        let (key, _) = tables.kind.first(txn).unwrap().unwrap();
        let mut key = key.to_vec();
        tables.kind.delete(txn, &key).unwrap();
        key[0] ^= 0x55;
        tables.kind.put(txn, &key, &[]).unwrap();
    });
    assert_eq!(differences(&store), 2);
}

#[test]
fn a_wrong_value_is_seen_in_every_table_that_has_values() {
    let names = ["id", "time", "tag", "replace", "event", "backlog", "meta"];
    let archive = ["archive", "archive_id", "archive_backlog"];
    for name in names.into_iter().chain(archive) {
        let (store, _dir) = furnished();
        damage(&store, |tables, txn| {
            let (_, table) = tables.named().into_iter().find(|(n, _)| *n == name).unwrap();
            let entry = if name == "meta" {
                let (key, value) = (b"last_seq", &1u64.to_be_bytes());
                (key.to_vec(), value.to_vec())
            } else {
                let (key, value) = table.first(txn).unwrap().unwrap();
                let mut value = value.to_vec();
                // The id in a record, how far a backlog reaches, anything elsewhere.
                let at = match name {
                    "event" | "archive" => 0,
                    "backlog" | "archive_backlog" => 7,
                    _ => value.len() / 2,
                };
                value[at] ^= 1;
                (key.to_vec(), value)
            };
            table.put(txn, &entry.0, &entry.1).unwrap();
        });
        assert!(differences(&store) > 0, "{name}");
    }
}

#[test]
fn a_record_whose_tags_are_nonsense_is_told_and_not_tripped_over() {
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        let (key, record) = tables.event.first(txn).unwrap().unwrap();
        let (key, mut record) = (key.to_vec(), record.to_vec());
        // The form of the first tag.
        record[CHECKSUM_BYTES + crate::nostr::event::HEADER_BYTES + 1] = 0xff;
        tables.event.put(txn, &key, &record).unwrap();
    });
    assert!(differences(&store) > 0);
}

#[test]
fn events_that_should_have_gone_are_seen() {
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        for (event, deleter) in [(id(1, 1), key(1)), (id(1, 6), key(4)), (id(1, 6), key(5))] {
            tables.tomb_id.put(txn, &[event, deleter].concat(), &[0; 8]).unwrap();
        }
        tables.backlog.clear(txn).unwrap();
        tables.vanish.put(txn, &key(1), &50u64.to_be_bytes()).unwrap();
    });
    // The event with a tombstone of its author, the gift wrap with one of whom it is for, and the event
    // whose vanish nobody would carry out any more.
    assert_eq!(differences(&store), 3);
}

#[test]
fn versions_that_should_not_be_archived_are_seen() {
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        tables.tomb_id.put(txn, &[id(1, 7), key(3)].concat(), &[0; 8]).unwrap();
        let archive = tables.archive.unwrap();
        archive.backlog.clear(txn).unwrap();
    });
    // One with a tombstone, and one whose vanish nobody would carry out any more.
    assert_eq!(differences(&store), 2);
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        let (key, _) = tables.archive.unwrap().archive.first(txn).unwrap().unwrap();
        let address = key[..50].to_vec();
        let mark = tables.replace.get(txn, &address).unwrap().unwrap().to_vec();
        // As old a version as can be.
        tables.replace.put(txn, &address, &[&[0xff; 37][..], &mark[37..]].concat()).unwrap();
    });
    // The mark is wrong for what is stored, is none, and nothing replaces what is archived.
    assert_eq!(differences(&store), 3);
}

/// What is said of an archive of two versions, of which `change` alters the first one's record.
fn said_of_archived(change: impl FnOnce(Vec<u8>, &Tables, &mut RwTxn<'_>) -> Vec<u8>) -> String {
    let (store, _dir) = furnished();
    damage(&store, |tables, txn| {
        let archive = tables.archive.unwrap().archive;
        let (key, value) = archive.first(txn).unwrap().unwrap();
        let (key, record) = (key.to_vec(), record_of(value).unwrap().to_vec());
        let mut sealed = Vec::new();
        seal(ARCHIVED, &change(record, tables, txn), &mut sealed);
        archive.put(txn, &key, &sealed).unwrap();
    });
    check(&store.environment().unwrap(), None).unwrap().described.join("\n")
}

#[test]
fn archived_records_are_compared_with_their_json_their_place_and_what_is_stored() {
    let said = said_of_archived(|mut record, _, _| {
        let kind = b"\"kind\":0";
        let at = record.windows(kind.len()).position(|window| window == kind).unwrap();
        record[at + kind.len() - 1] = b'1';
        record
    });
    assert!(said.contains("its header differs from its JSON"), "{said}");
    let said = said_of_archived(|_, tables, txn| {
        let (_, last) = tables.archive.unwrap().archive.last(txn).unwrap().unwrap();
        record_of(last).unwrap().to_vec()
    });
    assert!(said.contains("lies at another's place"), "{said}");
    let said = said_of_archived(|record, tables, txn| {
        let mut sealed = Vec::new();
        seal(99, &record, &mut sealed);
        tables.event.put(txn, &99u64.to_be_bytes(), &sealed).unwrap();
        tables.id.put(txn, &record[..16], &99u64.to_be_bytes()[2..]).unwrap();
        record
    });
    assert!(said.contains("is stored, too"), "{said}");
}

#[test]
fn a_deletion_request_that_has_not_reached_the_archive_is_seen() {
    let (store, _dir) = furnished();
    let mut archived = Vec::new();
    damage(&store, |tables, txn| {
        let archive = tables.archive.unwrap();
        for table in [archive.archive, archive.id, archive.expire] {
            let (key, value) = table.first(txn).unwrap().unwrap();
            archived.push((table, key.to_vec(), value.to_vec()));
        }
    });
    apply(&store, &[event(id(2, 3), 3, 5, 100, &[["e", &hex(&id(1, 7))]])], 10);
    assert_sound(&store);
    damage(&store, |tables, txn| {
        for (table, key, value) in &archived {
            assert!(table.get(txn, key).unwrap().is_none());
            table.put(txn, key, value).unwrap();
        }
        assert!(tables.tomb_id.delete(txn, &[id(1, 7), key(3)].concat()).unwrap());
    });
    assert_eq!(differences(&store), 1);
}
