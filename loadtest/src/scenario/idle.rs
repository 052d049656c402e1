//! `idle`: what a connection costs that does nothing.
//!
//! Memory is read before the first connection, with all of them open, and after they are gone; CPU time over the hold.
//! TCP memory is the machine's, so both ends of a connection are in it: on one machine half of it is the relay's.

use super::{Clock, Common, Notices, POLL_MS_MAX, Worker, connect, lost, measure};
use crate::client::{Connection, Poller, RelayMessage, message};
use crate::report::{Outcome, Pacing, Violations, round};
use crate::server::{Sample, SocketMemory};
use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// The relay's time to free what closed connections held, before its memory is read for the last time.
const CLOSE_SETTLE: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug, Serialize)]
pub struct IdleArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,
    /// How long they are held open
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub hold_s: u64,
}

super::scenario!(IdleArgs, "idle", common, run);

struct IdleWorker {
    connections: Vec<Option<Connection>>,
    poller: Poller,
    messages: u64,
    notices: Notices,
    violations: Violations,
}

/// # Errors
/// A connection that is refused, a file descriptor limit that is too low.
pub fn run(args: &IdleArgs) -> anyhow::Result<Outcome> {
    ensure!(args.common.admin.is_none(), "--admin: there are no deliveries to count");
    ensure!(args.common.threads == 1, "--threads: one thread holds all connections");
    let count = args.connections as usize;
    let target = args.common.prepare(count)?;
    let sample = || args.common.pid.map(Sample::take).transpose();
    thread::sleep(Duration::from_millis(args.common.settle_ms));
    let (before, sockets_before) = (sample()?, SocketMemory::take());
    let started = Instant::now();
    let connections = connect(&target, count)?;
    let connect_seconds = started.elapsed().as_secs_f64();
    thread::sleep(Duration::from_millis(args.common.settle_ms));
    let (open, sockets_open) = (sample()?, SocketMemory::take());

    let mut worker = IdleWorker::new(connections)?;
    let hold = Duration::from_secs(args.hold_s);
    let window = measure(&args.common, hold, std::slice::from_mut(&mut worker))?;
    let seconds = window.elapsed.as_secs_f64();
    let held = worker.connections.iter().flatten().count();
    let IdleWorker { connections, messages, notices, mut violations, .. } = worker;
    drop(connections);
    thread::sleep(CLOSE_SETTLE);
    let gone = sample().unwrap_or_else(|error| {
        violations.add("not_there_afterwards", || format!("{error:#}"));
        None
    });

    let mut detail = json!({
        "connections": count, "held_to_the_end": held, "messages": messages, "notices": notices.to_json(),
        "connect_seconds": round(connect_seconds, 3),
        "connects_per_second": round(count as f64 / connect_seconds, 1),
        "memory": memory(count, before.as_ref().zip(open.as_ref()), gone.as_ref()),
        "sockets": {
            "tcp_bytes_before": sockets_before.tcp_bytes, "tcp_bytes_open": sockets_open.tcp_bytes,
            "tcp_bytes_per_connection_both_ends": each(sockets_before.tcp_bytes, sockets_open.tcp_bytes, count),
            "tcp_sockets_before": sockets_before.tcp_sockets, "tcp_sockets_open": sockets_open.tcp_sockets,
            "object_bytes_per_connection_both_ends": sockets_before
                .objects_bytes
                .zip(sockets_open.objects_bytes)
                .map(|(before, open)| each(before, open, count)),
            "slab_bytes_per_connection_both_ends_hint":
                each(sockets_before.slab_kb * 1024, sockets_open.slab_kb * 1024, count),
        },
    });
    let accounts = window.account(held as u64);
    if let Some(server) = &accounts.server {
        detail["cpu_us_per_connection_second"] =
            json!(round((server.user_us + server.sys_us) / held.max(1) as f64 / seconds, 4));
    }
    let summary = format!(
        "{held} of {count} connections held {seconds:.1} s; server {} bytes of RSS a connection, {} cores",
        detail["memory"]["rss_bytes_per_connection"],
        accounts.server.as_ref().map_or(0.0, |server| server.cores),
    );
    Ok(Outcome {
        violations,
        checked: count as u64,
        unit: "connection",
        operations: held as u64,
        pacing: Pacing::None,
        latencies: Vec::new(),
        accounts,
        detail,
        summary,
    })
}

fn memory(count: usize, samples: Option<(&Sample, &Sample)>, gone: Option<&Sample>) -> Value {
    let Some((before, open)) = samples else { return Value::Null };
    json!({
        "rss_before_kb": before.rss_kb, "rss_open_kb": open.rss_kb,
        "rss_after_close_kb": gone.map(|sample| sample.rss_kb),
        "rss_bytes_per_connection": each(before.rss_kb * 1024, open.rss_kb * 1024, count),
        "anonymous_bytes_per_connection":
            each(before.rss_anonymous_kb * 1024, open.rss_anonymous_kb * 1024, count),
        "fds_before": before.fds, "fds_open": open.fds, "fds_after_close": gone.map(|sample| sample.fds),
    })
}

fn each(before: u64, after: u64, count: usize) -> f64 {
    round((after as f64 - before as f64) / count as f64, 1)
}

impl IdleWorker {
    fn new(connections: Vec<Connection>) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        let mut connections: Vec<_> = connections.into_iter().map(Some).collect();
        for (token, connection) in connections.iter_mut().enumerate() {
            poller.add(connection.as_mut().expect("it is open"), token)?;
        }
        let (notices, violations) = Default::default();
        Ok(Self { connections, poller, messages: 0, notices, violations })
    }
}

impl Worker for IdleWorker {
    /// Holds the connections until the clock is over, answering pings.
    fn run(&mut self, clock: Clock) {
        let mut ready = Vec::new();
        while !clock.is_over() {
            if let Err(error) = self.poller.wait(Duration::from_millis(POLL_MS_MAX), &mut ready) {
                return self.violations.add("generator_failed", || error.to_string());
            }
            for one in &ready {
                let Some(mut connection) = self.connections[one.token].take() else { continue };
                let result = connection.flush().map_err(Into::into).and_then(|()| {
                    connection.receive(&mut self.poller.buffer, |text| {
                        self.messages += 1;
                        if let Ok(RelayMessage::Notice(text)) = message::parse(text) {
                            self.notices.add(&text);
                        }
                    })
                });
                match result.and_then(|()| Ok(self.poller.sync(&mut connection, one.token)?)) {
                    Ok(()) => self.connections[one.token] = Some(connection),
                    Err(why) => lost(&mut self.violations, "connection", one.token, &why),
                }
            }
        }
    }
}
