//! When memory is given back: after much of what was held is gone, and some time has passed without as
//! much coming again; and after many connections have come, and for some time no other.

use super::shard::{Effect, Now, Shard};

/// So much must be gone, in bytes, and at least as much as is left.
const GONE_BYTES_MIN: u64 = 1 << 20;

/// For so long, in milliseconds.
const GONE_MS_MIN: u64 = 1_000;

/// So many connections must have come. What their handshakes took for a moment is not held any more, so it
/// shows nowhere else, and one that then does nothing never has the allocator look.
const CAME_MIN: u64 = 500;

/// A connection with its subscriptions, but for what their filters list, about, in bytes.
const CONNECTION_BYTES: u64 = 2 << 10;

/// How much is held, about.
#[derive(Debug, Default)]
pub(super) struct Tide {
    /// The most bytes since memory was given back.
    high: u64,
    /// Since when it has been half of that at most, in milliseconds.
    low_ms: Option<u64>,
}

/// How many connections have come.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// When memory was given back.
    before: u64,
    /// And until now, the last of them when.
    count: u64,
    last_ms: u64,
}

impl Arrivals {
    /// Notes how many have come; whether memory should be given back.
    fn rest(&mut self, count: u64, now_ms: u64) -> bool {
        if count != self.count {
            (self.count, self.last_ms) = (count, now_ms);
        }
        let rest = count - self.before >= CAME_MIN && now_ms - self.last_ms >= GONE_MS_MIN;
        if rest {
            self.before = count;
        }
        rest
    }
}

impl Tide {
    /// Notes what is held; whether memory should be given back.
    fn ebbs(&mut self, held: u64, now_ms: u64) -> bool {
        self.high = self.high.max(held);
        let gone = self.high - held;
        if gone < GONE_BYTES_MIN || gone < held {
            self.low_ms = None;
            return false;
        }
        let ebbs = now_ms - *self.low_ms.get_or_insert(now_ms) >= GONE_MS_MIN;
        if ebbs {
            *self = Self { high: held, low_ms: None };
        }
        ebbs
    }
}

impl Shard {
    /// Gives the room of tables and queues back when most of it is empty, and has the driver do the same.
    pub(super) fn give_back(&mut self, now: Now) {
        let connections = self.sessions.len() as u64 * CONNECTION_BYTES;
        let queued = self.counters.outbox_bytes + self.live_bytes.get() as u64;
        let filters = self.index.held_bytes() as u64;
        let held = connections + filters + queued + self.pending_bytes as u64;
        if self.tide.ebbs(held, now.ms) {
            self.sessions.shrink_to_fit();
            self.subscriptions.shrink_to_fit();
            self.counts.shrink_to_fit();
            self.pending.shrink_to_fit();
            self.verify_round.shrink_to_fit();
            self.matched = Vec::new();
            self.index.shrink_to_fit(self.subscriptions.capacity());
            self.effects.shrink_to_fit();
            self.effects.push_back(Effect::GiveBack);
        } else if self.arrivals.rest(self.counters.accepted, now.ms) {
            self.effects.push_back(Effect::GiveBack);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_a_second_after_the_last_of_many_has_come() {
        let mut arrivals = Arrivals::default();
        let looks = [
            (0, 499, false),
            (2_000, 499, false),
            (2_250, 500, false),
            (3_249, 501, false),
            (4_248, 501, false),
            (4_249, 501, true),
            (5_500, 501, false),
            (6_000, 1_001, false),
            (7_000, 1_001, true),
        ];
        for (ms, count, rest) in looks {
            assert_eq!(arrivals.rest(count, ms), rest, "{count} connections at {ms} ms");
        }
    }

    #[test]
    fn memory_is_given_back_once_half_is_gone_for_a_second() {
        const MIB: u64 = 1 << 20;
        let mut tide = Tide::default();
        let looks = [
            (0, 10 * MIB, false),
            (250, 6 * MIB, false),
            (500, 5 * MIB, false),
            (1_250, 5 * MIB, false),
            (1_300, 6 * MIB, false),
            (1_400, 5 * MIB, false),
            (2_399, MIB, false),
            (2_400, MIB, true),
            (9_000, 0, false),
            (10_000, 0, true),
            (20_000, MIB - 1, false),
            (21_000, 0, false),
            (30_000, 0, false),
        ];
        for (ms, held, ebbs) in looks {
            assert_eq!(tide.ebbs(held, ms), ebbs, "{held} bytes at {ms} ms");
        }
    }
}
