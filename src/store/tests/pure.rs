//! A transaction is a pure function of what is stored, the batch, `now` and the relay's names. That the
//! files it is written in name no clock, environment or configuration, `tests/relay/layers.rs` sees to.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::rules;
use crate::nostr::Event;
use crate::store::testing::*;
use crate::store::{Options, Store};

/// Two stores that began with one key of the hashes take one history, at different times of day and cut
/// into different batches: entry by entry, byte for byte, they are the same.
#[test]
fn one_history_makes_one_store() {
    let (empty, dir) = store();
    drop(empty);
    let copies = [Directory::new(), Directory::new(), Directory::new()];
    for copy in &copies {
        std::fs::copy(dir.path().join("data.mdb"), copy.path().join("data.mdb")).unwrap();
    }
    let mut runner = TestRunner::deterministic();
    let history = proptest::collection::vec(rules::spec(), 300).new_tree(&mut runner).unwrap();
    let events = rules::build(&history.current());
    let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
    let [together, later, alone] =
        copies.each_ref().map(|copy| Store::open(copy.path(), &options).unwrap());
    take(&together, &events, 30);
    // Long enough for any clock that counts seconds.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    take(&later, &events, 30);
    take(&alone, &events, 1);
    assert!(together.info().unwrap().replaced > 5);
    let expected = tables(&together);
    assert!(expected.iter().map(|(_, entries)| entries.len()).sum::<usize>() > 300);
    assert_eq!(tables(&later), expected);
    assert_eq!(tables(&alone), expected, "the cut into batches is of no matter");
}

/// Thirty events at one time; the background has its turn after them.
fn take(store: &Store, events: &[Event], batch: usize) {
    for (now, events) in (7..).zip(events.chunks(30)) {
        for events in events.chunks(batch) {
            apply_by(&keeping(), store, events, now);
        }
        store.maintain(now, 5).unwrap();
    }
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn tables(store: &Store) -> Vec<(&'static str, Entries)> {
    let environment = store.environment().unwrap();
    let txn = environment.env.read_txn().unwrap();
    let entries = environment.tables.named().into_iter().map(|(name, table)| {
        let owned = |entry: heed::Result<(&[u8], &[u8])>| {
            entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()
        };
        (name, table.iter(&txn).unwrap().map(owned).collect())
    });
    entries.collect()
}
