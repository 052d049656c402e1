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

use crate::client::{Connection, RelayMessage, Target, message};
use crate::events::SignedEvent;
use crate::machine::{self, Machine};
use crate::report::{Outcome, Violations, round};
use crate::server::counts::Account;
use crate::server::syscalls::SyscallCount;
use crate::server::{Sample, Usage};
use anyhow::{Context, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// A thread that is busy, or waits for its CPU, for a larger part of the window may be what was measured.
const GENERATOR_LIMITED_SHARE: f64 = 0.9;
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
    /// Keep the run there: run.json, and a histogram NAME.hgrm for each latency
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
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

    /// Runs once.
    ///
    /// # Errors
    /// Anything that keeps the run from being measured; what the relay does wrong is in the outcome.
    fn run(&self) -> anyhow::Result<Outcome>;

    /// Runs once, and holds the latency against the limit that was given.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_and_judge(&self) -> anyhow::Result<Outcome> {
        let mut outcome = self.run()?;
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

/// Implements [`Scenario`] for a subcommand's arguments: name, path to the shared options, and the function that runs.
macro_rules! scenario {
    ($arguments:ty, $name:literal, $($common:ident).+, $run:path) => {
        impl crate::scenario::Scenario for $arguments {
            const NAME: &'static str = $name;

            fn common(&self) -> &crate::scenario::Common {
                &self.$($common).+
            }

            fn common_mut(&mut self) -> &mut crate::scenario::Common {
                &mut self.$($common).+
            }

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

/// The time base of a window, shared by its workers.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    deadline: Instant,
    warm_up_ns: u64,
}

impl Clock {
    fn starting_now(timeout: Duration, warm_up: Duration) -> Self {
        let start = Instant::now();
        Self { start, deadline: start + timeout, warm_up_ns: warm_up.as_nanos() as u64 }
    }

    /// The same time base with a new deadline.
    pub fn extended(self, timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, ..self }
    }

    /// Nanoseconds since the window opened.
    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Whether an operation that was due or sent then is in the figures: the warm-up is over.
    pub fn is_measured(&self, from_ns: u64) -> bool {
        from_ns >= self.warm_up_ns
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

/// One generator thread's part of a scenario.
pub trait Worker: Send {
    /// Runs to its end or the clock's.
    fn run(&mut self, clock: Clock);
}

/// What a window cost on both sides.
#[derive(Debug)]
pub struct Window {
    pub clock: Clock,
    /// From the end of the warm-up to the last worker's end.
    pub elapsed: Duration,
    /// The same and the warm-up.
    whole: Duration,
    machine: (machine::Sample, machine::Sample),
    server: Option<(Sample, Sample)>,
    syscalls: Option<Result<SyscallsDone, String>>,
    /// Of each generator thread.
    generator_cpu: Vec<ThreadTime>,
}

struct SyscallsDone(SyscallCount);

impl std::fmt::Debug for SyscallsDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyscallsDone")
    }
}

/// Lets every worker run on its own thread inside one measured window.
///
/// # Errors
/// A thread cannot be pinned, or the server's process is gone before the window opens.
pub fn measure<W: Worker>(
    common: &Common,
    timeout: Duration,
    workers: &mut [W],
) -> anyhow::Result<Window> {
    let warm_up = common.warm_up()?;
    thread::sleep(Duration::from_millis(common.settle_ms));
    let mut syscalls = common
        .pid
        .filter(|_| common.syscalls)
        .map(|pid| {
            let sample = Sample::take(pid)?;
            SyscallCount::attach(sample.processes())
        })
        .map(|count| count.map_err(|error| format!("{error:#}")));
    let ready = Barrier::new(workers.len() + 1);
    let go = Barrier::new(workers.len() + 1);
    let clock = std::sync::OnceLock::new();
    let (opened, before, ends) = thread::scope(|scope| {
        let (ready, go, clock) = (&ready, &go, &clock);
        let threads: Vec<_> = workers
            .iter_mut()
            .enumerate()
            .map(|(i, worker)| {
                let cpu = (!common.pin.is_empty()).then(|| common.pin[i % common.pin.len()]);
                scope.spawn(move || {
                    let pinned = cpu.map_or(Ok(()), pin_to);
                    ready.wait();
                    go.wait();
                    let before = ThreadTime::take();
                    let clock: &Clock =
                        clock.get().expect("the clock is set before the barrier opens");
                    worker.run(*clock);
                    pinned.map(|()| {
                        (Duration::from_nanos(clock.now_ns()), ThreadTime::take().since(before))
                    })
                })
            })
            .collect();
        ready.wait();
        let mut sample = || {
            if let Some(Ok(count)) = &mut syscalls
                && let Err(error) = count.start()
            {
                syscalls = Some(Err(format!("{error:#}")));
            }
            (common.pid.map(Sample::take).transpose(), machine::Sample::take())
        };
        let cold = warm_up.is_zero().then(&mut sample);
        let opened = *clock.get_or_init(|| Clock::starting_now(timeout, warm_up));
        go.wait();
        let before = cold.unwrap_or_else(|| {
            thread::sleep(warm_up);
            sample()
        });
        let ends = threads
            .into_iter()
            .map(|thread| thread.join().expect("a worker panicked"))
            .collect::<Vec<_>>();
        (opened, before, ends)
    });
    // A relay that died inside the window has no accounts; its lost connections are violations.
    let after = common.pid.and_then(|pid| Sample::take(pid).ok());
    let (before, machine_before) = before;
    let machine = (machine_before, machine::Sample::take());
    if let Some(Ok(count)) = &mut syscalls
        && let Err(error) = count.stop()
    {
        syscalls = Some(Err(format!("{error:#}")));
    }
    let ends = ends.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let whole = ends.iter().map(|(end, _)| *end).max().unwrap_or_default();
    ensure!(whole > warm_up, "--warm-up-s {}: the run was over by then", common.warm_up_s);
    Ok(Window {
        clock: opened,
        elapsed: whole - warm_up,
        whole,
        machine,
        server: before?.zip(after),
        syscalls: syscalls.map(|result| result.map(SyscallsDone)),
        generator_cpu: ends.iter().map(|(_, cpu)| *cpu).collect(),
    })
}

/// What the machine did, and what the window cost on both sides; see `REPORT.md`.
#[derive(Debug, Serialize)]
pub struct Accounts {
    #[serde(skip)]
    pub elapsed: Duration,
    pub machine: Machine,
    pub server: Option<Usage>,
    pub generator: Generator,
}

/// The generator's own part.
#[derive(Clone, Debug, Serialize)]
pub struct Generator {
    /// The figures may be the generator's and not the relay's.
    pub limited: bool,
    /// Of the window, by the thread that was busiest.
    pub cpu_share: f64,
    /// Of the window, waiting for a CPU that somebody else had; by the thread that waited longest.
    pub wait_share: f64,
    pub cpu_s: f64,
    pub threads: usize,
}

impl Window {
    /// The accounts, each operation's share too.
    pub fn account(self, operations: u64) -> Accounts {
        let seconds = self.elapsed.as_secs_f64();
        let generator = Generator::new(&self.generator_cpu, self.whole);
        let syscalls = self.syscalls.map(|result| match result {
            Ok(SyscallsDone(count)) => count
                .finish(operations)
                .unwrap_or_else(|error| json!({"unavailable": format!("{error:#}")})),
            Err(error) => json!({"unavailable": error}),
        });
        let server = self
            .server
            .map(|(before, after)| Usage::between(&before, &after, seconds, operations, syscalls));
        let server_us = server.as_ref().map_or(0.0, |server| server.user_us + server.sys_us);
        let ours = Duration::from_secs_f64(server_us / 1e6 + generator.cpu_s);
        let machine = Machine::between(self.machine.0, self.machine.1, self.elapsed, ours);
        Accounts { elapsed: self.elapsed, machine, server, generator }
    }
}

impl Accounts {
    /// For a person.
    pub fn cpu_us_per_op(&self) -> String {
        let us = self.server.as_ref().and_then(|server| server.cpu_us_per_op);
        us.map_or_else(|| "?".to_owned(), |us| us.to_string())
    }
}

impl Generator {
    fn new(threads: &[ThreadTime], elapsed: Duration) -> Self {
        let share = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        let most = |of: fn(&ThreadTime) -> Duration| {
            threads.iter().map(|thread| share(of(thread))).fold(0.0, f64::max)
        };
        let taken = most(|thread| thread.on_cpu + thread.waiting);
        Self {
            limited: taken > GENERATOR_LIMITED_SHARE,
            cpu_share: round(most(|thread| thread.on_cpu), 3),
            wait_share: round(most(|thread| thread.waiting), 3),
            cpu_s: round(threads.iter().map(|thread| thread.on_cpu.as_secs_f64()).sum(), 4),
            threads: threads.len(),
        }
    }
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

fn pin_to(cpu: usize) -> anyhow::Result<()> {
    ensure!(cpu < CpuSet::MAX_CPU, "--pin {cpu}: no such CPU");
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("--pin {cpu}"))
}

/// A thread's time on a CPU, and its time ready to run without one.
#[derive(Clone, Copy, Debug, Default)]
struct ThreadTime {
    on_cpu: Duration,
    waiting: Duration,
}

impl ThreadTime {
    /// Of the calling thread.
    fn take() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waiting_ns = schedstat.split_whitespace().nth(1).and_then(|ns| ns.parse().ok());
        Self {
            on_cpu: Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
            waiting: Duration::from_nanos(waiting_ns.unwrap_or(0)),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            on_cpu: self.on_cpu.saturating_sub(before.on_cpu),
            waiting: self.waiting.saturating_sub(before.waiting),
        }
    }
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
    fn a_generator_that_works_or_waits_all_the_time_is_the_limit() {
        let time = |on_cpu, waiting| ThreadTime {
            on_cpu: Duration::from_millis(on_cpu),
            waiting: Duration::from_millis(waiting),
        };
        let limited =
            |threads: &[ThreadTime]| Generator::new(threads, Duration::from_secs(1)).limited;
        assert!(!limited(&[time(800, 50), time(50, 800)]));
        assert!(limited(&[time(10, 0), time(950, 0)]));
        assert!(limited(&[time(500, 450), time(10, 0)]));
    }

    #[test]
    fn a_limit_out_of_reach_is_an_error() {
        assert!(raise_fd_limit(16).is_ok());
        assert!(raise_fd_limit(1 << 40).unwrap_err().to_string().contains("hard limit"));
    }
}
