//! What a report says of itself: whose its latencies are, and the histograms kept beside it.

use super::{BINARY, against, assert_kept, events, scratch};
use crate::relay::{self, Fault};
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_generator_that_is_late_itself_is_called_the_limit() {
    let events = events("late", 400);
    let ingest = format!("ingest --events {events} --rate 200 --check-ids 0 --check-queries 0");
    let address = relay::start(Fault::Nothing);
    let arguments = format!("{ingest} --url ws://{address} --settle-ms 0 --json");
    let mut generator = Command::new(BINARY)
        .args(arguments.split_whitespace())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Stopped half of the time, it is neither on a CPU nor waiting for one.
    let pid = Pid::from_child(&generator);
    while generator.try_wait().unwrap().is_none() {
        for signal in [Signal::STOP, Signal::CONT] {
            kill_process(pid, signal).ok();
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    let output = generator.wait_with_output().unwrap();
    let stopped: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&stopped["ok"], &stopped["generator"]["limited"]),
        (&true.into(), &true.into()),
        "{stopped}"
    );
    let stalled = against(Fault::Stalls, &ingest);
    assert_kept(&stalled);
    let late = |report: &Value| report["generator"]["late_share"].as_f64().unwrap();
    assert!(late(&stopped) > 0.5, "{stopped}");
    assert!(late(&stalled.report) < late(&stopped), "that was the relay: {}", stalled.report);
    let closed = against(Fault::Nothing, &ingest.replace("--rate 200", "--closed-loop"));
    assert_eq!(closed.report["generator"]["late_share"], Value::Null, "it has no schedule");
}

#[test]
fn latencies_are_a_table_for_a_person_and_nothing_beside_json() {
    let address = relay::start(Fault::Nothing);
    let arguments = format!("connect --count 5 --rate 100 --settle-ms 0 --url ws://{address}");
    let told = |more: &[&str]| {
        let output = Command::new(BINARY).args(arguments.split(' ')).args(more).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(told(&["--json"]), "");
    let told = told(&[]);
    let rows: Vec<Vec<&str>> = told
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows[0], ["latency, µs", "count", "mean", "p50", "p90", "p99", "p99_9", "max"]);
    let names: Vec<(&str, &str)> = rows[2..].iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(names, [("connect_to_open", "5"), ("send_lateness", "5")], "{told}");
}

#[test]
fn made_up_events_are_called_so_and_others_are_not() {
    let made_up = events("made-up", 20);
    let unlabelled = scratch("unlabelled.jsonl");
    std::fs::copy(&made_up, &unlabelled).unwrap();
    let says = |arguments: &str| against(Fault::Nothing, arguments).report["events"].clone();
    let ingest = |file: &str| says(&format!("ingest --rate 500 --events {file}"));
    assert_eq!(ingest(&made_up), "synthetic");
    assert_eq!(ingest(&unlabelled), "unlabelled");
    assert_eq!(says("fanout --events 5 --subscribers 2"), "synthetic");
    assert_eq!(
        says(&format!("fanout --events 5 --subscribers 2 --from {unlabelled}")),
        "unlabelled"
    );
    assert_eq!(says("connect --count 3"), Value::Null);
    // The label is of what was there before.
    std::fs::write(&made_up, std::fs::read_to_string(&made_up).unwrap() + "\n").unwrap();
    assert_eq!(ingest(&made_up), "unlabelled");
}

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
