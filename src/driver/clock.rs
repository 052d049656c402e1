//! The one place a shard reads the time.
//!
//! Deadlines are hundreds of milliseconds and `created_at` is in seconds, so the kernel's coarse clocks
//! (a few milliseconds) do, at a fifth of the cost; a shard asks several times a write.

use rustix::time::{ClockId, clock_gettime};

use crate::relay::Now;

/// The time.
#[must_use]
pub fn now() -> Now {
    let monotonic = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(monotonic.tv_sec).unwrap_or(0);
    let ms = u64::try_from(monotonic.tv_nsec / 1_000_000).unwrap_or(0);
    let unix = clock_gettime(ClockId::RealtimeCoarse);
    Now { ms: seconds * 1000 + ms, unix_s: u64::try_from(unix.tv_sec).unwrap_or(0) }
}
