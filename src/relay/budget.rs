//! How much the stored queries of one connection may have the store look at: a bucket that fills with index
//! entries and empties with time.
//!
//! A query is charged with its [`estimate`] when it is asked for, and refused where that is too much beside
//! what the connection has had before. What its slices examined is charged as they come back, as far as
//! it is more; what it is less is given back with the last. So a client that asks and closes in turn pays for
//! every question.

use super::limits::Limits;
use crate::nostr::Filter;

/// Said to a REQ or COUNT whose connection has to wait (`limits.connection_query_entries_max`).
pub(super) const ASKED_TOO_MUCH: &str =
    "rate-limited: this connection's queries have looked at too many stored events";

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Examined {
    /// Thousandths of an entry: what leaves it in a millisecond is a whole number of them.
    level: u64,
    /// When it had that, in milliseconds.
    at_ms: u64,
}

/// Thousandths of so many entries.
fn thousandths(entries: u64) -> u64 {
    entries.saturating_mul(1_000)
}

impl Examined {
    /// Charges a query with what is expected of it, or with all there is; says how much. `None` where that
    /// is too much beside what was charged before.
    pub fn admit(&mut self, entries: u64, limits: &Limits, now_ms: u64) -> Option<u64> {
        let max = limits.connection_query_entries_max;
        if max == 0 {
            return Some(0);
        }
        self.pass(limits, now_ms);
        let entries = entries.min(max);
        let level = self.level.saturating_add(thousandths(entries));
        if entries > 0 && level > thousandths(max) {
            return None;
        }
        self.level = level;
        Some(entries)
    }

    /// Charges what was examined; whether the query may go on.
    pub fn charge(&mut self, entries: u64, limits: &Limits, now_ms: u64) -> bool {
        let max = limits.connection_query_entries_max;
        if max == 0 {
            return true;
        }
        self.pass(limits, now_ms);
        self.level = self.level.saturating_add(thousandths(entries));
        self.level <= thousandths(max)
    }

    /// Gives back what was charged and not examined.
    pub fn give_back(&mut self, entries: u64) {
        self.level = self.level.saturating_sub(thousandths(entries));
    }

    fn pass(&mut self, limits: &Limits, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        let per_s = u64::from(limits.connection_query_entries_per_s);
        self.level = self.level.saturating_sub(passed_ms.saturating_mul(per_s));
        self.at_ms = now_ms;
    }
}

/// Index entries that a query looks at, about: one for each range it may be answered from, and one for each
/// event it may return.
pub(super) fn estimate(filters: &[Filter], limit_max: u64) -> u64 {
    let of = |filter: &Filter| {
        let limit = filter.limit.unwrap_or(limit_max).min(limit_max);
        if limit == 0 || filter.is_unsatisfiable() {
            return 0;
        }
        let length = |length: Option<usize>| length.unwrap_or_default() as u64;
        let ids = length(filter.ids.as_ref().map(Vec::len));
        let authors = length(filter.authors.as_ref().map(Vec::len));
        let kinds = length(filter.kinds.as_ref().map(Vec::len));
        let values: usize = filter.tags.iter().map(|(_, values)| values.len()).sum();
        1 + ids + authors + kinds + values as u64 + limit
    };
    filters.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(entries_max: u64, per_s: u32) -> Limits {
        Limits {
            connection_query_entries_max: entries_max,
            connection_query_entries_per_s: per_s,
            ..Limits::default()
        }
    }

    #[test]
    fn it_empties_with_time_to_the_millisecond() {
        let limits = limits(100, 10);
        let mut examined = Examined::default();
        assert_eq!(examined.admit(100, &limits, 5_000), Some(100));
        assert_eq!(examined.admit(1, &limits, 5_099), None);
        assert_eq!(examined.admit(1, &limits, 5_100), Some(1));
        assert!(!examined.charge(1, &limits, 5_100));
        examined.give_back(1);
        assert!(examined.charge(0, &limits, 5_100));
        // What was charged beyond the bound is paid off too.
        assert!(!examined.charge(1_000, &limits, 5_100));
        assert!(!examined.charge(0, &limits, 105_099));
        assert_eq!(examined.admit(0, &limits, 105_099), Some(0));
        assert!(examined.charge(0, &limits, 105_100));
    }

    #[test]
    fn a_query_that_may_take_more_than_all_begins_with_all() {
        let limits = limits(100, 1);
        let mut examined = Examined::default();
        assert_eq!(examined.admit(5_000, &limits, 0), Some(100));
        assert_eq!(examined.admit(1, &limits, 0), None);
        examined.give_back(50);
        assert_eq!(examined.admit(50, &limits, 0), Some(50));
        assert_eq!(examined.admit(5_000, &limits, 99_999), None);
        assert_eq!(examined.admit(5_000, &limits, 100_000), Some(100));
    }

    #[test]
    fn without_a_bound_anything_goes() {
        let limits = limits(0, 0);
        let mut examined = Examined::default();
        for _ in 0..3 {
            assert_eq!(examined.admit(u64::MAX, &limits, 0), Some(0));
            assert!(examined.charge(u64::MAX, &limits, 0));
        }
    }

    #[test]
    fn an_estimate_counts_values_and_what_may_be_returned() {
        let one = Filter { kinds: Some(vec![1, 7]), limit: Some(20), ..Filter::default() };
        let all = Filter { ids: Some(vec![[1; 32]]), ..Filter::default() };
        let live = Filter { kinds: Some(vec![3]), limit: Some(0), ..Filter::default() };
        let none = Filter { authors: Some(Vec::new()), ..Filter::default() };
        assert_eq!(estimate(&[one, all, live, none], 500), 23 + 502);
    }
}
