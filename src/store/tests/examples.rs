//! The rules one by one: a few events in every order, and what is visible in the end.

use crate::nostr::event::Event;
use crate::store::testing::*;

/// Applies the events in every order, one by one and as one batch, and expects `visible` (ranks
/// of ids, which [`event`] made of the position) to be left.
fn expect(name: &str, events: &[Event], visible: &[u8]) {
    let mut expected: Vec<_> = visible.iter().map(|rank| id(*rank, 0)).collect();
    expected.sort_unstable();
    let orders = permutations(events.len());
    for order in &orders {
        let ordered: Vec<Event> = order.iter().map(|n| events[*n].clone()).collect();
        for batch in [1, ordered.len()] {
            let (store, _dir) = store();
            ordered.chunks(batch).for_each(|batch| drop(apply(&store, batch, 50)));
            for _ in 0..2 {
                let mut got = visible_ids(&store, 50);
                got.sort_unstable();
                assert_eq!(got, expected, "{name}: {order:?} by {batch}");
                assert_sound(&store);
                while store.maintain(50, 1).unwrap().more {}
            }
        }
    }
}

fn permutations(of: usize) -> Vec<Vec<usize>> {
    if of == 0 {
        return vec![Vec::new()];
    }
    let insert = |shorter: Vec<usize>| {
        (0..of).map(move |at| {
            let mut longer = shorter.clone();
            longer.insert(at, of - 1);
            longer
        })
    };
    permutations(of - 1).into_iter().flat_map(insert).collect()
}

/// The event of rank `n`: author, kind, `created_at`, tags.
fn e(n: u8, author: u8, kind: u16, created_at: u64, tags: &[[&str; 2]]) -> Event {
    event(id(n, 0), author, kind, created_at, tags)
}

#[test]
fn deletion_by_id_is_for_the_author_and_never_for_deletions() {
    let (one, two) = (hex(&id(1, 0)), hex(&id(2, 0)));
    let note = e(1, 0, 1, 10, &[]);
    expect("own", &[note.clone(), e(2, 0, 5, 5, &[["e", &one]])], &[2]);
    expect("another's", &[note.clone(), e(2, 9, 5, 20, &[["e", &one]])], &[1, 2]);
    let deletion = e(2, 0, 5, 5, &[["e", &one]]);
    expect("a deletion", &[note, deletion, e(3, 0, 5, 20, &[["e", &two]])], &[2, 3]);
    let vanish = e(2, 0, 62, 5, &[["relay", URL]]);
    expect("a vanish", &[vanish, e(3, 0, 5, 20, &[["e", &two]])], &[2, 3]);
    let wrap = e(1, 7, 1059, 10, &[["p", &hex(&key(0))]]);
    expect("a wrap to me", &[wrap.clone(), e(2, 0, 5, 5, &[["e", &one]])], &[2]);
    expect("a wrap to another", &[wrap, e(2, 8, 5, 5, &[["e", &one]])], &[1, 2]);
    let mention = e(1, 7, 1, 10, &[["p", &hex(&key(0))]]);
    expect("a mention", &[mention, e(2, 0, 5, 20, &[["e", &one]])], &[1, 2]);
}

#[test]
fn deletion_by_address_reaches_up_to_the_request() {
    let long = |n, at, d| e(n, 0, 30023, at, &[["d", d]]);
    let address = format!("30023:{}:x", hex(&key(0)));
    let request = e(3, 0, 5, 10, &[["a", &address]]);
    expect("older", &[long(1, 9, "x"), request.clone()], &[3]);
    expect("as old", &[long(1, 10, "x"), request.clone()], &[3]);
    expect("newer", &[long(1, 9, "x"), long(2, 11, "x"), request.clone()], &[2, 3]);
    expect("another d", &[long(1, 9, "y"), request], &[1, 3]);
    let other = e(3, 9, 5, 10, &[["a", &address]]);
    expect("another's", &[long(1, 9, "x"), other], &[1, 3]);
    let plain = format!("0:{}:", hex(&key(0)));
    expect("plain", &[e(1, 0, 0, 9, &[]), e(3, 0, 5, 10, &[["a", &plain]])], &[3]);
}

#[test]
fn the_newest_version_wins_also_when_it_is_deleted() {
    let profile = |n, at| e(n, 0, 0, at, &[]);
    expect("newest", &[profile(1, 10), profile(2, 11), profile(3, 9)], &[2]);
    expect("lowest id", &[profile(1, 10), profile(2, 10), profile(3, 10)], &[1]);
    let deletion = e(4, 0, 5, 1, &[["e", &hex(&id(2, 0))]]);
    expect("deleted", &[profile(1, 10), profile(2, 11), deletion], &[4]);
    // One that had expired before it came was never a version.
    let expired = e(2, 0, 0, 11, &[["expiration", "20"]]);
    let deletion = e(4, 0, 5, 1, &[["e", &hex(&id(2, 0))]]);
    expect("expired", &[profile(1, 10), expired, deletion], &[1, 4]);
}

#[test]
fn a_vanished_key_leaves_nothing_up_to_its_request() {
    let vanish = |n, relay| e(n, 0, 62, 10, &[["relay", relay]]);
    let (old, new) = (e(1, 0, 1, 10, &[]), e(2, 0, 1, 11, &[]));
    expect("here", &[old.clone(), new.clone(), vanish(9, "wss://Relay.example:443")], &[2, 9]);
    expect("everywhere", &[old.clone(), new.clone(), vanish(9, "ALL_RELAYS")], &[2, 9]);
    expect("elsewhere", &[old.clone(), new, vanish(9, "wss://other.example")], &[1, 2, 9]);
    let deletion = e(3, 0, 5, 5, &[["e", &hex(&id(8, 0))]]);
    expect("deletions", &[old, deletion.clone(), vanish(9, URL)], &[9]);
    // What a vanished deletion request named stays deleted, whichever came first.
    expect("effects", &[e(8, 0, 1, 20, &[]), deletion, vanish(9, URL)], &[9]);
    let wrap = |n, at| e(n, 7, 1059, at, &[["p", &hex(&key(0))]]);
    expect("wraps", &[wrap(1, 10), wrap(2, 11), vanish(9, URL)], &[2, 9]);
    let later = e(8, 0, 62, 20, &[["relay", URL]]);
    expect("twice", &[e(1, 0, 1, 15, &[]), vanish(9, URL), later], &[8, 9]);
    let neighbour = e(1, 101, 1, 5, &[]);
    let vanish = e(9, 100, 62, 10, &[["relay", URL]]);
    expect("a key alike", &[neighbour, e(2, 100, 1, 5, &[]), vanish], &[1, 9]);
}
