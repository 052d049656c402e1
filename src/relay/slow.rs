//! Slow readers: whose subscription ends when live events cannot wait any longer.
//!
//! One that has no room for an event more, or has kept one too long, ends for itself; where a connection
//! or the shard holds too much, the one whose oldest event has waited longest.

use super::planted::{Bug, planted};
use super::session::{ConnectionKey, Stage, Subscription};
use super::shard::{Now, Shard};

impl Shard {
    /// Ends a subscription whose reader is behind.
    pub(super) fn end_slow(&mut self, slot: u32) {
        self.counters.subscriptions_slow += 1;
        if planted(Bug::LagEndsConnection) {
            let connection = self.subscriptions.get(slot as usize).map(|s| s.connection);
            return connection.into_iter().for_each(|key| self.remove(key));
        }
        self.fail_subscription(slot, "error: slow consumer");
    }

    /// Ends the subscriptions whose oldest live event has waited too long for room. Waiting for the
    /// stored query does not count: a reader who takes that as fast as it comes is not slow.
    pub(super) fn end_slow_subscriptions(&mut self, now: Now) {
        let age_max = u64::from(self.setup.limits.live_queue_age_ms_max);
        let waiting = self.sessions.iter().flat_map(|(_, session)| session.waiting.iter().copied());
        let slow: Vec<u32> = waiting
            .filter(|slot| {
                let subscription = &self.subscriptions[*slot as usize];
                let oldest = subscription.live.front();
                let live_ms = subscription.live_ms * u64::from(!planted(Bug::ScanCountsAsWait));
                let since = oldest.map(|event| event.received_ms.max(live_ms));
                subscription.stage == Stage::Live
                    && !planted(Bug::AgeUnbounded)
                    && since.is_some_and(|ms| now.ms.saturating_sub(ms) >= age_max)
            })
            .collect();
        for slot in slow {
            self.end_slow(slot);
        }
    }

    /// Ends the subscriptions furthest behind while the live events that wait are too many bytes. It
    /// makes more room than is needed, so that the next event does not have it look again.
    pub(super) fn end_furthest_behind(&mut self) {
        let bytes_max = self.setup.limits.live_bytes_max as usize;
        if self.live_bytes.get() <= bytes_max || planted(Bug::LiveBytesUnbounded) {
            return;
        }
        let oldest = |(slot, subscription): (usize, &Subscription)| {
            let oldest = subscription.live.front()?;
            Some((oldest.received_ms, u32::try_from(slot).expect("32 bits")))
        };
        let mut behind: Vec<_> = self.subscriptions.iter().filter_map(oldest).collect();
        behind.sort_unstable();
        for (_, slot) in behind {
            if self.live_bytes.get() <= bytes_max / 4 * 3 {
                return;
            }
            self.end_slow(slot);
        }
    }

    /// Ends the subscription furthest behind of a connection for which too many live events wait.
    pub(super) fn end_furthest_behind_of(&mut self, key: ConnectionKey) {
        let Some(session) = self.sessions.get(key.slot()).filter(|s| s.key == key) else { return };
        let oldest = |slot: &u32| {
            let event = self.subscriptions[*slot as usize].live.front()?;
            Some((event.received_ms, *slot))
        };
        if let Some((_, slot)) = session.subscriptions.iter().filter_map(oldest).min() {
            self.end_slow(slot);
        }
    }
}
