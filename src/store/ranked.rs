//! Stored queries in order of relevance (NIP-50): a search names the events, the records decide.

use std::collections::VecDeque;

use heed::RoTxn;

use super::environment::Environment;
use super::error::StoreError;
use super::scan::{Scan, SliceBudget};
use super::visible;
use crate::nostr::Filter;
use crate::relay::ports::{Chunk, Sequence};

/// Full-text search beside the store.
pub trait Search: Send + Sync {
    /// Events whose text has what the filter searches for, best first: `most` of them at most, without the
    /// first `skip`. What else the filter asks for may narrow them; whoever asks looks at the events.
    ///
    /// # Errors
    /// [`StoreError::Search`].
    fn search(
        &self,
        filter: &Filter,
        skip: usize,
        most: usize,
    ) -> Result<Vec<Sequence>, StoreError>;
}

/// Hits asked for at once.
const PAGE: usize = 500;

/// Hits looked at in all: each page finds those before it once more.
const HITS_MAX: usize = 10 * PAGE;

/// A search, and how far its result has been handed out.
#[derive(Debug)]
pub(super) struct Ranked {
    pub filter: Filter,
    /// Events it may still yield.
    pub left: u64,
    /// Hits asked for so far, and those that have not been looked at.
    pub asked: usize,
    pub hits: VecDeque<Sequence>,
}

impl Scan {
    /// Goes on by one slice of a search.
    pub(super) fn ranked_slice(
        &mut self,
        mut ranked: Ranked,
        search: &dyn Search,
        (environment, txn): (&Environment, &RoTxn<'_>),
        budget: &SliceBudget,
        now: u64,
    ) -> Result<Chunk, StoreError> {
        let snapshot = self.begin_snapshot(environment, txn)?;
        let mut events = Vec::new();
        let (mut left, mut bytes, mut done) = (budget.entries.max(1), 0, false);
        while left > 0 && !done {
            let Some(sequence) = ranked.hits.pop_front() else {
                let page = PAGE.min(HITS_MAX - ranked.asked);
                let found = match page {
                    0 => Vec::new(),
                    _ => search.search(&ranked.filter, ranked.asked, page)?,
                };
                // The index walks about as many entries as the store would to find them.
                self.examined += (page + found.len()) as u64;
                ranked.asked += found.len();
                done = found.is_empty();
                ranked.hits = found.into();
                continue;
            };
            (left, self.examined) = (left - 1, self.examined + 1);
            let event = match environment.event(txn, sequence)? {
                Some(event) if sequence <= snapshot && ranked.filter.matches(event) => event,
                // The index has not heard that it is gone, or tells less than the filter asks.
                _ => continue,
            };
            if !visible::is_visible(environment, txn, event, now)? {
                continue;
            }
            let json = event.json();
            let fits = events.is_empty()
                || events.len() < budget.events && bytes + json.len() <= budget.bytes;
            if !fits {
                ranked.hits.push_front(sequence);
                break;
            }
            bytes += json.len();
            events.push(bytes::Bytes::copy_from_slice(json));
            ranked.left -= 1;
            done = ranked.left == 0;
        }
        if !done {
            self.ranked = Some(ranked);
        }
        Ok(Chunk { snapshot, events, done, ..Chunk::default() })
    }
}
