//! Which subscriptions an event goes to: an inverted index over their filters.
//!
//! Each filter is filed under the values of its most selective field: ids, then the shorter of its
//! tag lists and its authors, then kinds; a filter with none of these is tried on every event. An
//! event looks up its own id, author, kind and tags, and only the filters found there are evaluated.

use hashbrown::{Equivalent, HashMap};
use slab::Slab;

use crate::nostr::{EventView, Filter, Id, Pubkey, TagRef, TagValue};

/// Names one filed filter.
type FilterSlot = u32;

/// Seeded by the caller, so that nobody outside can aim at one bucket.
type Hasher = foldhash::fast::FixedState;

/// The filters of one shard's subscriptions.
pub struct SubscriptionIndex {
    filters: Slab<Filed>,
    by_id: HashMap<Id, Posts, Hasher>,
    by_author: HashMap<Pubkey, Posts, Hasher>,
    by_kind: HashMap<u16, Posts, Hasher>,
    by_tag: HashMap<(u8, TagValue), Posts, Hasher>,
    unselective: Posts,
    /// Number of the current lookup; marks the subscriptions already found in it.
    lookup: u64,
    found_in: Vec<u64>,
    /// Filters looked at, over all lookups.
    evaluated: u64,
    /// Places of filters in lists.
    postings: usize,
}

/// Most bytes one value of a filter takes here, the filter's own copy included, when the tables have just
/// grown; the text of a tag, which is held twice, comes on top.
pub const VALUE_BYTES_MAX: usize = 320;

/// The filters filed under one value. An event may carry a value, or several of one filter's values,
/// any number of times; a lookup goes by each list once, and evaluates each filter once.
#[derive(Default)]
struct Posts {
    list: Vec<Post>,
    /// The last lookup that went by it.
    tried: u64,
}

/// A filter in the list of one of its values.
struct Post {
    slot: FilterSlot,
    /// Position of the value in the filter's field.
    value: u32,
}

struct Filed {
    subscription: u32,
    filter: Filter,
    /// Where it stands in the list of each of its field's values, so that taking it out costs the same
    /// however long the lists are.
    places: Box<[u32]>,
    /// The last lookup that evaluated it.
    tried: u64,
}

/// The field a filter is filed under.
enum Field {
    Ids,
    Tag(usize),
    Authors,
    Kinds,
    Nothing,
}

fn most_selective(filter: &Filter) -> Field {
    if filter.ids.is_some() {
        return Field::Ids;
    }
    let shortest = filter.tags.iter().enumerate().min_by_key(|(_, (_, values))| values.len());
    let authors = filter.authors.as_ref().map(Vec::len);
    match (shortest, authors) {
        (Some((at, (_, values))), authors) if authors.is_none_or(|n| values.len() <= n) => {
            Field::Tag(at)
        }
        (_, Some(_)) => Field::Authors,
        (_, None) if filter.kinds.is_some() => Field::Kinds,
        _ => Field::Nothing,
    }
}

/// A tag of an event, to look up without copying its value.
#[derive(Hash)]
struct TagKey<'a>(u8, TagRef<'a>);

impl Equivalent<(u8, TagValue)> for TagKey<'_> {
    fn equivalent(&self, key: &(u8, TagValue)) -> bool {
        self.0 == key.0 && self.1 == key.1.as_ref()
    }
}

impl SubscriptionIndex {
    /// An empty index that hashes with `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let hasher = || Hasher::with_seed(seed);
        Self {
            filters: Slab::new(),
            by_id: HashMap::with_hasher(hasher()),
            by_author: HashMap::with_hasher(hasher()),
            by_kind: HashMap::with_hasher(hasher()),
            by_tag: HashMap::with_hasher(hasher()),
            unselective: Posts::default(),
            lookup: 0,
            found_in: Vec::new(),
            evaluated: 0,
            postings: 0,
        }
    }

    /// Files a subscription's filters; returns the slots to [`remove`](Self::remove) later.
    /// Filters that can match nothing are not filed.
    pub fn insert(&mut self, subscription: u32, filters: &[Filter]) -> Box<[u32]> {
        let at = subscription as usize;
        if self.found_in.len() <= at {
            self.found_in.resize(at + 1, 0);
        }
        let satisfiable = filters.iter().filter(|filter| !filter.is_unsatisfiable());
        satisfiable.map(|filter| self.file(subscription, filter)).collect()
    }

    fn file(&mut self, subscription: u32, filter: &Filter) -> FilterSlot {
        let mut filter = filter.clone();
        filter.limit = None;
        let entry = self.filters.vacant_entry();
        let slot = FilterSlot::try_from(entry.key()).expect("fewer filters than 2^32");
        let places = match most_selective(&filter) {
            Field::Ids => post(&mut self.by_id, filter.ids.iter().flatten().copied(), slot),
            Field::Authors => {
                post(&mut self.by_author, filter.authors.iter().flatten().copied(), slot)
            }
            Field::Kinds => post(&mut self.by_kind, filter.kinds.iter().flatten().copied(), slot),
            Field::Tag(at) => {
                let (letter, values) = &filter.tags[at];
                post(&mut self.by_tag, values.iter().map(|v| (*letter, v.clone())), slot)
            }
            Field::Nothing => [self.unselective.push(Post { slot, value: 0 })].into(),
        };
        self.postings += places.len();
        entry.insert(Filed { subscription, filter, places, tried: 0 });
        slot
    }

    /// Takes filters out again.
    ///
    /// # Panics
    /// If a slot is not one that [`insert`](Self::insert) returned and nobody removed.
    pub fn remove(&mut self, slots: &[u32]) {
        for &slot in slots {
            let Filed { filter, places, .. } = self.filters.remove(slot as usize);
            self.postings -= places.len();
            let filed = &mut self.filters;
            match most_selective(&filter) {
                Field::Ids => {
                    unpost(&mut self.by_id, filter.ids.into_iter().flatten(), &places, filed);
                }
                Field::Authors => {
                    let keys = filter.authors.into_iter().flatten();
                    unpost(&mut self.by_author, keys, &places, filed);
                }
                Field::Kinds => {
                    unpost(&mut self.by_kind, filter.kinds.into_iter().flatten(), &places, filed);
                }
                Field::Tag(at) => {
                    let (letter, values) = &filter.tags[at];
                    let keys = values.iter().map(|value| (*letter, value.clone()));
                    unpost(&mut self.by_tag, keys, &places, filed);
                }
                Field::Nothing => self.unselective.take_out(places[0], filed),
            }
        }
    }

    /// Appends the subscriptions whose filters match, each once.
    pub fn matches(&mut self, event: EventView<'_>, out: &mut Vec<u32>) {
        self.lookup += 1;
        let Self { filters, lookup, found_in, .. } = self;
        let evaluated = &mut self.evaluated;
        let mut visit = |posts: Option<&mut Posts>| {
            let Some(posts) = posts else { return };
            if std::mem::replace(&mut posts.tried, *lookup) == *lookup {
                return;
            }
            for &Post { slot, .. } in &posts.list {
                let filed = &mut filters[slot as usize];
                if std::mem::replace(&mut filed.tried, *lookup) == *lookup {
                    continue;
                }
                *evaluated += 1;
                let found = &mut found_in[filed.subscription as usize];
                if *found != *lookup && filed.filter.matches(event) {
                    *found = *lookup;
                    out.push(filed.subscription);
                }
            }
        };
        visit(self.by_id.get_mut(event.id()));
        visit(self.by_author.get_mut(event.pubkey()));
        visit(self.by_kind.get_mut(&event.kind().0));
        if !self.by_tag.is_empty() {
            for (letter, value) in event.tags() {
                visit(self.by_tag.get_mut(&TagKey(letter, value)));
            }
        }
        visit(Some(&mut self.unselective));
    }

    /// Gives back the room that nothing fills; subscriptions are below `subscriptions` from here on, until
    /// one is filed.
    pub fn shrink_to_fit(&mut self, subscriptions: usize) {
        self.filters.shrink_to_fit();
        self.by_id.shrink_to_fit();
        self.by_author.shrink_to_fit();
        self.by_kind.shrink_to_fit();
        self.by_tag.shrink_to_fit();
        self.unselective.list.shrink_to_fit();
        self.found_in.truncate(subscriptions);
        self.found_in.shrink_to_fit();
    }

    /// Bytes held for filters, about; no more where the texts of tags are short.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.postings * VALUE_BYTES_MAX
    }

    /// Filters looked at, over all lookups: what matching has cost, found or not.
    #[must_use]
    pub fn evaluated(&self) -> u64 {
        self.evaluated
    }

    /// Filters filed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filters.len()
    }

    /// Whether no filter is filed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// Keys over all maps, each with at least one filter: nothing of a removed filter stays.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.by_id.len()
            + self.by_author.len()
            + self.by_kind.len()
            + self.by_tag.len()
            + usize::from(!self.unselective.list.is_empty())
    }
}

impl Posts {
    /// Adds a filter; returns its place.
    fn push(&mut self, post: Post) -> u32 {
        let place = u32::try_from(self.list.len()).expect("fewer filters than 2^32");
        self.list.reserve_exact(usize::from(self.list.is_empty()));
        self.list.push(post);
        place
    }

    /// Takes the filter at `place` out; the last one moves there, and is told.
    fn take_out(&mut self, place: u32, filed: &mut Slab<Filed>) {
        self.list.swap_remove(place as usize);
        if let Some(moved) = self.list.get(place as usize) {
            filed[moved.slot as usize].places[moved.value as usize] = place;
        }
    }
}

/// Files a filter under each of `keys`, which are free of repeats; returns its places.
fn post<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, Posts, Hasher>,
    keys: impl Iterator<Item = K>,
    slot: FilterSlot,
) -> Box<[u32]> {
    (0..)
        .zip(keys)
        .map(|(value, key)| map.entry(key).or_default().push(Post { slot, value }))
        .collect()
}

fn unpost<K: std::hash::Hash + Eq>(
    map: &mut HashMap<K, Posts, Hasher>,
    keys: impl Iterator<Item = K>,
    places: &[u32],
    filed: &mut Slab<Filed>,
) {
    for (key, &place) in keys.zip(places) {
        let posts = map.get_mut(&key).expect("a filed filter is under each of its keys");
        posts.take_out(place, filed);
        if posts.list.is_empty() {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nostr::event::{Event, Fields, Kind};
    use crate::nostr::tag;
    use proptest::prelude::*;

    fn key(n: u8) -> [u8; 32] {
        [n; 32]
    }

    fn value(n: u8) -> TagValue {
        if n.is_multiple_of(2) { TagValue::Hex(key(n)) } else { TagValue::new(&format!("v{n}")) }
    }

    fn arb_event() -> impl Strategy<Value = Event> {
        let tags = prop::collection::vec((0_u8..3, 0_u8..4), 0..5);
        (0_u8..4, 0_u8..4, 0_u16..4, 0_u64..4, tags).prop_map(|(id, pubkey, kind, at, tags)| {
            let mut packed = Vec::new();
            for (letter, v) in tags {
                tag::pack(&mut packed, b'a' + letter, &value(v).as_ref().to_text());
            }
            Event::build(&Fields {
                id: key(id),
                pubkey: key(pubkey),
                created_at: at,
                expiration: None,
                kind: Kind(kind),
                protected: false,
                packed_tags: &packed,
                json: b"{}",
            })
        })
    }

    fn arb_filter() -> impl Strategy<Value = Filter> {
        let keys = || prop::option::weighted(0.3, prop::collection::btree_set(0_u8..4, 0..3));
        let tags =
            prop::collection::btree_map(0_u8..3, prop::collection::btree_set(0_u8..4, 0..3), 0..3);
        let kinds = prop::option::weighted(0.4, prop::collection::btree_set(0_u16..4, 0..3));
        let time = || prop::option::weighted(0.2, 0_u64..4);
        (keys(), keys(), kinds, tags, time(), time()).prop_map(
            |(ids, authors, kinds, tags, since, until)| Filter {
                ids: ids.map(|ids| ids.into_iter().map(key).collect()),
                authors: authors.map(|keys| keys.into_iter().map(key).collect()),
                kinds: kinds.map(|kinds| kinds.into_iter().collect()),
                tags: tags
                    .into_iter()
                    .map(|(letter, values)| {
                        let mut values: Vec<_> = values.into_iter().map(value).collect();
                        values.sort();
                        (b'a' + letter, values)
                    })
                    .collect(),
                since,
                until,
                limit: Some(0),
                search: None,
            },
        )
    }

    #[test]
    fn an_event_that_repeats_its_tags_costs_each_filter_once() {
        let mut index = SubscriptionIndex::new(1);
        let filter = Filter {
            tags: vec![(b't', vec![value(0), value(1)]), (b'z', (0..3).map(value).collect())],
            ..Filter::default()
        };
        for subscription in 0..1_000 {
            index.insert(subscription, std::slice::from_ref(&filter));
        }
        let mut packed = Vec::new();
        for n in 0..2_000_u16 {
            let n = u8::from(n.is_multiple_of(2));
            tag::pack(&mut packed, b't', &value(n).as_ref().to_text());
        }
        let event = Event::build(&Fields {
            id: key(1),
            pubkey: key(1),
            created_at: 1,
            expiration: None,
            kind: Kind(1),
            protected: false,
            packed_tags: &packed,
            json: b"{}",
        });
        let mut found = Vec::new();
        index.matches(event.view(), &mut found);
        assert!(found.is_empty());
        assert_eq!(index.evaluated, 1_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn finds_what_a_naive_search_finds(
            subscriptions in prop::collection::vec(prop::collection::vec(arb_filter(), 1..4), 0..12),
            removed in prop::collection::vec(any::<bool>(), 12),
            events in prop::collection::vec(arb_event(), 1..20),
            seed: u64,
        ) {
            let mut index = SubscriptionIndex::new(seed);
            let slots: Vec<_> = (0..).zip(&subscriptions).map(|(n, f)| index.insert(n, f)).collect();
            for (slots, _) in slots.iter().zip(&removed).filter(|(_, removed)| **removed) {
                index.remove(slots);
            }
            for event in &events {
                let mut found = Vec::new();
                index.matches(event.view(), &mut found);
                found.sort_unstable();
                let naive: Vec<u32> = (0..)
                    .zip(&subscriptions)
                    .zip(&removed)
                    .filter(|((_, f), removed)| !**removed && f.iter().any(|f| f.matches(event.view())))
                    .map(|((n, _), _)| n)
                    .collect();
                prop_assert_eq!(found, naive);
            }
            for (slots, _) in slots.iter().zip(&removed).filter(|(_, removed)| !**removed) {
                index.remove(slots);
            }
            prop_assert_eq!((index.len(), index.keys(), index.held_bytes()), (0, 0, 0));
        }
    }
}
