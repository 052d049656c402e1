//! Which way to a filter is the cheapest, by what is stored.
//!
//! Each way's ranges are walked for a few entries from their newest end, and for more where no way is found that
//! has but a few. Where that is all of a way, its size is known. Otherwise the time those entries span says how many there are in the whole time range: of
//! two ways the one whose entries are further apart has fewer. A `limit` ends each way earlier by the same
//! share, so it does not change which is best.
//!
//! Runs where the scan does, on a reader's thread; the entries it walks are counted with the scan's.

use heed::RoTxn;

use super::cursor::Cursor;
use super::environment::Environment;
use super::error::StoreError;
use super::plan::{KINDS_OF_AUTHOR, Source, Way, first_bytes, ways};
use super::schema::{Suffix, join};
use super::transaction::suffix_of;
use crate::nostr::Filter;

/// Entries of each way that are walked, first and last.
const PROBE_ENTRIES: [u64; 2] = [16, 256];

/// Ranges of one way that are walked; they stand for the others.
const PROBE_RANGES_MAX: usize = 16;

/// With fewer entries a way is not worth a look beside.
const MANY: u64 = 32;

/// What finding the beginning of a range costs, in entries walked.
const SEEK_COST: u64 = 4;

/// What loading a record costs, in entries walked.
const LOAD_COST: u64 = 4;

/// A way to a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub way: Way,
    /// A way of one range that holds everything that matches too: an entry that is not in both does not
    /// match, which costs no record to find out.
    pub also: Option<Way>,
    /// Entries walked to find out.
    pub examined: usize,
}

/// Chooses the way to a filter, among those with products of at most `room` ranges; `newest` and `oldest` bound
/// the time range.
pub(super) fn choose(
    environment: &Environment,
    txn: &RoTxn<'_>,
    filter: &Filter,
    (newest, oldest): (Suffix, Suffix),
    room: usize,
) -> Result<Choice, StoreError> {
    let ways = ways(filter, room);
    let mut probe = Probe { environment, txn, filter, newest, oldest, span: 0, examined: 0 };
    if let [way] = ways[..] {
        return Ok(Choice { way, also: None, examined: 0 });
    }
    let Some(span) = probe.span()? else {
        return Ok(Choice { way: ways[0], also: None, examined: 0 });
    };
    probe.span = span;
    let mut probed = Vec::new();
    for most in PROBE_ENTRIES {
        probed.clear();
        let mut least = most;
        for way in &ways {
            let (way, entries) = (*way, probe.entries(*way, least)?);
            let load = if way.loads(filter) { LOAD_COST } else { 0 };
            let cost = (way.ranges(filter) as u64 * SEEK_COST)
                .saturating_add(entries.saturating_mul(1 + load));
            // One with more entries than another costs, whatever they are, costs more.
            least = least.min(cost);
            probed.push(Probed { way, entries, cost });
        }
        if probed.iter().any(|probed| probed.entries < most) {
            break;
        }
    }
    let best = probed.iter().min_by_key(|probed| probed.cost).expect("a filter has a way");
    let way = best.way;
    let tells_more = |other: &&Probed| {
        // The entries of a tag tell kind and author by themselves.
        let knows = matches!(way, Way::Tag(_)) && !matches!(other.way, Way::Tag(_));
        other.way != way && other.way.ranges(filter) == 1 && !knows
    };
    let also = match best.entries > MANY && way.loads(filter) {
        true => probed.iter().filter(tells_more).min_by_key(|probed| probed.entries),
        false => None,
    };
    Ok(Choice { way, also: also.map(|probed| probed.way), examined: probe.examined })
}

/// A way, about how many entries it has, and what they cost.
struct Probed {
    way: Way,
    entries: u64,
    cost: u64,
}

struct Probe<'a, 't> {
    environment: &'a Environment,
    txn: &'t RoTxn<'a>,
    filter: &'a Filter,
    newest: Suffix,
    oldest: Suffix,
    /// Seconds between the newest and the oldest event in the time range.
    span: u64,
    examined: usize,
}

impl Probe<'_, '_> {
    /// See the field; `None` when nothing is stored there.
    fn span(&mut self) -> Result<Option<u64>, StoreError> {
        let time = self.environment.tables.time;
        let (Some((first, _)), Some((last, _))) = (time.first(self.txn)?, time.last(self.txn)?)
        else {
            return Ok(None);
        };
        self.newest = self.newest.max(suffix_of(last)?.turned());
        let oldest = self.oldest.min(suffix_of(first)?.turned());
        Ok((self.newest <= oldest).then(|| oldest.seconds_behind(&self.newest)))
    }

    /// About how many entries a way has; exact when that is less than `most`.
    fn entries(&mut self, way: Way, most: u64) -> Result<u64, StoreError> {
        if way == Way::Author {
            return self.entries_of_authors(most);
        }
        let ranges = way.ranges(self.filter);
        let probed = ranges.min(PROBE_RANGES_MAX);
        let most_each = (most / probed as u64).max(2);
        let mut sum = 0u64;
        for nth in 0..probed {
            let source =
                way.source(self.filter, nth * ranges / probed, 0, &self.environment.hasher);
            sum = sum.saturating_add(self.entries_of(&source, most_each)?);
        }
        Ok(sum.saturating_mul(ranges as u64) / probed as u64)
    }

    /// As [`Self::entries`], of the first kinds of some authors.
    fn entries_of_authors(&mut self, most: u64) -> Result<u64, StoreError> {
        let filter = self.filter;
        let authors = filter.authors.as_deref().expect("a way by author");
        let probed = authors.len().clamp(1, PROBE_RANGES_MAX / KINDS_OF_AUTHOR);
        let kinds_each = PROBE_RANGES_MAX / probed;
        let most_each = (most / PROBE_RANGES_MAX as u64).max(2);
        let mut sum = 0u64;
        for nth in 0..probed {
            let Some(author) = authors.get(nth * authors.len() / probed) else { break };
            let (author, mut kinds) = (first_bytes(author), Kinds::all());
            for _ in 0..kinds_each {
                if kinds.is_done() {
                    break;
                }
                self.examined += 1;
                let kind =
                    kinds.step(self.environment, self.txn, author, filter.kinds.as_deref())?;
                let Some(kind) = kind else { continue };
                let source = Source::author_kind(author, kind, 0);
                sum = sum.saturating_add(self.entries_of(&source, most_each)?);
            }
            if !kinds.is_done() {
                // The greatest part may be of a kind that was not looked at.
                sum = sum.max(most);
            }
        }
        Ok(sum.saturating_mul(authors.len() as u64) / probed as u64)
    }

    fn entries_of(&mut self, source: &Source, most: u64) -> Result<u64, StoreError> {
        let mut cursor =
            Cursor::open(self.environment, self.txn, source, self.newest, self.oldest)?;
        let mut count = 0;
        while let Some(reached) = cursor.suffix() {
            count += 1;
            if count == most {
                let spanned = reached.seconds_behind(&self.newest).max(1);
                let rest = self.span.saturating_sub(spanned);
                // One more: it has not ended.
                count += 1 + count.saturating_mul(rest) / spanned;
                break;
            }
            cursor.advance()?;
        }
        // Finding that there is none costs as much as finding one.
        self.examined += usize::try_from(count.clamp(1, most)).expect("a few");
        Ok(count)
    }
}

/// The kinds of an author that a filter takes, found one seek at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kinds {
    /// The least that may be next; `None` at the end.
    least: Option<u16>,
}

impl Kinds {
    pub fn all() -> Self {
        Self { least: Some(0) }
    }

    pub fn is_done(self) -> bool {
        self.least.is_none()
    }

    /// Takes one seek at most; a kind, if it came upon one that the filter takes.
    pub fn step(
        &mut self,
        environment: &Environment,
        txn: &RoTxn<'_>,
        author: [u8; 8],
        kinds: Option<&[u16]>,
    ) -> Result<Option<u16>, StoreError> {
        let Some(mut least) = self.least else { return Ok(None) };
        if let Some(kinds) = kinds {
            let Some(kind) = kinds.get(kinds.partition_point(|kind| *kind < least)) else {
                self.least = None;
                return Ok(None);
            };
            least = *kind;
        }
        let from: [u8; 10] = join(&[&author, &least.to_be_bytes()]);
        let found = environment.tables.author_kind.get_greater_than_or_equal_to(txn, &from)?;
        let Some((key, _)) = found.filter(|(key, _)| key.starts_with(&author)) else {
            self.least = None;
            return Ok(None);
        };
        let kind = key.get(8..10).and_then(|kind| kind.try_into().ok()).map(u16::from_be_bytes);
        let kind =
            kind.ok_or_else(|| StoreError::Damaged("an author_kind key is too short".into()))?;
        self.least = kind.checked_add(1);
        Ok(kinds.is_none_or(|kinds| kinds.binary_search(&kind).is_ok()).then_some(kind))
    }
}
