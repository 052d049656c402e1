//! Records that are not what was stored: kept out of every answer, told to the operator, and no obstacle to
//! what lies beside them.
//!
//! Nothing but the record says which entries it has in the indexes, so it stays where it is until `rheostr check
//! --repair`. Its event may come again in the meantime, and is stored as if it were new.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::nostr::Id;
use crate::relay::ports::Sequence;

/// Records remembered; beyond that the data file is beyond counting.
const REMEMBERED_MAX: usize = 10_000;

/// Records told of one by one.
const TOLD_MAX: usize = 20;

/// The damaged records met since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Isolated {
    met: Mutex<BTreeSet<Record>>,
}

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Record {
    Stored(Sequence),
    Archived(Id),
}

impl Isolated {
    /// Notes a stored event's, and tells the operator if it is a new one.
    pub fn meet(&self, seq: Sequence) {
        self.note(Record::Stored(seq));
    }

    /// Notes that of an archived version likewise.
    pub fn meet_archived(&self, id: &Id) {
        self.note(Record::Archived(*id));
    }

    fn note(&self, record: Record) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if met.len() == REMEMBERED_MAX || !met.insert(record) {
            return;
        }
        let records = met.len();
        drop(met);
        if records <= TOLD_MAX {
            let which = match record {
                Record::Stored(sequence) => format!("number {sequence}"),
                Record::Archived(id) => format!("{}, archived", faster_hex::hex_string(&id)),
            };
            tracing::error!(
                event = which,
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
