//! Scans that count, against a naive evaluation.

use proptest::prelude::*;

use super::scan::{build, filter, specs};
use crate::nostr::{Filter, Sketch, SketchOffset};
use crate::relay::ports::{Chunk, Counted, Counting, Query};
use crate::store::testing::*;
use crate::store::{SliceBudget, Store};

/// Counts in slices of `entries`; returns how many slices it took, and the answer.
fn count(
    store: &Store,
    query: Query,
    counting: Counting,
    entries: usize,
    now: u64,
) -> (u64, Counted) {
    let mut scan = store.scan(query).unwrap().counting(counting);
    let budget = SliceBudget { entries, bytes: 0, events: 0, ..WHOLE };
    for slices in 1.. {
        let Chunk { events, done, counted, failed, .. } = scan.slice(store, &budget, now).unwrap();
        assert!(events.is_empty() && failed.is_none());
        assert_eq!(done, counted.is_some());
        if let Some(counted) = counted {
            return (slices, counted);
        }
    }
    unreachable!()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn slices_of_any_size_count_what_a_naive_evaluation_does(
        specs in specs(),
        filters in prop::collection::vec(filter(), 1..4),
        limit_max in prop::sample::select(&[3, 10, u64::MAX][..]),
        entries in 0..20_usize,
        now in prop::sample::select(&[10u64, 60][..]),
    ) {
        let (store, _dir) = store();
        let events = build(&specs);
        apply(&store, &events, 10);
        let alive: Vec<_> =
            events.iter().filter(|e| !e.view().is_expired(now)).cloned().collect();
        let expected = evaluate(&alive, &filters, limit_max);
        let all = evaluate(&alive, &filters, u64::MAX).len() == expected.len();
        let query = Query { filters, limit_max };
        let offset = SketchOffset::of("x");
        let counting = Counting { entries_max: 1_000_000, sketch: Some(offset) };
        let (_, counted) = count(&store, query.clone(), counting, entries, now);
        let Counted::Exactly { events, sketch } = counted else { panic!("few events") };
        prop_assert_eq!(events, expected.len() as u64);
        let mut naive = Sketch::new(offset);
        for event in alive.iter().filter(|event| expected.contains(event.view().id())) {
            naive.add(event.view().pubkey());
        }
        if let Some(sketch) = sketch {
            prop_assert!(all, "registers of a part");
            prop_assert_eq!(*sketch, naive);
        } else {
            let cut = |filter: &Filter| filter.limit.is_some();
            prop_assert!(limit_max < u64::MAX || query.filters.iter().any(cut));
        }
    }
}

/// Kind 62 hides what its key has published at once; a deletion and an expiration take theirs away.
#[test]
fn what_may_not_be_served_is_not_counted() {
    let (store, _dir) = store();
    let mut events: Vec<_> = (0..50)
        .map(|n| event(id(1, n), 1, 1, 100, &[]))
        .chain((50..60).map(|n| event(id(1, n), 2, 1, 100, &[])))
        .collect();
    events.push(event(id(2, 0), 2, 1, 100, &[["expiration", "20"]]));
    events.push(event(id(2, 1), 2, 1, 100, &[]));
    events.push(event(id(2, 2), 2, 5, 101, &[["e", &hex(&id(2, 1))]]));
    events.push(event(id(2, 3), 1, 62, 200, &[["relay", URL]]));
    apply(&store, &events, 10);
    assert!(store.info().unwrap().events > 60, "erased in the background, later");
    let query = Query {
        filters: vec![Filter { kinds: Some(vec![1]), ..Filter::default() }],
        limit_max: u64::MAX,
    };
    let counting = Counting { entries_max: 1_000, sketch: None };
    let exactly = |events| Counted::Exactly { events, sketch: None };
    assert_eq!(count(&store, query.clone(), counting, 7, 19).1, exactly(11));
    assert_eq!(count(&store, query, counting, 7, 20).1, exactly(10));
}

#[test]
fn a_count_that_would_look_at_too_much_stops_there() {
    let (store, _dir) = store();
    let events: Vec<_> = (0..100).map(|n| event(id(1, n), 1, 1, 100, &[])).collect();
    apply(&store, &events, 10);
    let query = Query { filters: vec![Filter::default()], limit_max: u64::MAX };
    let run = |entries_max, entries| {
        let counting = Counting { entries_max, sketch: None };
        count(&store, query.clone(), counting, entries, 10)
    };
    // The end of a range is one step more.
    assert_eq!(run(102, 10).1, Counted::Exactly { events: 100, sketch: None });
    assert_eq!(run(99, 10), (10, Counted::TooMany));
    assert_eq!(run(99, 1_000), (1, Counted::TooMany));
}
