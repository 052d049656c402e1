//! How many index entries a query examines: the narrowest way is taken, whatever the filter's form.

use std::time::Duration;

use crate::nostr::event::{Event, Id};
use crate::nostr::{Filter, TagValue};
use crate::relay::ports::Query;
use crate::store::plan::SOURCES_MAX;
use crate::store::schema::join;
use crate::store::testing::*;
use crate::store::{SliceBudget, Store};

/// Far more than any of these queries may examine.
const MANY: u32 = 4_000;

/// What looking for the best way may take: two walks of 16 and 256 entries along three ways.
const PLANNING: u64 = 3 * (16 + 256);

/// What a filter finds, checked, and how many entries that took.
fn examined(store: &Store, events: &[Event], filter: &Filter) -> (usize, u64) {
    let query = Query { filters: vec![filter.clone()], limit_max: 500 };
    let mut scan = store.scan(query).unwrap();
    let mut found = Vec::new();
    while !scan.is_done() {
        let chunk = scan.slice(store, &WHOLE, 10).unwrap();
        found.extend(chunk.events.iter().map(|json| id_of(json)));
    }
    assert_eq!(found, evaluate(events, std::slice::from_ref(filter), 500));
    (found.len(), scan.examined())
}

fn tag(letter: u8, value: &str) -> (u8, Vec<TagValue>) {
    (letter, vec![TagValue::new(value)])
}

/// One event a second.
fn event_at(at: u32, author: u8, kind: u16, tags: &[[&str; 2]]) -> Event {
    event(id(1, at), author, kind, u64::from(at), tags)
}

#[test]
fn the_rarer_of_two_decides() {
    let (popular, rare) = (hex(&key(7)), hex(&key(9)));
    let made = |at: u32| {
        let topic = ["t", if at % 500 == 3 { "rare" } else { "common" }];
        let author = if at % 1_500 == 2 { 3 } else { 1 };
        let kind = if at % 1_000 == 1 { 30 } else { 1 };
        let person = ["p", if at % 400 == 3 { &*rare } else { &*popular }];
        event_at(at, author, kind, &[topic, person])
    };
    let events: Vec<Event> = (1..MANY).map(made).collect();
    let (store, _dir) = store();
    apply(&store, &events, 10);
    let of = |filter: Filter| examined(&store, &events, &filter);
    let popular = tag(b'p', &popular);
    let everybody: Vec<_> = (1..100).map(key).collect();
    for (what, filter) in [
        (
            "an author who wrote three events, and a key that nearly all name",
            Filter {
                authors: Some(vec![key(3)]),
                tags: vec![popular.clone()],
                ..Filter::default()
            },
        ),
        (
            "a common key and a rare topic",
            Filter { tags: vec![popular.clone(), tag(b't', "rare")], ..Filter::default() },
        ),
        (
            "a rare key and a common topic",
            Filter { tags: vec![tag(b'p', &rare), tag(b't', "common")], ..Filter::default() },
        ),
        (
            "a rare kind and a common topic",
            Filter { kinds: Some(vec![30]), tags: vec![tag(b't', "common")], ..Filter::default() },
        ),
        (
            "a rare kind and many authors",
            Filter { kinds: Some(vec![30]), authors: Some(everybody.clone()), ..Filter::default() },
        ),
        (
            "the last seconds and many authors",
            Filter {
                since: Some(u64::from(MANY) - 5),
                authors: Some(everybody),
                ..Filter::default()
            },
        ),
    ] {
        let (found, examined) = of(filter);
        assert!((2..=11).contains(&found), "{what}: {found} events");
        // Each entry it finds is sought, and left.
        assert!(examined <= 100, "{what}: {examined} entries");
    }
    // A limit ends it, however many there are.
    let (found, examined) = of(Filter { tags: vec![popular], limit: Some(5), ..Filter::default() });
    assert!(found == 5 && examined <= 6, "{examined} entries");
}

#[test]
fn what_only_one_of_two_tags_has_is_leapt_over() {
    // The newest half has one, the oldest half the other, and a few between have both.
    let made = |at: u32| {
        let tags: &[[&str; 2]] = match at * 20 / MANY {
            0..10 => &[["t", "a"]],
            10 if at.is_multiple_of(40) => &[["t", "a"], ["r", "b"]],
            _ => &[["r", "b"]],
        };
        event_at(at, 1, 1, tags)
    };
    let events: Vec<Event> = (1..MANY).map(made).collect();
    let (store, _dir) = store();
    apply(&store, &events, 10);
    let both = Filter { tags: vec![tag(b'r', "b"), tag(b't', "a")], ..Filter::default() };
    let (found, examined) = examined(&store, &events, &both);
    assert_eq!(found, 5);
    assert!(examined <= PLANNING + 100, "{examined} entries");
    // And an author beside a tag.
    let author = Filter { authors: Some(vec![key(1)]), tags: vec![tag(b't', "a")], ..both };
    let (found, examined) = self::examined(&store, &events, &author);
    assert_eq!(found, 500);
    assert!(examined <= PLANNING + 502, "{examined} entries");
}

#[test]
fn what_an_author_wrote_is_found_kind_by_kind() {
    let (store, _dir) = store();
    let everybody = 1..=40;
    // Each has one note; the first has forty kinds besides, all even.
    let mut events: Vec<Event> =
        everybody.clone().map(|n| event_at(1_000 + u32::from(n), n, 1, &[])).collect();
    events.extend((0..40u16).map(|n| event_at(2_000 + u32::from(n), 1, 2 + 2 * n, &[])));
    apply(&store, &events, 10);
    let one = Filter { authors: Some(vec![key(1)]), ..Filter::default() };
    let (found, entries) = examined(&store, &events, &one);
    assert!(found == 41 && entries <= PLANNING + 3 * 41 + 1, "{found} in {entries}");
    let ten = Filter { limit: Some(10), ..one.clone() };
    assert_eq!(examined(&store, &events, &ten).0, 10);
    // Odd kinds, of which it has one, and far more than the ranges of a few.
    let odd = Filter { kinds: Some((0..1_000).map(|n| 2 * n + 1).collect()), ..one.clone() };
    let (found, entries) = examined(&store, &events, &odd);
    assert!(found == 1 && entries <= PLANNING + 100, "{found} in {entries}");
    let all = Filter { authors: Some(everybody.map(key).collect()), ..Filter::default() };
    let (found, _) = examined(&store, &events, &all);
    assert_eq!(found, 80);
    // They are found in slices, too, and a slice's budget is kept.
    let mut scan = store.scan(Query { filters: vec![all], limit_max: 500 }).unwrap();
    let budget = SliceBudget { entries: 8, ..WHOLE };
    let mut ids = Vec::new();
    while !scan.is_done() {
        let before = scan.examined();
        ids.extend(scan.slice(&store, &budget, 10).unwrap().events.iter().map(|json| id_of(json)));
        assert!(scan.examined() - before <= 8 + PLANNING);
    }
    assert_eq!(ids, evaluate(&events, &[Filter::default()], 500));
}

#[test]
fn keys_that_begin_alike_have_one_range() {
    let (store, _dir) = store();
    let mut events: Vec<Event> = (1..MANY).map(|at| event_at(at, 2, 1, &[])).collect();
    events.extend((0..40u16).map(|n| event_at(MANY + u32::from(n), 1, 40 + n, &[])));
    apply(&store, &events, 10);
    let mut alike: Vec<_> = (0..100u16).map(|n| join(&[&key(1)[..30], &n.to_be_bytes()])).collect();
    alike.push(key(1));
    alike.sort_unstable();
    let filter = Filter { authors: Some(alike), ..Filter::default() };
    let (found, entries) = examined(&store, &events, &filter);
    assert!(found == 40 && entries <= PLANNING + 200, "{found} in {entries}");
}

#[test]
fn an_author_whose_events_are_of_a_late_kind_is_not_taken_for_a_rare_one() {
    let (store, _dir) = store();
    let made = |at: u32| match u16::try_from(at).unwrap() {
        n @ 1..=20 => event_at(at, 1, n, &[]),
        n if n % 20 == 10 => event_at(at, 1, 1_000, &[["t", "rare"]]),
        _ => event_at(at, 1, 1_000, &[]),
    };
    let events: Vec<Event> = (1..MANY).map(made).collect();
    apply(&store, &events, 10);
    let filter =
        Filter { authors: Some(vec![key(1)]), tags: vec![tag(b't', "rare")], ..Filter::default() };
    let (found, entries) = examined(&store, &events, &filter);
    assert!(found == 199 && entries <= PLANNING + 300, "{found} in {entries}");
}

#[test]
fn an_author_of_more_kinds_than_a_query_may_walk_is_found_by_time() {
    let (store, _dir) = store();
    let kinds = || (1_000..10_000).chain(40_000..49_000);
    let events: Vec<Event> = kinds()
        .zip(0..)
        .map(|(kind, n)| event_at(n, 1, kind, &[]))
        .chain([event_at(30_000, 2, 1, &[])])
        .collect();
    assert!(events.len() > SOURCES_MAX + 1);
    apply(&store, &events, 10);
    let filter = Filter { authors: Some(vec![key(1)]), ..Filter::default() };
    let (found, entries) = examined(&store, &events, &filter);
    let finding = SOURCES_MAX as u64 + 1;
    assert!(found == 500 && entries <= finding + 600, "{found} in {entries}");
}

#[test]
fn a_slice_whose_time_is_over_ends_after_a_few_entries() {
    let (store, _dir) = store();
    let events: Vec<Event> = (1..500).map(|at| event_at(at, 1, 1, &[])).collect();
    apply(&store, &events, 10);
    let all = events.iter().map(|event| *event.view().id()).collect();
    for filter in [Filter::default(), Filter { ids: Some(all), ..Filter::default() }] {
        let mut scan = store.scan(Query { filters: vec![filter], limit_max: 500 }).unwrap();
        let budget = SliceBudget { entries: 256, time: Duration::ZERO, ..WHOLE };
        let mut found = 0;
        while !scan.is_done() {
            let chunk = scan.slice(&store, &budget, 10).unwrap();
            assert!((1..=16).contains(&chunk.examined), "{} entries", chunk.examined);
            found += chunk.events.len();
        }
        assert_eq!(found, events.len());
    }
}

#[test]
fn a_query_is_planned_in_slices() {
    let (store, _dir) = store();
    let events: Vec<Event> = (1..MANY).map(|at| event_at(at, 1, 1, &[["t", "a"]])).collect();
    apply(&store, &events, 10);
    let filter = Filter {
        kinds: Some(vec![1]),
        tags: vec![tag(b't', "a")],
        limit: Some(1),
        ..Filter::default()
    };
    let query = Query { filters: vec![filter; 20], limit_max: 500 };
    let mut scan = store.scan(query).unwrap();
    let budget = SliceBudget { entries: 256, ..WHOLE };
    let (mut slices, mut ids): (u64, Vec<Id>) = (0, Vec::new());
    while !scan.is_done() {
        let before = scan.examined();
        let chunk = scan.slice(&store, &budget, 10).unwrap();
        assert!(scan.examined() - before <= 256 + PLANNING);
        ids.extend(chunk.events.iter().map(|json| id_of(json)));
        slices += 1;
    }
    assert_eq!(ids, [id(1, MANY - 1)]);
    assert!(slices > 20, "{slices} slices");
}
