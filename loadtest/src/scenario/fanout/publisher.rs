//! The one publisher of a fan-out: a window of unacknowledged events, or a schedule.

use super::{FanoutArgs, Shared};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, Lost, Poller, RelayMessage, message};
use crate::report::{Latency, Violations};
use crate::scenario::mix::{Verdicts, frames};
use crate::scenario::schedule::Arrivals;
use crate::scenario::{Clock, Notices};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How soon to look again when only other threads' progress can open the window.
const LAG_RECHECK: Duration = Duration::from_micros(200);
const FOREVER: Duration = Duration::from_hours(1);

pub struct Publisher<'a> {
    pub connection: Option<Connection>,
    shared: &'a Shared<'a>,
    frames: FrameArena,
    pace: Pace,
    /// `answered <= sent <= frames.len()`.
    sent: usize,
    answered: Vec<bool>,
    answered_count: usize,
    verdicts: Verdicts,
    ok_latency: Latency,
    /// How late an event left against its schedule: the generator's own fault.
    lateness: Latency,
}

enum Pace {
    Closed { in_flight_max: usize, lag_max: u64 },
    Open(Arrivals),
}

impl<'a> Publisher<'a> {
    /// `arrivals` are those of the open loop.
    pub fn new(
        args: &FanoutArgs,
        arrivals: Arrivals,
        shared: &'a Shared<'a>,
        connection: Connection,
    ) -> Self {
        let (in_flight_max, lag_max) = (args.in_flight as usize, args.lag_max.into());
        let pace = match args.closed_loop {
            true => Pace::Closed { in_flight_max, lag_max },
            false => Pace::Open(arrivals),
        };
        Self {
            connection: Some(connection),
            shared,
            frames: frames(shared.events.iter()),
            pace,
            sent: 0,
            answered: vec![false; shared.events.len()],
            answered_count: 0,
            verdicts: Verdicts::default(),
            ok_latency: Latency::default(),
            lateness: Latency::default(),
        }
    }

    pub fn sent(&self) -> usize {
        self.sent
    }

    pub fn is_done(&self) -> bool {
        self.connection.is_none() || self.answered_count == self.frames.len()
    }

    /// Sends what is due in one write; returns how long nothing more will be.
    ///
    /// # Errors
    /// The connection is over.
    pub fn publish_due(
        &mut self,
        poller: &Poller,
        token: usize,
        clock: Clock,
    ) -> Result<Duration, Lost> {
        let all = self.frames.len();
        let Some(connection) = self.connection.as_mut().filter(|_| self.sent < all) else {
            return Ok(FOREVER);
        };
        let now = clock.now_ns();
        let (to, wait) = match &self.pace {
            Pace::Closed { in_flight_max, lag_max } => {
                let window = self.answered_count + in_flight_max;
                let to = match *lag_max {
                    0 => window,
                    lag => window.min(self.shared.delivered_average() + lag as usize),
                };
                let to = to.min(all);
                for from_ns in &self.shared.from_ns[self.sent..to.max(self.sent)] {
                    from_ns.store(now.max(1), Ordering::Release);
                }
                (to, if to < window { LAG_RECHECK } else { FOREVER })
            }
            Pace::Open(arrivals) => {
                let mut to = self.sent;
                while to < all && arrivals.due_ns(to) <= now {
                    let due_ns = arrivals.due_ns(to);
                    self.shared.from_ns[to].store(due_ns.max(1), Ordering::Release);
                    if clock.is_measured(due_ns) {
                        self.lateness.record(now, now - due_ns);
                    }
                    to += 1;
                }
                (to, Duration::from_nanos(arrivals.due_ns(to).saturating_sub(now)))
            }
        };
        if to > self.sent {
            connection.send(self.frames.slice(self.sent, to))?;
            self.sent = to;
        }
        poller.sync(connection, token)?;
        Ok(wait)
    }

    /// # Errors
    /// The connection is over.
    pub fn on_ready(
        &mut self,
        ready: Ready,
        poller: &mut Poller,
        notices: &mut Notices,
        violations: &mut Violations,
        clock: Clock,
    ) -> Result<(), Lost> {
        let Some(mut connection) = self.connection.take() else { return Ok(()) };
        if ready.writable {
            connection.flush()?;
        }
        if ready.readable {
            let mut buffer = std::mem::take(&mut poller.buffer);
            let mut now = None;
            let result = connection.receive(&mut buffer, |text| {
                let now = *now.get_or_insert_with(|| clock.now_ns());
                self.on_text(text, now, clock, notices, violations);
            });
            poller.buffer = buffer;
            result?;
        }
        poller.sync(&mut connection, ready.token)?;
        self.connection = Some(connection);
        Ok(())
    }

    fn on_text(
        &mut self,
        text: &[u8],
        now: u64,
        clock: Clock,
        notices: &mut Notices,
        violations: &mut Violations,
    ) {
        match message::parse(text) {
            Ok(RelayMessage::Ok { id, accepted, reason }) => {
                let hex = || faster_hex::hex_string(&id);
                let position = self.shared.index.get(&id).map(|position| *position as usize);
                let Some(position) = position.filter(|position| *position < self.sent) else {
                    return violations.add("ok_for_unsent_event", hex);
                };
                if std::mem::replace(&mut self.answered[position], true) {
                    return violations.add("event_answered_twice", hex);
                }
                self.answered_count += 1;
                let from = self.shared.from_ns[position].load(Ordering::Relaxed);
                if clock.is_measured(from) {
                    self.ok_latency.record(now, now.saturating_sub(from));
                }
                self.verdicts.add(accepted, &reason);
                if !accepted || reason.starts_with("duplicate:") {
                    self.shared.refused.fetch_add(1, Ordering::Relaxed);
                    violations.add("publish_refused", || format!("{}: {reason}", hex()));
                }
            }
            Ok(RelayMessage::Notice(text)) => notices.add(&text),
            Ok(RelayMessage::Auth | RelayMessage::Other) => {}
            Ok(other) => violations.add("unexpected_message", || format!("publisher: {other:?}")),
            Err(malformed) => violations.add("malformed_message", || malformed.to_string()),
        }
    }

    pub fn judge(&self, violations: &mut Violations) {
        let (sent, all) = (self.sent, self.frames.len());
        let unanswered = (sent - self.answered_count) as u64;
        violations.add_many("event_unanswered", unanswered, || {
            format!("{unanswered} of {sent} published")
        });
        violations.add_many("event_unsent", (all - sent) as u64, || {
            format!("{sent} of {all} published in time")
        });
    }

    /// Its figures, the latency of its OKs, and how late it was itself.
    pub fn finish(self) -> (Value, Latency, Latency) {
        let detail = json!({
            "events_published": self.sent, "accepted": self.verdicts.accepted,
            "rejected": self.verdicts.rejected,
        });
        (detail, self.ok_latency, self.lateness)
    }
}
