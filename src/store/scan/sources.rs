//! Where a scan's ranges come from: each filter's way is chosen, and what the store must say of it is found, slice by
//! slice, before the first event.

use std::cmp::Reverse;

use heed::RoTxn;

use super::{FilterScan, Left, Scan};
use crate::store::environment::Environment;
use crate::store::error::StoreError;
use crate::store::estimate::{Kinds, choose};
use crate::store::plan::{SOURCES_MAX, Source, Way, first_bytes, ways};
use crate::store::schema::Suffix;
use crate::store::transaction::find;

/// The kinds of what each author of a filter wrote, found seek by seek: a source for each.
#[derive(Debug)]
pub(super) struct Finding {
    /// Sources there were before.
    first: usize,
    /// Position of the author.
    author: usize,
    kinds: Kinds,
}

impl Scan {
    /// Chooses the sources of filters while entries are left.
    pub(super) fn plan(
        &mut self,
        environment: &Environment,
        txn: &RoTxn<'_>,
        left: &mut Left,
    ) -> Result<(), StoreError> {
        while left.entries > 0 && self.planned < self.filters.len() {
            let way = match &mut self.finding {
                None if self.filters[self.planned].under.is_none() => {
                    let number = self.number();
                    let scan = &mut self.filters[self.planned];
                    let range = (scan.newest, scan.oldest);
                    let room = SOURCES_MAX.saturating_sub(self.sources.len());
                    let choice = choose(environment, txn, &scan.filter, range, room)?;
                    let hasher = &environment.hasher;
                    scan.also = choice.also.map(|way| way.source(&scan.filter, 0, number, hasher));
                    self.examined += choice.examined as u64;
                    left.take(choice.examined);
                    choice.way
                }
                _ => Way::Author,
            };
            if way != Way::Author {
                self.add_sources(way, environment);
            } else if !self.find_sources(environment, txn, left)? {
                return Ok(());
            }
            self.planned += 1;
        }
        Ok(())
    }

    /// Of the filter that is planned next.
    fn number(&self) -> u32 {
        u32::try_from(self.planned).expect("bounded by the message")
    }

    /// Adds those of a way that has them whatever is stored, and lines them up.
    fn add_sources(&mut self, way: Way, environment: &Environment) {
        let (first, number) = (self.sources.len(), self.number());
        let filter = &self.filters[self.planned].filter;
        let source = |nth| way.source(filter, nth, number, &environment.hasher);
        self.sources.extend((0..way.ranges(filter)).map(source));
        if way != Way::Ids {
            self.line_up(first);
        }
    }

    fn line_up(&mut self, first: usize) {
        let newest = self.filters[self.planned].newest;
        for source in first..self.sources.len() {
            let source = u32::try_from(source).expect("bounded by the message");
            self.heads.push(Reverse((newest, source)));
        }
    }

    /// Goes on finding the kinds of the authors while entries are left; whether all are found.
    fn find_sources(
        &mut self,
        environment: &Environment,
        txn: &RoTxn<'_>,
        left: &mut Left,
    ) -> Result<bool, StoreError> {
        let (first, number) = (self.sources.len(), self.number());
        let finding = self.finding.get_or_insert(Finding { first, author: 0, kinds: Kinds::all() });
        let FilterScan { filter, under, .. } = &self.filters[self.planned];
        let authors = filter.authors.as_deref().unwrap_or_default();
        let author_at = |nth| match under {
            Some(first) => (nth == 0).then_some(*first),
            None => authors.get(nth).map(first_bytes),
        };
        while let Some(author) = author_at(finding.author) {
            if left.entries == 0 {
                return Ok(false);
            }
            // Keys that begin alike have one range together.
            let again = finding.author.checked_sub(1).and_then(author_at) == Some(author);
            if again {
                finding.author += 1;
                continue;
            }
            let kind = finding.kinds.step(environment, txn, author, filter.kinds.as_deref())?;
            self.sources.extend(kind.map(|kind| Source::author_kind(author, kind, number)));
            if finding.kinds.is_done() {
                (finding.author, finding.kinds) = (finding.author + 1, Kinds::all());
            }
            self.examined += 1;
            left.take(1);
            // Of one key alone there are 65,536 at most, and nobody but the operator asks that way.
            if self.sources.len() > SOURCES_MAX && under.is_none() {
                let others = ways(filter, SOURCES_MAX.saturating_sub(finding.first));
                let way = others.into_iter().find(|way| *way != Way::Author);
                self.sources.truncate(finding.first);
                self.finding = None;
                self.add_sources(way.unwrap_or(Way::Time), environment);
                return Ok(true);
            }
        }
        let first = finding.first;
        self.finding = None;
        self.line_up(first);
        Ok(true)
    }

    /// Looks up ids while entries are left, and lines up those of a filter when it has them all.
    pub(super) fn look_up_ids(
        &mut self,
        environment: &Environment,
        txn: &RoTxn<'_>,
        left: &mut Left,
    ) -> Result<(), StoreError> {
        for (number, source) in (0u32..).zip(&self.sources) {
            let filter = &mut self.filters[source.filter as usize];
            let (Some(wanted), Some(ids)) = (&filter.filter.ids, &mut filter.ids) else { continue };
            if ids.looked_up == wanted.len() {
                continue;
            }
            while left.entries > 0 && ids.looked_up < wanted.len() {
                if let Some((seq, event)) = find(environment, txn, &wanted[ids.looked_up])? {
                    ids.found.push(Suffix::of(event, seq));
                }
                ids.looked_up += 1;
                self.examined += 1;
                left.take(1);
            }
            if ids.looked_up < wanted.len() {
                return Ok(());
            }
            ids.found.sort_unstable_by_key(|suffix| Reverse(*suffix));
            self.heads.extend(ids.found.pop().map(|first| Reverse((first, number))));
        }
        Ok(())
    }
}
