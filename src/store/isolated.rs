//! Records that are not what was stored: kept out of every answer, told to the operator, and no obstacle to
//! what lies beside them.
//!
//! Nothing but the record says which entries it has in the indexes, so it stays where it is until `rheostr check
//! --repair`. Its event may come again in the meantime, and is stored as if it were new.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::relay::ports::Sequence;

/// Records remembered; beyond that the data file is beyond counting.
const REMEMBERED_MAX: usize = 10_000;

/// Records told of one by one.
const TOLD_MAX: usize = 20;

/// The damaged records met since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Isolated {
    met: Mutex<BTreeSet<Sequence>>,
}

impl Isolated {
    /// Notes a record, and tells the operator if it is a new one.
    pub fn meet(&self, seq: Sequence) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.len() == REMEMBERED_MAX || !met.insert(seq) {
            return;
        }
        let records = met.len();
        drop(met);
        if records <= TOLD_MAX {
            tracing::error!(
                event = seq,
                records,
                "a stored event is damaged and left out of every answer: `rheostr check` says more, \
                 `rheostr check --repair` mends"
            );
        }
    }

    /// How many there are; not more than [`REMEMBERED_MAX`].
    pub fn len(&self) -> usize {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
