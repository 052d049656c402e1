//! The one place a shard reads the time.
//!
//! It does so once a turn: when its thread goes on after it has waited. A precise clock costs some
//! 60 ns here, a coarse one 10; asked several times for every write, as deadlines want it, a coarse one
//! was dearer than a precise one is once a turn, and could tell nothing below 4 ms. What happens later in
//! the turn, within a few milliseconds, happens at the same moment: deadlines are hundreds of them.

use rustix::time::{ClockId, clock_gettime};

use crate::relay::Now;

/// The time, and microseconds of the clock its milliseconds are of.
#[must_use]
pub fn now() -> (Now, u64) {
    let monotonic = clock_gettime(ClockId::Monotonic);
    let us = u64::try_from(monotonic.tv_sec * 1_000_000 + monotonic.tv_nsec / 1_000).unwrap_or(0);
    let unix = clock_gettime(ClockId::RealtimeCoarse);
    (Now { ms: us / 1_000, unix_s: u64::try_from(unix.tv_sec).unwrap_or(0) }, us)
}
