//! Histograms that one thread writes and a scrape reads.

use std::fmt;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

use super::metrics::Meter;

/// Counts by fixed upper bounds; one writer.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [Meter; N],
    /// Without bound.
    above: Meter,
    sum: Meter,
    /// Observed units in one exposed unit.
    scale: f64,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: [f64; N], scale: f64) -> Self {
        let meters = [(); N].map(|()| Meter::default());
        Self { bounds, counts: meters, above: Meter::default(), sum: Meter::default(), scale }
    }

    /// Counts one value.
    pub(super) fn observe(&self, value: u64) {
        let exposed = value as f64 / self.scale;
        let at = self.bounds.iter().position(|bound| exposed <= *bound);
        at.map_or(&self.above, |at| &self.counts[at]).add(1);
        self.sum.add(value);
    }

    /// Takes over what was counted elsewhere by the same bounds, the last count without one.
    pub(super) fn publish(&self, counts: &[u64], sum: u64) {
        for (meter, count) in self.counts.iter().chain([&self.above]).zip(counts) {
            meter.set(*count);
        }
        self.sum.set(sum);
    }

    /// What stands in it.
    pub(super) fn read(&self) -> Distribution {
        let mut buckets: Vec<(f64, u64)> =
            self.bounds.iter().zip(&self.counts).map(|(bound, n)| (*bound, n.get())).collect();
        buckets.push((f64::MAX, self.above.get()));
        Distribution { buckets, sum: self.sum.get() as f64 / self.scale }
    }
}

/// A histogram as it was read.
#[derive(Debug, Default)]
pub(super) struct Distribution {
    /// How many at or below each bound and above the one before.
    buckets: Vec<(f64, u64)>,
    sum: f64,
}

impl Distribution {
    /// Two by the same bounds as one.
    pub(super) fn and(mut self, other: Self) -> Self {
        for ((_, count), (_, more)) in self.buckets.iter_mut().zip(other.buckets) {
            *count += more;
        }
        self.sum += other.sum;
        self
    }

    pub(super) fn encode(&self, metric: &mut MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let count = self.buckets.iter().map(|(_, n)| n).sum();
        metric.encode_histogram::<NoLabelSet>(self.sum, count, &self.buckets, None)
    }
}
