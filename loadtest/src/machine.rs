//! What a figure depends on besides the relay: the machine, and what else it did during the window.

use crate::report::round;
use serde::Serialize;
use std::fs;
use std::thread::available_parallelism;
use std::time::Duration;

/// The machine's CPU time at one moment, in ticks over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Not idle and not stolen.
    busy: u64,
    steal: u64,
    total: u64,
}

impl Sample {
    /// All zero where there is no `/proc/stat`.
    pub fn take() -> Self {
        Self::parse(&read("/proc/stat")).unwrap_or_default()
    }

    /// `cpu  user nice system idle iowait irq softirq steal …`; what guests use is in `user` already.
    fn parse(stat: &str) -> Option<Self> {
        let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        let ticks = ticks.map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        Some(Self { busy, steal, total: busy + idle + iowait + steal })
    }
}

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    cpus: usize,
    cpu_model: Option<String>,
    kernel: String,
    governor: Option<String>,
    /// Mean number of runnable tasks over the last minute, when the window closed.
    load_1m: f64,
    /// Of all CPUs' time in the window, what the hypervisor gave to others.
    pub steal_share: f64,
    /// CPUs that neither the relay nor the generator kept busy; with no --pid, the relay is among them.
    pub others_cores: f64,
}

impl Machine {
    /// `ours` is the CPU time of the relay and of the generator.
    pub fn between(before: Sample, after: Sample, elapsed: Duration, ours: Duration) -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let ticks = |from: u64, to: u64| to.saturating_sub(from) as f64;
        let total = ticks(before.total, after.total).max(1.0);
        let tick_s = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let others_s = ticks(before.busy, after.busy) * tick_s - ours.as_secs_f64();
        Self {
            cpus: available_parallelism().map_or(0, usize::from),
            cpu_model: model.map(|(_, model)| model.to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            governor: (!governor.is_empty()).then(|| governor.trim().to_owned()),
            load_1m: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
            steal_share: round(ticks(before.steal, after.steal) / total, 4),
            others_cores: round(others_s.max(0.0) / elapsed.as_secs_f64().max(1e-9), 3),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_did_and_what_was_stolen_is_told() {
        let sample = |text: &str| Sample::parse(text).unwrap();
        let before = sample("cpu  100 0 50 800 10 0 0 40 7 0\ncpu0 1 2 3\n");
        assert_eq!(before, Sample { busy: 150, steal: 40, total: 1000 });
        let after = sample("cpu  200 10 80 850 10 5 5 140 7 0\n");
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        let (elapsed, ours) =
            (Duration::from_secs_f64(100.0 * tick), Duration::from_secs_f64(50.0 * tick));
        let machine = Machine::between(before, after, elapsed, ours);
        assert_eq!((machine.steal_share, machine.others_cores), (0.3333, 1.0));
        assert!(Sample::parse("cpu  1 2\n").is_none());
        assert!(Sample::take().total > 0);
    }
}
