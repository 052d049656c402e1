//! What the server process costs, read from `/proc` at both ends of the measured window.
//!
//! CPU time is the sum over all threads of `schedstat` (nanoseconds); `/proc/PID/stat` splits it into user and system
//! time with a resolution of one tick, and stands in for it when a thread ended inside the window and took its
//! `schedstat` along. io_uring workers are threads of the process and counted; work that the kernel does in softirq
//! context is charged to whoever runs at that moment, the generator included, for every relay alike.

pub mod counts;
pub mod syscalls;

use crate::report::round;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// The state of a process at one moment; sizes in KiB.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Time on a CPU by thread id, in nanoseconds.
    thread_cpu_ns: BTreeMap<u32, u64>,
    user_ticks: u64,
    system_ticks: u64,
    pub switches_voluntary: u64,
    pub switches_involuntary: u64,
    pub rss_kb: u64,
    pub rss_peak_kb: u64,
    pub rss_anonymous_kb: u64,
    pub fds: u64,
    /// Bytes that reached the block layer; 0 where `/proc/PID/io` is closed to us.
    pub disk_written_bytes: u64,
}

impl Sample {
    /// # Errors
    /// No such process, or not ours to look at.
    pub fn take(pid: u32) -> anyhow::Result<Self> {
        let mut sample = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))
            .with_context(|| format!("no process {pid}"))?
        {
            sample.add_thread(pid, entry?.file_name().to_string_lossy().parse()?);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        (sample.user_ticks, sample.system_ticks) =
            cpu_ticks(&stat).context("/proc/PID/stat has another shape")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        sample.rss_kb = field(&status, "VmRSS:").unwrap_or(0);
        sample.rss_peak_kb = field(&status, "VmHWM:").unwrap_or(0);
        sample.rss_anonymous_kb = field(&status, "RssAnon:").unwrap_or(0);
        sample.fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |fds| fds.count() as u64);
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        sample.disk_written_bytes = field(&io, "write_bytes:").unwrap_or(0);
        Ok(sample)
    }

    /// A thread may end between the listing and the reading; then it is left out.
    fn add_thread(&mut self, pid: u32, tid: u32) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/task/{tid}/{name}"));
        let (Ok(schedstat), Ok(status)) = (read("schedstat"), read("status")) else { return };
        let on_cpu_ns = schedstat.split_whitespace().next().and_then(|ns| ns.parse().ok());
        self.thread_cpu_ns.insert(tid, on_cpu_ns.unwrap_or(0));
        self.switches_voluntary += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        self.switches_involuntary += field(&status, "nonvoluntary_ctxt_switches:").unwrap_or(0);
    }
}

/// CPU time between two samples, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CpuTime {
    pub user_us: f64,
    pub system_us: f64,
    /// False: only ticks were to be had, because a thread ended.
    pub precise: bool,
}

impl CpuTime {
    pub fn between(before: &Sample, after: &Sample) -> Self {
        let tick_us = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        let user = after.user_ticks.saturating_sub(before.user_ticks) as f64 * tick_us;
        let system = after.system_ticks.saturating_sub(before.system_ticks) as f64 * tick_us;
        let precise = before.thread_cpu_ns.keys().all(|tid| after.thread_cpu_ns.contains_key(tid));
        if !precise {
            return Self { user_us: user, system_us: system, precise };
        }
        let spent = |(tid, ns): (&u32, &u64)| {
            ns.saturating_sub(*before.thread_cpu_ns.get(tid).unwrap_or(&0))
        };
        let total = after.thread_cpu_ns.iter().map(spent).sum::<u64>() as f64 / 1000.0;
        let user_share = if user + system > 0.0 { user / (user + system) } else { 0.0 };
        Self { user_us: total * user_share, system_us: total * (1.0 - user_share), precise }
    }

    pub fn total_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

/// The accounts of one window; `units` is what the scenario counts (events, deliveries).
pub fn usage(before: &Sample, after: &Sample, seconds: f64, unit: &str, units: u64) -> Value {
    let cpu = CpuTime::between(before, after);
    let per_unit =
        |us: f64| if units == 0 { Value::Null } else { json!(round(us / units as f64, 3)) };
    let mut usage = json!({
        "cpu_user_us": round(cpu.user_us, 0),
        "cpu_system_us": round(cpu.system_us, 0),
        "cpu_cores": round(cpu.total_us() / 1e6 / seconds.max(1e-9), 3),
        "cpu_source": if cpu.precise { "schedstat" } else { "stat (10 ms ticks: a thread ended)" },
    });
    usage[format!("cpu_us_per_{unit}")] = per_unit(cpu.total_us());
    usage[format!("cpu_user_us_per_{unit}")] = per_unit(cpu.user_us);
    usage[format!("cpu_system_us_per_{unit}")] = per_unit(cpu.system_us);
    let delta = |from: u64, to: u64| to as i64 - from as i64;
    let rest = json!({
        "rss_before_kb": before.rss_kb,
        "rss_after_kb": after.rss_kb,
        "rss_peak_kb": after.rss_peak_kb,
        "rss_anonymous_after_kb": after.rss_anonymous_kb,
        "threads": after.thread_cpu_ns.len(),
        "fds": after.fds,
        "switches_voluntary": delta(before.switches_voluntary, after.switches_voluntary),
        "switches_involuntary": delta(before.switches_involuntary, after.switches_involuntary),
        "disk_written_bytes": delta(before.disk_written_bytes, after.disk_written_bytes),
    });
    crate::scenario::extend(&mut usage, rest);
    usage
}

/// Kernel memory of sockets, for the whole machine: both ends of every connection are in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketMemory {
    /// Pages that TCP has charged for buffers.
    pub tcp_bytes: u64,
    pub tcp_sockets: u64,
    /// All slab caches; a hint at the socket, file and epoll structures.
    pub slab_kb: u64,
    /// The caches those structures are in, where this process may see them.
    pub objects_bytes: Option<u64>,
}

/// What the kernel keeps for a socket and for whoever waits for it. Names and inodes of files are left
/// out: they are of one size for every server, and the whole machine makes and drops them.
const SOCKET_CACHES: [&str; 8] = [
    "TCP",
    "TCPv6",
    "sock_inode_cache",
    "filp",
    "io_kiocb",
    "eventpoll_epi",
    "eventpoll_pwq",
    "ep_head",
];

impl SocketMemory {
    pub fn take() -> Self {
        let sockstat = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP: ")).unwrap_or("");
        let value = |key: &str| {
            let mut words = tcp.split_whitespace();
            words
                .find(|word| *word == key)
                .and_then(|_| words.next())
                .and_then(|n| n.parse::<u64>().ok())
        };
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            tcp_bytes: value("mem").unwrap_or(0) * rustix::param::page_size() as u64,
            tcp_sockets: value("inuse").unwrap_or(0),
            slab_kb: field(&meminfo, "Slab:").unwrap_or(0),
            objects_bytes: fs::read_to_string("/proc/slabinfo")
                .ok()
                .map(|text| socket_objects(&text)),
        }
    }
}

/// Active objects times their size, over [`SOCKET_CACHES`].
fn socket_objects(slabinfo: &str) -> u64 {
    let cache = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        let known = SOCKET_CACHES.contains(&words.next()?);
        let active: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        known.then_some(active * size)
    };
    slabinfo.lines().filter_map(cache).sum()
}

/// The number behind a key at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

/// utime and stime; the command's name before them may hold spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_of_sockets_are_added_up() {
        let slabinfo = "slabinfo - version: 2.1\n\
            # name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables\n\
            dentry 900 1000 192 21 1 : tunables 0 0 0 : slabdata 1 1 0\n\
            TCP 3 14 2368 13 8 : tunables 0 0 0 : slabdata 1 1 0\n\
            io_kiocb 2 32 256 16 1 : tunables 0 0 0 : slabdata 1 1 0\n";
        assert_eq!(socket_objects(slabinfo), 3 * 2368 + 2 * 256);
    }

    #[test]
    fn ticks_are_found_behind_an_odd_name() {
        let stat = "7 (a) b) (c)) S 1 2 3 4 5 6 7 8 9 10 123 456 0 0 20";
        assert_eq!(cpu_ticks(stat), Some((123, 456)));
        assert_eq!(field("A: 1 kB\nVmRSS:\t  42 kB\n", "VmRSS:"), Some(42));
    }

    #[test]
    fn work_of_this_process_shows_up() {
        let pid = std::process::id();
        let before = Sample::take(pid).unwrap();
        let started = std::time::Instant::now();
        let mut waste = 0u64;
        while started.elapsed().as_millis() < 60 {
            waste = std::hint::black_box(waste + 1);
        }
        let after = Sample::take(pid).unwrap();
        assert!(CpuTime::between(&before, &after).total_us() >= 10_000.0);
        assert!(after.rss_kb > 0 && after.fds > 0);
        assert!(SocketMemory::take().slab_kb > 0);
    }

    #[test]
    fn a_thread_that_ended_makes_ticks_the_source() {
        let threads = |ids: &[u32]| ids.iter().map(|id| (*id, 5_000_000)).collect();
        let before =
            Sample { thread_cpu_ns: threads(&[1, 2]), user_ticks: 10, ..Sample::default() };
        let after = Sample { thread_cpu_ns: threads(&[1, 3]), user_ticks: 13, ..Sample::default() };
        let cpu = CpuTime::between(&before, &after);
        assert_eq!((cpu.user_us, cpu.precise), (30_000.0, false));
        let after =
            Sample { thread_cpu_ns: threads(&[1, 2, 3]), user_ticks: 13, ..Sample::default() };
        assert_eq!(CpuTime::between(&before, &after).total_us(), 5_000.0);
    }
}
