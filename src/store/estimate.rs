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
use super::plan::{Source, Way, ways};
use super::schema::Suffix;
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
        self.newest = self.newest.max(suffix_of(first)?);
        let oldest = self.oldest.min(suffix_of(last)?);
        Ok((self.newest <= oldest).then(|| oldest.seconds_behind(&self.newest)))
    }

    /// About how many entries a way has; exact when that is less than `most`.
    fn entries(&mut self, way: Way, most: u64) -> Result<u64, StoreError> {
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
