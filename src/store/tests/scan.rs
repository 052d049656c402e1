//! Stored queries against a naive evaluation of NIP-01.

use std::ops::ControlFlow;

use proptest::prelude::*;

use crate::nostr::event::{Event, Id};
use crate::nostr::{Filter, TagValue};
use crate::relay::ports::Query;
use crate::store::testing::*;
use crate::store::{ExportRange, SliceBudget};

const AUTHORS: [u8; 4] = [0, 1, 100, 101];
const KINDS: [u16; 4] = [1, 4, 7, 1059];
const LETTERS: [&str; 3] = ["e", "t", "p"];

fn tag() -> impl Strategy<Value = (&'static str, String)> {
    (prop::sample::select(&LETTERS[..]), 0..4u8).prop_map(|(letter, n)| (letter, value(letter, n)))
}

/// `t` values are text, the others hex.
fn value(letter: &str, n: u8) -> String {
    if letter == "t" { format!("v{n}") } else { hex(&key(n)) }
}

/// All but the id: rank, author, kind, `created_at`, tags, whether it expires.
pub(super) type Spec = (u8, u8, u16, u64, Vec<(&'static str, String)>, bool);

pub(super) fn specs() -> impl Strategy<Value = Vec<Spec>> {
    let tags = prop::collection::vec(tag(), 0..4);
    let author = prop::sample::select(&AUTHORS[..]);
    let kind = prop::sample::select(&KINDS[..]);
    prop::collection::vec((0..4u8, author, kind, 1..8u64, tags, prop::bool::weighted(0.1)), 0..40)
}

pub(super) fn build(specs: &[Spec]) -> Vec<Event> {
    let build = |(n, (rank, author, kind, at, tags, expires)): (u32, &Spec)| {
        let mut all: Vec<[&str; 2]> = tags.iter().map(|(name, v)| [*name, v.as_str()]).collect();
        if *expires {
            all.push(["expiration", "50"]);
        }
        event(id(*rank, n), *author, *kind, *at, &all)
    };
    (0..).zip(specs).map(build).collect()
}

fn some<T: Clone + Ord + std::fmt::Debug + 'static>(
    from: Vec<T>,
) -> impl Strategy<Value = Option<Vec<T>>> {
    let most = from.len();
    let sorted = |mut list: Vec<T>| {
        list.sort_unstable();
        list.dedup();
        list
    };
    prop::option::weighted(0.4, prop::sample::subsequence(from, 0..=most).prop_map(sorted))
}

pub(super) fn filter() -> impl Strategy<Value = Filter> {
    let ids: Vec<Id> = (0..4).flat_map(|rank| (0..40).map(move |n| id(rank, n))).collect();
    let tags = prop::collection::btree_map(
        prop::sample::select(&LETTERS[..]),
        prop::collection::btree_set(0..4u8, 0..3),
        0..3,
    );
    (
        prop::option::weighted(0.15, prop::sample::subsequence(ids, 0..60)),
        some(AUTHORS.map(key).to_vec()),
        some(KINDS.to_vec()),
        prop_oneof![3 => Just(std::collections::BTreeMap::new()), 2 => tags],
        (prop::option::weighted(0.3, 0..9u64), prop::option::weighted(0.3, 0..9u64)),
        prop::option::weighted(0.5, 0..12u64),
    )
        .prop_map(|(ids, authors, kinds, tags, (since, until), limit)| {
            let sorted = |letter: &str, values: &std::collections::BTreeSet<u8>| {
                let mut values: Vec<TagValue> =
                    values.iter().map(|n| TagValue::new(&value(letter, *n))).collect();
                values.sort();
                values
            };
            let mut ids = ids;
            ids.iter_mut().for_each(|ids| ids.sort_unstable());
            Filter {
                ids,
                authors,
                kinds,
                tags: tags
                    .iter()
                    .map(|(letter, values)| (letter.as_bytes()[0], sorted(letter, values)))
                    .collect(),
                since,
                until,
                limit,
                search: None,
            }
        })
}

fn budget() -> impl Strategy<Value = SliceBudget> {
    (0..20usize, 0..3000usize, 0..6usize).prop_map(|(entries, bytes, events)| SliceBudget {
        entries,
        bytes,
        events,
        ..WHOLE
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn slices_of_any_size_yield_what_a_naive_evaluation_does(
        specs in specs(),
        later in specs(),
        filters in prop::collection::vec(filter(), 1..4),
        limit_max in 0..30u64,
        budgets in prop::collection::vec(budget(), 1..6),
        now in prop::sample::select(&[10u64, 60][..]),
    ) {
        let (store, _dir) = store();
        let events = build(&specs);
        apply(&store, &events, 10);
        let alive: Vec<Event> =
            events.iter().filter(|e| !e.view().is_expired(now)).cloned().collect();
        let expected = evaluate(&alive, &filters, limit_max);
        prop_assert_eq!(&scan_ids(&store, &filters, limit_max, &WHOLE, now), &expected);

        // Slice by slice, while other events come in between.
        let mut later = (1000..).zip(&later).map(|(n, spec)| {
            let spec = build(std::slice::from_ref(spec)).remove(0);
            let mut json: serde_json::Value = serde_json::from_slice(&spec.json()).unwrap();
            json["id"] = hex(&id(spec.view().id()[0], n)).into();
            from_json(&json)
        });
        let query = Query { filters: filters.clone(), limit_max };
        let mut scan = store.scan(query).unwrap();
        let mut ids = Vec::new();
        let mut snapshot = None;
        for budget in budgets.iter().cycle() {
            let chunk = scan.slice(&store, budget, now).unwrap();
            prop_assert_eq!(*snapshot.get_or_insert(chunk.snapshot), events.len() as u64);
            prop_assert_eq!(chunk.snapshot, events.len() as u64);
            prop_assert!(chunk.events.len() <= budget.events.max(1));
            let bytes: usize = chunk.events.iter().map(|json| json.len()).sum();
            prop_assert!(bytes <= budget.bytes || chunk.events.len() == 1);
            ids.extend(chunk.events.iter().map(|json| id_of(json)));
            prop_assert_eq!(chunk.done, scan.is_done());
            if chunk.done {
                break;
            }
            if let Some(event) = later.next() {
                apply(&store, &[event], 10);
            }
        }
        prop_assert_eq!(ids, expected);
    }

    #[test]
    fn counting_deleting_and_exporting_agree_with_it(
        specs in specs(),
        filters in prop::collection::vec(filter(), 1..3),
        (since, until) in (prop::option::of(0..9u64), prop::option::of(0..9u64)),
        reverse in any::<bool>(),
        events_max in 1..5usize,
    ) {
        let (store, _dir) = store();
        let events = build(&specs);
        apply(&store, &events, 10);
        let unlimited: Vec<Filter> =
            filters.iter().map(|filter| Filter { limit: None, ..filter.clone() }).collect();
        let matching = evaluate(&events, &unlimited, u64::MAX);
        prop_assert_eq!(store.count(&filters, 10).unwrap(), matching.len() as u64);

        let range = Filter { since, until, ..Filter::default() };
        let mut expected = evaluate(&events, &[range], u64::MAX);
        if !reverse {
            expected.reverse();
        }
        let mut exported = Vec::new();
        store.export(ExportRange { since, until, reverse }, 10, |event| {
            exported.push(*event.id());
            ControlFlow::Continue(())
        }).unwrap();
        prop_assert_eq!(exported, expected);

        prop_assert_eq!(delete(&store, &filters, events_max, 10), matching.len() as u64);
        let left: Vec<Event> =
            events.iter().filter(|e| !matching.contains(e.view().id())).cloned().collect();
        prop_assert_eq!(visible_ids(&store, 10), evaluate(&left, &[Filter::default()], 100));
        assert_sound(&store);
        // Nothing stands in the way of the same events.
        apply(&store, &events, 10);
        prop_assert_eq!(visible_ids(&store, 10), evaluate(&events, &[Filter::default()], 100));
    }
}

#[test]
fn an_export_goes_on_after_each_chunk_without_what_came_meanwhile_or_is_hidden() {
    // Three chunks of a megabyte.
    let text = "x".repeat(20_000);
    let events: Vec<Event> =
        (0..150).map(|n| event(id(1, n), 1, 1, 100 + u64::from(n) / 4, &[["x", &text]])).collect();
    let mut expected: Vec<Id> = evaluate(&events, &[Filter::default()], 1000);
    for reverse in [true, false] {
        let (store, _dir) = store();
        apply(&store, &events, 10);
        let hidden = [
            event(id(2, 0), 1, 1, 120, &[["expiration", "20"]]),
            event(id(2, 1), 2, 1, 120, &[]),
            event(id(2, 2), 2, 62, 120, &[["relay", URL]]),
        ];
        apply(&store, &hidden[..2], 10);
        let mut exported = Vec::new();
        let range = ExportRange { until: Some(200), reverse, ..ExportRange::default() };
        apply(&store, &hidden[2..], 10);
        let visited = store.export(range, 20, |exporting| {
            if exported.is_empty() {
                let everywhere = (90..150).map(|at| event(id(3, at), 3, 1, at.into(), &[]));
                apply(&store, &everywhere.collect::<Vec<_>>(), 10);
            }
            exported.push(*exporting.id());
            ControlFlow::Continue(())
        });
        assert_eq!(visited.unwrap(), 151);
        assert!(exported.contains(&id(2, 2)));
        exported.retain(|exported| *exported != id(2, 2));
        assert_eq!(exported, expected);
        expected.reverse();
    }
    let (store, _dir) = store();
    apply(&store, &events, 10);
    let stop = store.export(ExportRange::default(), 20, |_| ControlFlow::Break(()));
    assert_eq!(stop.unwrap(), 1);
}

#[test]
fn a_filter_that_matches_nothing_yields_empty_slices_until_it_is_done() {
    let (store, _dir) = store();
    let events: Vec<Event> =
        (0..500).map(|n| event(id(1, n), 100, 1, 100 + u64::from(n), &[])).collect();
    apply(&store, &events, 10);
    // Another author, whom the index cannot tell apart.
    let filter = Filter { authors: Some(vec![key(101)]), ..Filter::default() };
    let mut scan = store.scan(Query { filters: vec![filter], limit_max: 500 }).unwrap();
    let budget = SliceBudget { entries: 50, bytes: 1 << 20, events: 100, ..WHOLE };
    let mut slices = 0;
    while !scan.is_done() {
        assert!(scan.slice(&store, &budget, 10).unwrap().events.is_empty());
        slices += 1;
    }
    assert!((10..=20).contains(&slices), "{slices} slices of 50 entries over 500");
    assert!(!scan.is_limited());
}

#[test]
fn what_is_erased_between_slices_is_not_served_and_does_not_stop_the_scan() {
    let (store, _dir) = store();
    let events: Vec<Event> = (0..20u8).map(|n| event(id(n, n.into()), 1, 1, 100, &[])).collect();
    apply(&store, &events, 10);
    let all = events.iter().map(|event| *event.view().id()).collect();
    for filter in [Filter::default(), Filter { ids: Some(all), ..Filter::default() }] {
        let (store, _dir) = self::store();
        apply(&store, &events, 10);
        let mut scan = store.scan(Query { filters: vec![filter], limit_max: 500 }).unwrap();
        let budget = SliceBudget { entries: 30, bytes: 1 << 20, events: 5, ..WHOLE };
        let mut ids: Vec<Id> = Vec::new();
        while ids.len() < 5 {
            let chunk = scan.slice(&store, &budget, 10).unwrap();
            ids.extend(chunk.events.iter().map(|json| id_of(json)));
        }
        let gone: Vec<Id> = (5..10u8).map(|n| id(n, n.into())).collect();
        let erase = Filter { ids: Some(gone.clone()), ..Filter::default() };
        assert_eq!(delete(&store, &[erase], 1000, 10), 5);
        while !scan.is_done() {
            let chunk = scan.slice(&store, &budget, 10).unwrap();
            ids.extend(chunk.events.iter().map(|json| id_of(json)));
        }
        let expected: Vec<Id> =
            events.iter().map(|e| *e.view().id()).filter(|id| !gone.contains(id)).collect();
        assert_eq!(ids, expected);
    }
}

#[test]
fn ids_that_share_sixteen_bytes_are_two_events() {
    let (store, _dir) = store();
    let ids: Vec<Id> = (1..=3u8)
        .map(|n| {
            let mut id = [9; 32];
            id[31] = n;
            id
        })
        .collect();
    let events: Vec<Event> = ids.iter().map(|id| event(*id, 1, 1, 100, &[])).collect();
    apply(&store, &events, 10);
    assert_sound(&store);
    let by_id = |id: Id| Filter { ids: Some(vec![id]), ..Filter::default() };
    for id in &ids {
        assert_eq!(scan_ids(&store, &[by_id(*id)], 10, &WHOLE, 10), [*id]);
    }
    assert!(
        verdicts(&store, &events, 10).iter().all(|v| *v == crate::relay::ports::Verdict::Duplicate)
    );
    delete(&store, &[by_id(ids[0])], 1000, 10);
    assert_sound(&store);
    assert_eq!(scan_ids(&store, &[by_id(ids[2])], 10, &WHOLE, 10), [ids[2]]);
    assert_eq!(scan_ids(&store, &[by_id(ids[0])], 10, &WHOLE, 10), [] as [Id; 0]);
    apply(&store, &events[..1], 10);
    assert_eq!(scan_ids(&store, &[by_id(ids[0])], 10, &WHOLE, 10), [ids[0]]);
    assert_sound(&store);
}
