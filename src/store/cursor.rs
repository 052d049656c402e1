//! Where one range of an index stands, within one read transaction.

use std::ops::Bound;

use heed::types::Bytes as Raw;
use heed::{RoRange, RoRevRange, RoTxn};

use super::environment::Environment;
use super::error::StoreError;
use super::plan::{Index, Source};
use super::schema::{SUFFIX_BYTES, Suffix};
use super::transaction::suffix_of;

/// Entries it walks before it seeks: as long as a seek takes.
const STEPS_BEFORE_SEEK: usize = 6;

/// A range, and which way it is walked.
enum Range<'t> {
    Forward(RoRange<'t, Raw, Raw>),
    /// Of `time`, whose keys are turned.
    Backward(RoRevRange<'t, Raw, Raw>),
}

/// See the module.
pub(super) struct Cursor<'t> {
    range: Range<'t>,
    /// The entry it stands on; `None` at the end of its range.
    pub entry: Option<(Suffix, &'t [u8])>,
}

impl<'t> Cursor<'t> {
    /// The first entry of `source` in `from..=to`.
    pub fn open(
        environment: &Environment,
        txn: &'t RoTxn<'_>,
        source: &Source,
        from: Suffix,
        to: Suffix,
    ) -> Result<Self, StoreError> {
        let tables = &environment.tables;
        let table = match source.index {
            Index::Time => {
                let (low, high) = (to.turned(), from.turned());
                let range = (Bound::Included(&low.0[..]), Bound::Included(&high.0[..]));
                return Self::begin(Range::Backward(tables.time.rev_range(txn, &range)?));
            }
            Index::AuthorKind => tables.author_kind,
            Index::Kind => tables.kind,
            Index::Tag => tables.tag,
            Index::Ids => unreachable!("ids have no table"),
        };
        let (mut low, mut high) = ([0; 10 + SUFFIX_BYTES], [0; 10 + SUFFIX_BYTES]);
        let range = (
            Bound::Included(bound(&mut low, source.prefix(), &from)),
            Bound::Included(bound(&mut high, source.prefix(), &to)),
        );
        Self::begin(Range::Forward(table.range(txn, &range)?))
    }

    fn begin(range: Range<'t>) -> Result<Self, StoreError> {
        let mut cursor = Self { range, entry: None };
        cursor.advance()?;
        Ok(cursor)
    }

    /// The suffix it stands at.
    pub fn suffix(&self) -> Option<Suffix> {
        self.entry.map(|(suffix, _)| suffix)
    }

    /// Moves to the next entry.
    pub fn advance(&mut self) -> Result<(), StoreError> {
        self.entry = match &mut self.range {
            Range::Forward(range) => match range.next() {
                None => None,
                Some(entry) => {
                    let (key, value) = entry?;
                    Some((suffix_of(key)?, value))
                }
            },
            Range::Backward(range) => match range.next() {
                None => None,
                Some(entry) => {
                    let (key, value) = entry?;
                    Some((suffix_of(key)?.turned(), value))
                }
            },
        };
        Ok(())
    }

    /// Moves to the first entry at or behind `from`; false when that is so far that a new cursor gets there
    /// sooner.
    pub fn walk_to(&mut self, from: Suffix) -> Result<bool, StoreError> {
        for _ in 0..STEPS_BEFORE_SEEK {
            if self.suffix().is_none_or(|suffix| suffix >= from) {
                return Ok(true);
            }
            self.advance()?;
        }
        Ok(self.suffix().is_none_or(|suffix| suffix >= from))
    }
}

/// Joins a prefix and a suffix into `buffer`, which holds any.
fn bound<'b>(buffer: &'b mut [u8; 10 + SUFFIX_BYTES], prefix: &[u8], suffix: &Suffix) -> &'b [u8] {
    let end = prefix.len() + SUFFIX_BYTES;
    buffer[..prefix.len()].copy_from_slice(prefix);
    buffer[prefix.len()..end].copy_from_slice(&suffix.0);
    &buffer[..end]
}
