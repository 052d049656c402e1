//! The load that most scenarios are made of: publishers, askers, followers and captured subscribers, in any numbers.
//!
//! Each thread has some of each and one epoll set. In the window it does nothing but send what is due and judge what
//! arrives; what must have arrived is settled afterwards.

mod ask;
mod follow;
mod hub;
mod ledger;
mod publish;
mod recite;

pub use ask::{Answered, Questions, Verb};
pub use follow::Followed;
#[cfg(test)]
pub use ledger::Audience;
pub use ledger::Ledger;
pub use publish::Published;
pub use recite::{Cue, Script};

use super::schedule::Pace;
use super::{Clock, Common, Notices, POLL_MS_MAX, Window, Worker, connect, deal, measure};
use crate::client::poller::Ready;
use crate::client::{Connection, Poller, Target};
use crate::report::Violations;
use anyhow::{Context, ensure};
use ask::Ask;
use clap::ValueEnum;
use follow::Follow;
use hub::Hub;
use publish::Publish;
use recite::Recite;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// After the window followers are read for this long: a delivery too many would arrive now.
const DRAIN: Duration = Duration::from_millis(200);

/// How a filter says "nothing stored, please".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LiveFilter {
    /// `"limit":0`, NIP-01's way
    Limit,
    /// `"since":` the oldest event that will be published, for relays where `limit:0` never goes live
    Since,
}

impl LiveFilter {
    /// Subscribes to what is new, or to what was created `since`; how many stored events came, of earlier runs.
    ///
    /// # Errors
    /// No EOSE, or stored events where none were asked for.
    pub fn subscribe(
        self,
        connection: &mut Connection,
        name: &str,
        filter: &Value,
        since: u64,
        timeout: Duration,
    ) -> anyhow::Result<u64> {
        let mut live = filter.clone();
        match self {
            Self::Limit => live["limit"] = 0.into(),
            Self::Since => live["since"] = since.into(),
        }
        let answer = connection.inquire(name, &live, timeout)?;
        let stored = answer.events.len();
        ensure!(
            answer.closed.is_none() && (stored == 0 || self == Self::Since),
            "not just EOSE: {answer:?}"
        );
        Ok(stored as u64)
    }
}

/// What a run consists of.
pub struct Load<'a> {
    pub ledger: &'a Ledger<'a>,
    pub publish_pace: &'a Pace,
    pub questions: Option<&'a Questions<'a>>,
    pub script: Option<&'a Script>,
    /// Each follows one of the ledger's audiences, in turn.
    pub followers: usize,
    pub live_filter: LiveFilter,
    /// Deliveries out of order are counted, but no violations.
    pub any_order: bool,
}

/// What a run brought.
pub struct Ran {
    pub published: Published,
    pub answered: Answered,
    pub followed: Followed,
    pub notices: Notices,
    pub violations: Violations,
    pub window: Window,
}

impl Load<'_> {
    pub fn connections(&self) -> usize {
        let askers = self.questions.map_or(0, |questions| questions.connections);
        self.ledger.publishers + askers + self.followers + self.reciters()
    }

    fn reciters(&self) -> usize {
        self.script.map_or(0, Vec::len)
    }

    /// How long the schedules are; nothing for closed loops.
    fn length(&self) -> Duration {
        let asking = self
            .questions
            .map_or(Duration::ZERO, |questions| questions.pace.length(questions.queries.len()));
        let last_cues = self.script.into_iter().flatten().filter_map(|cues| cues.last());
        let reciting = Duration::from_nanos(last_cues.map(|cue| cue.due_ns).max().unwrap_or(0));
        self.publish_pace.length(self.ledger.events.len()).max(asking).max(reciting)
    }

    /// Connects, subscribes, and runs the window.
    ///
    /// # Errors
    /// Anything that keeps the window from being measured.
    pub fn run(&self, common: &Common, target: &Target) -> anyhow::Result<Ran> {
        let mut connections = connect(target, self.connections())?;
        let reciters = connections.split_off(connections.len() - self.reciters());
        let mut followers = connections.split_off(connections.len() - self.followers);
        let askers = connections.split_off(self.ledger.publishers);
        let stored = self.subscribe(&mut followers, target.connect_timeout)?;
        let threads = usize::from(common.threads);
        // One publisher has the first of several threads to itself.
        let apart = usize::from(self.ledger.publishers == 1 && threads > 1);
        let hand = |all: Vec<Connection>, apart: usize| {
            let hands = deal(all.into_iter().enumerate(), threads - apart);
            (0..apart).map(|_| Vec::new()).chain(hands).collect::<Vec<_>>()
        };
        let (askers, followers) = (hand(askers, apart), hand(followers, apart));
        let reciters = hand(reciters, apart);
        let mut workers = hand(connections, 0)
            .into_iter()
            .zip(askers)
            .zip(followers)
            .zip(reciters)
            .map(|(((publishers, askers), followers), reciters)| {
                MixWorker::new(self, publishers, askers, followers, reciters)
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let window = measure(common, self.length() + common.timeout(), &mut workers)?;
        if self.followers > 0 {
            drain(&mut workers, window.clock);
        }
        let mut ran = Ran {
            published: Published::default(),
            answered: Answered::default(),
            followed: Followed::default(),
            notices: Notices::default(),
            violations: Violations::default(),
            window,
        };
        workers.into_iter().for_each(|worker| worker.finish(self.any_order, &mut ran));
        ran.followed.received += stored;
        Ok(ran)
    }

    /// How many stored events came.
    fn subscribe(&self, followers: &mut [Connection], timeout: Duration) -> anyhow::Result<u64> {
        let (audiences, since) = (self.ledger.audiences.iter().cycle(), self.ledger.created_from);
        let mut stored = 0;
        for (number, (follower, audience)) in followers.iter_mut().zip(audiences).enumerate() {
            stored += self
                .live_filter
                .subscribe(follower, follow::SUBSCRIPTION, &audience.filter, since, timeout)
                .with_context(|| format!("follower {number}"))?;
        }
        Ok(stored)
    }
}

struct MixWorker<'a> {
    hub: Hub,
    publish: Publish<'a>,
    ask: Option<Ask<'a>>,
    follow: Follow<'a>,
    recite: Option<Recite<'a>>,
}

impl<'a> MixWorker<'a> {
    fn new(
        load: &'a Load<'a>,
        publishers: Vec<(usize, Connection)>,
        askers: Vec<(usize, Connection)>,
        followers: Vec<(usize, Connection)>,
        reciters: Vec<(usize, Connection)>,
    ) -> anyhow::Result<Self> {
        let (notices, violations) = Default::default();
        let hub = Hub { poller: Poller::new()?, notices, violations };
        let first_asker = publishers.len();
        let first_follower = first_asker + askers.len();
        let first_reciter = first_follower + followers.len();
        let publish = Publish::new(&hub, load.ledger, load.publish_pace, publishers, 0)?;
        let ask = load
            .questions
            .map(|questions| Ask::new(&hub, questions, askers, first_asker))
            .transpose()?;
        let follow = Follow::new(&hub, load.ledger, followers, first_follower)?;
        let recite = load
            .script
            .map(|script| Recite::new(&hub, script, reciters, first_reciter))
            .transpose()?;
        Ok(Self { hub, publish, ask, follow, recite })
    }

    fn is_done(&self) -> bool {
        self.publish.is_done()
            && self.ask.as_ref().is_none_or(Ask::is_done)
            && self.recite.as_ref().is_none_or(Recite::is_done)
    }

    /// Waits once and serves everything that is ready; false when the generator itself fails.
    fn turn(&mut self, clock: Clock, wait: Duration, ready: &mut Vec<Ready>) -> bool {
        let wait = wait.min(Duration::from_millis(POLL_MS_MAX));
        if let Err(error) = self.hub.poller.wait(wait, ready) {
            self.hub.violations.add("generator_failed", || error.to_string());
            return false;
        }
        for &one in ready.iter() {
            self.serve(one, clock);
        }
        true
    }

    /// Tokens are those of publishers, then askers, followers, and reciting connections.
    fn serve(&mut self, one: Ready, clock: Clock) {
        let mut at = one.token;
        if at < self.publish.lanes() {
            return self.publish.serve(at, &mut self.hub, one, clock);
        }
        at -= self.publish.lanes();
        if let Some(ask) = &mut self.ask {
            if at < ask.lanes() {
                return ask.serve(at, &mut self.hub, one, clock);
            }
            at -= ask.lanes();
        }
        match &mut self.recite {
            Some(recite) if at >= self.follow.lanes() => {
                recite.serve(at - self.follow.lanes(), &mut self.hub, one, clock);
            }
            _ => self.follow.serve(at, &mut self.hub, one, clock),
        }
    }

    fn finish(self, any_order: bool, ran: &mut Ran) {
        ran.violations.merge(self.hub.violations);
        ran.notices.merge(self.hub.notices);
        ran.published.merge(self.publish.finish(&mut ran.violations));
        if let Some(ask) = self.ask {
            ran.answered.merge(ask.finish(&mut ran.violations));
        }
        if let Some(recite) = self.recite {
            ran.answered.merge(recite.finish(&mut ran.violations));
        }
        ran.followed.merge(self.follow.finish(any_order, &mut ran.violations));
    }
}

impl Worker for MixWorker<'_> {
    fn run(&mut self, clock: Clock) {
        let mut ready = Vec::new();
        while !clock.is_over() && (!self.is_done() || !self.follow.is_done()) {
            let mut wait = self.publish.send_due(&mut self.hub, clock);
            if let Some(ask) = &mut self.ask {
                wait = wait.min(ask.send_due(&mut self.hub, clock));
            }
            if let Some(recite) = &mut self.recite {
                wait = wait.min(recite.send_due(&mut self.hub, clock));
            }
            if !self.turn(clock, wait, &mut ready) {
                return;
            }
        }
    }
}

/// Reads on for [`DRAIN`], outside the window.
fn drain(workers: &mut [MixWorker<'_>], window: Clock) {
    let clock = window.extended(DRAIN);
    let mut ready = Vec::new();
    while !clock.is_over() {
        for worker in workers.iter_mut() {
            worker.turn(clock, Duration::from_millis(1), &mut ready);
        }
    }
}
