//! What is kept beside a report.

use super::{against, scratch};
use crate::relay::Fault;
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use serde_json::Value;
use std::path::Path;

fn read_back(file: &Path) -> Histogram<u64> {
    let log = std::fs::read(file).unwrap();
    let mut intervals = IntervalLogIterator::new(&log).filter_map(|entry| match entry.unwrap() {
        LogEntry::Interval(interval) => {
            Some(BASE64_STANDARD.decode(interval.encoded_histogram()).unwrap())
        }
        _ => None,
    });
    let (Some(bytes), None) = (intervals.next(), intervals.next()) else {
        panic!("{}: not one interval", file.display())
    };
    Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
}

#[test]
fn histograms_that_are_kept_have_the_reports_quantiles_and_merge() {
    let out = scratch("kept-histograms");
    let arguments = format!("fanout --events 100 --subscribers 3 --rate 500 --runs 2 --out {out}");
    assert_eq!(against(Fault::Nothing, &arguments).status, 0);
    let mut merged = Histogram::<u64>::new(3).unwrap();
    for run in ["1", "2"] {
        let directory = Path::new(&out).join(run);
        let report = std::fs::read_to_string(directory.join("run.json")).unwrap();
        let report: Value = serde_json::from_str(&report).unwrap();
        for (of, told) in [
            ("publish_to_receipt", &report["latency_us"]),
            ("event_to_ok", &report["latencies_us"]["event_to_ok"]),
            ("send_lateness", &report["latencies_us"]["send_lateness"]),
        ] {
            let histogram = read_back(&directory.join(format!("{of}.hlog")));
            assert_eq!(told["count"], histogram.len());
            for (name, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999)] {
                let us = histogram.value_at_quantile(quantile) as f64 / 1000.0;
                assert!(
                    (told[name].as_f64().unwrap() - us).abs() <= 0.051,
                    "{of} {name}: {us}, {told}"
                );
            }
            if of == "event_to_ok" {
                merged.add(&histogram).unwrap();
            }
            assert!(directory.join(format!("{of}.hgrm")).exists());
        }
    }
    assert_eq!(merged.len(), 200);
}
