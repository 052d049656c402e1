//! Scans that count (NIP-45): the same merge, slice by slice, of which only numbers come out.

use heed::RoTxn;

use super::environment::Environment;
use super::error::StoreError;
use super::scan::{Left, Scan, SliceBudget};
use crate::nostr::Sketch;
use crate::relay::ports::{Chunk, Counted, Counting};

/// What has been counted so far.
#[derive(Debug)]
pub(super) struct Tally {
    /// Index entries that may be looked at.
    entries_max: u64,
    events: u64,
    sketch: Option<Box<Sketch>>,
}

impl Scan {
    /// Counts instead of handing out: [`Counted`] is in the last slice, which comes after
    /// `counting.entries_max` entries at the latest.
    #[must_use]
    pub fn counting(mut self, counting: Counting) -> Self {
        self.tally = Some(Box::new(Tally {
            entries_max: counting.entries_max,
            events: 0,
            sketch: counting.sketch.map(|offset| Box::new(Sketch::new(offset))),
        }));
        self
    }

    /// Goes on by one slice. After an error the tally is gone, and the scan of no use.
    pub(super) fn tally_slice(
        &mut self,
        mut tally: Box<Tally>,
        environment: &Environment,
        txn: &RoTxn<'_>,
        budget: &SliceBudget,
        now: u64,
    ) -> Result<Chunk, StoreError> {
        let left = tally.entries_max.saturating_sub(self.examined());
        let entries = usize::try_from(left).unwrap_or(usize::MAX).min(budget.entries);
        self.run(environment, txn, Left::new(entries, budget.time), now, &mut |_, event| {
            tally.events += 1;
            if let Some(sketch) = &mut tally.sketch {
                sketch.add(event.pubkey());
            }
            true
        })?;
        let (finished, spent) = (self.is_done(), self.examined() >= tally.entries_max);
        let mut chunk = Chunk { snapshot: self.snapshot(), ..Chunk::default() };
        chunk.done = finished || spent;
        if finished {
            // Registers of some of the events would pass for those of all.
            let sketch = tally.sketch.filter(|_| !self.is_limited());
            chunk.counted = Some(Counted::Exactly { events: tally.events, sketch });
        } else if spent {
            chunk.counted = Some(Counted::TooMany);
        } else {
            self.tally = Some(tally);
        }
        Ok(chunk)
    }
}
