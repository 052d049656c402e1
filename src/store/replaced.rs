//! Reading the archive of replaced versions, slice by slice: for export, and to find what is to be erased.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};

use super::environment::{ArchiveTables, Environment};
use super::error::StoreError;
use super::export::{CHUNK_ENTRIES, CopiedOut};
use super::schema::{ARCHIVED, ArchiveKey, unseal};
use super::{Store, visible};
use crate::nostr::event::{Id, Pubkey};
use crate::nostr::{EventView, Filter};

/// A walk over archived versions and how far it has come. Owned, without any transaction.
#[derive(Debug)]
pub struct Replaced {
    filters: Vec<Filter>,
    /// Who wrote what any of the filters matches; `None` = anybody.
    authors: Option<BTreeSet<Pubkey>>,
    /// Where it goes on; `None` at the end.
    next: Option<Bound<Vec<u8>>>,
}

impl Store {
    /// Plans a walk over the archived versions that match one of the filters and do not wait to be erased: by
    /// pubkey, kind and `d`, the oldest first. What is archived meanwhile may be among them. A filter with a
    /// `limit` or a `search` is about stored events alone.
    #[must_use]
    pub fn replaced(&self, filters: &[Filter]) -> Replaced {
        let finds = |filter: &&Filter| {
            filter.limit.is_none() && filter.search.is_none() && !filter.is_unsatisfiable()
        };
        let filters: Vec<Filter> = filters.iter().filter(finds).cloned().collect();
        let lists: Option<Vec<_>> = filters.iter().map(|filter| filter.authors.clone()).collect();
        let authors = lists.map(|lists| lists.into_iter().flatten().collect());
        Replaced { filters, authors, next: Some(Bound::Unbounded) }
    }

    /// Hands the archived versions of [`Store::replaced`] to `visit` until it breaks, outside of any
    /// transaction. Answers how many it was given.
    ///
    /// # Errors
    /// When the store cannot be read.
    ///
    /// # Panics
    /// Never: what is viewed was copied from a record.
    pub fn export_replaced(
        &self,
        filter: Filter,
        now: u64,
        mut visit: impl FnMut(EventView<'_>) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        let mut walk = self.replaced(&[filter]);
        let mut records = CopiedOut::default();
        while !walk.is_done() {
            walk.slice(self, CHUNK_ENTRIES, now, &mut |event| {
                let room = !records.is_full();
                if room {
                    records.push(event);
                }
                room
            })?;
            if records.show(&mut visit).is_break() {
                break;
            }
        }
        Ok(records.shown)
    }
}

impl Replaced {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// The ids of the next versions, at most `most`. There are no more when the walk is done.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn next_ids(
        &mut self,
        store: &Store,
        most: usize,
        now: u64,
    ) -> Result<Vec<Id>, StoreError> {
        let mut ids = Vec::new();
        self.slice(store, CHUNK_ENTRIES, now, &mut |event| {
            let room = ids.len() < most;
            ids.extend(room.then(|| *event.id()));
            room
        })?;
        Ok(ids)
    }

    /// Goes on by at most `entries` versions, or until `visit` says that it has no room for a version;
    /// that one comes first in the next slice.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn slice(
        &mut self,
        store: &Store,
        entries: usize,
        now: u64,
        visit: &mut dyn FnMut(EventView<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let environment = store.environment()?;
        let Some(tables) = environment.tables.archive else {
            self.next = None;
            return Ok(());
        };
        let mut left = entries;
        while left > 0 && self.range(&environment, tables, &mut left, now, visit)? {}
        Ok(())
    }

    /// Walks on up to the next author that is not asked for; false where the slice ends.
    fn range(
        &mut self,
        environment: &Environment,
        tables: ArchiveTables,
        left: &mut usize,
        now: u64,
        visit: &mut dyn FnMut(EventView<'_>) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(from) = self.next.take() else { return Ok(false) };
        let txn = environment.env.read_txn()?;
        let range = (from.as_ref().map(|from| &from[..]), Bound::Unbounded);
        for entry in tables.archive.range(&txn, &range)? {
            let (bytes, value) = entry?;
            let key = ArchiveKey::decode(bytes)
                .ok_or_else(|| StoreError::Damaged("an archive key is not one".into()))?;
            if *left == 0 {
                self.next = Some(Bound::Included(bytes.to_vec()));
                return Ok(false);
            }
            *left -= 1;
            if let Some(authors) = &self.authors
                && !authors.contains(key.pubkey())
            {
                let next = authors.range(*key.pubkey()..).next();
                self.next = next.map(|author| Bound::Included(author.to_vec()));
                return Ok(true);
            }
            let Some(event) = unseal(ARCHIVED, value).and_then(EventView::new) else {
                environment.isolated.meet_archived(key.id());
                continue;
            };
            let is_meant = self.filters.iter().any(|filter| filter.matches(event))
                && visible::is_archived_visible(environment, &txn, event, now)?;
            if is_meant && !visit(event) {
                self.next = Some(Bound::Included(bytes.to_vec()));
                return Ok(false);
            }
        }
        Ok(false)
    }
}
