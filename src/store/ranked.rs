//! Stored queries in order of relevance (NIP-50): a search names the events, the records decide.

use std::collections::VecDeque;

use bytes::Bytes;
use heed::RoTxn;

use super::environment::Environment;
use super::error::StoreError;
use super::scan::{Scan, SliceBudget};
use super::{Store, visible};
use crate::nostr::Filter;
use crate::relay::ports::{Chunk, ExpiringBytes, Sequence};

/// Full-text search beside the store.
pub trait Search: Send + Sync {
    /// How many documents a search has to look at, before it is made; what it finds are some of them.
    ///
    /// # Errors
    /// [`StoreError::Search`].
    fn cost(&self, filter: &Filter) -> Result<u64, StoreError>;

    /// Events whose text has what the filter searches for, best first: `most` of them at most. What else the
    /// filter asks for may narrow them; whoever asks looks at the events.
    ///
    /// # Errors
    /// [`StoreError::Search`].
    fn search(&self, filter: &Filter, most: usize) -> Result<Vec<Sequence>, StoreError>;
}

/// Hits looked at of one search. All are asked for at once: the index moves on, and a second part would not fit the first.
const HITS_MAX: usize = 5_000;

/// A search, and how far its result has been handed out.
#[derive(Debug)]
pub(super) struct Ranked {
    pub filter: Filter,
    /// Events it may still yield.
    pub left: u64,
    /// Hits that have not been looked at, once they are asked for.
    pub hits: Option<VecDeque<Sequence>>,
    /// What finding them takes has been told.
    pub priced: bool,
}

impl Scan {
    /// Whether its next slice asks the index, which may take long and cannot be interrupted.
    #[must_use]
    pub fn is_to_search(&self) -> bool {
        self.ranked.as_ref().is_some_and(|ranked| ranked.priced && ranked.hits.is_none())
    }

    /// Asks for the hits, before a transaction is there to hold pages meanwhile. First, in a slice of its own, what
    /// that takes: whoever pays for the query may not go on.
    pub(super) fn find_hits(&mut self, store: &Store) -> Result<Option<Chunk>, StoreError> {
        let Some(ranked @ Ranked { hits: None, .. }) = &mut self.ranked else { return Ok(None) };
        let search = store.search()?;
        if ranked.priced {
            ranked.hits = Some(search.search(&ranked.filter, HITS_MAX)?.into());
            return Ok(None);
        }
        let examined = 1 + search.cost(&ranked.filter)?;
        ranked.priced = true;
        self.examined += examined;
        let snapshot = self.snapshot();
        Ok(Some(Chunk { snapshot, examined, ..Chunk::default() }))
    }

    /// Goes on by one slice of a search.
    pub(super) fn ranked_slice(
        &mut self,
        mut ranked: Ranked,
        (environment, txn): (&Environment, &RoTxn<'_>),
        budget: &SliceBudget,
        now: u64,
    ) -> Result<Chunk, StoreError> {
        let snapshot = self.begin_snapshot(environment, txn)?;
        let mut hits = ranked.hits.take().unwrap_or_default();
        let mut events = Vec::new();
        let (mut left, mut bytes, mut done) = (budget.entries.max(1), 0, false);
        while left > 0 && !done {
            let Some(sequence) = hits.pop_front() else {
                done = true;
                break;
            };
            (left, self.examined) = (left - 1, self.examined + 1);
            let event = match environment.event(txn, sequence) {
                Ok(Some(event)) if sequence <= snapshot && ranked.filter.matches(event) => event,
                // The index has not heard that it is gone, or tells less than the filter asks.
                Ok(_) | Err(StoreError::Record { .. }) => continue,
                Err(error) => return Err(error),
            };
            if !visible::is_visible(environment, txn, event, now)? {
                continue;
            }
            let json = event.json();
            let fits = events.is_empty()
                || events.len() < budget.events && bytes + json.len() <= budget.bytes;
            if !fits {
                hits.push_front(sequence);
                break;
            }
            bytes += json.len();
            events.push(ExpiringBytes::new(Bytes::copy_from_slice(json), event.expiration()));
            ranked.left -= 1;
            done = ranked.left == 0;
        }
        done |= hits.is_empty();
        if !done {
            ranked.hits = Some(hits);
            self.ranked = Some(ranked);
        }
        Ok(Chunk { snapshot, events, done, ..Chunk::default() })
    }
}
