//! The relay's own counts, from its admin listener: what it says it delivered, against what arrived here.
//!
//! For rheostr only (OpenMetrics names). The relay must serve nobody else meanwhile.

use crate::report::Violations;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A relay publishes its counts a few times a second; so long none may have changed.
const SETTLE: Duration = Duration::from_millis(600);
/// How long they may take to come to rest.
const SETTLE_MAX: Duration = Duration::from_secs(20);

/// Counters by name and last label, summed over shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Reads them again and again until they stand still.
    ///
    /// # Errors
    /// No listener, no metrics, or no rest.
    pub fn settled(admin: SocketAddr) -> anyhow::Result<Self> {
        let started = Instant::now();
        let mut last = Self::read(admin)?;
        while started.elapsed() < SETTLE_MAX {
            thread::sleep(SETTLE);
            let counts = Self::read(admin)?;
            if counts == last {
                return Ok(counts);
            }
            last = counts;
        }
        bail!("the counts of {admin} do not come to rest: is somebody else served?")
    }

    fn read(admin: SocketAddr) -> anyhow::Result<Self> {
        Self::parse(&fetch(admin)?)
            .with_context(|| format!("--admin {admin}: these are not its metrics"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut counts = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("relay_")) {
            let (name, value) = line.rsplit_once(' ')?;
            let Some((name, labels)) = name.split_once("_total{shard=\"") else { continue };
            let label = labels.split('"').skip(2).step_by(2).last().unwrap_or("");
            let name = if label.is_empty() { name.into() } else { format!("{name} {label}") };
            *counts.entry(name).or_default() += value.parse::<u64>().ok()?;
        }
        (!counts.is_empty()).then_some(Self(counts))
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// What its metrics listener says.
fn fetch(admin: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&admin, Duration::from_secs(5))
        .with_context(|| format!("--admin {admin}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("--admin {admin}"))?;
    Ok(text)
}

/// The relay's own `[tuning]`, by key; null where it tells none.
fn tuning(text: &str) -> Value {
    let Some(labels) = text
        .lines()
        .find_map(|line| line.strip_prefix("relay_tuning_info{")?.strip_suffix("\"} 1"))
    else {
        return Value::Null;
    };
    labels.split("\",").filter_map(|label| label.split_once("=\"")).collect()
}

/// Holds the relay's counts against the generator's, over the part of a run between two readings.
#[derive(Clone, Debug)]
pub struct Account {
    admin: SocketAddr,
    before: Counts,
    tuning: Value,
}

impl Account {
    /// # Errors
    /// As [`Counts::settled`].
    pub fn open(admin: SocketAddr) -> anyhow::Result<Self> {
        let tuning = tuning(&fetch(admin)?);
        Ok(Self { admin, before: Counts::settled(admin)?, tuning })
    }

    /// Every event that matched a live subscription must be accounted for, and what the relay says it delivered must
    /// have arrived: `received` EVENT messages, over all connections. Only a connection that the relay cut off may
    /// have been on its way to more.
    ///
    /// For the report: `relay_counts`, and the `relay_tuning` they were counted under.
    ///
    /// Counts that cannot be read any more are a violation: they could before.
    pub fn close(self, received: u64, violations: &mut Violations) -> Value {
        let counts = match Counts::settled(self.admin) {
            Ok(after) => judge(&self.before, &after, received, violations),
            Err(error) => {
                violations.add("counts_unreadable", || format!("{error:#}"));
                Value::Null
            }
        };
        json!({"relay_counts": counts, "relay_tuning": self.tuning})
    }
}

fn judge(before: &Counts, after: &Counts, received: u64, violations: &mut Violations) -> Value {
    let grown = |name: &str| after.get(name).saturating_sub(before.get(name));
    let (matched, live) = (grown("live_matched"), grown("delivered live"));
    let (suppressed, abandoned) = (grown("live_suppressed"), grown("drops abandoned"));
    let (stored, purged) = (grown("delivered stored"), grown("drops purged"));
    let expired = grown("drops expired");
    let cut_off: u64 = ["stalled", "silent", "timeout"]
        .map(|why| grown(&format!("connections_closed {why}")))
        .iter()
        .sum();
    if matched != live + suppressed + abandoned {
        violations.add("relay_lost_count", || {
            format!("{matched} matched, {live} delivered, {suppressed} suppressed, {abandoned} abandoned")
        });
    }
    let sent = (live + stored).saturating_sub(purged + expired);
    let unread = sent as i64 - received as i64;
    if unread < 0 || unread > 0 && cut_off == 0 {
        violations.add("relay_counts_otherwise", || {
            format!(
                "{live} live + {stored} stored - {purged} purged - {expired} expired were sent, {received} received"
            )
        });
    }
    json!({
        "matched": matched, "delivered_live": live, "suppressed": suppressed, "abandoned": abandoned,
        "delivered_stored": stored, "purged": purged, "expired": expired, "received": received,
        "connections_cut_off": cut_off, "unread_by_those_cut_off": unread,
        "subscriptions_ended_slow": grown("subscriptions_ended slow_consumer"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const TEXT: &str = "HTTP/1.1 200 OK\r\n\r\n# TYPE relay_live_matched counter\n\
        relay_live_matched_total{shard=\"0\"} 3\nrelay_live_matched_total{shard=\"1\"} 4\n\
        relay_delivered_total{shard=\"0\",source=\"live\"} 5\nrelay_scan_queue 0\n\
        relay_delivered_total{shard=\"0\",source=\"stored\"} 2\nrelay_connections{shard=\"0\"} 9\n\
        relay_events_total{shard=\"0\",result=\"accepted\",reason=\"stored\"} 6\n\
        relay_tuning_info{batch_events_max=\"512\",receive=\"ring\"} 1\n";

    fn kinds(violations: &Violations) -> Vec<String> {
        violations.kinds().iter().map(|one| one.name.to_owned()).collect()
    }

    #[test]
    fn shards_are_summed_and_labels_kept_apart() {
        let counts = Counts::parse(TEXT).unwrap();
        assert_eq!(counts.get("live_matched"), 7);
        assert_eq!((counts.get("delivered live"), counts.get("delivered stored")), (5, 2));
        assert_eq!(counts.get("events stored"), 6);
        assert_eq!(counts.0.len(), 4, "gauges are left out: {counts:?}");
        assert_eq!(tuning("relay_connections{shard=\"0\"} 9\n"), Value::Null);
        assert!(Counts::parse("HTTP/1.1 404 Not Found\r\n\r\n").is_none());
    }

    #[test]
    fn counts_that_are_gone_afterwards_are_a_violation() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = listener.local_addr().unwrap();
        // The tuning, then twice the same, which is at rest; then the relay is gone.
        let relay = thread::spawn(move || {
            for _ in 0..3 {
                let (mut socket, _) = listener.accept().unwrap();
                let mut request = [0; 200];
                assert!(socket.read(&mut request).unwrap() > 0);
                socket.write_all(TEXT.as_bytes()).unwrap();
            }
        });
        let account = Account::open(admin).unwrap();
        relay.join().unwrap();
        let mut violations = Violations::default();
        let told = account.close(0, &mut violations);
        let tuning = json!({"batch_events_max": "512", "receive": "ring"});
        assert_eq!(told, json!({"relay_counts": null, "relay_tuning": tuning}));
        assert_eq!(kinds(&violations), ["counts_unreadable"]);
    }

    #[test]
    fn one_event_more_or_less_anywhere_is_a_violation() {
        let none = Counts(BTreeMap::new());
        let after = |list: &[(&str, u64)]| {
            Counts(list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect())
        };
        let all = [
            ("live_matched", 10),
            ("delivered live", 7),
            ("live_suppressed", 1),
            ("drops abandoned", 2),
            ("delivered stored", 5),
            ("drops purged", 3),
        ];
        let judged = |counts: &[(&str, u64)], received| {
            let mut violations = Violations::default();
            judge(&none, &after(counts), received, &mut violations);
            kinds(&violations)
        };
        assert_eq!(judged(&all, 9), [""; 0]);
        for received in [8, 10] {
            assert_eq!(judged(&all, received), ["relay_counts_otherwise"]);
        }
        for at in 0..4 {
            let mut wrong = all;
            wrong[at].1 += 1;
            assert!(judged(&wrong, 9).contains(&"relay_lost_count".into()), "{at}");
        }
        // What was on its way to a connection that was cut off may be missing; more may not come.
        let cut = [&all[..], &[("connections_closed stalled", 1)]].concat();
        assert_eq!(judged(&cut, 4), [""; 0]);
        assert_eq!(judged(&cut, 10), ["relay_counts_otherwise"]);
    }
}
