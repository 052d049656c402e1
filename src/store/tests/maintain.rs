//! Erasing in the background, chunk by chunk.

use crate::nostr::event::Event;
use crate::store::Store;
use crate::store::testing::*;

/// Maintains to the end in chunks of `events_max`; answers how many chunks that took.
fn finish(store: &Store, now: u64, events_max: usize) -> usize {
    for chunk in 1..200 {
        let done = store.maintain(now, events_max).unwrap();
        assert!(done.erased.len() <= events_max);
        assert_sound(store);
        if !done.more {
            return chunk;
        }
    }
    panic!("it does not come to an end");
}

#[test]
fn expired_events_go_first_come_first_served_and_no_more_than_asked_for() {
    let (store, _dir) = store();
    let events: Vec<Event> = (0..9u8)
        .map(|n| event(id(n, 0), 1, 1, 10, &[["expiration", &(20 + n).to_string()]]))
        .collect();
    apply(&store, &events, 10);
    assert_eq!(store.maintain(19, 5).unwrap().erased, []);
    assert_eq!(store.maintain(23, 2).unwrap().erased.len(), 2);
    assert!(visible_ids(&store, 22).contains(&id(3, 0)), "two to go, three stay");
    assert_eq!(finish(&store, 23, 2), 2);
    assert_eq!(store.info().unwrap().events, 5);
}

#[test]
fn a_vanish_gets_past_what_it_may_not_erase() {
    let (store, _dir) = store();
    let me = hex(&key(100));
    // A key that the index cannot tell from mine, and mentions of me that are no gift wraps.
    let others = (0..60)
        .flat_map(|n| [event(id(1, n), 101, 1, 10, &[]), event(id(2, n), 7, 1, 10, &[["p", &me]])]);
    let mine = (0..10).flat_map(|n| {
        [
            event(id(0, n), 100, 1, 10, &[]),
            event(id(9, n), 100, 1, 9, &[]),
            event(id(3, n), 7, 1059, 9, &[["p", &me]]),
        ]
    });
    let events: Vec<Event> = others.chain(mine).collect();
    apply(&store, &events, 10);
    apply(&store, &[event(id(9, 99), 100, 62, 10, &[["relay", URL]])], 10);
    assert_eq!(visible_ids(&store, 10).len(), 121);
    // At two events or 32 entries a chunk.
    let chunks = finish(&store, 10, 2);
    assert!((15..40).contains(&chunks), "{chunks}");
    assert_eq!(store.info().unwrap().events, 121);
    assert_eq!(visible_ids(&store, 10).len(), 121);
}
