//! Subscribers that never read while the fan-out runs.

use crate::client::inquiry::Answer;
use crate::client::{Connection, RelayMessage, Target, message};
use crate::server::{Sample, SocketMemory};
use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// The least a kernel gives to a socket that receives.
const RECEIVE_BYTES: usize = 2_304;
/// What they take once they read.
const RESUMED_BYTES: usize = 256 << 10;
/// After the run each is read until it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(300);
/// What the relay may take to let go of the connections that are gone.
const RELEASE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Deaf {
    connections: Vec<Connection>,
    pid: Option<u32>,
    before: (Option<Sample>, SocketMemory),
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
        filter: &Value,
        pid: Option<u32>,
    ) -> anyhow::Result<Self> {
        let before = (sample(pid), SocketMemory::take());
        let target = Target { receive_bytes: Some(RECEIVE_BYTES), ..target.clone() };
        let open = |number: usize| -> anyhow::Result<Connection> {
            let mut connection = Connection::open(&target, number)?;
            let answer = connection.inquire("live", filter, target.connect_timeout)?;
            ensure!(answer == Answer::default(), "not just EOSE: {answer:?}");
            Ok(connection)
        };
        let connections = (0..count as usize)
            .map(|number| open(number).with_context(|| format!("deaf subscriber {number}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { connections, pid, before })
    }

    /// Reads what has come for them, to the end, and lets them go.
    ///
    /// # Errors
    /// The poll fails.
    pub fn resume(self) -> anyhow::Result<Gone> {
        let during = (sample(self.pid), SocketMemory::take());
        let count = self.connections.len();
        let (mut received, mut told, mut cut_off) = (0, 0, 0);
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
        let after = sample(self.pid);
        let anonymous = |sample: &Option<Sample>| sample.as_ref().map(|one| one.rss_anonymous_kb);
        let report = json!({
            "count": count, "events_read_in_the_end": received, "told_slow_consumer": told, "cut_off": cut_off,
            "rss_anonymous_kb": {
                "before": anonymous(&self.before.0), "during": anonymous(&during.0), "after": anonymous(&after),
            },
            "tcp_bytes_both_ends": {"before": self.before.1.tcp_bytes, "during": during.1.tcp_bytes},
        });
        Ok(Gone { received, report })
    }
}

fn sample(pid: Option<u32>) -> Option<Sample> {
    pid.and_then(|pid| Sample::take(pid).ok())
}
