//! When operations ended and how long they took.

use super::round;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// The maximum in a line of an interval log is in ms, as the Java tools write it.
const MAX_VALUE_DIVISOR: f64 = 1e6;
const INTERVAL_MS_MIN: u64 = 100;
/// Beyond this many, the intervals get twice as long: an hour needs no more than half a minute.
const INTERVALS_MAX: usize = 1200;

/// Durations with three significant digits, and how many operations ended in each interval of the window.
#[derive(Clone, Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    ended: Throughput,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Self {
            histogram: histogram.expect("the bounds are constants"),
            ended: Throughput { interval_ms: INTERVAL_MS_MIN, operations: Vec::new() },
        }
    }
}

impl Latency {
    /// An operation that ended `now_ns` after the window opened, `latency_ns` after it began or was due.
    pub fn record(&mut self, now_ns: u64, latency_ns: u64) {
        self.histogram.saturating_record(latency_ns);
        self.ended.record(now_ns);
    }

    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("both have the same bounds");
        self.ended.merge(&other.ended);
    }

    pub fn summary(&self) -> LatencySummary {
        let us = |nanoseconds: u64| round(nanoseconds as f64 / 1000.0, 1);
        let at = |quantile: f64| us(self.histogram.value_at_quantile(quantile));
        LatencySummary {
            count: self.histogram.len(),
            mean: round(self.histogram.mean() / 1000.0, 1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: if self.histogram.is_empty() { 0.0 } else { us(self.histogram.max()) },
        }
    }

    pub fn throughput(&self) -> &Throughput {
        &self.ended
    }

    /// The histogram itself, in nanoseconds, as one interval of a log that the HdrHistogram tools read and merge.
    ///
    /// # Panics
    /// If the name has a comma or a space.
    pub fn interval_log(&self, name: &str, began: SystemTime, lasted: Duration) -> String {
        let mut log = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        let tag = Tag::new(name).expect("a latency's name is one word");
        IntervalLogWriterBuilder::new()
            .with_start_time(began)
            .with_max_value_divisor(MAX_VALUE_DIVISOR)
            .begin_log_with(&mut log, &mut serializer)
            .and_then(|mut writer| {
                let at = began.duration_since(UNIX_EPOCH).unwrap_or_default();
                let written = writer.write_histogram(&self.histogram, at, lasted, Some(tag));
                written.map_err(|error| std::io::Error::other(error.to_string()))
            })
            .expect("a Vec takes everything");
        String::from_utf8(log).expect("base64 is ASCII")
    }

    /// The percentile log format of the HdrHistogram tools, in microseconds.
    pub fn percentile_log(&self) -> String {
        let mut log = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
        let mut total = 0;
        for step in self.histogram.iter_quantiles(5) {
            total += step.count_since_last_iteration();
            let (us, quantile) = (step.value_iterated_to() as f64 / 1000.0, step.quantile());
            let inverse = 1.0 / (1.0 - quantile);
            writeln!(log, "{us:12.3} {quantile:2.12} {total:10} {inverse:14.2}")
                .expect("a string takes everything");
        }
        let us = |nanoseconds: f64| nanoseconds / 1000.0;
        write!(
            log,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]\n",
            us(self.histogram.mean()),
            us(self.histogram.stdev()),
            us(self.histogram.max() as f64),
            self.histogram.len(),
        )
        .expect("a string takes everything");
        log
    }
}

/// Microseconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct LatencySummary {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

/// Operations that ended in each interval since the window opened.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Throughput {
    pub interval_ms: u64,
    /// At most [`INTERVALS_MAX`].
    pub operations: Vec<u64>,
}

impl Throughput {
    fn record(&mut self, now_ns: u64) {
        let mut interval = (now_ns / 1_000_000 / self.interval_ms) as usize;
        while interval >= INTERVALS_MAX {
            self.coarsen();
            interval /= 2;
        }
        if interval >= self.operations.len() {
            self.operations.resize(interval + 1, 0);
        }
        self.operations[interval] += 1;
    }

    fn coarsen(&mut self) {
        self.interval_ms *= 2;
        self.operations = self.operations.chunks(2).map(|pair| pair.iter().sum()).collect();
    }

    fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        while other.interval_ms < self.interval_ms {
            other.coarsen();
        }
        while self.interval_ms < other.interval_ms {
            self.coarsen();
        }
        let intervals = self.operations.len().max(other.operations.len());
        self.operations.resize(intervals, 0);
        for (sum, more) in self.operations.iter_mut().zip(other.operations) {
            *sum += more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, Engine};
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn percentiles_are_those_of_the_recorded_values() {
        let mut low = Latency::default();
        let mut high = Latency::default();
        for us in 1..=500u64 {
            low.record(0, us * 1000);
            high.record(0, (us + 500) * 1000);
        }
        low.merge(&high);
        let summary = low.summary();
        assert_eq!(summary.count, 1000);
        for (value, expected) in [
            (summary.p50, 500.0),
            (summary.p90, 900.0),
            (summary.p99, 990.0),
            (summary.p99_9, 999.0),
            (summary.max, 1000.0),
        ] {
            assert!((value - expected).abs() <= expected * 0.002, "{value} for {expected}");
        }
        assert_eq!(Latency::default().summary().max, 0.0);
    }

    #[test]
    fn the_log_holds_every_value_and_ends_with_the_largest() {
        let mut latency = Latency::default();
        for us in 1..=1000u64 {
            latency.record(0, us * 1000);
        }
        let log = latency.percentile_log();
        let rows: Vec<Vec<f64>> = log
            .lines()
            .filter(|line| line.starts_with(' ') && !line.contains("Value"))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.len() > 10, "{log}");
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2]), (1.0, 1000.0));
        assert!((last[0] - 1000.0).abs() < 2.0, "{log}");
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]), "{log}");
    }

    #[test]
    fn kept_histograms_come_back_and_merge_without_loss() {
        let mut runs = [Latency::default(), Latency::default()];
        for us in 1..=5000u64 {
            runs[usize::from(us % 3 == 0)].record(0, us * us * 1000);
        }
        let mut merged = read_back(&runs[0]);
        assert_eq!(merged, runs[0].histogram);
        merged.add(read_back(&runs[1])).unwrap();
        let [mut all, more] = runs;
        all.merge(&more);
        assert_eq!(merged, all.histogram);
        assert_eq!(merged.value_at_quantile(0.999), all.histogram.value_at_quantile(0.999));
    }

    fn read_back(latency: &Latency) -> Histogram<u64> {
        let began = UNIX_EPOCH + Duration::from_millis(1_800_000_000_500);
        let log = latency.interval_log("event_to_ok", began, Duration::from_secs(3));
        let entries: Vec<_> =
            IntervalLogIterator::new(log.as_bytes()).map(Result::unwrap).collect();
        let [LogEntry::StartTime(start), LogEntry::Interval(interval)] = &entries[..] else {
            panic!("{log}")
        };
        assert_eq!(*start, began.duration_since(UNIX_EPOCH).unwrap());
        assert_eq!((interval.start_timestamp(), interval.duration().as_secs()), (*start, 3));
        assert_eq!(interval.tag().map(|tag| tag.as_str()), Some("event_to_ok"));
        let bytes = BASE64_STANDARD.decode(interval.encoded_histogram()).unwrap();
        Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
    }

    #[test]
    fn intervals_stay_few_and_lose_nothing() {
        let mut short = Latency::default();
        let mut long = Latency::default();
        short.record(50_000_000, 1);
        short.record(150_000_000, 1);
        assert_eq!(short.throughput(), &Throughput { interval_ms: 100, operations: vec![1, 1] });
        for second in 0..3600 {
            long.record(second * 1_000_000_000, 1);
        }
        assert!(long.throughput().operations.len() <= INTERVALS_MAX);
        for (mut into, from) in [(short.clone(), &long), (long.clone(), &short)] {
            into.merge(from);
            assert_eq!(into.throughput().interval_ms, 3200);
            assert_eq!(into.throughput().operations.iter().sum::<u64>(), 3602);
        }
    }
}
