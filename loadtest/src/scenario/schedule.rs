//! When an operation is due.
//!
//! In an **open loop** the schedule decides, whatever the relay does, and latency counts from the due time: a relay
//! that stalls is charged for everything that waited meanwhile. In a **closed loop** the answer to one operation
//! allows the next: a stall delays the questions too, and is seen once a connection (coordinated omission).

use crate::report::{Latency, Pacing, SEND_LATENESS};
use std::time::Duration;

/// What decides when the operations of a run begin.
#[derive(Clone, Debug)]
pub enum Pace {
    /// At most so many unanswered operations a connection.
    Closed {
        in_flight_max: usize,
    },
    Open(Arrivals),
}

/// A schedule: operation i is due so long after the window opens; never earlier than the one before.
#[derive(Clone, Debug)]
pub enum Arrivals {
    Even {
        interval_ns: f64,
    },
    /// So many at once, again and again.
    Bursts {
        operations: usize,
        every_ns: u64,
    },
    At(Vec<u64>),
}

impl Arrivals {
    /// # Errors
    /// A rate that is not above 0 and at most a million.
    pub fn even(rate: f64) -> anyhow::Result<Self> {
        anyhow::ensure!(rate > 0.0 && rate <= 1e6, "a rate of {rate} is not in 0..=1000000");
        Ok(Self::Even { interval_ns: 1e9 / rate })
    }

    /// Nanoseconds after the window opens.
    pub fn due_ns(&self, operation: usize) -> u64 {
        match self {
            Self::Even { interval_ns } => (operation as f64 * interval_ns) as u64,
            Self::Bursts { operations, every_ns } => (operation / operations) as u64 * every_ns,
            Self::At(times) => times.get(operation).copied().unwrap_or(u64::MAX),
        }
    }
}

impl Pace {
    /// For a report.
    pub fn pacing(&self) -> Pacing {
        match self {
            Self::Closed { .. } => Pacing::Closed,
            Self::Open(_) => Pacing::Open,
        }
    }

    /// For a person.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open(_) => "open",
        }
    }

    /// The figures of a run: in an open loop, also how late the generator itself was.
    pub fn latencies(
        &self,
        span: &'static str,
        latency: Latency,
        lateness: Latency,
    ) -> Vec<(&'static str, Latency)> {
        match self {
            Self::Closed { .. } => vec![(span, latency)],
            Self::Open(_) => vec![(span, latency), (SEND_LATENESS, lateness)],
        }
    }

    /// How long a schedule of so many operations is; nothing in a closed loop.
    pub fn length(&self, operations: usize) -> Duration {
        match self {
            Self::Open(arrivals) if operations > 0 => {
                Duration::from_nanos(arrivals.due_ns(operations - 1))
            }
            _ => Duration::ZERO,
        }
    }
}

/// The operations of one thread in the order of their schedule. Operation k belongs to lane k modulo the number of
/// lanes; a thread has some of the lanes.
#[derive(Debug)]
pub struct Roster {
    /// Of this thread's lanes, ascending.
    numbers: Vec<usize>,
    lanes_total: usize,
    operations_total: usize,
    /// `at <= numbers.len()`; the round's lanes before it have had their turn.
    round: usize,
    at: usize,
}

impl Roster {
    pub fn new(numbers: Vec<usize>, lanes_total: usize, operations_total: usize) -> Self {
        debug_assert!(numbers.is_sorted());
        Self { numbers, lanes_total, operations_total, round: 0, at: 0 }
    }

    /// The next operation, and the index of its lane in this thread.
    pub fn peek(&self) -> Option<(usize, usize)> {
        let number = self.numbers.get(self.at)?;
        let operation = self.round * self.lanes_total + number;
        (operation < self.operations_total).then_some((operation, self.at))
    }

    pub fn advance(&mut self) {
        self.at += 1;
        if self.at == self.numbers.len() {
            (self.round, self.at) = (self.round + 1, 0);
        }
    }

    /// The next operation that is due by now, which then has had its turn; or else how long until one is.
    pub fn take_due(&mut self, arrivals: &Arrivals, now_ns: u64) -> Result<(u64, usize), Duration> {
        let Some((operation, lane)) = self.peek() else { return Err(Duration::MAX) };
        let due_ns = arrivals.due_ns(operation);
        if due_ns > now_ns {
            return Err(Duration::from_nanos(due_ns - now_ns));
        }
        self.advance();
        Ok((due_ns, lane))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_say_when() {
        let due = |arrivals: &Arrivals| (0..5).map(|i| arrivals.due_ns(i)).collect::<Vec<_>>();
        let even = Arrivals::even(1000.0).unwrap();
        assert_eq!(due(&even), [0, 1_000_000, 2_000_000, 3_000_000, 4_000_000]);
        assert_eq!(due(&Arrivals::Bursts { operations: 2, every_ns: 10 }), [0, 0, 10, 10, 20]);
        assert_eq!(due(&Arrivals::At(vec![3, 4])), [3, 4, u64::MAX, u64::MAX, u64::MAX]);
        assert_eq!(Pace::Open(even).length(3), Duration::from_millis(2));
        assert!(Arrivals::even(0.0).is_err() && Arrivals::even(f64::NAN).is_err());
    }

    #[test]
    fn threads_share_the_operations_without_rest() {
        let (lanes, operations) = (5, 13);
        let mut seen = Vec::new();
        for hand in [vec![0, 2, 4], vec![1, 3]] {
            let mut roster = Roster::new(hand.clone(), lanes, operations);
            let mut last = None;
            while let Some((operation, lane)) = roster.peek() {
                assert_eq!(operation % lanes, hand[lane]);
                assert!(last < Some(operation), "in the order of the schedule");
                last = Some(operation);
                seen.push(operation);
                roster.advance();
            }
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..operations));
    }

    #[test]
    fn an_operation_has_its_turn_once_and_not_before_its_time() {
        let arrivals = Arrivals::Even { interval_ns: 10.0 };
        let mut roster = Roster::new(vec![0], 1, 3);
        assert_eq!(roster.take_due(&arrivals, 10), Ok((0, 0)));
        assert_eq!(roster.take_due(&arrivals, 10), Ok((10, 0)));
        assert_eq!(roster.take_due(&arrivals, 15), Err(Duration::from_nanos(5)));
        assert_eq!(roster.take_due(&arrivals, 99), Ok((20, 0)));
        assert_eq!(roster.take_due(&arrivals, 99), Err(Duration::MAX));
    }
}
