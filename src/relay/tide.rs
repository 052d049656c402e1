//! When memory is given back: after much of what was held is gone, and some time has passed without as
//! much coming again.

use super::shard::{Effect, Now, Shard};

/// So much must be gone, in bytes, and at least as much as is left.
const GONE_BYTES_MIN: u64 = 1 << 20;

/// For so long, in milliseconds.
const GONE_MS_MIN: u64 = 1_000;

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
            self.pending.shrink_to_fit();
            self.verify_round.shrink_to_fit();
            self.matched = Vec::new();
            self.index.shrink_to_fit(self.subscriptions.capacity());
            self.effects.shrink_to_fit();
            self.effects.push_back(Effect::GiveBack);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
