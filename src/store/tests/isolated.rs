//! A damaged record is served to nobody, and stands in nobody's way.

use std::ops::ControlFlow;

use crate::nostr::event::Event;
use crate::nostr::{EventView, Filter, TagValue};
use crate::relay::ports::Verdict;
use crate::store::schema::CHECKSUM_BYTES;
use crate::store::testing::*;
use crate::store::{ExportRange, Keep, Options, Rule, Store, Terms};

/// Changes a bit of the content of a stored event, as a disk may.
fn damage(store: &Store, sequence: u64) {
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    let key = sequence.to_be_bytes();
    let mut value = environment.tables.event.get(&txn, &key).unwrap().unwrap().to_vec();
    let last = value.len() - 1;
    assert!(last > CHECKSUM_BYTES);
    value[last - 20] ^= 1;
    environment.tables.event.put(&mut txn, &key, &value).unwrap();
    txn.commit().unwrap();
}

fn ids_of(events: &[&Event]) -> Vec<[u8; 32]> {
    events.iter().map(|event| *event.view().id()).collect()
}

#[test]
fn no_answer_holds_it_and_every_answer_holds_the_others() {
    let (store, _dir) = store();
    let topic: &[[&str; 2]] = &[["t", "a"]];
    let events: Vec<Event> =
        (1..=5u32).map(|n| event(id(1, n), 1, 1, 100 + u64::from(n), topic)).collect();
    apply(&store, &events, 10);
    assert_eq!(store.damaged_records().unwrap(), 0);
    damage(&store, 3);
    let others = ids_of(&[&events[4], &events[3], &events[1], &events[0]]);
    let by_tag = Filter { tags: vec![(b't', vec![TagValue::new("a")])], ..Filter::default() };
    for filter in [
        Filter::default(),
        Filter { authors: Some(vec![key(1)]), ..Filter::default() },
        Filter { kinds: Some(vec![1]), ..Filter::default() },
        Filter { authors: Some(vec![key(1)]), kinds: Some(vec![1]), ..Filter::default() },
        by_tag,
    ] {
        assert_eq!(
            scan_ids(&store, std::slice::from_ref(&filter), 500, &WHOLE, 10),
            others,
            "{filter:?}"
        );
        assert_eq!(store.count(&[filter], 10).unwrap(), 4);
    }
    let by_id = Filter { ids: Some(ids_of(&[&events[2]])), ..Filter::default() };
    assert!(scan_ids(&store, &[by_id], 500, &WHOLE, 10).is_empty());
    let newest = store.newest(10, 1 << 20, 10).unwrap();
    assert_eq!(newest.events.len(), 4);
    let mut exported = Vec::new();
    let range = ExportRange { reverse: true, ..ExportRange::default() };
    let visit = |event: EventView<'_>| {
        exported.push(*event.id());
        ControlFlow::Continue(())
    };
    assert_eq!(store.export(range, 10, visit).unwrap(), 4);
    assert_eq!(exported, others);
    assert_eq!(store.damaged_records().unwrap(), 1, "told once");
    let report = store.check().unwrap();
    assert!(report.described.iter().any(|line| line.contains("event 3: its checksum")));
}

#[test]
fn its_event_may_come_again() {
    let (store, _dir) = store();
    let one = event(id(1, 1), 1, 1, 100, &[]);
    let two = event(id(1, 2), 1, 1, 101, &[]);
    apply(&store, &[one.clone(), two.clone()], 10);
    damage(&store, 1);
    let again = verdicts(&store, &[one.clone(), two.clone(), one.clone()], 10);
    assert_eq!(again, [Verdict::Stored, Verdict::Duplicate, Verdict::Duplicate]);
    assert_eq!(visible_ids(&store, 10), ids_of(&[&two, &one]));
    let by_id = Filter { ids: Some(ids_of(&[&one])), ..Filter::default() };
    assert_eq!(scan_ids(&store, &[by_id], 500, &WHOLE, 10), ids_of(&[&one]));
    // And be deleted.
    let request = event(id(1, 3), 1, 5, 102, &[["e", &hex(one.view().id())]]);
    assert_eq!(verdicts(&store, std::slice::from_ref(&request), 10), [Verdict::Stored]);
    assert_eq!(visible_ids(&store, 10), ids_of(&[&request, &two]));
}

#[test]
fn a_newer_version_and_a_deletion_take_its_place() {
    let (store, _dir) = store();
    let older = event(id(1, 1), 1, 0, 100, &[]);
    let other = event(id(1, 2), 2, 0, 100, &[]);
    apply(&store, &[older, other], 10);
    damage(&store, 1);
    damage(&store, 2);
    let newer = event(id(1, 3), 1, 0, 101, &[]);
    let address = format!("0:{}:", hex(&key(2)));
    let request = event(id(1, 4), 2, 5, 101, &[["a", &address]]);
    let stored = verdicts(&store, &[newer.clone(), request.clone()], 10);
    assert_eq!(stored, [Verdict::Stored, Verdict::Stored]);
    let again = event(id(1, 5), 2, 0, 101, &[]);
    assert_eq!(verdicts(&store, &[again], 10), [Verdict::Deleted]);
    assert_eq!(visible_ids(&store, 10), ids_of(&[&newer, &request]));
}

#[test]
fn what_is_erased_in_the_background_goes_on_beside_it() {
    let (store, _dir) = store();
    let expiring: &[[&str; 2]] = &[["expiration", "50"]];
    let mut events: Vec<Event> =
        (1..=4u32).map(|n| event(id(1, n), 1, 1, u64::from(n), expiring)).collect();
    events.extend((5..=8u32).map(|n| event(id(1, n), 2, 1, u64::from(n), &[])));
    events.push(event(id(1, 9), 2, 62, 20, &[["relay", URL]]));
    events.extend((10..=13u32).map(|n| event(id(1, n), 3, 1, u64::from(n), &[])));
    apply(&store, &events, 10);
    for sequence in [1, 5, 10] {
        damage(&store, sequence);
    }
    let mut erased = 0;
    for _ in 0..100 {
        let done = store.maintain(60, 1).unwrap();
        erased += done.erased.len();
        if !done.more {
            break;
        }
    }
    assert_eq!(erased, 6);
    assert!(!store.maintain(60, 1).unwrap().more);
    let rules = vec![Rule { kinds: Some(vec![1]), keep: Keep::OfAuthor(1) }];
    let mut pass = store.retain(rules, 60, false);
    let mut surplus = Vec::new();
    while let Some(found) = pass.slice(&store).unwrap() {
        surplus.extend(found.events);
    }
    assert_eq!(surplus, [12, 11]);
    assert_eq!(
        visible_ids(&store, 60),
        ids_of(&[&events[8], &events[12], &events[11], &events[10]])
    );
    assert_eq!(store.damaged_records().unwrap(), 3);
}

#[test]
fn an_entry_without_its_event_is_passed_over() {
    let (store, _dir) = store();
    let events: Vec<Event> = (1..=3u32).map(|n| event(id(1, n), 1, 1, u64::from(n), &[])).collect();
    apply(&store, &events, 10);
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    // A key that a disk has changed: none has what lies under it, and no later one is the greatest.
    let (key, value) = environment
        .tables
        .event
        .get_greater_than_or_equal_to(&txn, &2u64.to_be_bytes())
        .unwrap()
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .unwrap();
    environment.tables.event.delete(&mut txn, &key).unwrap();
    environment.tables.event.put(&mut txn, &[0x7f; 8], &value).unwrap();
    txn.commit().unwrap();
    assert_eq!(visible_ids(&store, 10), ids_of(&[&events[2], &events[0]]));
    let next = event(id(1, 4), 1, 1, 4, &[]);
    let again = verdicts(&store, &[next.clone(), events[1].clone()], 10);
    assert_eq!(again, [Verdict::Stored, Verdict::Stored]);
    assert_eq!(visible_ids(&store, 10), ids_of(&[&next, &events[2], &events[1], &events[0]]));
    assert_eq!(store.damaged_records().unwrap(), 1);
}

#[test]
fn what_was_replaced_stays_so_when_the_store_is_repaired() {
    let dir = Directory::new();
    let options = Options { map_bytes_max: 1 << 28, ..Options::default() };
    let store = Store::open(dir.path(), &options).unwrap();
    let (older, newer) = (hashed(1, 0, 100, &[]), hashed(1, 0, 200, &[]));
    apply(&store, std::slice::from_ref(&older), 10);
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    let key = 1u64.to_be_bytes();
    let mut value = environment.tables.event.get(&txn, &key).unwrap().unwrap().to_vec();
    // The checksum alone: what was signed can still be read.
    value[0] ^= 1;
    environment.tables.event.put(&mut txn, &key, &value).unwrap();
    txn.commit().unwrap();
    drop(environment);
    let request = hashed(1, 5, 300, &[["e", &hex(newer.view().id())]]);
    apply(&store, &[newer, request.clone()], 10);
    assert_eq!(visible_ids(&store, 10), ids_of(&[&request]));
    drop(store);
    Store::repair(dir.path(), &options, &terms(), &mut |_| {}).unwrap();
    let store = Store::open(dir.path(), &options).unwrap();
    assert_eq!(visible_ids(&store, 10), ids_of(&[&request]));
    assert_sound(&store);
}

#[test]
fn a_damaged_version_in_the_archive_is_left_out_and_goes_with_the_others() {
    let (store, _dir) = store();
    let keeping = Terms { keep_replaced: true, ..terms() };
    let versions: Vec<Event> = (1..=4u32)
        .map(|n| event(id(1, n), 1, 0, 100 + u64::from(n), &[["expiration", "500"]]))
        .collect();
    apply_by(&keeping, &store, &versions, 10);
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    let archive = environment.tables.archive.unwrap().archive;
    let (key, value) = archive.first(&txn).unwrap().unwrap();
    let (key, mut value) = (key.to_vec(), value.to_vec());
    let last = value.len() - 20;
    value[last] ^= 1;
    archive.put(&mut txn, &key, &value).unwrap();
    txn.commit().unwrap();
    let exported = |now| {
        let mut ids = Vec::new();
        let visit = |event: EventView<'_>| {
            ids.push(*event.id());
            ControlFlow::Continue(())
        };
        store.export_replaced(Filter::default(), now, visit).unwrap();
        ids
    };
    assert_eq!(exported(10), ids_of(&[&versions[1], &versions[2]]));
    assert!(store.check().unwrap().described.iter().any(|line| line.contains("checksum")));
    assert_eq!((exported(10).len(), store.damaged_records().unwrap()), (2, 1), "told once");
    // Sent again, it is whole.
    apply_by(&keeping, &store, &versions[..1], 10);
    assert_eq!(exported(10), ids_of(&[&versions[0], &versions[1], &versions[2]]));
    let mut txn = environment.env.write_txn().unwrap();
    archive.put(&mut txn, &key, &value).unwrap();
    txn.commit().unwrap();
    // It expires with the others.
    for _ in 0..10 {
        if !store.maintain(600, 1).unwrap().more {
            break;
        }
    }
    assert_eq!(store.info().unwrap().replaced, 0);
    assert!(!store.maintain(600, 1).unwrap().more);
    let txn = environment.env.read_txn().unwrap();
    assert_eq!(environment.tables.archive.unwrap().expire.len(&txn).unwrap(), 0);
}
