//! What is found, in which order, and that the index keeps up with its store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::nostr::Event;
use crate::relay::ports::{CommitBatch, Erased, Query};
use crate::store::testing::*;
use crate::store::{CommitSink, Options, SliceBudget, Store};

fn note(n: u8, author: u8, kind: u16, created_at: u64, content: &str) -> Event {
    let tags = json!([["subject", "weekend"], ["t", "garden"], ["x", "unread"]]);
    from_json(&json!({
        "id": hex(&id(n, 0)), "pubkey": hex(&key(author)), "created_at": created_at, "kind": kind,
        "tags": if n == 9 { tags } else { json!([]) }, "content": content, "sig": "00".repeat(64),
    }))
}

/// A store with its index, both in one directory.
struct Searched {
    store: Store,
    index: SearchIndex,
    tail: Tail,
    sink: Erasures,
}

impl Searched {
    fn open(store: &Store, data: &Path) -> Self {
        let index = SearchIndex::open(&directory(data)).unwrap();
        store.set_search(Arc::new(index.clone()));
        let (sink, woken) = Tail::channel(store).unwrap();
        let tail = Tail::spawn(store.clone(), index.clone(), sink.clone(), woken).unwrap();
        Self { store: store.clone(), index, tail, sink }
    }

    fn apply(&self, events: &[Event]) {
        self.sink.publish(&Arc::new(apply(&self.store, events, 50)));
    }

    /// Waits until so many events can be found.
    fn wait(&self, events: u64) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.index.events() != events {
            assert!(Instant::now() < end, "{} events, not {events}", self.index.events());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn close(self) {
        self.tail.close();
    }

    fn find(&self, filter: &Filter) -> Vec<u8> {
        let slices = SliceBudget { entries: 3, bytes: 1 << 20, events: 2, time: Duration::MAX };
        scan_ids(&self.store, std::slice::from_ref(filter), 500, &slices, 50)
            .iter()
            .map(|id| id[0])
            .collect()
    }
}

fn searching(text: &str) -> Filter {
    Filter { search: Some(text.into()), ..Filter::default() }
}

fn some_notes() -> Vec<Event> {
    vec![
        note(1, 1, 1, 10, "the quick brown fox"),
        note(2, 1, 1, 20, "a quick answer about nothing in particular, and more words than that"),
        note(3, 2, 30023, 30, "Brown bread; quick to bake. Quick!"),
        note(4, 2, 4, 40, "quick?iv=bm90aGluZw=="),
        note(9, 1, 1, 45, "see the pictures"),
    ]
}

#[test]
fn what_has_all_words_is_found_best_first_and_the_filter_narrows_it() {
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    searched.apply(&some_notes());
    searched.wait(4);
    let find = |filter: Filter| searched.find(&filter);
    assert_eq!(find(searching("quick")), [3, 1, 2], "twice in few words, once in few, in many");
    assert_eq!(find(Filter { limit: Some(2), ..searching("QUICK") }), [3, 1]);
    assert_eq!(find(searching("quick brown")), [1, 3]);
    assert_eq!(find(searching(r#""quick brown""#)), [1]);
    assert_eq!(find(searching("quick zebra")), [0; 0]);
    assert_eq!(find(searching("?!")), [0; 0], "no word");
    assert_eq!(find(searching("garden weekend pictures")), [9]);
    assert_eq!(find(searching("unread")), [0; 0]);
    assert_eq!(find(Filter { kinds: Some(vec![1]), ..searching("quick") }), [1, 2]);
    assert_eq!(find(Filter { authors: Some(vec![key(2)]), ..searching("quick") }), [3]);
    // Alike in what the index has of a key.
    assert_eq!(find(Filter { authors: Some(vec![key(101)]), ..searching("quick") }), [0; 0]);
    assert_eq!(find(Filter { since: Some(20), ..searching("quick") }), [3, 2]);
    assert_eq!(find(Filter { until: Some(20), since: Some(11), ..searching("quick") }), [2]);
    let tags = vec![(b't', vec![crate::nostr::TagValue::new("garden")])];
    assert_eq!(find(Filter { tags: tags.clone(), ..searching("pictures") }), [9]);
    assert_eq!(find(Filter { tags, ..searching("quick") }), [0; 0]);
    searched.close();
}

#[test]
fn what_is_gone_is_not_served_and_then_not_found() {
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    searched.apply(&some_notes());
    searched.wait(4);
    // The index has not been told.
    store.erase(&[1], &mut |_| ()).unwrap();
    assert_eq!(searched.find(&searching("quick")), [3, 2]);
    let request = event(id(8, 0), 1, 5, 50, &[["e", &hex(&id(2, 0))]]);
    searched.apply(&[request]);
    searched.wait(4);
    assert_eq!(searched.find(&searching("quick")), [3]);
    let erased = vec![Erased { sequence: 1, created_at: 10, id: [1; 8] }];
    searched.sink.publish(&Arc::new(CommitBatch { erased, ..CommitBatch::default() }));
    searched.wait(3);
    searched.close();
}

#[test]
fn an_index_goes_on_where_it_was_left_and_forgets_what_went_meanwhile() {
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    searched.apply(&some_notes()[..2]);
    searched.wait(2);
    searched.close();
    drop(store);
    let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
    let store = Store::open(dir.path(), &options).unwrap();
    apply(&store, &some_notes()[2..], 50);
    store.erase(&[2], &mut |_| ()).unwrap();
    let searched = Searched::open(&store, dir.path());
    searched.wait(3);
    assert_eq!(searched.find(&searching("quick")), [3, 1]);
    assert_eq!(searched.tail.sweeps(), 1);
    searched.close();
    // Nobody has written meanwhile.
    let searched = Searched::open(&store, dir.path());
    searched.apply(&[note(10, 1, 1, 60, "quick")]);
    searched.wait(4);
    assert_eq!(searched.tail.sweeps(), 0);
    searched.close();
}

/// A power cut where durability is less, or a file put back by hand.
#[test]
fn an_index_of_a_store_that_has_lost_its_end_is_made_anew() {
    let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
    let (store, dir) = store();
    let notes = some_notes();
    apply(&store, &notes[..1], 50);
    drop(store);
    let data = dir.path().join("data.mdb");
    let before = fs::read(&data).unwrap();
    let store = Store::open(dir.path(), &options).unwrap();
    apply(&store, &notes[1..2], 50);
    let searched = Searched::open(&store, dir.path());
    searched.wait(2);
    searched.close();
    drop(store);
    fs::write(&data, before).unwrap();
    let store = Store::open(dir.path(), &options).unwrap();
    // The sequence number of another, which had not that word.
    apply(&store, &[note(9, 1, 1, 45, "pictures"), notes[2].clone()], 50);
    let searched = Searched::open(&store, dir.path());
    searched.wait(3);
    assert_eq!(searched.find(&searching("particular")), [0; 0]);
    assert_eq!(searched.find(&searching("pictures")), [9]);
    searched.close();
}

#[test]
fn a_search_says_what_it_takes_before_it_is_made() {
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    searched.apply(&some_notes());
    searched.wait(4);
    let cost = |filter: Filter| searched.index.cost(&filter).unwrap();
    assert_eq!(cost(searching("quick")), 3);
    assert_eq!(cost(searching("quick brown")), 2, "of the rarest");
    assert_eq!(cost(searching(r#""quick answer" quick"#)), 1);
    assert_eq!(cost(Filter { authors: Some(vec![key(2)]), ..searching("quick") }), 1, "theirs");
    assert_eq!(cost(searching("zebra quick")), 0);
    assert_eq!(cost(searching("?!")), 0);
    let query = Query { filters: vec![searching("quick")], limit_max: 500 };
    let mut scan = store.scan(query).unwrap();
    let price = scan.slice(&store, &WHOLE, 50).unwrap();
    assert_eq!((price.examined, price.events.len(), price.done), (4, 0, false));
    let rest = scan.slice(&store, &WHOLE, 50).unwrap();
    assert_eq!((rest.events.len(), rest.done), (3, true));
    searched.close();
}

#[test]
fn an_index_of_another_store_or_none_that_can_be_read_is_made_anew() {
    let (one, dir) = store();
    let searched = Searched::open(&one, dir.path());
    searched.apply(&some_notes());
    searched.wait(4);
    searched.close();
    let (two, other) = store();
    apply(&two, &[note(7, 1, 1, 10, "quick")], 50);
    fs::rename(directory(dir.path()), directory(other.path())).unwrap();
    let searched = Searched::open(&two, other.path());
    searched.wait(1);
    assert_eq!(searched.find(&searching("quick")), [7]);
    searched.close();
    fs::write(directory(other.path()).join("meta.json"), "{").unwrap();
    let searched = Searched::open(&two, other.path());
    searched.wait(1);
    searched.close();
}

#[test]
fn too_much_that_is_erased_at_once_is_swept() {
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    searched.apply(&some_notes());
    searched.wait(4);
    store.erase(&[1, 2], &mut |_| ()).unwrap();
    let erased =
        (0..=tail::ERASED_MAX as u64).map(|n| Erased { sequence: n, created_at: 1, id: [0; 8] });
    let batch = CommitBatch { erased: erased.collect(), ..CommitBatch::default() };
    searched.sink.publish(&Arc::new(batch));
    searched.wait(2);
    searched.close();
}

/// Every event of a word and no other, on real events.
#[test]
fn a_word_of_real_events_finds_those_that_have_it() {
    let Some(corpus) = crate::nostr::testing::corpus() else { return };
    let event = |line: &str| from_json(&serde_json::from_str(line).unwrap());
    let storable = |event: &Event| !(20_000..30_000).contains(&event.view().kind().0);
    let events: Vec<Event> = corpus.lines().map(event).filter(storable).collect();
    let (store, dir) = store();
    let searched = Searched::open(&store, dir.path());
    events.chunks(1000).for_each(|events| searched.apply(events));
    let (_, fields) = schema();
    let mut analyzer = searched.index.index.tokenizer_for_field(fields.text).unwrap();
    let mut having: BTreeMap<String, BTreeSet<[u8; 32]>> = BTreeMap::new();
    let all = scan_ids(&store, &[Filter::default()], u64::MAX, &WHOLE, 50);
    let stored: BTreeSet<_> = all.into_iter().collect();
    let mut indexed = 0;
    for event in events.iter().filter(|event| stored.contains(event.view().id())) {
        let Some(text) = text::of_event(event.view()) else { continue };
        indexed += 1;
        for word in words(&mut analyzer, &text, usize::MAX) {
            having.entry(word).or_default().insert(*event.view().id());
        }
    }
    searched.wait(indexed);
    assert!(indexed > 1_000 && having.len() > 1_000, "{indexed} events, {} words", having.len());
    for (word, expected) in having.iter().step_by(having.len() / 300) {
        let query = Query { filters: vec![searching(word)], limit_max: u64::MAX };
        let mut scan = store.scan(query).unwrap();
        let mut found = BTreeSet::new();
        while !scan.is_done() {
            let chunk = scan.slice(&store, &WHOLE, 50).unwrap();
            found.extend(chunk.events.iter().map(|json| id_of(json)));
        }
        if expected.len() < 4_000 {
            assert_eq!(&found, expected, "{word:?}");
        }
    }
    searched.close();
}
