//! What becomes of replaced versions where they are kept.

use std::ops::ControlFlow;

use crate::nostr::event::{Event, Id};
use crate::nostr::{EventView, Filter};
use crate::relay::ports::Verdict;
use crate::store::testing::*;
use crate::store::{Options, Store, StoreError};

/// Version `n` of an article.
fn article(author: u8, d: &str, n: u32) -> Event {
    event(id(1, n), author, 30023, 100 + u64::from(n), &[["d", d]])
}

fn articles(author: u8, d: &str, numbers: std::ops::Range<u32>) -> Vec<Event> {
    numbers.map(|n| article(author, d, n)).collect()
}

fn ids(numbers: impl IntoIterator<Item = u32>) -> Vec<Id> {
    numbers.into_iter().map(|n| id(1, n)).collect()
}

fn archive(store: &Store, events: &[Event]) -> Vec<Verdict> {
    let committed = apply_by(&keeping(), store, events, 50);
    assert_sound(store);
    committed.verdicts.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Entries of each of the archive's tables.
fn entries(store: &Store) -> Vec<u64> {
    let tables = store.info().unwrap().tables;
    let archive = tables.iter().filter(|table| table.name.starts_with("archive"));
    archive.map(|table| table.entries).collect()
}

fn finish(store: &Store, now: u64, events_max: usize) -> usize {
    for chunk in 1..200 {
        let more = store.maintain(now, events_max).unwrap().more;
        assert_sound(store);
        if !more {
            return chunk;
        }
    }
    panic!("it does not come to an end");
}

#[test]
fn replaced_versions_are_archived_once_whenever_they_come_and_never_served() {
    let (store, _dir) = store();
    archive(&store, &articles(1, "a", 2..4));
    assert_eq!(replaced_ids(&store, 50), ids([2]));
    let late = articles(1, "a", 0..2);
    assert_eq!(archive(&store, &late), [Verdict::Superseded, Verdict::Superseded]);
    assert_eq!(archive(&store, &articles(1, "a", 0..4))[..3], vec![Verdict::Superseded; 3]);
    assert_eq!(replaced_ids(&store, 50), ids(0..3));
    assert_eq!(visible_ids(&store, 50), ids([3]));
    let filter = Filter { ids: Some(ids(0..3)), ..Filter::default() };
    assert_eq!(store.count(&[filter], 50).unwrap(), 0);
    assert_eq!(store.newest(10, 1 << 20, 50).unwrap().events.len(), 1);
    let info = store.info().unwrap();
    assert_eq!((info.events, info.replaced, info.last_sequence), (1, 3, 2));
    // By address, the oldest first.
    let mut exported = Vec::new();
    archive(&store, &articles(1, "b", 10..12));
    let visit = |event: EventView<'_>| {
        exported.push((event.d_tag().to_text(), event.created_at()));
        ControlFlow::Continue(())
    };
    store.export_replaced(Filter::default(), 50, visit).unwrap();
    exported.sort_by(|one, other| one.0.cmp(&other.0));
    let of = |d: &str, at| (d.to_owned(), at);
    assert_eq!(exported, [of("a", 100), of("a", 101), of("a", 102), of("b", 110)]);
}

#[test]
fn without_the_switch_nothing_is_archived_and_what_is_stays_and_goes_by_the_rules() {
    let (store, _dir) = store();
    apply(&store, &articles(1, "a", 1..4), 50);
    apply(&store, &articles(1, "a", 0..1), 50);
    assert_eq!(entries(&store), [0; 4]);
    archive(&store, &articles(1, "b", 10..14));
    apply(&store, &articles(1, "b", 14..16), 50);
    assert_eq!(replaced_ids(&store, 50), ids(10..13));
    let request = event(id(9, 1), 1, 5, 200, &[["e", &hex(&id(1, 11))]]);
    apply(&store, &[request], 50);
    assert_eq!(replaced_ids(&store, 50), ids([10, 12]));
    assert_sound(&store);
}

#[test]
fn deletion_by_id_is_for_the_author_and_at_once() {
    let (store, _dir) = store();
    archive(&store, &articles(1, "a", 0..4));
    let request = |n, author| event(id(9, n), author, 5, 1, &[["e", &hex(&id(1, 1))]]);
    archive(&store, &[request(1, 2)]);
    assert_eq!(replaced_ids(&store, 50), ids(0..3));
    archive(&store, &[request(2, 1)]);
    assert_eq!(entries(&store), [2, 2, 0, 0]);
    assert_eq!(archive(&store, &articles(1, "a", 1..2)), [Verdict::Deleted]);
    assert_eq!(replaced_ids(&store, 50), ids([0, 2]));
}

#[test]
fn deletion_by_address_hides_at_once_and_erases_chunk_by_chunk() {
    let (store, _dir) = store();
    archive(&store, &articles(1, "a", 0..100));
    archive(&store, &articles(1, "b", 100..103));
    archive(&store, &articles(2, "a", 200..203));
    let address = format!("30023:{}:a", hex(&key(1)));
    let request = event(id(9, 1), 1, 5, 100 + 60, &[["a", &address]]);
    archive(&store, &[request]);
    let left = ids((61..99).chain([100, 101, 200, 201]));
    assert_eq!(replaced_ids(&store, 50), left);
    assert_eq!(store.info().unwrap().replaced, 103);
    store.maintain(50, 20).unwrap();
    assert_eq!(store.info().unwrap().replaced, 83);
    assert_eq!(finish(&store, 50, 20), 3);
    assert_eq!(replaced_ids(&store, 50), left);
    assert_eq!(entries(&store), [42, 42, 0, 0]);
    assert_eq!(archive(&store, &articles(1, "a", 60..62)), [Verdict::Deleted, Verdict::Superseded]);
    assert_eq!(replaced_ids(&store, 50), left);
}

/// Of many addresses, with versions that stay in each, and a key that begins alike.
#[test]
fn a_vanish_leaves_nothing_of_the_archive_and_gets_past_what_stays() {
    let (store, _dir) = store();
    for n in 0..60 {
        let d = n.to_string();
        let versions = [0, 1, 2].map(|version| {
            event(id(version, n), 100, 30023, 100 + 10 * u64::from(version), &[["d", &d]])
        });
        archive(&store, &versions);
        archive(&store, &versions.map(|_| event(id(9, n), 101, 30023, 100, &[["d", &d]])));
    }
    archive(&store, &[event(id(8, 1), 101, 0, 50, &[]), event(id(8, 2), 101, 0, 60, &[])]);
    assert_eq!(entries(&store), [121, 121, 0, 0]);
    let vanish = |n, up_to| event(id(7, n), 100, 62, up_to, &[["relay", URL]]);
    archive(&store, &[vanish(1, 105)]);
    let hidden = replaced_ids(&store, 50);
    assert_eq!(hidden.len(), 61);
    store.maintain(50, 3).unwrap();
    assert_eq!(store.info().unwrap().replaced, 118);
    // Once more while the first is under way.
    archive(&store, &[vanish(2, 105), vanish(3, 106)]);
    let chunks = finish(&store, 50, 3);
    assert!((20..80).contains(&chunks), "{chunks}");
    assert_eq!((replaced_ids(&store, 50), entries(&store)), (hidden, vec![61, 61, 0, 0]));
    archive(&store, &[vanish(4, 1_000)]);
    assert_eq!(replaced_ids(&store, 50), [id(8, 1)]);
    finish(&store, 50, 200);
    assert_eq!(entries(&store), [1, 1, 0, 0]);
    let again = event(id(0, 0), 100, 30023, 100, &[["d", "0"]]);
    assert_eq!(archive(&store, &[again]), [Verdict::Vanished]);
    assert_eq!(entries(&store), [1, 1, 0, 0]);
}

#[test]
fn what_waits_to_be_erased_is_not_archived() {
    let (store, _dir) = store();
    let vanish = event(id(7, 1), 1, 62, 150, &[["relay", URL]]);
    archive(&store, &[article(1, "a", 0), vanish]);
    assert_eq!((store.info().unwrap().events, visible_ids(&store, 50)), (2, vec![id(7, 1)]));
    archive(&store, &articles(1, "a", 60..61));
    assert_eq!(entries(&store), [0; 4]);
    finish(&store, 50, 10);
    assert_eq!(visible_ids(&store, 50), [id(1, 60), id(7, 1)]);
}

#[test]
fn what_expires_is_erased_from_the_archive_and_not_archived_later() {
    let (store, _dir) = store();
    let version =
        |n: u32, at: &str| event(id(1, n), 1, 0, 100 + u64::from(n), &[["expiration", at]]);
    archive(&store, &[version(0, "60"), version(1, "70"), version(2, "80"), version(3, "80")]);
    assert_eq!(replaced_ids(&store, 59), ids(0..3));
    assert_eq!(replaced_ids(&store, 60), ids(1..3));
    assert!(store.maintain(69, 1).unwrap().more);
    assert_eq!(entries(&store), [2, 2, 2, 0]);
    finish(&store, 70, 10);
    assert_eq!(replaced_ids(&store, 50), ids([2]));
    // It waits to be erased when a newer one comes.
    apply_by(&keeping(), &store, &[event(id(1, 4), 1, 0, 200, &[])], 80);
    finish(&store, 80, 10);
    assert_eq!((entries(&store), visible_ids(&store, 80)), (vec![0; 4], ids([4])));
}

#[test]
fn a_filter_chooses_among_archived_versions() {
    let (store, _dir) = store();
    for author in [1, 3, 5, 7] {
        archive(&store, &articles(author, "a", u32::from(author) * 10..u32::from(author) * 10 + 4));
    }
    let found = |filters: &[Filter]| {
        let mut walk = store.replaced(filters);
        let mut found = Vec::new();
        while !walk.is_done() {
            found.extend(walk.next_ids(&store, 2, 50).unwrap());
        }
        found
    };
    let any = Filter::default();
    let by = |authors: &[u8]| Filter {
        authors: Some(authors.iter().map(|author| key(*author)).collect()),
        ..Filter::default()
    };
    assert_eq!(found(std::slice::from_ref(&any)).len(), 12);
    assert_eq!(found(&[by(&[1, 2, 5, 9])]), ids([10, 11, 12, 50, 51, 52]));
    let until = Filter { until: Some(131), ..by(&[3]) };
    assert_eq!(found(&[until, by(&[7])]), ids([30, 31, 70, 71, 72]));
    assert_eq!(found(&[Filter { kinds: Some(vec![1]), ..any.clone() }]), ids([]));
    // Those are about what is stored.
    assert_eq!(found(&[Filter { limit: Some(100), ..any }]), ids([]));
    assert_eq!(found(&[]), ids([]));
}

/// A store of before there was an archive, of which nobody has made tables by opening it for writing.
#[test]
#[expect(unsafe_code, reason = "removing a table invalidates its handle")]
fn a_store_without_an_archive_is_read() {
    let (store, dir) = store();
    apply(&store, &articles(1, "a", 0..2), 50);
    let environment = store.environment().unwrap();
    let mut txn = environment.env.write_txn().unwrap();
    for (name, table) in environment.tables.named() {
        if name.starts_with("archive") {
            // SAFETY: the handle is not used again: the store is closed next.
            unsafe { table.remove(&mut txn).unwrap() };
        }
    }
    txn.commit().unwrap();
    drop((environment, store));
    let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
    let reader = Store::open_read_only(dir.path(), &options).unwrap();
    assert!(reader.environment().unwrap().tables.archive.is_none());
    assert_eq!((visible_ids(&reader, 50), replaced_ids(&reader, 50)), (ids([1]), vec![]));
    assert_eq!(reader.info().unwrap().replaced, 0);
    assert_sound(&reader);
    drop(reader);
    let writer = Store::open(dir.path(), &options).unwrap();
    archive(&writer, &articles(1, "a", 0..1));
    assert_eq!(replaced_ids(&writer, 50), ids([0]));
}

/// What erasing needs is left by versions that come late, as by those that are stored.
#[test]
fn late_versions_leave_room_to_erase_in_a_full_map() {
    let dir = Directory::new();
    let options = Options { map_bytes_max: 16 << 20, ..Options::default() };
    let store = Store::open(dir.path(), &options).unwrap();
    let text = "x".repeat(20_000);
    let version = |n: u32| event(id(1, n), 1, 0, u64::from(n), &[["x", &text]]);
    apply_by(&keeping(), &store, &[version(10_000)], 50);
    let refused = (1..1_000).find_map(|n| {
        store.apply(&submit(&[version(n)]), 50, &keeping()).err().map(|error| (n, error))
    });
    let (n, error) = refused.expect("16 MiB hold no thousand of 20 kB");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    // Three quarters are for events.
    assert!((300..620).contains(&n), "{n}");
    assert_eq!(store.info().unwrap().replaced, u64::from(n) - 1);
    let vanish = event(id(9, 1), 1, 62, 20_000, &[["relay", URL]]);
    apply_by(&keeping(), &store, &[vanish], 50);
    while store.maintain(50, 50).unwrap().more {}
    assert_eq!(store.info().unwrap().replaced, 0);
    assert_sound(&store);
}
