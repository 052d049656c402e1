//! What the server process and its descendants cost, read from `/proc` at both ends of the measured window.
//!
//! CPU time is the sum over all threads of `schedstat` (nanoseconds); `/proc/PID/stat` splits it into user and system
//! time with a resolution of one tick, and stands in for it when a thread ended inside the window and took its
//! `schedstat` along. io_uring workers are threads of the process and counted; work that the kernel does in softirq
//! context is charged to whoever runs at that moment, the generator included, for every relay alike.

pub mod counts;
pub mod syscalls;

use crate::report::round;
use anyhow::Context;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

/// The state of a process and its descendants at one moment; sizes in KiB, summed. Pages that several of them share
/// are counted in each.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    processes: Vec<u32>,
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
    pub sockets: SocketMemory,
}

impl Sample {
    /// # Errors
    /// No such process, or not ours to look at.
    pub fn take(pid: u32) -> anyhow::Result<Self> {
        let mut sample = Self { sockets: SocketMemory::take(), ..Self::default() };
        sample.add(pid)?;
        for child in descendants(pid) {
            // It may end while it is looked at.
            sample.add(child).ok();
        }
        Ok(sample)
    }

    /// The process and its descendants.
    pub fn processes(&self) -> &[u32] {
        &self.processes
    }

    fn add(&mut self, pid: u32) -> anyhow::Result<()> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("no process {pid}"))?;
        let (user, system) = cpu_ticks(&stat).context("/proc/PID/stat has another shape")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            self.add_thread(pid, thread);
        }
        self.processes.push(pid);
        self.user_ticks += user;
        self.system_ticks += system;
        self.rss_kb += field(&status, "VmRSS:").unwrap_or(0);
        self.rss_peak_kb += field(&status, "VmHWM:").unwrap_or(0);
        self.rss_anonymous_kb += field(&status, "RssAnon:").unwrap_or(0);
        self.fds += fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |fds| fds.count() as u64);
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        self.disk_written_bytes += field(&io, "write_bytes:").unwrap_or(0);
        Ok(())
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

/// Whoever this process started, and whoever they did.
fn descendants(pid: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let parents: Vec<(u32, u32)> = processes
        .flatten()
        .filter_map(|entry| {
            let child = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((child, parent(&stat)?))
        })
        .collect();
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&one) = family.get(at) {
        let children = parents.iter().filter(|(child, parent)| *parent == one && *child != one);
        family.extend(children.map(|(child, _)| *child));
        at += 1;
    }
    family.split_off(1)
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

/// The accounts of one window.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    pub cpu_us_per_op: Option<f64>,
    pub user_us_per_op: Option<f64>,
    pub sys_us_per_op: Option<f64>,
    pub user_us: f64,
    pub sys_us: f64,
    /// CPUs that it kept busy.
    pub cores: f64,
    pub cpu_source: &'static str,
    pub rss_bytes: u64,
    pub rss_before_bytes: u64,
    pub rss_peak_bytes: u64,
    pub rss_anonymous_bytes: u64,
    /// What TCP has charged for buffers on the whole machine: both ends of every connection are in it.
    pub kernel_socket_bytes: u64,
    pub kernel_socket_before_bytes: u64,
    pub fds: u64,
    pub processes: usize,
    pub threads: usize,
    pub context_switches: i64,
    pub context_switches_involuntary: i64,
    pub context_switches_per_op: Option<f64>,
    pub disk_written_bytes: i64,
    pub disk_written_bytes_per_op: Option<f64>,
    pub syscalls: Option<Value>,
}

impl Usage {
    pub fn between(
        before: &Sample,
        after: &Sample,
        seconds: f64,
        operations: u64,
        syscalls: Option<Value>,
    ) -> Self {
        let cpu = CpuTime::between(before, after);
        let each = |value: f64| (operations > 0).then(|| round(value / operations as f64, 3));
        let grown = |from: u64, to: u64| to as i64 - from as i64;
        let voluntary = grown(before.switches_voluntary, after.switches_voluntary);
        let involuntary = grown(before.switches_involuntary, after.switches_involuntary);
        let written = grown(before.disk_written_bytes, after.disk_written_bytes);
        Self {
            cpu_us_per_op: each(cpu.total_us()),
            user_us_per_op: each(cpu.user_us),
            sys_us_per_op: each(cpu.system_us),
            user_us: round(cpu.user_us, 0),
            sys_us: round(cpu.system_us, 0),
            cores: round(cpu.total_us() / 1e6 / seconds.max(1e-9), 3),
            cpu_source: if cpu.precise {
                "schedstat"
            } else {
                "stat (10 ms ticks: a thread ended)"
            },
            rss_bytes: after.rss_kb * 1024,
            rss_before_bytes: before.rss_kb * 1024,
            rss_peak_bytes: after.rss_peak_kb * 1024,
            rss_anonymous_bytes: after.rss_anonymous_kb * 1024,
            kernel_socket_bytes: after.sockets.tcp_bytes,
            kernel_socket_before_bytes: before.sockets.tcp_bytes,
            fds: after.fds,
            processes: after.processes.len(),
            threads: after.thread_cpu_ns.len(),
            context_switches: voluntary + involuntary,
            context_switches_involuntary: involuntary,
            context_switches_per_op: each((voluntary + involuntary) as f64),
            disk_written_bytes: written,
            disk_written_bytes_per_op: each(written as f64),
            syscalls,
        }
    }
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

/// The fields behind the command's name, which may hold spaces and parentheses.
fn behind_name(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat[stat.rfind(')')? + 1..].split_whitespace())
}

/// utime and stime.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let mut fields = behind_name(stat)?.skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn parent(stat: &str) -> Option<u32> {
    behind_name(stat)?.nth(1)?.parse().ok()
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
        assert_eq!(parent(stat), Some(1));
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
        let usage = Usage::between(&before, &after, 0.06, 2, None);
        assert!(usage.cpu_us_per_op.unwrap() >= 5_000.0 && usage.rss_bytes > 0);
        assert!(Usage::between(&before, &after, 0.06, 0, None).cpu_us_per_op.is_none());
    }

    #[test]
    fn children_and_their_children_are_counted_in() {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "sleep 20 & echo $!; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(shell.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let sleeper: u32 = line.trim().parse().unwrap();
        let ours = Sample::take(std::process::id()).unwrap();
        let theirs = Sample::take(shell.id()).unwrap();
        std::process::Command::new("kill").arg(line.trim()).status().unwrap();
        shell.wait().unwrap();
        assert_eq!(theirs.processes(), [shell.id(), sleeper]);
        assert!(ours.processes().contains(&sleeper), "{:?}", ours.processes());
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
