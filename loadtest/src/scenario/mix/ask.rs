//! Stored queries and counts: one at a time on each connection, each answer checked.
//!
//! In an open loop a query that finds its connection busy waits, and its latency counts from when it was due.

use super::hub::{Hub, Line, unexpected};
use crate::client::frame::FrameArena;
use crate::client::poller::Ready;
use crate::client::{Connection, Id, RelayMessage};
use crate::events::Random;
use crate::report::{Latency, Violations};
use crate::scenario::Clock;
use crate::scenario::corpus::{Corpus, Query};
use crate::scenario::schedule::{Pace, Roster};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verb {
    Req,
    Count,
}

/// What is asked, shared by all threads.
pub struct Questions<'a> {
    pub verb: Verb,
    pub corpus: &'a Corpus,
    /// Query k is asked on connection k modulo their number.
    pub queries: Vec<Query>,
    pub connections: usize,
    pub pace: Pace,
    /// The relay holds the corpus and nothing else.
    pub exact: bool,
}

/// What askers have seen.
#[derive(Debug, Default)]
pub struct Answered {
    pub complete: u64,
    /// CLOSED instead of an answer, by the reason.
    pub refused: BTreeMap<String, u64>,
    pub events: u64,
    /// Those of the queries that are in the figures.
    pub events_measured: u64,
    pub bytes: u64,
    /// EVENT messages for a query that was answered already: live ones before its CLOSE arrived.
    pub late_events: u64,
    /// Events that are not in the corpus.
    pub unknown: u64,
    /// Counts that the relay called approximate; they are not judged.
    pub approximate: u64,
    /// Send or due time → EOSE or COUNT.
    pub latency: Latency,
    /// How late a query left against its schedule though its connection was free.
    pub lateness: Latency,
}

impl Answered {
    pub fn merge(&mut self, other: Self) {
        self.complete += other.complete;
        for (reason, count) in other.refused {
            *self.refused.entry(reason).or_default() += count;
        }
        self.events += other.events;
        self.events_measured += other.events_measured;
        self.bytes += other.bytes;
        self.late_events += other.late_events;
        self.unknown += other.unknown;
        self.approximate += other.approximate;
        self.latency.merge(&other.latency);
        self.lateness.merge(&other.lateness);
    }

    pub fn refused_count(&self) -> u64 {
        self.refused.values().sum()
    }
}

/// The askers of one thread.
pub struct Ask<'a> {
    questions: &'a Questions<'a>,
    roster: Roster,
    lanes: Vec<Lane>,
    /// A closed loop's first queries are asked; answers bring the next.
    is_started: bool,
    answered: Answered,
}

struct Lane {
    line: Line,
    sheet: Sheet,
}

/// One connection's queries and how far it is.
struct Sheet {
    number: usize,
    /// Of its own queries; `current <= due <= total`.
    total: usize,
    due: usize,
    /// The one that is asked, or asked next.
    current: usize,
    is_asked: bool,
    /// The one before awaits its CLOSE.
    is_closing: bool,
    from_ns: u64,
    /// When the connection came free.
    free_ns: u64,
    /// REQ and CLOSE of each query in turn.
    frames: FrameArena,
    answer: Vec<Id>,
}

impl<'a> Ask<'a> {
    /// `connections` with their numbers among all askers; tokens from `token` on.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn new(
        hub: &Hub,
        questions: &'a Questions<'a>,
        connections: Vec<(usize, Connection)>,
        token: usize,
    ) -> anyhow::Result<Self> {
        let numbers = connections.iter().map(|(number, _)| *number).collect();
        let roster = Roster::new(numbers, questions.connections, questions.queries.len());
        let mut lanes = Vec::new();
        for (at, (number, connection)) in connections.into_iter().enumerate() {
            let line = Line::new(hub, "asker", number, token + at, connection)?;
            lanes.push(Lane { line, sheet: Sheet::new(questions, number) });
        }
        let answered = Answered::default();
        Ok(Self { questions, roster, lanes, is_started: false, answered })
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub fn is_done(&self) -> bool {
        self.lanes.iter().all(|lane| lane.sheet.is_done() || !lane.line.is_open())
    }

    /// Asks what is due; says how long nothing more will be.
    pub fn send_due(&mut self, hub: &mut Hub, clock: Clock) -> Duration {
        let Pace::Open(arrivals) = &self.questions.pace else {
            if !std::mem::replace(&mut self.is_started, true) {
                (0..self.lanes.len()).for_each(|at| self.proceed(at, hub, clock));
            }
            return Duration::MAX;
        };
        let now = clock.now_ns();
        loop {
            match self.roster.take_due(arrivals, now) {
                Ok((_, at)) => {
                    self.lanes[at].sheet.due += 1;
                    self.proceed(at, hub, clock);
                }
                Err(wait) => return wait,
            }
        }
    }

    /// `at` is the token less the first one.
    pub fn serve(&mut self, at: usize, hub: &mut Hub, ready: Ready, clock: Clock) {
        let Lane { line, sheet } = &mut self.lanes[at];
        let (questions, answered) = (self.questions, &mut self.answered);
        line.serve(hub, ready, clock, |message, text, now, violations| {
            answered.bytes += text.len() as u64;
            sheet.on_message(&message, questions, answered, now, clock, violations);
        });
        self.proceed(at, hub, clock);
    }

    /// Closes what is answered and asks what is due, in one write.
    fn proceed(&mut self, at: usize, hub: &mut Hub, clock: Clock) {
        let Lane { line, sheet } = &mut self.lanes[at];
        let due = match self.questions.pace {
            Pace::Closed { .. } => sheet.total,
            Pace::Open(_) => sheet.due,
        };
        let asks = !sheet.is_asked && sheet.current < due;
        let frame = sheet.current * 2;
        let from = frame - usize::from(sheet.is_closing);
        let to = frame + usize::from(asks);
        if from == to || !line.is_open() {
            return;
        }
        if asks {
            let now = clock.now_ns();
            sheet.from_ns = now;
            if let Pace::Open(arrivals) = &self.questions.pace {
                let operation = sheet.current * self.questions.connections + sheet.number;
                sheet.from_ns = arrivals.due_ns(operation);
                if clock.is_measured(sheet.from_ns) {
                    let free = sheet.from_ns.max(sheet.free_ns);
                    self.answered.lateness.record(now, now.saturating_sub(free));
                }
            }
            sheet.is_asked = true;
        }
        sheet.is_closing = false;
        line.send(hub, sheet.frames.slice(from, to));
    }

    /// Names what is unanswered, and hands over the figures.
    pub fn finish(self, violations: &mut Violations) -> Answered {
        for Lane { sheet, .. } in &self.lanes {
            let missing = (sheet.total - sheet.current) as u64;
            violations.add_many("query_unanswered", missing, || {
                format!("asker {}: {missing} of {}", sheet.number, sheet.total)
            });
        }
        self.answered
    }
}

impl Sheet {
    fn new(questions: &Questions<'_>, number: usize) -> Self {
        let verb = if questions.verb == Verb::Count { "COUNT" } else { "REQ" };
        let mut random = Random::new(number as u64);
        let mut frames = FrameArena::default();
        let own = questions.queries.iter().skip(number).step_by(questions.connections);
        for (i, query) in own.enumerate() {
            let request = format!("[\"{verb}\",\"q{i}\",{}]", query.filter);
            frames.push_text(request.as_bytes(), random.mask());
            frames.push_text(format!("[\"CLOSE\",\"q{i}\"]").as_bytes(), random.mask());
        }
        Self {
            number,
            total: frames.len() / 2,
            due: 0,
            current: 0,
            is_asked: false,
            is_closing: false,
            from_ns: 0,
            free_ns: 0,
            frames,
            answer: Vec::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.current == self.total
    }

    /// Whether this is the name of the query that is being answered.
    fn is_current(&self, subscription: &str) -> bool {
        self.is_asked
            && subscription.strip_prefix('q').and_then(|n| n.parse().ok()) == Some(self.current)
    }

    fn on_message(
        &mut self,
        message: &RelayMessage<'_>,
        questions: &Questions<'_>,
        answered: &mut Answered,
        now: u64,
        clock: Clock,
        violations: &mut Violations,
    ) {
        let query = questions.queries.get(self.current * questions.connections + self.number);
        match (message, query) {
            (RelayMessage::Event { subscription, id }, Some(_))
                if self.is_current(subscription) =>
            {
                self.answer.push(*id);
            }
            (RelayMessage::Event { .. }, _) => answered.late_events += 1,
            (RelayMessage::Eose { subscription }, Some(query))
                if self.is_current(subscription) && questions.verb == Verb::Req =>
            {
                answered.events += self.answer.len() as u64;
                answered.unknown +=
                    questions.corpus.check(query, &self.answer, questions.exact, violations);
                self.is_closing = true;
                self.conclude(answered, now, clock);
            }
            (RelayMessage::Count { subscription, count, approximate }, Some(query))
                if self.is_current(subscription) && questions.verb == Verb::Count =>
            {
                answered.approximate += u64::from(*approximate);
                if questions.exact && !approximate {
                    questions.corpus.check_count(query, *count, violations);
                }
                self.conclude(answered, now, clock);
            }
            (RelayMessage::Closed { subscription, reason }, Some(query))
                if self.is_current(subscription) =>
            {
                // NIP-45: a relay may refuse to count. That it refuses to answer a REQ is another matter.
                if questions.verb == Verb::Req {
                    violations.add("query_closed", || format!("{}: {reason}", query.filter));
                }
                *answered.refused.entry(reason.chars().take(80).collect()).or_default() += 1;
                self.advance(now);
            }
            _ => unexpected(violations, "asker", self.number, message),
        }
    }

    fn conclude(&mut self, answered: &mut Answered, now: u64, clock: Clock) {
        answered.complete += 1;
        if clock.is_measured(self.from_ns) {
            answered.latency.record(now, now.saturating_sub(self.from_ns));
            answered.events_measured += self.answer.len() as u64;
        }
        self.advance(now);
    }

    fn advance(&mut self, now: u64) {
        self.answer.clear();
        self.current += 1;
        self.is_asked = false;
        self.free_ns = now;
    }
}
