//! Filters and events of few values: the index finds what each filter by itself matches, and is empty
//! when all have been taken out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rheostr::nostr::event::{Event, Fields, Kind};
use rheostr::nostr::{Filter, TagValue, tag};
use rheostr::relay::subscriptions::SubscriptionIndex;

/// Hands out the input's bytes; zeros after its end.
struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn list<T: Ord>(&mut self, make: impl Fn(u8) -> T) -> Option<Vec<T>> {
        let count = self.next() % 5;
        let mut list: Vec<T> = (1..count).map(|_| make(self.next() % 4)).collect();
        list.sort();
        list.dedup();
        (count > 0).then_some(list)
    }
}

fn value(n: u8) -> TagValue {
    if n.is_multiple_of(2) { TagValue::Hex([n; 32]) } else { TagValue::Text([n].into()) }
}

fn filter(bytes: &mut Bytes<'_>) -> Filter {
    let key = |n: u8| [n; 32];
    let tags = (b'a'..b'c').filter_map(|letter| Some((letter, bytes.list(value)?))).collect();
    Filter {
        tags,
        ids: bytes.list(key),
        authors: bytes.list(key),
        kinds: bytes.list(u16::from),
        since: bytes.list(u64::from).and_then(|list| list.first().copied()),
        until: bytes.list(u64::from).and_then(|list| list.last().copied()),
        limit: None,
    }
}

fn event(bytes: &mut Bytes<'_>) -> Event {
    let mut packed = Vec::new();
    for _ in 0..bytes.next() % 4 {
        let letter = b'a' + bytes.next() % 2;
        tag::pack(&mut packed, letter, &value(bytes.next() % 4).as_ref().to_text());
    }
    Event::build(&Fields {
        id: [bytes.next() % 4; 32],
        pubkey: [bytes.next() % 4; 32],
        created_at: u64::from(bytes.next() % 4),
        expiration: None,
        kind: Kind(u16::from(bytes.next() % 4)),
        protected: false,
        packed_tags: &packed,
        json: b"{}",
    })
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = Bytes(input.iter());
    let mut index = SubscriptionIndex::new(u64::from(bytes.next()));
    let mut filed = Vec::new();
    for number in 0..u32::from(bytes.next() % 8) {
        let filters: Vec<_> = (0..=bytes.next() % 3).map(|_| filter(&mut bytes)).collect();
        let slots = index.insert(number, &filters);
        if bytes.next() % 4 == 0 {
            index.remove(&slots);
        } else {
            filed.push((number, filters, slots));
        }
    }
    for _ in 0..4 {
        let event = event(&mut bytes);
        let mut found = Vec::new();
        index.matches(event.view(), &mut found);
        found.sort_unstable();
        let matches = |filters: &[Filter]| filters.iter().any(|f| f.matches(event.view()));
        let naive: Vec<_> =
            filed.iter().filter(|(_, filters, _)| matches(filters)).map(|(n, ..)| *n).collect();
        assert_eq!(found, naive);
    }
    filed.iter().for_each(|(_, _, slots)| index.remove(slots));
    assert_eq!((index.len(), index.keys()), (0, 0));
});
