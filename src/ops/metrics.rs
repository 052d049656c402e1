//! What is counted, and how a scrape reads it (OpenMetrics text).
//!
//! Each struct has one writer thread and is read by the ops thread:
//! relaxed atomics, each struct on cache lines of its own. The values of one scrape need not be of
//! one instant.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::histogram::{Distribution, Histogram};
use crate::driver::bus::Address;
use crate::driver::places::Places;
use crate::relay::counters::Counters;
use crate::relay::timings::{BOUNDS_US, Durations, Timings};
use crate::store::{CommitStats, Erasure, Keep, ReadersHandle, Store, WriterHandle};

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
}

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Grows; its exposed name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Sort {
    fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
        }
    }
}

/// How one field is exposed. Fields of one name stand together and differ in their labels.
#[derive(Debug)]
pub struct Exposed {
    /// Name after `relay_`, without `_total`.
    pub name: &'static str,
    /// Counter or gauge.
    pub sort: Sort,
    /// Labels beside the shard: name and value.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it means.
    pub help: &'static str,
}

/// Declares a struct of [`Meter`]s that mirrors a struct of plain counts, and how its fields are
/// exposed: one line a field. A field of one that the other lacks does not compile.
macro_rules! metrics {
    ($(#[$meta:meta])* $struct:ident of $counts:ident {
        $($field:ident: $sort:ident $name:literal $(($key:literal, $value:literal))*, $help:literal;)*
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
                labels: &[$(($key, $value)),*],
                help: $help,
            },)*];

            /// Takes over what was counted; for the one writer.
            pub fn publish(&self, counts: &$counts) {
                let $counts { $($field,)* } = counts;
                $(self.$field.set(*$field);)*
            }

            /// The fields' values, in order.
            #[must_use]
            pub fn values(&self) -> [u64; Self::EXPOSED.len()] {
                [$(self.$field.get(),)*]
            }
        }
    };
}

metrics! {
    /// What one shard counts; its thread is the one writer.
    ShardMetrics of Counters {
        connections: Gauge "connections", "Open connections.";
        accepted: Counter "connections_accepted", "Connections taken in.";
        closed_by_client: Counter "connections_closed" ("reason", "client"), "Connections ended, by reason.";
        closed_http: Counter "connections_closed" ("reason", "http"), "Connections that carried one HTTP exchange.";
        closed_protocol: Counter "connections_closed" ("reason", "protocol"), "Connections ended for breaking RFC 6455.";
        closed_too_long: Counter "connections_closed" ("reason", "too_long"), "Connections ended for an over-long message.";
        closed_stalled: Counter "connections_closed" ("reason", "stalled"), "Connections whose peer acknowledged no byte in time.";
        closed_silent: Counter "connections_closed" ("reason", "silent"), "Connections that did not answer a ping.";
        closed_timeout: Counter "connections_closed" ("reason", "timeout"), "Connections too slow with a request or a close.";
        closed_shutdown: Counter "connections_closed" ("reason", "shutdown"), "Connections ended by the shutdown.";
        closed_full: Counter "connections_closed" ("reason", "full"), "Connections refused for want of room.";
        closed_per_ip: Counter "connections_closed" ("reason", "per_ip"), "Connections refused because their address had enough.";
        bytes_in: Counter "received_bytes", "Bytes received.";
        messages_in: Counter "received_messages", "Messages received.";
        messages_invalid: Counter "received_messages_invalid", "Messages that were malformed.";
        reads_paused: Counter "reads_paused", "Times a connection was not read because its answers were not taken.";
        bytes_out: Counter "sent_bytes", "Bytes handed to sockets.";
        frames_out: Counter "sent_frames", "Frames handed to sockets.";
        batches_out: Counter "sent_batches", "Gather writes those frames left in.";
        events_stored: Counter "events" ("result", "accepted") ("reason", "stored"), "Events answered, by the OK's result and its reason.";
        events_duplicate: Counter "events" ("result", "accepted") ("reason", "duplicate"), "Events that were there already.";
        events_superseded: Counter "events" ("result", "rejected") ("reason", "superseded"), "Events older than the stored version.";
        events_deleted: Counter "events" ("result", "rejected") ("reason", "deleted"), "Events their author had deleted.";
        events_vanished: Counter "events" ("result", "rejected") ("reason", "vanished"), "Events of an author who vanished.";
        events_expired: Counter "events" ("result", "rejected") ("reason", "expired"), "Events that had expired.";
        events_refused: Counter "events" ("result", "rejected") ("reason", "blocked"), "Events refused by policy or limits.";
        events_malformed: Counter "events" ("result", "rejected") ("reason", "malformed"), "Events that were malformed.";
        events_bad_signature: Counter "events" ("result", "rejected") ("reason", "bad_signature"), "Events whose signature was wrong.";
        events_failed: Counter "events" ("result", "rejected") ("reason", "failed"), "Events the store failed to take.";
        events_ephemeral: Counter "events" ("result", "accepted") ("reason", "ephemeral"), "Ephemeral events somebody heard.";
        events_mute: Counter "events" ("result", "rejected") ("reason", "mute"), "Ephemeral events nobody heard.";
        events_verified: Counter "events_verified", "Events whose signature has been looked at.";
        reqs: Counter "reqs", "REQs taken.";
        scans_recalled: Counter "scans_recalled", "Stored queries answered from the newest events, which shards have at hand.";
        recent_events: Gauge "recent_events", "The newest stored events at hand.";
        recent_bytes: Gauge "recent_bytes", "Bytes of their records, which all shards share.";
        subscriptions: Gauge "subscriptions", "Open subscriptions.";
        index_filters: Gauge "index_filters", "Filters of open subscriptions.";
        index_keys: Gauge "index_keys", "Values those filters are filed under.";
        subscriptions_closed: Counter "subscriptions_ended" ("reason", "client"), "Subscriptions ended, by reason.";
        subscriptions_refused: Counter "subscriptions_ended" ("reason", "refused"), "REQs refused.";
        subscriptions_slow: Counter "subscriptions_ended" ("reason", "slow_consumer"), "Subscriptions whose reader fell behind.";
        subscriptions_over_budget: Counter "subscriptions_ended" ("reason", "over_budget"), "Subscriptions whose stored query looked at too much.";
        subscriptions_failed: Counter "subscriptions_ended" ("reason", "store_failed"), "Subscriptions the store could not serve.";
        counts_answered: Counter "counts" ("result", "answered"), "COUNTs, by what became of them.";
        counts_refused: Counter "counts" ("result", "refused"), "COUNTs refused, or given up at the shutdown.";
        counts_too_many: Counter "counts" ("result", "too_many"), "COUNTs over limits.count_entries_max.";
        counts_over_budget: Counter "counts" ("result", "over_budget"), "COUNTs that looked at too much for their connection.";
        counts_failed: Counter "counts" ("result", "failed"), "COUNTs the store failed to answer.";
        delivered_stored: Counter "delivered" ("source", "stored"), "Events put into outboxes.";
        delivered_live: Counter "delivered" ("source", "live"), "Live events put into outboxes.";
        matched_live: Counter "live_matched", "Live events matched to subscriptions.";
        suppressed_live: Counter "live_suppressed", "Matched live events that the stored query had served already.";
        abandoned_live: Counter "drops" ("reason", "abandoned"), "What was queued for a client and not sent, by reason.";
        purged_events: Counter "drops" ("reason", "purged"), "Events taken out of outboxes with their subscription or connection.";
        expired_events: Counter "drops" ("reason", "expired"), "Events that expired in an outbox.";
        pongs_replaced: Counter "drops" ("reason", "pong"), "Pongs that newer ones took the place of.";
        slow_closed: Counter "slow_client_closed", "Subscriptions and connections ended because their reader was too slow.";
        verify_waiting: Gauge "queue_depth" ("queue", "verify"), "What waits, by queue.";
        submissions_waiting: Gauge "queue_depth" ("queue", "store"), "Events at the writer.";
        scans: Gauge "queue_depth" ("queue", "scans"), "Stored queries in progress.";
        outbox_frames: Gauge "queue_depth" ("queue", "outbox"), "Frames in the streams of all outboxes.";
        replies_waiting: Gauge "queue_depth" ("queue", "replies"), "Answers in all outboxes.";
        live_waiting: Gauge "queue_depth" ("queue", "live"), "Live events in the queues of all subscriptions.";
        bus_waiting: Gauge "queue_depth" ("queue", "bus"), "Commits, slices and other shards' messages.";
        outbox_bytes: Gauge "outbox_bytes", "Bytes of the frames in the streams of all outboxes.";
        live_bytes: Gauge "live_waiting_bytes", "Bytes of the live events that wait in subscriptions.";
    }
}

/// What one shard times; its thread is the one writer.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardTimes {
    eose: Histogram<{ BOUNDS_US.len() }>,
    /// As [`STAGES`] name them.
    fanout: [Histogram<{ BOUNDS_US.len() }>; STAGES.len()],
}

/// The way of an event, from the bytes received to the bytes sent.
const STAGES: [&str; 3] = ["commit", "enqueue", "sent"];

impl Default for ShardTimes {
    fn default() -> Self {
        let histogram = || Histogram::new(BOUNDS_US.map(|us| us as f64 / 1e6), 1e6);
        Self { eose: histogram(), fanout: STAGES.map(|_| histogram()) }
    }
}

impl ShardTimes {
    /// Takes over what was timed; for the one writer.
    pub fn publish(&self, timings: &Timings) {
        let Timings { eose, commit, enqueue, sent } = timings;
        let publish = |into: &Histogram<_>, Durations { counts, sum_us }: &Durations| {
            into.publish(counts, *sum_us);
        };
        publish(&self.eose, eose);
        for (into, durations) in self.fanout.iter().zip([commit, enqueue, sent]) {
            publish(into, durations);
        }
    }
}

/// Encodes what the shards time, each histogram over all of them.
fn encode_times(
    encoder: &mut DescriptorEncoder<'_>,
    shards: &[Arc<ShardTimes>],
) -> Result<(), fmt::Error> {
    let sum = |of: &dyn Fn(&ShardTimes) -> Distribution| {
        shards.iter().map(|shard| of(shard)).reduce(Distribution::and).unwrap_or_default()
    };
    let help = "From a REQ to its EOSE in the outbox.";
    let kind = MetricType::Histogram;
    let mut metric = encoder.encode_descriptor("req_eose_seconds", help, None, kind)?;
    sum(&|shard| shard.eose.read()).encode(&mut metric)?;
    let help = "The way of an event: received until durable (commit), then until it is in the queues \
                of a shard's subscribers (enqueue), then, by frame, until the socket took it (sent).";
    let kind = MetricType::Histogram;
    let mut metric = encoder.encode_descriptor("fanout_latency_seconds", help, None, kind)?;
    for (at, stage) in STAGES.into_iter().enumerate() {
        let labels = [("stage", stage)];
        sum(&|shard| shard.fanout[at].read()).encode(&mut metric.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What the writer thread measures of its commits; it is the one writer.
#[derive(Debug)]
#[repr(align(128))]
pub struct CommitMetrics {
    time: Histogram<13>,
    events: Histogram<11>,
    stored: Meter,
    bytes: Meter,
    failures: Meter,
}

impl Default for CommitMetrics {
    fn default() -> Self {
        let seconds = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1., 2., 5.];
        let events = [1., 2., 4., 8., 16., 32., 64., 128., 256., 512., 1024.];
        Self {
            time: Histogram::new(seconds, 1e6),
            events: Histogram::new(events, 1.),
            stored: Meter::default(),
            bytes: Meter::default(),
            failures: Meter::default(),
        }
    }
}

impl CommitMetrics {
    /// Counts one commit.
    pub fn observe(&self, commit: &CommitStats) {
        if commit.failed.is_some() {
            self.failures.add(1);
            return;
        }
        self.time.observe(u64::try_from(commit.commit.as_micros()).unwrap_or(u64::MAX));
        self.events.observe(commit.submitted as u64);
        self.stored.add(commit.stored as u64);
        self.bytes.add(commit.bytes as u64);
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let time = "Time from the start of a transaction until it is durable.";
        let mut metric =
            encoder.encode_descriptor("commit_seconds", time, None, MetricType::Histogram)?;
        self.time.read().encode(&mut metric)?;
        let events = "Submissions in one commit.";
        let mut metric =
            encoder.encode_descriptor("commit_events", events, None, MetricType::Histogram)?;
        self.events.read().encode(&mut metric)?;
        let stored = "Events stored.";
        encode_single(encoder, "store_stored", Sort::Counter, stored, self.stored.get())?;
        let bytes = "Bytes of submitted records.";
        encode_single(encoder, "store_submitted_bytes", Sort::Counter, bytes, self.bytes.get())?;
        let failures = "Commits that failed.";
        encode_single(encoder, "commit_failures", Sort::Counter, failures, self.failures.get())
    }
}

/// What retention has erased, by the kind of rule; its thread is the one writer.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RetentionMetrics([(Meter, Meter); RULES.len()]);

/// The bounds of rules, as they are called in the configuration.
const RULES: [&str; 3] = ["age_s_max", "author_events_max", "bytes_max"];

impl RetentionMetrics {
    /// Counts what one rule has had erased.
    pub fn observe(&self, keep: Keep, erasure: Erasure) {
        let (events, bytes) = &self.0[match keep {
            Keep::AgeS(_) => 0,
            Keep::OfAuthor(_) => 1,
            Keep::Bytes(_) => 2,
        }];
        events.add(erasure.events);
        bytes.add(erasure.bytes);
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Pick = fn(&(Meter, Meter)) -> u64;
        let families: [(&str, &str, Pick); 2] = [
            ("retention_erased_events", "Events erased by [[retention]].", |of| of.0.get()),
            ("retention_erased_bytes", "Bytes of their records.", |of| of.1.get()),
        ];
        for (name, help, pick) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (rule, meters) in RULES.iter().zip(&self.0) {
                let labels = [("rule", *rule)];
                encode_value(&mut family.encode_family(&labels)?, Sort::Counter, pick(meters))?;
            }
        }
        Ok(())
    }
}

/// What is looked at when a scrape comes, not before.
#[derive(Clone)]
pub struct Sources {
    /// For its size.
    pub store: Store,
    /// For whether events can be stored.
    pub writer: WriterHandle,
    /// For their queue.
    pub readers: ReadersHandle,
    /// For the number of client addresses.
    pub places: Arc<Places>,
    /// For the wakes of each shard.
    pub addresses: Arc<[Address]>,
    /// How long a commit may not be durable; 0 = never.
    pub unsynced_ms_max: u32,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Sources {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value| encode_single(encoder, name, Sort::Gauge, help, value);
        let failing = u64::from(self.writer.failing().is_some());
        gauge("store_failing", "1 while events cannot be stored.", failing)?;
        let help = "Milliseconds for which the last commit may be undone by a power cut; 0 = none.";
        gauge("store_unsynced_ms_max", help, self.unsynced_ms_max.into())?;
        let addresses = self.places.addresses() as u64;
        gauge("client_addresses", "Client addresses with open connections.", addresses)?;
        gauge("scan_queue", "Slices waiting for a reader.", self.readers.queued() as u64)?;
        // A store that cannot be read fails elsewhere, and louder.
        if let Ok(info) = self.store.info() {
            gauge("store_events", "Events in the store.", info.events)?;
            gauge("store_disk_bytes", "Length of the data file.", info.disk_bytes)?;
            gauge("store_used_bytes", "Bytes of it in use.", info.used_bytes)?;
            let help = "Read transactions open at once, the most so far, of all processes.";
            gauge("store_readers", help, info.readers.into())?;
        }
        if let Ok(records) = self.store.damaged_records() {
            let help = "Stored events found damaged since the start, which are served no more.";
            gauge("store_damaged_records", help, records)?;
        }
        let help = "Times another thread had to wake the shard.";
        let mut wakes = encoder.encode_descriptor("wakes", help, None, MetricType::Counter)?;
        for (shard, address) in self.addresses.iter().enumerate() {
            let labels = [("shard", shard)];
            encode_value(&mut wakes.encode_family(&labels)?, Sort::Counter, address.wakes())?;
        }
        Ok(())
    }
}

/// Everything a scrape reads.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Name of the backend in use.
    pub backend: &'static str,
    /// The sizes and budgets in force.
    pub tuning: Vec<(String, String)>,
    /// One for each shard.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// One for each shard.
    pub times: Vec<Arc<ShardTimes>>,
    /// The writer's commits.
    pub commits: Arc<CommitMetrics>,
    /// What the rules in force have had erased; `None` where there are none.
    pub retention: Option<Arc<RetentionMetrics>>,
    /// What is looked at when a scrape comes; `None` before there is anything.
    pub sources: Option<Sources>,
}

impl Metrics {
    /// Why events cannot be stored at present.
    #[must_use]
    pub fn failing(&self) -> Option<&'static str> {
        self.sources.as_ref().and_then(|sources| sources.writer.failing())
    }

    /// The text of a scrape.
    ///
    /// # Panics
    /// Never: writing to a string does not fail.
    #[must_use]
    pub fn scrape(&self) -> String {
        let mut registry = Registry::default();
        let build = [("version", env!("CARGO_PKG_VERSION")), ("backend", self.backend)];
        registry.register("build", "What runs", Info::new(build));
        let relay = registry.sub_registry_with_prefix("relay");
        relay.register("tuning", "Sizes and budgets in force", Info::new(self.tuning.clone()));
        relay.register_collector(Box::new(self.clone()));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a string takes every write");
        out
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let names: Vec<String> = (0..self.shards.len()).map(|shard| shard.to_string()).collect();
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.values()).collect();
        let rows: Vec<(&str, &[u64])> =
            names.iter().zip(&shards).map(|(name, row)| (name.as_str(), &row[..])).collect();
        encode_shards(&mut encoder, &rows)?;
        encode_times(&mut encoder, &self.times)?;
        self.commits.encode(&mut encoder)?;
        if let Some(retention) = &self.retention {
            retention.encode(&mut encoder)?;
        }
        self.sources.as_ref().map_or(Ok(()), |sources| sources.encode(&mut encoder))
    }
}

/// Encodes the shards' table: family by family, in each shard by shard.
fn encode_shards(
    encoder: &mut DescriptorEncoder<'_>,
    rows: &[(&str, &[u64])],
) -> Result<(), fmt::Error> {
    let mut at = 0;
    for family in ShardMetrics::EXPOSED.chunk_by(|a, b| a.name == b.name) {
        let Exposed { name, sort, help, .. } = &family[0];
        let mut metric = encoder.encode_descriptor(name, help, None, sort.metric_type())?;
        for (shard, values) in rows {
            for (field, value) in family.iter().zip(&values[at..]) {
                let mut labels = vec![("shard", *shard)];
                labels.extend(field.labels);
                encode_value(&mut metric.encode_family(&labels)?, *sort, *value)?;
            }
        }
        at += family.len();
    }
    Ok(())
}

fn encode_single(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    sort: Sort,
    help: &str,
    value: u64,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, sort.metric_type())?;
    encode_value(&mut metric, sort, value)
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
    use std::time::Duration;

    use super::*;

    fn metrics() -> Metrics {
        let shards = vec![Arc::default(), Arc::default()];
        let times = vec![Arc::default(), Arc::default()];
        Metrics { shards, times, backend: "epoll", ..Metrics::default() }
    }

    #[test]
    fn every_field_is_in_the_scrape_with_its_value() {
        let metrics = metrics();
        let counts = |connections, events_duplicate| Counters {
            connections,
            events_duplicate,
            ..Counters::default()
        };
        metrics.shards[0].publish(&counts(3, 0));
        metrics.shards[0].publish(&counts(5, 0));
        metrics.shards[1].publish(&counts(0, 7));
        let text = metrics.scrape();
        let lines: HashSet<&str> = text.lines().collect();
        for line in [
            "build_info{version=\"0.1.0\",backend=\"epoll\"} 1",
            "relay_events_total{shard=\"1\",result=\"accepted\",reason=\"duplicate\"} 7",
            "relay_events_total{shard=\"0\",result=\"accepted\",reason=\"duplicate\"} 0",
            "relay_connections{shard=\"0\"} 5",
            "# TYPE relay_events counter",
            "# HELP relay_events Events answered, by the OK's result and its reason.",
            "# EOF",
        ] {
            assert!(lines.contains(line), "{line} in\n{text}");
        }
        for exposed in ShardMetrics::EXPOSED {
            let total = if exposed.sort == Sort::Counter { "_total" } else { "" };
            let labels: Vec<_> =
                exposed.labels.iter().map(|(key, value)| format!(",{key}=\"{value}\"")).collect();
            let labels = labels.concat();
            for shard in 0..2 {
                let start = format!("relay_{}{total}{{shard=\"{shard}\"{labels}}} ", exposed.name);
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
    fn what_shards_time_is_summed() {
        let metrics = metrics();
        for (shard, took_us) in metrics.times.iter().zip([150, 3_000_000]) {
            let mut timings = Timings::default();
            timings.eose.observe(1, 1 + took_us, 1);
            timings.sent.observe(1, 1 + took_us, 10);
            shard.publish(&timings);
        }
        let text = metrics.scrape();
        for line in [
            "relay_req_eose_seconds_bucket{le=\"0.0002\"} 1",
            "relay_req_eose_seconds_count 2",
            "relay_req_eose_seconds_sum 3.00015",
            "relay_fanout_latency_seconds_count{stage=\"commit\"} 0",
            "relay_fanout_latency_seconds_count{stage=\"sent\"} 20",
            "relay_fanout_latency_seconds_bucket{le=\"2.0\",stage=\"sent\"} 10",
            "relay_fanout_latency_seconds_bucket{le=\"5.0\",stage=\"sent\"} 20",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn commits_fall_into_their_buckets() {
        let metrics = metrics();
        let commit = |submitted, micros, failed| CommitStats {
            submitted,
            stored: submitted / 2,
            bytes: 100 * submitted,
            commit: Duration::from_micros(micros),
            failed,
        };
        metrics.commits.observe(&commit(1, 500, None));
        metrics.commits.observe(&commit(3, 3_000, None));
        metrics.commits.observe(&commit(5_000, 9_000_000, None));
        metrics.commits.observe(&commit(9, 1, Some("full".into())));
        let text = metrics.scrape();
        for line in [
            "relay_commit_seconds_bucket{le=\"0.0005\"} 1",
            "relay_commit_seconds_bucket{le=\"0.002\"} 1",
            "relay_commit_seconds_bucket{le=\"0.005\"} 2",
            "relay_commit_seconds_bucket{le=\"+Inf\"} 3",
            "relay_commit_seconds_sum 9.0035",
            "relay_commit_events_bucket{le=\"4.0\"} 2",
            "relay_commit_events_count 3",
            "relay_commit_failures_total 1",
            "relay_store_stored_total 2501",
            "relay_store_submitted_bytes_total 500400",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }

    #[test]
    fn writers_do_not_share_cache_lines() {
        assert_eq!(align_of::<ShardMetrics>(), 128);
        assert_eq!(align_of::<ShardTimes>(), 128);
        assert_eq!(align_of::<CommitMetrics>(), 128);
    }
}
