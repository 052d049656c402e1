//! What was published when, how it was answered, and who must get it.

use crate::client::Id;
use crate::events::filter::Filter;
use crate::events::{EventFields, IdIndex, SignedEvent};
use serde_json::Value;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// How an event was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    None,
    Accepted,
    /// It was there already: promised, but not delivered to live subscriptions.
    Duplicate,
    Refused,
}

/// The events of a run, shared by its threads. Event i is published by publisher i modulo their number, in this order.
pub struct Ledger<'a> {
    pub events: &'a [SignedEvent],
    pub index: &'a IdIndex,
    pub publishers: usize,
    pub audiences: Vec<Audience>,
    /// `created_at` of the oldest event; 0 where nobody follows.
    pub created_from: u64,
    /// Latency counts from here, in nanoseconds of the window's clock; 0 until the event is sent.
    start_ns: Vec<AtomicU64>,
    verdicts: Vec<AtomicU8>,
}

/// Everybody who follows one filter.
pub struct Audience {
    pub filter: Value,
    /// One bit an event: the filter matches it.
    matching: Vec<u64>,
    matching_count: u64,
    /// Of the matching ones, those that the relay did not accept.
    withheld: AtomicU64,
}

impl<'a> Ledger<'a> {
    /// `filters` are those of the audiences.
    ///
    /// # Errors
    /// An event or a filter with a field that is missing or of the wrong type.
    pub fn new(
        events: &'a [SignedEvent],
        index: &'a IdIndex,
        publishers: usize,
        filters: &[Value],
    ) -> anyhow::Result<Self> {
        let (mut audiences, mut created_from) = (Vec::new(), 0);
        if !filters.is_empty() {
            let fields =
                events.iter().map(SignedEvent::fields).collect::<anyhow::Result<Vec<_>>>()?;
            for filter in filters {
                audiences.push(Audience::new(filter, &fields)?);
            }
            created_from = fields.iter().map(|event| event.created_at).min().unwrap_or(0);
        }
        let start_ns = events.iter().map(|_| AtomicU64::new(0)).collect();
        let verdicts = events.iter().map(|_| AtomicU8::new(0)).collect();
        Ok(Self { events, index, publishers, audiences, created_from, start_ns, verdicts })
    }

    /// Before the event leaves.
    pub fn send(&self, position: usize, start_ns: u64) {
        self.start_ns[position].store(start_ns.max(1), Ordering::Release);
    }

    pub fn start_ns(&self, position: usize) -> u64 {
        self.start_ns[position].load(Ordering::Acquire)
    }

    pub fn answer(&self, position: usize, verdict: Verdict) {
        self.verdicts[position].store(verdict as u8, Ordering::Release);
        if verdict != Verdict::Accepted {
            for audience in self.audiences.iter().filter(|one| one.wants(position)) {
                audience.withheld.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub fn verdict(&self, position: usize) -> Verdict {
        match self.verdicts[position].load(Ordering::Acquire) {
            1 => Verdict::Accepted,
            2 => Verdict::Duplicate,
            3 => Verdict::Refused,
            _ => Verdict::None,
        }
    }

    pub fn position(&self, id: &Id) -> Option<usize> {
        self.index.get(id).map(|position| *position as usize)
    }

    /// What the relay said it has, in the order of publishing.
    pub fn promised(&self) -> impl Iterator<Item = &'a SignedEvent> {
        let kept = |position: &usize| {
            matches!(self.verdict(*position), Verdict::Accepted | Verdict::Duplicate)
        };
        (0..self.events.len()).filter(kept).map(|position| &self.events[position])
    }
}

impl Audience {
    fn new(filter: &Value, events: &[EventFields]) -> anyhow::Result<Self> {
        let plain: Filter = serde_json::from_value(filter.clone())?;
        let mut matching = vec![0; events.len().div_ceil(64)];
        let mut matching_count = 0;
        for (position, event) in events.iter().enumerate() {
            if plain.matches(event) {
                matching[position / 64] |= 1 << (position % 64);
                matching_count += 1;
            }
        }
        let withheld = AtomicU64::new(0);
        Ok(Self { filter: filter.clone(), matching, matching_count, withheld })
    }

    pub fn wants(&self, position: usize) -> bool {
        self.matching[position / 64] & (1 << (position % 64)) != 0
    }

    /// How many events each of its followers gets, once all are answered.
    pub fn due(&self) -> u64 {
        self.matching_count - self.withheld.load(Ordering::Relaxed)
    }
}
