//! Which index ranges answer a filter. Pure, but for the key of the tag hashes.
//!
//! A filter is answered by the first of these that it allows:
//!
//! 1. `ids`: each looked up
//! 2. the tag with a selective letter and the fewest values
//! 3. authors × kinds, then authors
//! 4. any other tag
//! 5. kinds, then everything by time
//!
//! Each of them yields a superset of what matches, in order; the record decides. A choice that
//! takes more than [`SOURCES_MAX`] ranges is passed over.

use super::schema::{Hasher, Suffix, join, tag_prefix};
use crate::nostr::Filter;

/// Ranges one list of a filter may be made of, and the products of lists of a whole query: 32 bytes
/// each, plus as much in the merge.
pub(super) const SOURCES_MAX: usize = 16_384;

/// Letters whose values name one thing, so that few events share one: events, addresses, keys,
/// external identities. A `p` may be popular, and is still better than an author's whole feed.
const SELECTIVE: &[u8] = b"aAeEiIpPq";

/// An index that ends in [`Suffix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Index {
    Time,
    Author,
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

    pub fn prefix(&self) -> &[u8] {
        &self.prefix[..usize::from(self.prefix_len)]
    }
}

/// The time range of a filter as bounds on suffixes; `None` when no stored event can be in it.
pub(super) fn bounds(filter: &Filter) -> Option<(Suffix, Suffix)> {
    let (since, until) = (filter.since.unwrap_or(0), filter.until.unwrap_or(u64::MAX));
    let possible = since <= super::schema::CREATED_AT_MAX && !filter.is_unsatisfiable();
    possible.then(|| (Suffix::newest(until), Suffix::oldest(since)))
}

/// Appends the sources of one filter.
pub(super) fn plan(filter: &Filter, number: u32, hasher: &Hasher, out: &mut Vec<Source>) {
    if filter.ids.is_some() {
        out.push(Source::new(Index::Ids, number, &[]));
        return;
    }
    let selective = |letter: &u8| SELECTIVE.contains(letter);
    let tag = |wanted: &dyn Fn(&u8) -> bool| {
        let fit = filter
            .tags
            .iter()
            .filter(|(letter, values)| wanted(letter) && values.len() <= SOURCES_MAX);
        fit.min_by_key(|(_, values)| values.len())
    };
    let authors = filter.authors.as_deref().filter(|authors| authors.len() <= SOURCES_MAX);
    let kinds = filter.kinds.as_deref().filter(|kinds| kinds.len() <= SOURCES_MAX);
    let by_tag = tag(&selective).or_else(|| authors.is_none().then(|| tag(&|_| true)).flatten());
    if let Some((letter, values)) = by_tag {
        out.extend(values.iter().map(|value| {
            Source::new(Index::Tag, number, &tag_prefix(*letter, value.as_ref(), hasher))
        }));
    } else if let Some(authors) = authors {
        match kinds {
            Some(kinds) if authors.len() * kinds.len() <= SOURCES_MAX.saturating_sub(out.len()) => {
                for author in authors {
                    out.extend(kinds.iter().map(|kind| {
                        let prefix: [u8; 10] = join(&[&author[..8], &kind.to_be_bytes()]);
                        Source::new(Index::AuthorKind, number, &prefix)
                    }));
                }
            }
            _ => out.extend(
                authors.iter().map(|author| Source::new(Index::Author, number, &author[..8])),
            ),
        }
    } else if let Some(kinds) = kinds {
        let source = |kind: &u16| Source::new(Index::Kind, number, &kind.to_be_bytes());
        out.extend(kinds.iter().map(source));
    } else {
        out.push(Source::new(Index::Time, number, &[]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nostr::TagValue;

    fn planned(filter: &Filter) -> (Index, usize) {
        let mut out = Vec::new();
        plan(filter, 0, &Hasher::new([0; 16]), &mut out);
        assert!(out.iter().all(|source| source.index == out[0].index));
        (out[0].index, out.len())
    }

    fn keys(count: usize) -> Vec<[u8; 32]> {
        (0..count).map(|n| join(&[&(n as u64).to_be_bytes(), &[0; 24]])).collect()
    }

    #[test]
    fn the_narrowest_index_answers() {
        let tags = |letter: u8, count: usize| {
            (letter, (0..count).map(|n| TagValue::new(&n.to_string())).collect::<Vec<_>>())
        };
        let mut filter = Filter::default();
        assert_eq!(planned(&filter), (Index::Time, 1));
        filter.kinds = Some(vec![1, 7]);
        assert_eq!(planned(&filter), (Index::Kind, 2));
        filter.tags = vec![tags(b'd', 3)];
        assert_eq!(planned(&filter), (Index::Tag, 3));
        filter.authors = Some(keys(5));
        assert_eq!(planned(&filter), (Index::AuthorKind, 10));
        filter.kinds = None;
        assert_eq!(planned(&filter), (Index::Author, 5));
        filter.tags.extend([tags(b'e', 4), tags(b'p', 2)]);
        assert_eq!(planned(&filter), (Index::Tag, 2));
        filter.ids = Some(keys(9));
        assert_eq!(planned(&filter), (Index::Ids, 1));
    }

    #[test]
    fn the_filters_of_a_query_share_the_ranges() {
        let mut filter = Filter {
            authors: Some(keys(300)),
            kinds: Some((0..50).collect()),
            ..Filter::default()
        };
        let mut out = Vec::new();
        for number in 0..20 {
            plan(&filter, number, &Hasher::new([0; 16]), &mut out);
            filter.kinds.as_mut().unwrap().push(100);
        }
        assert_eq!(out.len(), 15_000 + 19 * 300);
    }

    #[test]
    fn too_many_ranges_fall_back() {
        let mut filter = Filter {
            authors: Some(keys(SOURCES_MAX)),
            kinds: Some(vec![1, 2]),
            ..Filter::default()
        };
        assert_eq!(planned(&filter), (Index::Author, SOURCES_MAX));
        filter.authors = Some(keys(SOURCES_MAX + 1));
        assert_eq!(planned(&filter), (Index::Kind, 2));
        filter.kinds = Some((0..=u16::MAX).collect());
        assert_eq!(planned(&filter), (Index::Time, 1));
    }
}
