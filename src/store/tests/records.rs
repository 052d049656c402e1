//! Records against a naive evaluation, and reconciled through the crate's own client and server.

use std::collections::BTreeSet;
use std::time::Duration;

use negentropy::{Id as RecordId, Negentropy, NegentropyStorageBase, NegentropyStorageVector};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::scan::{build, filter, specs};
use crate::nostr::Filter;
use crate::nostr::event::{Event, Id};
use crate::store::testing::*;
use crate::store::{GatherJob, Gathered, Readers, Records, SliceBudget, Store};

fn gather(store: &Store, filter: &Filter, entries: usize, now: u64) -> Records {
    let mut gathering = store.gather(filter.clone(), 100_000).unwrap();
    let budget = SliceBudget { entries, bytes: 0, events: 0, ..WHOLE };
    loop {
        match gathering.slice(store, &budget, now).unwrap() {
            Gathered::Further => {}
            Gathered::Whole(records) => return records,
            Gathered::TooMany => panic!("few events"),
        }
    }
}

fn items(records: &Records) -> Vec<(u64, Id)> {
    let item = |at| records.get_item(at).unwrap().unwrap();
    (0..records.len()).map(item).map(|item| (item.timestamp, *item.id)).collect()
}

/// What two sides find out of each other: what the first has alone, and what the second has alone.
fn reconcile(ours: &Records, theirs: &Records, frame_bytes_max: u64) -> [BTreeSet<Id>; 2] {
    let mut client = Negentropy::borrowed(ours, frame_bytes_max).unwrap();
    let mut server = Negentropy::borrowed(theirs, frame_bytes_max).unwrap();
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let mut message = Some(client.initiate().unwrap());
    for _ in 0..10_000 {
        let Some(query) = message else {
            let ids = |ids: Vec<RecordId>| ids.iter().map(|id| **id).collect();
            return [ids(have), ids(need)];
        };
        let answer = server.reconcile(&query).unwrap();
        assert!(frame_bytes_max == 0 || answer.len() as u64 <= frame_bytes_max);
        message = client.reconcile_with_ids(&answer, &mut have, &mut need).unwrap();
    }
    panic!("no end of it")
}

/// Events in a few seconds, many of them: the first store has those of bit 0, the second those of bit 1.
fn divided() -> impl Strategy<Value = Vec<(u64, u8)>> {
    prop::collection::vec((1..30_u64, prop::sample::select(&[3, 3, 3, 3, 3, 3, 1, 2][..])), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn records_are_what_a_naive_evaluation_finds_in_order(
        specs in specs(),
        filter in filter(),
        entries in 0..20_usize,
        now in prop::sample::select(&[10u64, 60][..]),
    ) {
        let (store, _dir) = store();
        let events = build(&specs);
        apply(&store, &events, 10);
        let alive: Vec<Event> =
            events.iter().filter(|event| !event.view().is_expired(now)).cloned().collect();
        let found = evaluate(&alive, std::slice::from_ref(&filter), u64::MAX);
        let mut naive: Vec<_> = alive
            .iter()
            .map(|event| (event.view().created_at(), *event.view().id()))
            .filter(|(_, id)| found.contains(id))
            .collect();
        naive.sort_unstable();
        let records = gather(&store, &filter, entries, now);
        prop_assert_eq!(items(&records), naive);
    }

    #[test]
    fn two_stores_find_out_what_each_has_alone(
        divided in divided(),
        entries in 1..300_usize,
        frame_bytes_max in prop::sample::select(&[0, 4_096, 10_000_u64][..]),
    ) {
        let events: Vec<_> =
            (0..).zip(&divided).map(|(n, (at, _))| event(Sha256::digest(u32::to_be_bytes(n)).into(), 1, 1, *at, &[])).collect();
        let side = |bit: u8| -> Vec<Event> {
            let both = events.iter().zip(&divided);
            both.filter(|(_, (_, sides))| sides & bit != 0).map(|(e, _)| e.clone()).collect()
        };
        let records = [1, 2].map(|bit| {
            let (store, _dir) = store();
            apply(&store, &side(bit), 10);
            gather(&store, &Filter::default(), entries, 10)
        });
        let alone = |bit: u8| -> BTreeSet<Id> {
            let both = events.iter().zip(&divided);
            both.filter(|(_, (_, sides))| *sides == bit).map(|(e, _)| *e.view().id()).collect()
        };
        let found = reconcile(&records[0], &records[1], frame_bytes_max);
        prop_assert_eq!(found, [alone(1), alone(2)]);
        // With each other's events they have the same, and one message says so.
        let merged = [1, 2].map(|bit| {
            let (store, _dir) = store();
            apply(&store, &side(bit), 10);
            apply(&store, &side(3 - bit), 10);
            gather(&store, &Filter::default(), entries, 10)
        });
        prop_assert_eq!(&merged[0], &merged[1]);
        // The crate's own storage is of one mind with ours.
        let mut vector = NegentropyStorageVector::new();
        for (at, id) in items(&merged[0]) {
            vector.insert(at, RecordId::from_byte_array(id)).unwrap();
        }
        vector.seal().unwrap();
        let first = Negentropy::borrowed(&records[0], 0).unwrap().initiate().unwrap();
        let ours = Negentropy::borrowed(&merged[0], 0).unwrap().reconcile(&first).unwrap();
        let theirs = Negentropy::borrowed(&vector, 0).unwrap().reconcile(&first).unwrap();
        prop_assert_eq!(ours, theirs);
    }
}

/// The index knows eight bytes of an id.
#[test]
fn ids_that_begin_alike_are_in_order_whatever_came_first() {
    let (store, _dir) = store();
    let alike = |last: u8| {
        let mut id = [9; 32];
        id[31] = last;
        event(id, 1, 1, 100, &[])
    };
    apply(&store, &[alike(2), alike(3), alike(1)], 10);
    let records = gather(&store, &Filter::default(), 100, 10);
    assert_eq!(items(&records).iter().map(|(_, id)| id[31]).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn readers_gather_slice_by_slice_and_no_more_than_they_may() {
    let (store, _dir) = store();
    let events: Vec<_> = (0..100).map(|n| event(id(1, n), 1, 1, u64::from(n), &[])).collect();
    apply(&store, &events, 10);
    let budget = SliceBudget { entries: 30, bytes: 0, events: 0, ..WHOLE };
    let readers = Readers::spawn(&store, 1, 4, budget).unwrap();
    let run = |records_max| {
        let mut gathering = Box::new(store.gather(Filter::default(), records_max).unwrap());
        for slices in 1.. {
            let (send, receive) = flume::unbounded();
            let deliver = Box::new(move |gathering, slice| send.send((gathering, slice)).unwrap());
            let job = GatherJob { gathering, deliver };
            readers.handle().try_gather(job).map_err(|_| "full").unwrap();
            let (back, slice) = receive.recv_timeout(Duration::from_secs(10)).unwrap();
            gathering = back;
            match slice.unwrap() {
                Gathered::Further => {}
                end => return (slices, end),
            }
        }
        unreachable!()
    };
    let (slices, Gathered::Whole(records)) = run(100) else { panic!("a hundred may be") };
    assert_eq!((slices, records.len()), (4, 100));
    assert_eq!(run(99), (4, Gathered::TooMany));
    assert_eq!(run(0), (1, Gathered::TooMany));
    readers.close();
}
