//! One live subscription and its ledger: which events came, once each, in order.

use super::Shared;
use crate::client::inquiry::Answer;
use crate::client::{Connection, Id, Lost, RelayMessage, message};
use crate::report::{Latency, Violations};
use crate::scenario::{Clock, Notices};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SUBSCRIPTION: &str = "live";
/// The first subscriber keeps this many deliveries as they came, to be compared with what was published.
const KEPT_DELIVERIES_MAX: usize = 1000;

pub struct Subscriber {
    pub number: usize,
    pub connection: Option<Connection>,
    /// The relay ended the subscription; the connection may be open still.
    ended: bool,
    /// The event that comes next if all is well.
    expected: usize,
    /// One bit an event.
    seen: Vec<u64>,
    received: u64,
    /// Of these, the ones that came behind an event that was published later.
    pub out_of_order: u64,
    kept: Vec<(usize, Vec<u8>)>,
}

impl Subscriber {
    pub fn new(number: usize, connection: Connection, events: usize) -> Self {
        let (seen, kept) = (vec![0; events.div_ceil(64)], Vec::new());
        Self {
            number,
            connection: Some(connection),
            ended: false,
            expected: 0,
            seen,
            received: 0,
            out_of_order: 0,
            kept,
        }
    }

    /// Distinct events that arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn is_live(&self) -> bool {
        self.connection.is_some() && !self.ended
    }

    /// Sends the REQ and waits for its EOSE, before the window.
    ///
    /// # Errors
    /// A timeout, a CLOSED, a stored event where none was asked for.
    pub fn subscribe(&mut self, filter: &Value, timeout: Duration) -> anyhow::Result<()> {
        let connection = self.connection.as_mut().context("it is open")?;
        let answer = connection
            .inquire(SUBSCRIPTION, filter, timeout)
            .with_context(|| format!("subscriber {}", self.number))?;
        ensure!(
            answer == Answer::default(),
            "subscriber {}: not just EOSE: {answer:?}",
            self.number
        );
        Ok(())
    }

    /// One read.
    ///
    /// # Errors
    /// The connection is over.
    pub fn receive(
        &mut self,
        buffer: &mut Vec<u8>,
        shared: &Shared<'_>,
        latency: &mut Latency,
        notices: &mut Notices,
        violations: &mut Violations,
        clock: Clock,
    ) -> Result<(), Lost> {
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        let mut now = None;
        let result = connection.receive(buffer, |text| {
            let now = *now.get_or_insert_with(|| clock.now_ns());
            match message::parse(text) {
                Ok(RelayMessage::Event { subscription, id }) if subscription == SUBSCRIPTION => {
                    if let Some(position) = self.on_event(&id, shared, violations) {
                        let from = shared.from_ns[position].load(Ordering::Acquire);
                        if clock.is_measured(from) {
                            latency.record(now, now.saturating_sub(from));
                        }
                        self.keep(position, text);
                    }
                }
                Ok(RelayMessage::Closed { reason, .. }) => {
                    if !std::mem::replace(&mut self.ended, true) {
                        shared.subscribers_live.fetch_sub(1, Ordering::Relaxed);
                    }
                    violations.add("subscription_closed", || {
                        format!("subscriber {}: {reason}", self.number)
                    });
                }
                Ok(RelayMessage::Notice(text)) => notices.add(&text),
                Ok(RelayMessage::Auth | RelayMessage::Other) => {}
                Ok(other) => {
                    violations.add("unexpected_message", || {
                        format!("subscriber {}: {other:?}", self.number)
                    });
                }
                Err(malformed) => violations.add("malformed_message", || malformed.to_string()),
            }
        });
        self.connection = Some(connection);
        result
    }

    /// The event's position if this is its first and rightful delivery.
    fn on_event(
        &mut self,
        id: &Id,
        shared: &Shared<'_>,
        violations: &mut Violations,
    ) -> Option<usize> {
        let number = self.number;
        let hex = || format!("subscriber {number}: event {}", faster_hex::hex_string(id));
        let position = match shared.events.get(self.expected) {
            Some(event) if event.id == *id => self.expected,
            _ => match shared.index.get(id) {
                Some(position) => *position as usize,
                None => {
                    violations.add("delivery_of_foreign_event", hex);
                    return None;
                }
            },
        };
        let (word, bit) = (position / 64, 1 << (position % 64));
        if self.seen[word] & bit != 0 {
            violations.add("delivery_twice", hex);
            return None;
        }
        self.seen[word] |= bit;
        self.received += 1;
        if position < self.expected {
            self.out_of_order += 1;
        }
        self.expected = self.expected.max(position + 1);
        Some(position)
    }

    fn keep(&mut self, position: usize, text: &[u8]) {
        if self.number == 0 && self.kept.len() < KEPT_DELIVERIES_MAX {
            self.kept.push((position, text.to_vec()));
        }
    }

    /// What is missing of the first `published` events, and whether the kept deliveries say what was published.
    pub fn judge(&self, shared: &Shared<'_>, published: usize, violations: &mut Violations) {
        let refused = shared.refused.load(Ordering::Relaxed);
        let missing = (published as u64).saturating_sub(self.received + refused);
        violations.add_many("delivery_missing", missing, || {
            let first = (0..published)
                .find(|position| self.seen[position / 64] & (1 << (position % 64)) == 0);
            format!("subscriber {}: {missing} of {published}, first number {first:?}", self.number)
        });
        for (position, text) in &self.kept {
            let delivered = message::event_json(text)
                .and_then(|json| serde_json::from_slice::<Value>(json).ok());
            let published = serde_json::from_str::<Value>(&shared.events[*position].json).ok();
            if delivered.is_none() || delivered != published {
                violations.add("delivery_altered", || String::from_utf8_lossy(text).into_owned());
            }
        }
    }
}

impl Shared<'_> {
    /// How many events the live subscribers have received on average; with a dead one it runs ahead, which only
    /// loosens the publisher's lag limit.
    pub fn delivered_average(&self) -> usize {
        let live = self.subscribers_live.load(Ordering::Relaxed).max(1);
        (self.delivered.load(Ordering::Relaxed) / live) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{self, generate::Generator};
    use std::sync::atomic::AtomicU64;

    #[test]
    fn the_ledger_tells_twice_out_of_order_foreign_and_missing_apart() {
        let mut generator = Generator::new(1, 1, Vec::new(), 1_800_000_000, 10).unwrap();
        let signed: Vec<_> = (0..5).map(|_| generator.next_event()).collect();
        let foreign = generator.next_event();
        let index = events::index(&signed).unwrap();
        let zero = || AtomicU64::new(0);
        let shared = Shared {
            events: &signed,
            index: &index,
            from_ns: (0..5).map(|_| zero()).collect(),
            delivered: zero(),
            refused: zero(),
            subscribers_live: AtomicU64::new(1),
        };
        let (seen, kept) = (vec![0], Vec::new());
        let mut subscriber = Subscriber {
            number: 3,
            connection: None,
            ended: false,
            expected: 0,
            seen,
            received: 0,
            out_of_order: 0,
            kept,
        };
        let mut violations = Violations::default();
        let mut see = |id: &Id| subscriber.on_event(id, &shared, &mut violations);
        assert_eq!(see(&signed[0].id), Some(0));
        assert_eq!(see(&signed[2].id), Some(2));
        assert_eq!(see(&signed[1].id), Some(1));
        assert_eq!(see(&signed[1].id), None);
        assert_eq!(see(&foreign.id), None);
        assert_eq!(see(&signed[3].id), Some(3));
        subscriber.judge(&shared, 5, &mut violations);
        let counts: Vec<(&str, u64)> =
            violations.kinds().iter().map(|one| (one.name, one.count)).collect();
        let expected = ["delivery_missing", "delivery_of_foreign_event", "delivery_twice"];
        assert_eq!(subscriber.out_of_order, 1);
        assert_eq!(counts, expected.map(|kind| (kind, 1)));
    }
}
