//! The measured window: its clock, its threads, and what both sides spent in it.

use super::Common;
use crate::machine::{self, Machine};
use crate::report::round;
use crate::server::syscalls::SyscallCount;
use crate::server::{Sample, Usage};
use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::json;
use std::num::NonZeroU64;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A thread that is busy, or waits for its CPU, for a larger part of the window may be what was measured.
const GENERATOR_LIMITED_SHARE: f64 = 0.9;

/// How much later than asked the kernel may wake a thread; it takes 50 µs where nothing is said.
const TIMER_SLACK_NS: NonZeroU64 = NonZeroU64::MIN;

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
                    // A kernel that refuses makes this thread later, which is in its account.
                    set_current_timer_slack(Some(TIMER_SLACK_NS)).ok();
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
    /// When that began.
    #[serde(skip)]
    pub began: SystemTime,
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
    /// Of the run's latency, its own lateness: at the median or at p99, whichever is more; `None` where no schedule is.
    pub late_share: Option<f64>,
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
        let ago = self.clock.start.elapsed() - Duration::from_nanos(self.clock.warm_up_ns);
        let began = SystemTime::now() - ago;
        Accounts { elapsed: self.elapsed, began, machine, server, generator }
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
            late_share: None,
            cpu_s: round(threads.iter().map(|thread| thread.on_cpu.as_secs_f64()).sum(), 4),
            threads: threads.len(),
        }
    }
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
}
