//! Subscribers that never read while the fan-out runs.

use crate::client::{Connection, RelayMessage, Target, message};
use crate::scenario::mix::LiveFilter;
use crate::server::{Sample, SocketMemory};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The least a kernel gives to a socket that receives.
const RECEIVE_BYTES: usize = 2_304;
/// What they take once they read.
const RESUMED_BYTES: usize = 256 << 10;
/// After the run each is read until it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(300);
/// What the relay may take to let go of the connections that are gone.
const RELEASE: Duration = Duration::from_secs(2);

/// How often it is looked what they take; the relay cuts them off long before the end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// See the module.
pub struct Deaf {
    connections: Vec<Connection>,
    /// Events that came before it began.
    stored: u64,
    pid: Option<u32>,
    before: Taken,
    watch: Watch,
}

/// What the relay and the kernel hold.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// `None` where the relay's process is not known.
    anonymous_kb: Option<u64>,
    tcp_bytes: u64,
}

impl Taken {
    fn now(pid: Option<u32>) -> Self {
        let sample = pid.and_then(|pid| Sample::take(pid).ok());
        Self {
            anonymous_kb: sample.map(|sample| sample.rss_anonymous_kb),
            tcp_bytes: SocketMemory::take().tcp_bytes,
        }
    }
}

/// Looks at it while they are there.
struct Watch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Taken>,
}

impl Watch {
    fn start(pid: Option<u32>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut most = Taken::default();
            while stopped.recv_timeout(LOOK_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = Taken::now(pid);
                most.anonymous_kb = most.anonymous_kb.max(now.anonymous_kb);
                most.tcp_bytes = most.tcp_bytes.max(now.tcp_bytes);
            }
            most
        });
        Self { stop, thread }
    }

    /// The most of each.
    fn stop(self) -> Taken {
        drop(self.stop);
        self.thread.join().expect("the watch panicked")
    }
}

/// What became of them.
pub struct Gone {
    /// EVENT messages that they read in the end.
    pub received: u64,
    pub report: Value,
}

impl Deaf {
    /// Connects and subscribes; their sockets take next to nothing from then on.
    ///
    /// # Errors
    /// A connection or a subscription that is refused.
    pub fn open(
        target: &Target,
        count: u32,
        live_filter: LiveFilter,
        filter: &Value,
        since: u64,
        pid: Option<u32>,
    ) -> anyhow::Result<Self> {
        let before = Taken::now(pid);
        let watch = Watch::start(pid);
        let target = Target { receive_bytes: Some(RECEIVE_BYTES), ..target.clone() };
        let mut stored = 0;
        let mut open = |number: usize| -> anyhow::Result<Connection> {
            let mut connection = Connection::open(&target, number)?;
            let timeout = target.connect_timeout;
            stored += live_filter.subscribe(&mut connection, "live", filter, since, timeout)?;
            Ok(connection)
        };
        let connections = (0..count as usize)
            .map(|number| open(number).with_context(|| format!("deaf subscriber {number}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { connections, stored, pid, before, watch })
    }

    /// Reads what has come for them, to the end, and lets them go.
    ///
    /// # Errors
    /// The poll fails.
    pub fn resume(self) -> anyhow::Result<Gone> {
        let most = self.watch.stop();
        let count = self.connections.len();
        let (mut received, mut told, mut cut_off) = (self.stored, 0, 0);
        let mut buffer = vec![0; 64 << 10];
        for mut connection in self.connections {
            connection.widen(RESUMED_BYTES)?;
            let (mut heard, told_before) = (Instant::now(), told);
            while told == told_before && heard.elapsed() < QUIET {
                if poll(&mut [PollFd::new(&connection, PollFlags::IN)], Some(&QUIET.try_into()?))?
                    == 0
                {
                    continue;
                }
                heard = Instant::now();
                let result = connection.receive(&mut buffer, |text| match message::parse(text) {
                    Ok(RelayMessage::Event { .. }) => received += 1,
                    Ok(RelayMessage::Closed { .. }) => told += 1,
                    _ => {}
                });
                if result.is_err() {
                    cut_off += 1;
                    break;
                }
            }
        }
        thread::sleep(RELEASE);
        let (before, after) = (self.before, Taken::now(self.pid));
        let report = json!({
            "count": count, "events_read_in_the_end": received, "told_slow_consumer": told, "cut_off": cut_off,
            "rss_anonymous_kb": {
                "before": before.anonymous_kb, "most": most.anonymous_kb, "after": after.anonymous_kb,
            },
            "tcp_bytes_both_ends": {"before": before.tcp_bytes, "most": most.tcp_bytes},
        });
        Ok(Gone { received, report })
    }
}
