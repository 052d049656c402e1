//! What is counted, and how a scrape reads it (OpenMetrics text).
//!
//! Each struct has one writer thread (fields that have more say so) and is read by the ops thread:
//! relaxed atomics, each struct on cache lines of its own. The values of one scrape need not be of
//! one instant.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// One number that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Sets the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds to the number; only for its one writer.
    pub fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    /// Adds to a number that has several writers.
    pub fn add_shared(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }
}

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Grows; its exposed name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// How one field is exposed. Fields of one name stand together and differ in their label.
#[derive(Debug)]
pub struct Exposed {
    /// Name after `rheostr_`, without `_total`.
    pub name: &'static str,
    /// Counter or gauge.
    pub sort: Sort,
    /// A label's name and value; both empty = none.
    pub label: (&'static str, &'static str),
    /// What it means.
    pub help: &'static str,
}

/// Declares a struct of [`Meter`]s and how they are exposed: one line a field.
macro_rules! metrics {
    ($(#[$meta:meta])* $struct:ident {
        $($field:ident: $sort:ident $name:literal $(($key:literal, $value:literal))?, $help:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $struct {
            $(#[doc = $help] pub $field: Meter,)*
        }

        impl $struct {
            /// How the fields are exposed, in order.
            pub const EXPOSED: &'static [Exposed] = &[$(Exposed {
                name: $name,
                sort: Sort::$sort,
                label: metrics!(@label $($key, $value)?),
                help: $help,
            },)*];

            /// The fields' values, in order.
            #[must_use]
            pub fn values(&self) -> [u64; Self::EXPOSED.len()] {
                [$(self.$field.get(),)*]
            }
        }
    };
    (@label) => { ("", "") };
    (@label $key:literal, $value:literal) => { ($key, $value) };
}

metrics! {
    /// What one shard counts; its thread is the one writer.
    ShardMetrics {
        connections: Gauge "connections", "Open connections.";
        accepted: Counter "connections_accepted", "Connections taken in.";
        closed_by_client: Counter "connections_closed" ("reason", "client"), "Connections ended, by reason.";
        closed_http: Counter "connections_closed" ("reason", "http"), "Connections that carried one HTTP exchange.";
        closed_protocol: Counter "connections_closed" ("reason", "protocol"), "Connections ended for breaking RFC 6455.";
        closed_too_long: Counter "connections_closed" ("reason", "too_long"), "Connections ended for an over-long message.";
        closed_stalled: Counter "connections_closed" ("reason", "stalled"), "Connections that took no byte in time.";
        closed_silent: Counter "connections_closed" ("reason", "silent"), "Connections that did not answer a ping.";
        closed_timeout: Counter "connections_closed" ("reason", "timeout"), "Connections too slow with a request or a close.";
        closed_shutdown: Counter "connections_closed" ("reason", "shutdown"), "Connections ended by the shutdown.";
        closed_full: Counter "connections_closed" ("reason", "full"), "Connections refused for want of room.";
        bytes_in: Counter "received_bytes", "Bytes received.";
        messages_in: Counter "received_messages", "Messages received.";
        messages_invalid: Counter "received_messages_invalid", "Messages that were malformed.";
        reads_paused: Counter "reads_paused", "Times a connection was not read because its answers were not taken.";
        bytes_out: Counter "sent_bytes", "Bytes handed to sockets.";
        frames_out: Counter "sent_frames", "Frames handed to sockets.";
        batches_out: Counter "sent_batches", "Gather writes those frames left in.";
        events_stored: Counter "events" ("result", "stored"), "Events received, by result.";
        events_duplicate: Counter "events" ("result", "duplicate"), "Events that were there already.";
        events_superseded: Counter "events" ("result", "superseded"), "Events older than the stored version.";
        events_deleted: Counter "events" ("result", "deleted"), "Events their author had deleted.";
        events_vanished: Counter "events" ("result", "vanished"), "Events of an author who vanished.";
        events_expired: Counter "events" ("result", "expired"), "Events that had expired.";
        events_refused: Counter "events" ("result", "blocked"), "Events refused by policy or limits.";
        events_bad_signature: Counter "events" ("result", "bad_signature"), "Events whose signature was wrong.";
        events_failed: Counter "events" ("result", "failed"), "Events the store failed to take.";
        events_ephemeral: Counter "events" ("result", "ephemeral"), "Ephemeral events somebody heard.";
        events_mute: Counter "events" ("result", "mute"), "Ephemeral events nobody heard.";
        reqs: Counter "reqs", "REQs taken.";
        subscriptions: Gauge "subscriptions", "Open subscriptions.";
        subscriptions_closed: Counter "subscriptions_ended" ("reason", "client"), "Subscriptions ended, by reason.";
        subscriptions_refused: Counter "subscriptions_ended" ("reason", "refused"), "REQs refused.";
        subscriptions_slow: Counter "subscriptions_ended" ("reason", "slow_consumer"), "Subscriptions whose reader fell behind.";
        subscriptions_failed: Counter "subscriptions_ended" ("reason", "store_failed"), "Subscriptions the store could not serve.";
        delivered_stored: Counter "delivered" ("source", "stored"), "Events put into outboxes.";
        delivered_live: Counter "delivered" ("source", "live"), "Live events put into outboxes.";
        matched_live: Counter "live_matched", "Live events matched to subscriptions.";
        suppressed_live: Counter "live_suppressed", "Matched live events that the stored query had served already.";
        abandoned_live: Counter "live_abandoned", "Matched live events whose subscription ended before delivery.";
        verify_waiting: Gauge "queue" ("name", "verify"), "What waits, by queue.";
        submissions_waiting: Gauge "queue" ("name", "store"), "Events at the writer.";
        scans: Gauge "queue" ("name", "scans"), "Stored queries in progress.";
        outbox_messages: Gauge "queue" ("name", "outbox"), "Frames in outboxes.";
        live_events: Gauge "queue" ("name", "live"), "Live events behind a full outbox or an unfinished stored query.";
        wakes_sent: Counter "wakes" ("outcome", "sent"), "Batches for another thread, by whether it had to be woken.";
        wakes_saved: Counter "wakes" ("outcome", "saved"), "Batches for a thread that was awake.";
    }
}

metrics! {
    /// What the store counts; the writer thread is the one writer of all but `read_*`.
    StoreMetrics {
        queue_events: Gauge "store_queue", "Events waiting for the writer.";
        events_erased: Counter "store_events_erased" ("reason", "request"), "Events erased, by reason.";
        events_maintained: Counter "store_events_erased" ("reason", "maintenance"), "Events erased in the background.";
        failures: Counter "store_failures", "Commits that failed.";
        read_slices: Counter "store_scan_slices", "Slices of stored queries (several writers).";
        read_events: Counter "store_scan_events", "Events those slices returned (several writers).";
        read_queue: Gauge "store_scan_queue", "Slices waiting for a reader.";
    }
}

/// Counts by fixed upper bounds; one writer.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    /// One more than bounds: the last is without bound.
    counts: [Meter; N],
    above: Meter,
    sum: Meter,
    /// Observed units in one exposed unit.
    scale: f64,
}

impl<const N: usize> Histogram<N> {
    fn new(bounds: [f64; N], scale: f64) -> Self {
        Self {
            bounds,
            counts: [const { Meter(AtomicU64::new(0)) }; N],
            above: Meter::default(),
            sum: Meter::default(),
            scale,
        }
    }

    fn observe(&self, value: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a bucket is no finer")]
        let exposed = value as f64 / self.scale;
        let at = self.bounds.iter().position(|bound| exposed <= *bound);
        at.map_or(&self.above, |at| &self.counts[at]).add(1);
        self.sum.add(value);
    }

    fn encode(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), fmt::Error> {
        let mut buckets: Vec<(f64, u64)> =
            self.bounds.iter().zip(&self.counts).map(|(bound, n)| (*bound, n.get())).collect();
        buckets.push((f64::MAX, self.above.get()));
        let count = buckets.iter().map(|(_, n)| n).sum();
        #[expect(clippy::cast_precision_loss, reason = "exposed as a float")]
        let sum = self.sum.get() as f64 / self.scale;
        encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}

/// What the writer thread measures of its commits.
#[derive(Debug)]
#[repr(align(128))]
pub struct CommitMetrics {
    time: Histogram<13>,
    events: Histogram<11>,
}

impl Default for CommitMetrics {
    fn default() -> Self {
        let seconds = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1., 2., 5.];
        let events = [1., 2., 4., 8., 16., 32., 64., 128., 256., 512., 1024.];
        Self { time: Histogram::new(seconds, 1e6), events: Histogram::new(events, 1.) }
    }
}

impl CommitMetrics {
    /// Counts one durable commit of `events` submissions that took `time`.
    pub fn observe(&self, events: u64, time: Duration) {
        self.time.observe(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        self.events.observe(events);
    }
}

/// Everything a scrape reads.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// One for each shard.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// The store's.
    pub store: Arc<StoreMetrics>,
    /// The writer's commits.
    pub commits: Arc<CommitMetrics>,
    /// Name of the backend in use.
    pub backend: &'static str,
}

impl Metrics {
    /// The text of a scrape.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn scrape(&self) -> String {
        let mut registry = Registry::with_prefix("rheostr");
        registry.register_collector(Box::new(self.clone()));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a string takes every write");
        out
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let build = [("version", env!("CARGO_PKG_VERSION")), ("backend", self.backend)];
        encoder
            .encode_descriptor("build", "What runs.", None, MetricType::Info)?
            .encode_info(&build)?;
        let names: Vec<String> = (0..self.shards.len()).map(|shard| shard.to_string()).collect();
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.values()).collect();
        let rows: Vec<(Option<&str>, &[u64])> =
            names.iter().zip(&shards).map(|(name, row)| (Some(name.as_str()), &row[..])).collect();
        encode_rows(&mut encoder, ShardMetrics::EXPOSED, &rows)?;
        encode_rows(&mut encoder, StoreMetrics::EXPOSED, &[(None, &self.store.values()[..])])?;
        let commits = &self.commits;
        commits.time.encode(
            &mut encoder,
            "commit_seconds",
            "Time from the start of a transaction until it is durable.",
        )?;
        commits.events.encode(&mut encoder, "commit_events", "Submissions in one commit.")
    }
}

/// Encodes one table over several rows of values, each perhaps of one shard.
fn encode_rows(
    encoder: &mut DescriptorEncoder<'_>,
    exposed: &[Exposed],
    rows: &[(Option<&str>, &[u64])],
) -> Result<(), fmt::Error> {
    let mut at = 0;
    for family in exposed.chunk_by(|a, b| a.name == b.name) {
        let Exposed { name, sort, help, .. } = &family[0];
        let metric_type = match sort {
            Sort::Counter => MetricType::Counter,
            Sort::Gauge => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(name, help, None, metric_type)?;
        for (shard, values) in rows {
            for (index, field) in family.iter().enumerate() {
                let mut labels: Vec<(&str, &str)> = Vec::with_capacity(2);
                labels.extend(shard.map(|shard| ("shard", shard)));
                labels.extend((!field.label.0.is_empty()).then_some(field.label));
                let value = values[at + index];
                if labels.is_empty() {
                    encode_value(&mut metric, *sort, value)?;
                } else {
                    encode_value(&mut metric.encode_family(&labels)?, *sort, value)?;
                }
            }
        }
        at += family.len();
    }
    Ok(())
}

fn encode_value(
    metric: &mut prometheus_client::encoding::MetricEncoder<'_>,
    sort: Sort,
    value: u64,
) -> Result<(), fmt::Error> {
    match sort {
        Sort::Counter => metric.encode_counter::<NoLabelSet, u64, f64>(&value, None),
        Sort::Gauge => metric.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn metrics() -> Metrics {
        let shards = vec![Arc::default(), Arc::default()];
        Metrics { shards, backend: "epoll", ..Metrics::default() }
    }

    #[test]
    fn every_field_is_in_the_scrape_with_its_value() {
        let metrics = metrics();
        metrics.shards[1].events_duplicate.set(7);
        metrics.shards[0].connections.set(3);
        metrics.shards[0].connections.add(2);
        metrics.store.read_slices.add_shared(4);
        let text = metrics.scrape();
        let lines: HashSet<&str> = text.lines().collect();
        for line in [
            "rheostr_build_info{version=\"0.1.0\",backend=\"epoll\"} 1",
            "rheostr_events_total{shard=\"1\",result=\"duplicate\"} 7",
            "rheostr_events_total{shard=\"0\",result=\"duplicate\"} 0",
            "rheostr_connections{shard=\"0\"} 5",
            "rheostr_store_scan_slices_total 4",
            "# TYPE rheostr_events counter",
            "# HELP rheostr_events Events received, by result.",
            "# EOF",
        ] {
            assert!(lines.contains(line), "{line} in\n{text}");
        }
        for exposed in ShardMetrics::EXPOSED {
            let total = if exposed.sort == Sort::Counter { "_total" } else { "" };
            let label = match exposed.label {
                ("", _) => String::new(),
                (key, value) => format!(",{key}=\"{value}\""),
            };
            for shard in 0..2 {
                let start = format!("rheostr_{}{total}{{shard=\"{shard}\"{label}}} ", exposed.name);
                assert!(lines.iter().any(|line| line.starts_with(&start)), "{start}");
            }
        }
    }

    #[test]
    fn a_family_is_described_once() {
        let text = metrics().scrape();
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let unique: HashSet<&&str> = types.iter().collect();
        assert_eq!(types.len(), unique.len(), "{text}");
    }

    #[test]
    fn commits_fall_into_their_buckets() {
        let metrics = metrics();
        metrics.commits.observe(1, Duration::from_micros(500));
        metrics.commits.observe(3, Duration::from_millis(3));
        metrics.commits.observe(5_000, Duration::from_secs(9));
        let text = metrics.scrape();
        for line in [
            "rheostr_commit_seconds_bucket{le=\"0.0005\"} 1",
            "rheostr_commit_seconds_bucket{le=\"0.002\"} 1",
            "rheostr_commit_seconds_bucket{le=\"0.005\"} 2",
            "rheostr_commit_seconds_bucket{le=\"+Inf\"} 3",
            "rheostr_commit_seconds_sum 9.0035",
            "rheostr_commit_events_bucket{le=\"4.0\"} 2",
            "rheostr_commit_events_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn writers_do_not_share_cache_lines() {
        assert_eq!(align_of::<ShardMetrics>(), 128);
        assert_eq!(align_of::<CommitMetrics>(), 128);
    }
}
