//! Captured subscribers: each connection says its REQs and CLOSEs when the original did.
//!
//! Latency counts from when a REQ was due to its EOSE. What would close a REQ or replace it before it is answered waits
//! for the answer, and what is behind it on that connection too: else the slowest answers would be missing from the
//! figures. What the answers hold is not judged: nobody knows what else the relay has.

use super::ask::Answered;
use super::hub::{Hub, Line, unexpected};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, RelayMessage};
use crate::events::Random;
use crate::report::Violations;
use crate::scenario::Clock;
use std::collections::HashMap;
use std::time::Duration;

/// What a connection says, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    pub due_ns: u64,
    /// The message, as it was captured.
    pub text: String,
    pub subscription: String,
    /// A REQ; a CLOSE otherwise.
    pub asks: bool,
}

/// By connection; each in the order of time.
pub type Script = Vec<Vec<Cue>>;

/// The reciting connections of one thread.
pub struct Recite<'a> {
    lanes: Vec<Lane<'a>>,
    /// Due time and lane of every cue, in the order of time; those before `at` are said.
    order: Vec<(u64, usize)>,
    at: usize,
    answered: Answered,
}

struct Lane<'a> {
    line: Line,
    cues: &'a [Cue],
    frames: FrameArena,
    /// The first that is not said; `next <= due <= cues.len()`.
    next: usize,
    due: usize,
    /// By subscription: when the REQ was due that is not answered; `None` where none is.
    owed: HashMap<&'a str, Option<u64>>,
    /// When the last answer came.
    free_ns: u64,
    /// REQs, said or not.
    unanswered: u64,
}

impl<'a> Recite<'a> {
    /// `connections` with their numbers among all parts of the script; tokens from `token` on.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn new(
        hub: &Hub,
        script: &'a Script,
        connections: Vec<(usize, Connection)>,
        token: usize,
    ) -> anyhow::Result<Self> {
        let (mut lanes, mut order) = (Vec::new(), Vec::new());
        for (at, (number, connection)) in connections.into_iter().enumerate() {
            let cues = &script[number][..];
            let mut random = Random::new(number as u64);
            let mut frames = FrameArena::default();
            cues.iter().for_each(|cue| frames.push_text(cue.text.as_bytes(), random.mask()));
            order.extend(cues.iter().map(|cue| (cue.due_ns, at)));
            let line = Line::new(hub, "captured connection", number, token + at, connection)?;
            let unanswered = cues.iter().filter(|cue| cue.asks).count() as u64;
            let owed = HashMap::new();
            lanes.push(Lane { line, cues, frames, next: 0, due: 0, owed, free_ns: 0, unanswered });
        }
        order.sort_unstable();
        Ok(Self { lanes, order, at: 0, answered: Answered::default() })
    }

    pub fn is_done(&self) -> bool {
        self.lanes.iter().all(|lane| {
            !lane.line.is_open() || (lane.next == lane.cues.len() && lane.unanswered == 0)
        })
    }

    /// Says what is due; tells how long nothing more will be.
    pub fn send_due(&mut self, hub: &mut Hub, clock: Clock) -> Duration {
        let now = clock.now_ns();
        while let Some(&(due_ns, at)) = self.order.get(self.at) {
            if due_ns > now {
                return Duration::from_nanos(due_ns - now);
            }
            self.at += 1;
            self.lanes[at].due += 1;
            self.proceed(at, hub, clock);
        }
        Duration::MAX
    }

    /// `at` is the token less the first one.
    pub fn serve(&mut self, at: usize, hub: &mut Hub, ready: Ready, clock: Clock) {
        let Lane { line, owed, free_ns, unanswered, .. } = &mut self.lanes[at];
        let (number, answered) = (line.number, &mut self.answered);
        line.serve(hub, ready, clock, |message, text, now, violations| {
            answered.bytes += text.len() as u64;
            let of = match &message {
                RelayMessage::Event { subscription, .. }
                | RelayMessage::Eose { subscription }
                | RelayMessage::Closed { subscription, .. } => owed.get_mut(subscription.as_ref()),
                _ => None,
            };
            let Some(owed) = of else {
                return unexpected(violations, "captured connection", number, &message);
            };
            if let RelayMessage::Event { .. } = message {
                let which =
                    if owed.is_some() { &mut answered.events } else { &mut answered.late_events };
                *which += 1;
                return;
            }
            if let RelayMessage::Closed { reason, .. } = message {
                *answered.refused.entry(reason.chars().take(80).collect()).or_default() += 1;
            } else if let Some(due_ns) = *owed {
                answered.complete += 1;
                if clock.is_measured(due_ns) {
                    answered.latency.record(now, now - due_ns);
                }
            }
            if owed.take().is_some() {
                (*free_ns, *unanswered) = (now, *unanswered - 1);
            }
        });
        self.proceed(at, hub, clock);
    }

    /// Says what is due and need not wait for an answer.
    fn proceed(&mut self, at: usize, hub: &mut Hub, clock: Clock) {
        let lane = &mut self.lanes[at];
        let now = clock.now_ns();
        while let Some(cue) = lane.cues[..lane.due].get(lane.next) {
            let owed = lane.owed.entry(&cue.subscription).or_default();
            if owed.is_some() || !lane.line.is_open() {
                return;
            }
            *owed = cue.asks.then_some(cue.due_ns);
            if clock.is_measured(cue.due_ns) {
                let free = cue.due_ns.max(lane.free_ns);
                self.answered.lateness.record(now, now.saturating_sub(free));
            }
            lane.line.send(hub, lane.frames.slice(lane.next, lane.next + 1));
            lane.next += 1;
        }
    }

    /// Names what is unanswered, and hands over the figures.
    pub fn finish(self, violations: &mut Violations) -> Answered {
        for lane in &self.lanes {
            violations.add_many("query_unanswered", lane.unanswered, || {
                format!("captured connection {}: {}", lane.line.number, lane.unanswered)
            });
        }
        self.answered
    }
}
