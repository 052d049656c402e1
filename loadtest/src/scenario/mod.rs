//! What every scenario shares: options, connections, and the measured window.
//!
//! A run is: connect everything, settle, sample the server, let every worker go at one barrier, join them, sample the
//! server again, then (outside the window) drain, check and report. Each worker is one thread with its own epoll set
//! and its own connections; workers share nothing but read-only events and a few counters.

pub mod burst;
mod corpus;
pub mod deaf;
pub mod fanout;
pub mod idle;
pub mod ingest;
mod mix;
pub mod mixed;
pub mod query;
pub mod replay;
mod schedule;
pub mod soak;
mod stored;
pub mod visits;
mod window;

#[cfg(test)]
pub use window::Generator;
pub use window::{Accounts, Clock, Window, Worker, measure};

use crate::client::{Connection, RelayMessage, Target, message};
use crate::events::SignedEvent;
use crate::report::{Outcome, Violations};
use crate::server::Sample;
use crate::server::counts::Account;
use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files, epoll sets and pipes beside the sockets.
const FDS_BESIDE_SOCKETS: u64 = 64;
/// The longest wait in epoll, so that deadlines and other threads' progress are noticed.
pub const POLL_MS_MAX: u64 = 20;
const NOTICE_EXAMPLES_MAX: usize = 3;

#[derive(Args, Clone, Debug, Serialize)]
pub struct Common {
    /// The relay
    #[arg(long, default_value = "ws://127.0.0.1:7777")]
    pub url: String,
    /// Permit a target that is not loopback
    #[arg(long)]
    pub allow_remote: bool,
    /// The relay's process id: accounts for its CPU time and memory
    #[arg(long)]
    pub pid: Option<u32>,
    /// rheostr's metrics listener: what the relay counts must be what arrived here
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Generator threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// Pin the generator's threads to these CPUs, in turn
    #[arg(long, value_delimiter = ',', value_name = "CPU")]
    pub pin: Vec<usize>,
    /// Give up after this long; what is unanswered then is a violation
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout_s: u64,
    /// Leave what is due or sent in the first seconds of the window out of the figures (never out of the judgement)
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    pub warm_up_s: f64,
    /// A larger 99th percentile of the run's latency is a violation
    #[arg(long, value_name = "MILLISECONDS")]
    pub p99_max_ms: Option<f64>,
    /// Wait between connecting and the window, for the relay to come to rest
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub settle_ms: u64,
    /// Spread connections over 127.0.0.1, 127.0.0.2, …
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=250))]
    pub source_addresses: u8,
    /// Count the relay's system calls by perf, or else strace; needs --pid, and costs the relay time
    #[arg(long, requires = "pid")]
    pub syscalls: bool,
    /// How often the scenario is run; each is reported, and at the end how far they are apart
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,
    /// Which of them this is, from 0.
    #[arg(skip)]
    pub run: u16,
    /// A name for this run, repeated in its JSON
    #[arg(long)]
    pub label: Option<String>,
    /// Keep the run there: run.json, and the histogram of each latency as NAME.hlog and NAME.hgrm
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write a page there: what the oracle says, the figures, latency and throughput as plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the JSON object only, no text for a person on stderr
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Resolves the target and makes room for `connections` sockets.
    ///
    /// # Errors
    /// A bad or remote URL, a file descriptor limit that is too low, a pid that is not there.
    pub fn prepare(&self, connections: usize) -> anyhow::Result<Target> {
        raise_fd_limit(connections as u64 + FDS_BESIDE_SOCKETS)?;
        if let Some(pid) = self.pid {
            Sample::take(pid)?;
        }
        self.target()
    }

    /// # Errors
    /// A bad or remote URL.
    pub fn target(&self) -> anyhow::Result<Target> {
        let connect_timeout = Duration::from_secs(self.timeout_s.min(10));
        Target::resolve(&self.url, self.allow_remote, connect_timeout, self.source_addresses)
    }

    /// Reads the relay's counts before a run, if they can be had.
    ///
    /// # Errors
    /// `--admin` was given, and they cannot.
    pub fn account(&self) -> anyhow::Result<Option<Account>> {
        self.admin.map(Account::open).transpose()
    }

    fn warm_up(&self) -> anyhow::Result<Duration> {
        Duration::try_from_secs_f64(self.warm_up_s)
            .with_context(|| format!("--warm-up-s {}", self.warm_up_s))
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }
}

/// A subcommand that puts load on a relay.
pub trait Scenario: Serialize {
    /// The subcommand.
    const NAME: &'static str;

    fn common(&self) -> &Common;

    fn common_mut(&mut self) -> &mut Common;

    /// The file that its events are from, where it does not sign them itself.
    fn file(&self) -> Option<&Path> {
        None
    }

    /// Runs once.
    ///
    /// # Errors
    /// Anything that keeps the run from being measured; what the relay does wrong is in the outcome.
    fn run(&self) -> anyhow::Result<Outcome>;

    /// Runs once, and holds the latency against the generator's own lateness and the limit that was given.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_and_judge(&self) -> anyhow::Result<Outcome> {
        let shown = progress(Self::NAME, self.common());
        let outcome = self.run();
        shown.finish_and_clear();
        let mut outcome = outcome?;
        outcome.judge_lateness();
        if let Some(limit_ms) = self.common().p99_max_ms {
            let (of, latency) = outcome.latencies.first().context("no latency for --p99-max-ms")?;
            let p99_ms = latency.summary().p99 / 1000.0;
            if p99_ms > limit_ms {
                outcome
                    .violations
                    .add("p99_above_limit", || format!("{of}: {p99_ms} ms, above {limit_ms}"));
            }
        }
        Ok(outcome)
    }
}

/// How long the run has lasted; on a terminal only.
fn progress(name: &str, common: &Common) -> ProgressBar {
    let (run, runs) = (common.run + 1, common.runs);
    let style = ProgressStyle::with_template("{msg} {elapsed}").expect("a template");
    let progress = ProgressBar::new_spinner().with_style(style);
    progress.set_message(format!("{name}, run {run} of {runs}:"));
    progress.enable_steady_tick(Duration::from_secs(1));
    progress
}

/// Implements [`Scenario`] for a subcommand's arguments: name, path to the shared options, the function that runs, and
/// the one that names the file of events.
macro_rules! scenario {
    ($arguments:ty, $name:literal, $($common:ident).+, $run:path $(, $file:expr)?) => {
        impl crate::scenario::Scenario for $arguments {
            const NAME: &'static str = $name;

            fn common(&self) -> &crate::scenario::Common {
                &self.$($common).+
            }

            fn common_mut(&mut self) -> &mut crate::scenario::Common {
                &mut self.$($common).+
            }

            $(fn file(&self) -> Option<&std::path::Path> {
                let file: fn(&Self) -> Option<&std::path::Path> = $file;
                file(self)
            })?

            fn run(&self) -> anyhow::Result<crate::report::Outcome> {
                $run(self)
            }
        }
    };
}
pub(crate) use scenario;

/// Opens connections one after the other.
///
/// # Errors
/// The first that fails, with its number: a relay's connection limit shows here.
pub fn connect(target: &Target, count: usize) -> anyhow::Result<Vec<Connection>> {
    (0..count)
        .map(|i| {
            Connection::open(target, i).with_context(|| format!("connection {} of {count}", i + 1))
        })
        .collect()
}

/// Deals items out to `hands` in turn.
pub fn deal<T>(items: impl IntoIterator<Item = T>, hands: usize) -> Vec<Vec<T>> {
    let mut dealt: Vec<Vec<T>> = (0..hands).map(|_| Vec::new()).collect();
    for (i, item) in items.into_iter().enumerate() {
        dealt[i % hands].push(item);
    }
    dealt
}

/// This run's part of a file: each of `--runs` publishes other events, since a relay has seen the last run's.
///
/// # Errors
/// Fewer events than runs.
pub fn share<'a>(events: &'a [SignedEvent], common: &Common) -> anyhow::Result<&'a [SignedEvent]> {
    let each = events.len() / usize::from(common.runs);
    ensure!(each > 0, "{} events are too few for --runs {}", events.len(), common.runs);
    Ok(&events[usize::from(common.run) * each..][..each])
}

fn raise_fd_limit(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    ensure!(
        hard >= needed,
        "{needed} file descriptors are needed and the hard limit is {hard} (ulimit -Hn)"
    );
    if limit.current.is_some_and(|soft| soft < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: limit.maximum })?;
    }
    Ok(())
}

/// Adds the members of one JSON object to another.
///
/// # Panics
/// If one of them is no object.
pub fn extend(object: &mut Value, more: Value) {
    let Value::Object(more) = more else { panic!("only objects are extended") };
    object.as_object_mut().expect("only objects are extended").extend(more);
}

/// What a relay says unasked; counted, never fatal.
#[derive(Debug, Default)]
pub struct Notices {
    pub count: u64,
    examples: Vec<String>,
}

impl Notices {
    pub fn add(&mut self, text: &str) {
        self.count += 1;
        if self.examples.len() < NOTICE_EXAMPLES_MAX {
            self.examples.push(text.to_owned());
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.examples.extend(other.examples);
        self.examples.truncate(NOTICE_EXAMPLES_MAX);
    }

    pub fn to_json(&self) -> Value {
        json!({"count": self.count, "examples": self.examples})
    }
}

/// A message that may belong to an operation; what a relay says unasked is counted here.
pub fn message_in<'a>(
    text: &'a [u8],
    notices: &mut Notices,
    violations: &mut Violations,
) -> Option<RelayMessage<'a>> {
    match message::parse(text) {
        Ok(RelayMessage::Notice(text)) => notices.add(&text),
        Ok(RelayMessage::Auth | RelayMessage::Other) => {}
        Ok(message) => return Some(message),
        Err(malformed) => violations.add("malformed_message", || malformed.to_string()),
    }
    None
}

/// Counts a lost connection.
pub fn lost(violations: &mut Violations, who: &str, number: usize, why: &dyn std::fmt::Display) {
    violations.add("connection_lost", || format!("{who} {number}: {why}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_share_a_file_without_overlap() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            common: Common,
        }
        let mut common = <Line as clap::Parser>::parse_from(["", "--runs", "3"]).common;
        let event = |n| SignedEvent { id: [n; 32], json: String::new() };
        let events: Vec<_> = (0..7).map(event).collect();
        let mut seen = Vec::new();
        for run in 0..3 {
            common.run = run;
            seen.extend(share(&events, &common).unwrap().iter().map(|event| event.id[0]));
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        assert!(share(&events[..2], &common).is_err());
    }

    #[test]
    fn dealing_is_in_turn() {
        assert_eq!(deal(0..5, 2), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(deal(0..1, 3), [vec![0], vec![], vec![]]);
    }

    #[test]
    fn a_limit_out_of_reach_is_an_error() {
        assert!(raise_fd_limit(16).is_ok());
        assert!(raise_fd_limit(1 << 40).unwrap_err().to_string().contains("hard limit"));
    }
}
