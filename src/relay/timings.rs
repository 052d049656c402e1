//! How long things take in a shard, by fixed bounds: plain numbers, copied out as [`Counters`] are.
//!
//! Time goes by turns ([`Shard::begin_turn`]): what a shard does in one turn it does at the moment the
//! turn began. So a stage that begins and ends in one turn counts as no time, and what it took is in the
//! next stage: the stages of one event add up.
//!
//! [`Counters`]: super::counters::Counters
//! [`Shard::begin_turn`]: super::Shard::begin_turn

/// Upper bounds, in microseconds; what took longer is counted in one place more.
pub const BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000,
];

/// A histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many lie at or below each bound and above the one before; the last have no bound.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// Their sum, in microseconds.
    pub sum_us: u64,
}

impl Durations {
    /// Counts `times` durations from one moment to another, both in microseconds of one clock.
    pub fn observe(&mut self, from_us: u64, until_us: u64, times: u64) {
        let took_us = until_us.saturating_sub(from_us);
        let at = BOUNDS_US.iter().position(|bound| took_us <= *bound);
        self.counts[at.unwrap_or(BOUNDS_US.len())] += times;
        self.sum_us += took_us * times;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What a shard times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From a REQ to its EOSE in the outbox.
    pub eose: Durations,
    /// From the bytes of an event until it is durable; of each event stored, on the shard it came to.
    pub commit: Durations,
    /// From then until it is in the queues of its subscribers; of each event with some, on each shard
    /// that has some.
    pub enqueue: Durations,
    /// From the first frame of a batch that waits until its socket has taken all of it; of each frame,
    /// answers included.
    pub sent: Durations,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_last_of_its_own() {
        let mut durations = Durations::default();
        for (took_us, times) in [(0, 1), (50, 1), (51, 2), (5_000_000, 1), (5_000_001, 3)] {
            durations.observe(1_000, 1_000 + took_us, times);
        }
        let counts = &durations.counts;
        assert_eq!((counts[0], counts[1], counts[15], counts[16]), (2, 2, 1, 3));
        assert_eq!((durations.count(), durations.sum_us), (8, 152 + 4 * 5_000_000 + 3));
    }

    #[test]
    fn what_seems_to_end_before_it_began_took_no_time() {
        let mut durations = Durations::default();
        durations.observe(10, 9, 1);
        assert_eq!((durations.counts[0], durations.sum_us), (1, 0));
    }
}
