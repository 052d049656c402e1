//! Random queries over many events against a naive evaluation of NIP-01: the same JSON in the same order,
//! however small the slices are. What a query asks for is drawn from the events, so that it finds some.
//! The same in every run; `RHEOSTR_TEST_LONG` asks a hundred thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;

use crate::nostr::event::Event;
use crate::nostr::{Filter, TagValue};
use crate::relay::ports::Query;
use crate::store::testing::*;
use crate::store::{SliceBudget, Store};

/// How many queries each set of events is asked.
pub fn queries_count() -> usize {
    if std::env::var_os("RHEOSTR_TEST_LONG").is_some() { 100_000 } else { 1_500 }
}

/// Asks a store that holds `stored` and nothing else that is visible at `now`.
pub fn ask(store: &Store, stored: &[Event], now: u64, seed: u64, count: usize) {
    let naive = Naive::new(stored);
    let mut random = Rng::with_seed(seed);
    let (mut returned, mut partial, mut empty) = (0, 0, 0);
    for number in 0..count {
        let filters = filters(&mut random, &naive.events);
        let limit_max = if random.u8(..4) == 0 { random.u64(..20) } else { 500 };
        let expected = naive.evaluate(&filters, limit_max);
        let query = Query { filters: filters.clone(), limit_max };
        let mut scan = store.scan(query).unwrap();
        let mut found = Vec::new();
        while !scan.is_done() {
            let chunk = scan.slice(store, &budget(&mut random), now).unwrap();
            partial += u64::from(!chunk.done);
            found.extend(chunk.events);
        }
        let same = found.iter().map(|json| &json[..]).eq(expected.iter().map(|e| e.view().json()));
        if !same {
            let found: Vec<String> = found.iter().map(|json| hex(&id_of(json)[..8])).collect();
            let expected: Vec<String> =
                expected.iter().map(|event| hex(&event.view().id()[..8])).collect();
            panic!("query {number} of seed {seed}: {filters:?}\nfound {found:?}\nnot {expected:?}");
        }
        returned += expected.len();
        empty += usize::from(expected.is_empty());
    }
    // Else this asks for nothing, or for everything at once.
    assert!(returned > 20 * count, "{count} queries found {returned} events");
    assert!(empty < count / 2, "{empty} of {count} queries found nothing");
    assert!(partial > count as u64, "{count} queries paused {partial} times");
}

/// NIP-01 by hand.
struct Naive {
    /// Newest first, lowest id first on a tie.
    events: Vec<Event>,
}

impl Naive {
    fn new(stored: &[Event]) -> Self {
        let mut events = stored.to_vec();
        events.sort_by_key(|event| newest_first(event.view()));
        Self { events }
    }

    fn evaluate(&self, filters: &[Filter], limit_max: u64) -> Vec<&Event> {
        let mut chosen = BTreeSet::new();
        for filter in filters.iter().filter(|filter| !filter.is_unsatisfiable()) {
            let limit = filter.limit.unwrap_or(u64::MAX).min(limit_max);
            let matching =
                (0..).zip(&self.events).filter(|(_, event)| filter.matches(event.view()));
            let places = matching.map(|(place, _)| place);
            chosen.extend(places.take(usize::try_from(limit).expect("a small limit")));
        }
        chosen.into_iter().map(|place: usize| &self.events[place]).collect()
    }
}

/// Mostly small, now and then with room for all.
fn budget(random: &mut Rng) -> SliceBudget {
    let mut below = |most: u32| {
        let bits = random.u32(..=most);
        random.usize(..1 << bits)
    };
    let (entries, bytes, events) = (below(10), below(17), below(7));
    let time = if random.u8(..4) == 0 { Duration::ZERO } else { Duration::MAX };
    SliceBudget { entries, bytes, events, time }
}

fn filters(random: &mut Rng, events: &[Event]) -> Vec<Filter> {
    let count = [1, 1, 1, 2, 2, 3, 5][random.usize(..7)];
    let mut filters: Vec<Filter> = (0..count).map(|_| filter(random, events)).collect();
    if random.u8(..5) == 0 {
        // The same once more, up to another limit: all it finds is found twice.
        let again = filters[random.usize(..count)].clone();
        filters.push(Filter { limit: limit(random), ..again });
    }
    filters
}

fn limit(random: &mut Rng) -> Option<u64> {
    match random.u8(..10) {
        0 => Some(0),
        1 => Some(1),
        2..6 => Some(random.u64(..60)),
        6 => Some(u64::MAX),
        _ => None,
    }
}

/// Each list with some chance. Their first value is that of one event, so that they may all match it.
fn filter(random: &mut Rng, events: &[Event]) -> Filter {
    let any = |random: &mut Rng| events[random.usize(..events.len())].view();
    let subject = any(random);
    let others = |random: &mut Rng| -> usize {
        match random.u8(..8) {
            0..4 => 0,
            4..7 => random.usize(..4),
            _ => random.usize(..40),
        }
    };
    let mut filter = Filter::default();
    if random.u8(..10) == 0 {
        let mut ids = BTreeSet::from([*subject.id()]);
        ids.extend((0..2 * others(random)).map(|_| *any(random).id()));
        ids.extend((0..others(random)).map(|_| [random.u8(..); 32]));
        filter.ids = Some(ids.into_iter().collect());
    }
    if random.u8(..3) == 0 {
        let mut authors = BTreeSet::from([*subject.pubkey()]);
        authors.extend((0..others(random)).map(|_| *any(random).pubkey()));
        authors.extend((0..others(random) / 4).map(|_| [random.u8(..); 32]));
        filter.authors = Some(authors.into_iter().collect());
    }
    if random.u8(..3) == 0 {
        let mut kinds = BTreeSet::from([subject.kind().0]);
        kinds.extend((0..others(random)).map(|_| any(random).kind().0));
        kinds.extend((0..others(random) / 4).map(|_| random.u16(..)));
        filter.kinds = Some(kinds.into_iter().collect());
    }
    let mut tags: BTreeMap<u8, BTreeSet<TagValue>> = BTreeMap::new();
    let own = subject.tags().count();
    while own > 0 && random.u8(..10) < 4 && tags.len() < 3 {
        let (letter, value) = subject.tags().nth(random.usize(..own)).expect("it has so many");
        let values = tags.entry(letter).or_default();
        values.insert(value.to_owned());
        for _ in 0..others(random) {
            let of_letter = any(random).tags().find(|(other, _)| *other == letter);
            values.extend(of_letter.map(|(_, value)| value.to_owned()));
        }
        if random.u8(..8) == 0 {
            values.insert(TagValue::new("nobody's"));
        }
    }
    filter.tags =
        tags.into_iter().map(|(letter, values)| (letter, values.into_iter().collect())).collect();
    let mut time = |from: u64| match random.u8(..12) {
        0 => Some(0),
        1 => Some(u64::MAX),
        2 | 3 => Some((from + random.u64(..3)).saturating_sub(1)),
        4 => Some(any(random).created_at()),
        _ => None,
    };
    filter.since = time(subject.created_at());
    filter.until = time(subject.created_at());
    filter.limit = limit(random);
    match random.u8(..60) {
        0 => filter.authors = Some(Vec::new()),
        1 => filter.tags.push((b'z', Vec::new())),
        _ => {}
    }
    filter
}

/// Events with what real ones have too little of: many in one second, keys that the indexes cannot tell
/// apart, tags that nearly all share beside rare ones, repeated tags, some that expire.
fn synthetic(count: u32) -> Vec<Event> {
    let mut random = Rng::with_seed(11);
    let event = |n| {
        let author =
            [1, 100, 2, 101, 3, 4, 102, 5, 6, 7, 103, 8][usize::from(skewed(&mut random, 12))];
        let kind = [1, 7, 4, 9735, 1059, 6, 1984, 1111][usize::from(skewed(&mut random, 8))];
        let mut tags: Vec<[String; 2]> = Vec::new();
        for _ in 0..random.u8(..5) {
            let rank = skewed(&mut random, 20);
            tags.push(match random.u8(..5) {
                0 => ["e".into(), hex(&id(rank % 5, rank.into()))],
                1 => ["p".into(), hex(&key(rank))],
                2 => ["t".into(), format!("topic {rank}")],
                3 => ["a".into(), format!("30023:{}:{rank}", hex(&key(rank)))],
                _ => ["r".into(), hex(&[rank; 40])],
            });
        }
        if random.u8(..20) == 0 {
            tags.push(["expiration".into(), "1000".into()]);
        }
        let tags: Vec<[&str; 2]> = tags.iter().map(|[name, value]| [&**name, &**value]).collect();
        event(id(random.u8(..4), n), author, kind, random.u64(1..200), &tags)
    };
    (0..count).map(event).collect()
}

/// Half of the time the first of `below`, half of the rest the second, and so on.
fn skewed(random: &mut Rng, below: u8) -> u8 {
    (1..below).take_while(|_| random.bool()).last().unwrap_or_default()
}

#[test]
fn synthetic_events_are_found_as_a_naive_evaluation_says() {
    let events = synthetic(3_000);
    let (store, _dir) = store();
    apply(&store, &events, 10);
    let count = queries_count() / 2;
    ask(&store, &events, 10, 1, count);
    let left: Vec<Event> =
        events.into_iter().filter(|event| !event.view().is_expired(1_000)).collect();
    assert!(left.len() < 2_900);
    ask(&store, &left, 1_000, 2, count);
}
