//! Followers: live subscriptions, and the ledger of each: every matching event once, a publisher's in its order.

use super::hub::{Hub, Line, unexpected};
use super::ledger::{Audience, Ledger, Verdict};
use crate::client::poller::Ready;
use crate::client::{Connection, Id, RelayMessage, message};
use crate::report::{Latency, Violations};
use crate::scenario::Clock;
use serde_json::Value;

/// The first follower keeps this many deliveries as they came, to be compared with what was published.
const KEPT_DELIVERIES_MAX: usize = 1000;
/// The name of every follower's subscription.
pub const SUBSCRIPTION: &str = "live";

/// What followers have seen.
#[derive(Debug, Default)]
pub struct Followed {
    pub deliveries: u64,
    /// EVENT messages, rightful or not.
    pub received: u64,
    /// By what was accepted and who follows it.
    pub expected: u64,
    pub out_of_order: u64,
    /// Subscriptions that the relay ended with CLOSED, and what they did not get.
    pub closed: u64,
    pub declared_missing: u64,
    pub closed_reasons: Vec<String>,
    /// Send or due time of the event → delivery.
    pub latency: Latency,
}

impl Followed {
    pub fn merge(&mut self, other: Self) {
        self.deliveries += other.deliveries;
        self.received += other.received;
        self.expected += other.expected;
        self.out_of_order += other.out_of_order;
        self.closed += other.closed;
        self.declared_missing += other.declared_missing;
        self.closed_reasons.extend(other.closed_reasons);
        self.closed_reasons.truncate(3);
        self.latency.merge(&other.latency);
    }
}

/// The followers of one thread.
pub struct Follow<'a> {
    ledger: &'a Ledger<'a>,
    lanes: Vec<Lane>,
    followed: Followed,
}

struct Lane {
    line: Line,
    book: Book,
}

/// What one subscription has got.
#[derive(Debug)]
struct Book {
    number: usize,
    /// Into [`Ledger::audiences`].
    audience: usize,
    /// One bit an event.
    seen: Vec<u64>,
    received: u64,
    /// The position that comes next if all do: it spares the index.
    expected: usize,
    /// By publisher: its next event that is in order.
    next: Vec<usize>,
    out_of_order: u64,
    closed: Option<String>,
    kept: Vec<(usize, Vec<u8>)>,
}

impl<'a> Follow<'a> {
    /// `connections` with their numbers among all followers, subscribed; tokens from `token` on. Follower n belongs to
    /// audience n modulo their number.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn new(
        hub: &Hub,
        ledger: &'a Ledger<'a>,
        connections: Vec<(usize, Connection)>,
        token: usize,
    ) -> anyhow::Result<Self> {
        let mut lanes = Vec::new();
        for (at, (number, connection)) in connections.into_iter().enumerate() {
            let line = Line::new(hub, "follower", number, token + at, connection)?;
            lanes.push(Lane { line, book: Book::new(ledger, number) });
        }
        Ok(Self { ledger, lanes, followed: Followed::default() })
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Every open subscription has all that was accepted; true only once publishing is over.
    pub fn is_done(&self) -> bool {
        self.lanes.iter().all(|Lane { line, book }| {
            let due = self.ledger.audiences[book.audience].due();
            !line.is_open() || book.closed.is_some() || book.received >= due
        })
    }

    /// `at` is the token less the first one.
    pub fn serve(&mut self, at: usize, hub: &mut Hub, ready: Ready, clock: Clock) {
        let Lane { line, book } = &mut self.lanes[at];
        let (ledger, followed) = (self.ledger, &mut self.followed);
        line.serve(hub, ready, clock, |message, text, now, violations| match message {
            RelayMessage::Event { subscription, id } if subscription == SUBSCRIPTION => {
                followed.received += 1;
                if let Some(position) = book.on_event(&id, ledger, violations) {
                    book.keep(position, text);
                    let from = ledger.start_ns(position);
                    if clock.is_measured(from) {
                        followed.latency.record(now, now.saturating_sub(from));
                    }
                }
            }
            RelayMessage::Closed { subscription, reason } if subscription == SUBSCRIPTION => {
                book.closed = Some(reason.into_owned());
            }
            other => unexpected(violations, "follower", book.number, &other),
        });
    }

    /// Names what is missing and was not declared, and hands over the figures.
    pub fn finish(mut self, any_order: bool, violations: &mut Violations) -> Followed {
        for Lane { book, .. } in &self.lanes {
            book.judge(self.ledger, &mut self.followed, violations);
        }
        let (astray, all) = (self.followed.out_of_order, self.followed.deliveries);
        if !any_order {
            violations.add_many("delivery_out_of_order", astray, || {
                format!("{astray} of {all} came behind a later event of the same publisher")
            });
        }
        self.followed
    }
}

impl Book {
    fn new(ledger: &Ledger<'_>, number: usize) -> Self {
        Self {
            number,
            audience: number % ledger.audiences.len(),
            seen: vec![0; ledger.events.len().div_ceil(64)],
            received: 0,
            expected: 0,
            next: vec![0; ledger.publishers],
            out_of_order: 0,
            closed: None,
            kept: Vec::new(),
        }
    }

    fn keep(&mut self, position: usize, text: &[u8]) {
        if self.number == 0 && self.kept.len() < KEPT_DELIVERIES_MAX {
            self.kept.push((position, text.to_vec()));
        }
    }

    /// The event's position if this is its first and rightful delivery.
    fn on_event(
        &mut self,
        id: &Id,
        ledger: &Ledger<'_>,
        violations: &mut Violations,
    ) -> Option<usize> {
        let number = self.number;
        let hex = || format!("follower {number}: event {}", faster_hex::hex_string(id));
        let expected = ledger.events.get(self.expected).is_some_and(|event| event.id == *id);
        let known = if expected { Some(self.expected) } else { ledger.position(id) };
        let Some(position) = known else {
            violations.add("delivery_of_foreign_event", hex);
            return None;
        };
        if !ledger.audiences[self.audience].wants(position) {
            violations.add("delivery_unasked", hex);
            return None;
        }
        let (word, bit) = (position / 64, 1 << (position % 64));
        if self.seen[word] & bit != 0 {
            violations.add("delivery_twice", hex);
            return None;
        }
        if ledger.start_ns(position) == 0 {
            violations.add("delivery_before_publishing", hex);
            return None;
        }
        self.expected = position + 1;
        self.seen[word] |= bit;
        self.received += 1;
        let index = position / ledger.publishers;
        let next = &mut self.next[position % ledger.publishers];
        self.out_of_order += u64::from(index < *next);
        *next = (*next).max(index + 1);
        Some(position)
    }

    fn judge(&self, ledger: &Ledger<'_>, followed: &mut Followed, violations: &mut Violations) {
        let audience: &Audience = &ledger.audiences[self.audience];
        let accepted = (0..ledger.events.len()).filter(|position| {
            audience.wants(*position) && ledger.verdict(*position) == Verdict::Accepted
        });
        let is_missing = |position: &usize| self.seen[position / 64] & (1 << (position % 64)) == 0;
        let (mut expected, mut missing, mut first) = (0, 0, None);
        for position in accepted {
            expected += 1;
            if is_missing(&position) {
                missing += 1;
                first = first.or(Some(position));
            }
        }
        for (position, text) in &self.kept {
            let delivered = message::event_json(text)
                .and_then(|json| serde_json::from_slice::<Value>(json).ok());
            let published = serde_json::from_str::<Value>(&ledger.events[*position].json).ok();
            if delivered.is_none() || delivered != published {
                violations.add("delivery_altered", || String::from_utf8_lossy(text).into_owned());
            }
        }
        followed.deliveries += self.received;
        followed.expected += expected;
        followed.out_of_order += self.out_of_order;
        match &self.closed {
            Some(reason) => {
                followed.closed += 1;
                followed.declared_missing += missing;
                followed.closed_reasons.push(format!("follower {}: {reason}", self.number));
                followed.closed_reasons.truncate(3);
            }
            None => violations.add_many("delivery_missing", missing, || {
                let number = self.number;
                format!("follower {number}: {missing} of {expected}, the first is number {first:?}")
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{self, generate::Generator};
    use serde_json::json;

    #[test]
    fn the_book_tells_every_wrong_delivery_apart() {
        let mut generator = Generator::new(1, 1, Vec::new(), 1_800_000_000, 20).unwrap();
        let mut signed: Vec<_> = (0..6).map(|_| generator.sized_event(1, 400)).collect();
        signed.push(generator.sized_event(7, 400));
        // The last is never sent.
        signed.push(generator.sized_event(1, 400));
        let foreign = generator.sized_event(1, 400);
        let index = events::index(&signed).unwrap();
        // Publisher 0 has the events 0, 2, 4, 6; publisher 1 has 1, 3, 5, 7.
        let ledger = Ledger::new(&signed, &index, 2, &[json!({"kinds": [1]})]).unwrap();
        for position in 0..6 {
            ledger.send(position, 5);
            ledger
                .answer(position, if position == 4 { Verdict::Refused } else { Verdict::Accepted });
        }
        assert_eq!(ledger.audiences[0].due(), 6);
        let mut book = Book::new(&ledger, 0);
        let mut violations = Violations::default();
        let mut see = |id: &Id| book.on_event(id, &ledger, &mut violations);
        for (position, expected) in [
            (1, Some(1)),
            (0, Some(0)),
            (5, Some(5)),
            (3, Some(3)),
            (3, None),
            (6, None),
            (7, None),
        ] {
            assert_eq!(see(&signed[position].id), expected);
        }
        assert_eq!(see(&foreign.id), None);
        assert_eq!(book.out_of_order, 1, "3 came behind 5, and nothing else is astray");
        let mut followed = Followed::default();
        book.judge(&ledger, &mut followed, &mut violations);
        assert_eq!((followed.deliveries, followed.expected), (4, 5));
        let expected = [
            "delivery_before_publishing",
            "delivery_missing",
            "delivery_of_foreign_event",
            "delivery_twice",
            "delivery_unasked",
        ];
        let counts: Vec<_> =
            violations.kinds().into_iter().map(|one| (one.name, one.count)).collect();
        assert_eq!(counts, expected.map(|kind| (kind, 1)));
    }

    #[test]
    fn what_a_closed_subscription_misses_is_declared() {
        let mut generator = Generator::new(1, 1, Vec::new(), 1_800_000_000, 20).unwrap();
        let signed: Vec<_> = (0..3).map(|_| generator.next_event()).collect();
        let index = events::index(&signed).unwrap();
        let ledger = Ledger::new(&signed, &index, 1, &[json!({})]).unwrap();
        (0..3).for_each(|position| ledger.answer(position, Verdict::Accepted));
        let mut book = Book::new(&ledger, 0);
        book.closed = Some("error: slow consumer".into());
        let (mut followed, mut violations) = Default::default();
        book.judge(&ledger, &mut followed, &mut violations);
        assert_eq!((followed.closed, followed.declared_missing), (1, 3));
        assert!(violations.is_empty());
    }
}
