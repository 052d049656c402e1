//! The one publisher of a fan-out: a window of unacknowledged events, or a schedule.

use super::{FanoutArgs, Mode, Shared};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, Lost, Poller, RelayMessage, message};
use crate::report::{Latency, Violations};
use crate::scenario::ingest::{Verdicts, frames};
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
    /// How late each paced event left, against its schedule: the generator's own fault.
    lateness: Latency,
}

enum Pace {
    Burst { in_flight_max: usize, lag_max: u64 },
    Paced { interval_ns: f64 },
}

impl<'a> Publisher<'a> {
    pub fn new(args: &FanoutArgs, shared: &'a Shared<'a>, connection: Connection) -> Self {
        let pace = match args.mode {
            Mode::Burst => {
                Pace::Burst { in_flight_max: args.in_flight as usize, lag_max: args.lag_max.into() }
            }
            Mode::Paced => Pace::Paced { interval_ns: 1e9 / args.rate },
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
        let (to, wait) = match self.pace {
            Pace::Burst { in_flight_max, lag_max } => {
                let window = self.answered_count + in_flight_max;
                let to = match lag_max {
                    0 => window,
                    lag => window.min(self.shared.delivered_average() + lag as usize),
                };
                (to, if to < window { LAG_RECHECK } else { FOREVER })
            }
            Pace::Paced { interval_ns } => {
                let due = (now as f64 / interval_ns) as usize + 1;
                let next_ns = due as f64 * interval_ns;
                for event in self.sent..due.min(all) {
                    self.lateness
                        .record(now, now.saturating_sub((event as f64 * interval_ns) as u64));
                }
                (due, Duration::from_nanos((next_ns as u64).saturating_sub(now)))
            }
        };
        let to = to.min(all);
        if to > self.sent {
            for event in self.sent..to {
                // A schedule does not wait for a sender that is late.
                let from = match self.pace {
                    Pace::Burst { .. } => now,
                    Pace::Paced { interval_ns } => (event as f64 * interval_ns) as u64,
                };
                self.shared.sent_ns[event].store(from.max(1), Ordering::Release);
            }
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
                self.on_text(text, now, notices, violations);
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
                let sent = self.shared.sent_ns[position].load(Ordering::Relaxed);
                self.ok_latency.record(now, now.saturating_sub(sent));
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

    /// Its figures, and the latency of its OKs.
    pub fn finish(self) -> (Value, Latency) {
        let detail = json!({
            "events_published": self.sent, "accepted": self.verdicts.accepted,
            "rejected": self.verdicts.rejected,
            "publisher_lateness_us": matches!(self.pace, Pace::Paced { .. }).then(|| self.lateness.summary()),
        });
        (detail, self.ok_latency)
    }
}
