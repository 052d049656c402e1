//! Publishers: each event sent once, each answered once.

use super::hub::{Hub, Line, unexpected};
use super::ledger::{Ledger, Verdict};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, RelayMessage};
use crate::events::{Random, SignedEvent};
use crate::report::{Latency, Violations};
use crate::scenario::Clock;
use crate::scenario::schedule::{Pace, Roster};
use std::collections::BTreeMap;
use std::time::Duration;

/// Verdicts by kind; `rejected` by the reason's prefix.
#[derive(Debug, Default)]
pub struct Verdicts {
    pub accepted: u64,
    pub duplicate: u64,
    pub rejected: BTreeMap<String, u64>,
}

impl Verdicts {
    pub fn add(&mut self, accepted: bool, reason: &str) -> Verdict {
        let prefix = reason.split_once(':').map_or("", |(prefix, _)| prefix);
        match (accepted, prefix) {
            (true, "duplicate") => {
                self.duplicate += 1;
                Verdict::Duplicate
            }
            (true, _) => {
                self.accepted += 1;
                Verdict::Accepted
            }
            (false, _) => {
                *self.rejected.entry(prefix.chars().take(40).collect()).or_default() += 1;
                Verdict::Refused
            }
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.duplicate += other.duplicate;
        for (prefix, count) in other.rejected {
            *self.rejected.entry(prefix).or_default() += count;
        }
    }

    pub fn answered(&self) -> u64 {
        self.accepted + self.duplicate + self.rejected.values().sum::<u64>()
    }
}

/// What publishers have seen.
#[derive(Debug, Default)]
pub struct Published {
    pub sent: u64,
    pub verdicts: Verdicts,
    /// Send or due time → OK.
    pub latency: Latency,
    /// How late an event left against its schedule: the generator's own fault.
    pub lateness: Latency,
}

impl Published {
    pub fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.verdicts.merge(other.verdicts);
        self.latency.merge(&other.latency);
        self.lateness.merge(&other.lateness);
    }
}

/// The publishers of one thread.
pub struct Publish<'a> {
    ledger: &'a Ledger<'a>,
    pace: &'a Pace,
    roster: Roster,
    lanes: Vec<Lane>,
    /// A closed loop's first windows are filled; answers refill them.
    is_started: bool,
    /// Lanes with events that are due and not sent.
    dirty: Vec<usize>,
    published: Published,
}

struct Lane {
    line: Line,
    frames: FrameArena,
    /// `answered <= sent <= due <= frames.len()`; in a closed loop `sent == due`.
    due: usize,
    sent: usize,
    answered: usize,
}

impl Lane {
    fn is_done(&self) -> bool {
        self.answered == self.frames.len() || !self.line.is_open()
    }
}

impl<'a> Publish<'a> {
    /// `connections` with their numbers among all publishers; tokens from `token` on.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn new(
        hub: &Hub,
        ledger: &'a Ledger<'a>,
        pace: &'a Pace,
        connections: Vec<(usize, Connection)>,
        token: usize,
    ) -> anyhow::Result<Self> {
        let numbers = connections.iter().map(|(number, _)| *number).collect();
        let roster = Roster::new(numbers, ledger.publishers, ledger.events.len());
        let mut lanes = Vec::new();
        for (at, (number, connection)) in connections.into_iter().enumerate() {
            let frames = frames(ledger.events.iter().skip(number).step_by(ledger.publishers));
            let line = Line::new(hub, "publisher", number, token + at, connection)?;
            lanes.push(Lane { line, frames, due: 0, sent: 0, answered: 0 });
        }
        let published = Published::default();
        Ok(Self { ledger, pace, roster, lanes, is_started: false, dirty: Vec::new(), published })
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub fn is_done(&self) -> bool {
        self.lanes.iter().all(Lane::is_done)
    }

    /// Sends what is due, one write a connection; says how long nothing more will be.
    pub fn send_due(&mut self, hub: &mut Hub, clock: Clock) -> Duration {
        let Pace::Open(arrivals) = self.pace else {
            if !std::mem::replace(&mut self.is_started, true) {
                (0..self.lanes.len()).for_each(|at| self.refill(at, hub, clock));
            }
            return Duration::MAX;
        };
        let now = clock.now_ns();
        let wait = loop {
            match self.roster.take_due(arrivals, now) {
                Ok((due_ns, at)) => {
                    let lane = &mut self.lanes[at];
                    let position = lane.due * self.ledger.publishers + lane.line.number;
                    self.ledger.send(position, due_ns);
                    if clock.is_measured(due_ns) {
                        self.published.lateness.record(now, now - due_ns);
                    }
                    if lane.due == lane.sent {
                        self.dirty.push(at);
                    }
                    lane.due += 1;
                }
                Err(wait) => break wait,
            }
        };
        for at in self.dirty.drain(..) {
            let lane = &mut self.lanes[at];
            if lane.line.is_open() {
                lane.line.send(hub, lane.frames.slice(lane.sent, lane.due));
            }
            lane.sent = lane.due;
        }
        wait
    }

    /// Fills a closed loop's window in one write.
    fn refill(&mut self, at: usize, hub: &mut Hub, clock: Clock) {
        let Pace::Closed { in_flight_max } = self.pace else { return };
        let lane = &mut self.lanes[at];
        let to = lane.frames.len().min(lane.answered + in_flight_max);
        if to > lane.sent && lane.line.is_open() {
            let now = clock.now_ns();
            for index in lane.sent..to {
                self.ledger.send(index * self.ledger.publishers + lane.line.number, now);
            }
            lane.line.send(hub, lane.frames.slice(lane.sent, to));
            (lane.sent, lane.due) = (to, to);
        }
    }

    /// `at` is the token less the first one.
    pub fn serve(&mut self, at: usize, hub: &mut Hub, ready: Ready, clock: Clock) {
        let lane = &mut self.lanes[at];
        let (number, sent, answered) = (lane.line.number, lane.sent, &mut lane.answered);
        let (ledger, published) = (self.ledger, &mut self.published);
        lane.line.serve(hub, ready, clock, |message, _, now, violations| {
            let RelayMessage::Ok { id, accepted, reason } = message else {
                return unexpected(violations, "publisher", number, &message);
            };
            let hex = || format!("publisher {number}: {}", faster_hex::hex_string(&id));
            let ours = |position: &usize| {
                position % ledger.publishers == number && position / ledger.publishers < sent
            };
            let Some(position) = ledger.position(&id).filter(ours) else {
                return violations.add("ok_for_unsent_event", hex);
            };
            if ledger.verdict(position) != Verdict::None {
                return violations.add("event_answered_twice", hex);
            }
            ledger.answer(position, published.verdicts.add(accepted, &reason));
            *answered += 1;
            let from = ledger.start_ns(position);
            if clock.is_measured(from) {
                published.latency.record(now, now.saturating_sub(from));
            }
        });
        self.refill(at, hub, clock);
    }

    /// Names what is unanswered, and hands over the figures.
    pub fn finish(mut self, violations: &mut Violations) -> Published {
        for lane in &self.lanes {
            let (number, answered, all) = (lane.line.number, lane.answered, lane.frames.len());
            self.published.sent += lane.sent as u64;
            violations.add_many("event_unanswered", (lane.sent - answered) as u64, || {
                format!("publisher {number}: {answered} answers to {} events", lane.sent)
            });
            violations.add_many("event_unsent", (all - lane.sent) as u64, || {
                format!("publisher {number}: {} of {all} sent before it was over", lane.sent)
            });
        }
        self.published
    }
}

/// `["EVENT",…]` frames, masked.
fn frames<'a>(events: impl Iterator<Item = &'a SignedEvent>) -> FrameArena {
    let mut random = Random::new(0);
    let mut arena = FrameArena::default();
    for event in events {
        arena.push_text(format!("[\"EVENT\",{}]", event.json).as_bytes(), random.mask());
    }
    arena
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_told_apart_by_their_prefix() {
        let mut verdicts = Verdicts::default();
        for (accepted, reason, expected) in [
            (true, "", Verdict::Accepted),
            (true, "duplicate: have it", Verdict::Duplicate),
            (false, "duplicate: a newer version is stored", Verdict::Refused),
            (false, "invalid: x", Verdict::Refused),
            (false, "no prefix", Verdict::Refused),
        ] {
            assert_eq!(verdicts.add(accepted, reason), expected);
        }
        assert_eq!((verdicts.accepted, verdicts.duplicate, verdicts.answered()), (1, 1, 5));
        let prefixes: Vec<&str> = verdicts.rejected.keys().map(String::as_str).collect();
        assert_eq!(prefixes, ["", "duplicate", "invalid"]);
    }
}
