//! Which index ranges may answer a filter. Pure, but for the key of the tag hashes.
//!
//! There are several [`Way`]s to most filters. Each yields a superset of what matches, in order; the record
//! decides. Which one is taken depends on what is stored, so `estimate` looks.

use super::schema::{Hasher, Suffix, join, tag_prefix};
use crate::nostr::Filter;
use crate::nostr::event::Pubkey;

/// Ranges one list of a filter may be made of, and the products of lists of a whole query, those of authors and the
/// kinds they have written among them: 32 bytes each, plus as much in the merge.
pub(super) const SOURCES_MAX: usize = 16_384;

/// Tags of a filter that are considered, those with the fewest values.
const TAG_WAYS_MAX: usize = 4;

/// So many ranges are always worth it where a way of one range holds more entries than they do.
const FEW_RANGES: usize = 16;

/// Kinds that an author is taken to have before anybody has looked.
pub(super) const KINDS_OF_AUTHOR: usize = 4;

/// Letters whose values name one thing, so that few events share one: events, addresses, keys,
/// external identities.
const SELECTIVE: &[u8] = b"aAeEiIpPq";

/// An index that ends in [`Suffix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Index {
    Time,
    AuthorKind,
    Kind,
    Tag,
    /// No table: the filter's ids, looked up and sorted.
    Ids,
}

/// One range of an index: everything under a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub index: Index,
    /// Position of the filter it answers.
    pub filter: u32,
    prefix: [u8; 10],
    prefix_len: u8,
}

impl Source {
    fn new(index: Index, filter: u32, prefix: &[u8]) -> Self {
        let mut padded = [0; 10];
        padded[..prefix.len()].copy_from_slice(prefix);
        let prefix_len = u8::try_from(prefix.len()).expect("at most 10");
        Self { index, filter, prefix: padded, prefix_len }
    }

    /// What an author wrote of a kind, for the filter of this number.
    pub fn author_kind(author: [u8; 8], kind: u16, number: u32) -> Self {
        let prefix: [u8; 10] = join(&[&author, &kind.to_be_bytes()]);
        Self::new(Index::AuthorKind, number, &prefix)
    }

    pub fn prefix(&self) -> &[u8] {
        &self.prefix[..usize::from(self.prefix_len)]
    }
}

/// What keys have of an author.
pub(super) fn first_bytes(author: &Pubkey) -> [u8; 8] {
    *author.first_chunk().expect("a key is longer")
}

/// The time range of a filter as bounds on suffixes; `None` when no stored event can be in it.
pub(super) fn bounds(filter: &Filter) -> Option<(Suffix, Suffix)> {
    let (since, until) = (filter.since.unwrap_or(0), filter.until.unwrap_or(u64::MAX));
    let possible = since <= super::schema::CREATED_AT_MAX && !filter.is_unsatisfiable();
    possible.then(|| (Suffix::newest(until), Suffix::oldest(since)))
}

/// What of a filter is looked up; the rest of it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Its ids.
    Ids,
    /// The values of the tag at this position.
    Tag(usize),
    /// Authors × kinds.
    AuthorKind,
    /// Authors × those of the kinds that each has written: which those are, the store says.
    Author,
    Kind,
    /// Nothing but the time range.
    Time,
}

/// The ways to a filter that can be the best, most promising first; never none. A list that takes more
/// than [`SOURCES_MAX`] ranges is passed over, as is a product of more than `room`.
pub(super) fn ways(filter: &Filter, room: usize) -> Vec<Way> {
    if filter.ids.is_some() {
        return vec![Way::Ids];
    }
    let mut tags: Vec<usize> = (0..filter.tags.len()).collect();
    tags.sort_by_key(|tag| {
        let (letter, values) = &filter.tags[*tag];
        (!SELECTIVE.contains(letter), values.len())
    });
    let ranges = |way: Way| way.ranges(filter);
    let fits = |way: &Way| ranges(*way) <= SOURCES_MAX;
    let mut ways: Vec<Way> =
        tags.into_iter().map(Way::Tag).filter(fits).take(TAG_WAYS_MAX).collect();
    let (authors, kinds) = (filter.authors.is_some(), filter.kinds.is_some());
    // A part of what is under the author, and of what is under the kind.
    let by_both = authors && kinds && ranges(Way::AuthorKind) <= room;
    let by_few = by_both && ranges(Way::AuthorKind) <= FEW_RANGES;
    if by_both {
        ways.push(Way::AuthorKind);
    }
    if authors && !by_few {
        ways.extend(Some(Way::Author).filter(fits));
    }
    if kinds && !by_few {
        ways.extend(Some(Way::Kind).filter(fits));
    }
    if !ways.iter().any(|way| ranges(*way) <= FEW_RANGES) {
        ways.push(Way::Time);
    }
    ways
}

impl Way {
    /// How many ranges it is made of; about, by author.
    pub fn ranges(self, filter: &Filter) -> usize {
        let authors = || filter.authors.as_ref().map_or(0, Vec::len);
        let kinds = || filter.kinds.as_ref().map_or(0, Vec::len);
        match self {
            Self::Ids | Self::Time => 1,
            Self::Tag(tag) => filter.tags[tag].1.len(),
            Self::AuthorKind => authors().saturating_mul(kinds()),
            Self::Author => authors().saturating_mul(KINDS_OF_AUTHOR),
            Self::Kind => kinds(),
        }
    }

    /// One of its ranges, for the filter of this number. `nth < ranges`; the filter has the lists.
    ///
    /// # Panics
    /// By author: those ranges are found.
    pub fn source(self, filter: &Filter, nth: usize, number: u32, hasher: &Hasher) -> Source {
        let authors = || filter.authors.as_deref().expect("a way by author");
        let kinds = || filter.kinds.as_deref().expect("a way by kind");
        match self {
            Self::Ids => Source::new(Index::Ids, number, &[]),
            Self::Time => Source::new(Index::Time, number, &[]),
            Self::Tag(tag) => {
                let (letter, values) = &filter.tags[tag];
                let prefix = tag_prefix(*letter, values[nth].as_ref(), hasher);
                Source::new(Index::Tag, number, &prefix)
            }
            Self::AuthorKind => {
                let (author, kind) = (nth / kinds().len(), nth % kinds().len());
                Source::author_kind(first_bytes(&authors()[author]), kinds()[kind], number)
            }
            Self::Author => unreachable!("found in the store"),
            Self::Kind => Source::new(Index::Kind, number, &kinds()[nth].to_be_bytes()),
        }
    }

    /// Whether the record of an entry is needed to tell that it does not match.
    pub fn loads(self, filter: &Filter) -> bool {
        let tags = !filter.tags.is_empty();
        match self {
            Self::Ids => false,
            // The entry tells kind and author.
            Self::Tag(_) => filter.tags.len() > 1,
            Self::AuthorKind | Self::Author => tags,
            Self::Kind => tags || filter.authors.is_some(),
            Self::Time => tags || filter.authors.is_some() || filter.kinds.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nostr::TagValue;

    fn tags(letter: u8, count: usize) -> (u8, Vec<TagValue>) {
        (letter, (0..count).map(|n| TagValue::new(&n.to_string())).collect())
    }

    fn keys(count: usize) -> Vec<[u8; 32]> {
        (0..count).map(|n| join(&[&(n as u64).to_be_bytes(), &[0; 24]])).collect()
    }

    #[test]
    fn only_ways_that_can_be_the_best_are_considered() {
        let all = |filter: &Filter| ways(filter, SOURCES_MAX);
        let mut filter = Filter::default();
        assert_eq!(all(&filter), [Way::Time]);
        filter.kinds = Some(vec![1, 7]);
        assert_eq!(all(&filter), [Way::Kind]);
        filter.kinds = Some((0..20).collect());
        assert_eq!(all(&filter), [Way::Kind, Way::Time]);
        filter.authors = Some(keys(5));
        assert_eq!(all(&filter), [Way::AuthorKind, Way::Author, Way::Kind, Way::Time]);
        filter.kinds = Some(vec![1, 7]);
        assert_eq!(all(&filter), [Way::AuthorKind]);
        filter.tags = vec![tags(b'd', 1), tags(b'e', 4), tags(b'p', 2)];
        assert_eq!(all(&filter), [Way::Tag(2), Way::Tag(1), Way::Tag(0), Way::AuthorKind]);
        filter.tags = (b'a'..=b'z').map(|letter| tags(letter, 20)).collect();
        assert_eq!(all(&filter).len(), TAG_WAYS_MAX + 1);
        filter.ids = Some(keys(9));
        assert_eq!(all(&filter), [Way::Ids]);
    }

    #[test]
    fn too_many_ranges_are_passed_over() {
        let mut filter = Filter {
            authors: Some(keys(SOURCES_MAX / KINDS_OF_AUTHOR)),
            kinds: Some((1..=5).collect()),
            ..Filter::default()
        };
        assert_eq!(ways(&filter, SOURCES_MAX), [Way::Author, Way::Kind]);
        assert_eq!(ways(&filter, 2 * SOURCES_MAX), [Way::AuthorKind, Way::Author, Way::Kind]);
        filter.authors = Some(keys(SOURCES_MAX / KINDS_OF_AUTHOR + 1));
        filter.kinds = Some((1..=16).collect());
        assert_eq!(ways(&filter, SOURCES_MAX), [Way::Kind]);
        filter.kinds = Some((0..=u16::MAX).collect());
        assert_eq!(ways(&filter, SOURCES_MAX), [Way::Time]);
        filter.tags = vec![tags(b'e', SOURCES_MAX + 1)];
        assert_eq!(ways(&filter, SOURCES_MAX), [Way::Time]);
    }

    #[test]
    fn each_range_of_a_product_comes_once() {
        let filter =
            Filter { authors: Some(keys(3)), kinds: Some(vec![1, 7]), ..Filter::default() };
        let hasher = Hasher::new([0; 16]);
        let sources: Vec<_> =
            (0..6).map(|nth| Way::AuthorKind.source(&filter, nth, 4, &hasher)).collect();
        assert!(sources.iter().all(|source| source.filter == 4));
        let mut prefixes: Vec<&[u8]> = sources.iter().map(Source::prefix).collect();
        prefixes.dedup();
        assert_eq!(prefixes.len(), 6);
        assert!(prefixes.is_sorted());
    }
}
