//! What is recorded of a shard's turns, if anything is: a trace, a capture.

use std::cell::Cell;

use super::capture::Capture;
use super::trace::{Trace, Tracer};
use crate::relay::Shard;

/// What is recorded, and where.
#[derive(Clone, Default)]
pub struct Recording {
    /// What shards do in each turn.
    pub trace: Option<Trace>,
    /// What clients say.
    pub capture: Option<Capture>,
}

/// One shard's part of it.
pub(super) struct Recorder {
    shard: usize,
    tracer: Option<Tracer>,
    capture: Option<Capture>,
    /// Messages that could not be handed over, and are still to be told of.
    dropped: Cell<u64>,
}

impl Recording {
    /// The recorder of the shard of this number; `None` when nothing is recorded.
    pub(super) fn of_shard(&self, shard: usize) -> Option<Recorder> {
        let Self { trace, capture } = self.clone();
        let tracer = trace.map(|trace| Tracer::new(shard, trace));
        let recorded = tracer.is_some() || capture.is_some();
        recorded.then(|| Recorder { shard, tracer, capture, dropped: Cell::default() })
    }
}

impl Recorder {
    /// Notes the turn that ended at `us`; `from_bus` messages have been taken from the bus so far.
    pub(super) fn note(&self, us: u64, from_bus: u64, core: &mut Shard) {
        if let Some(tracer) = &self.tracer {
            tracer.note(us, from_bus, core.counters());
        }
        if let Some(capture) = &self.capture {
            let mut captured = core.take_captured();
            captured.dropped += self.dropped.get();
            self.dropped.set(capture.hand_over(us, self.shard, captured));
        }
    }
}
