//! The scenarios in which a relay's clients do least: those that never read, and those that do nothing.

use super::{against, assert_kept};
use crate::relay::Fault;
use serde_json::Value;

#[test]
fn slow_readers_are_there_in_every_second_fan_out() {
    let arguments = "slow-readers --rounds 2 --events 60 --subscribers 2 --deaf 3 --closed-loop";
    let run = against(Fault::Nothing, arguments);
    // What else the machine does may delay them.
    assert!(
        run.violations().iter().all(|kind| *kind == "others_delayed"),
        "{}",
        run.report["oracle"]
    );
    assert_eq!(run.report["oracle"]["checked"], 4 * (60 * 2 + 60));
    let detail = &run.report["detail"];
    for (runs, deaf) in [("runs_without", Value::Null), ("runs_with", Value::from(3))] {
        let runs = detail[runs].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        for one in runs {
            assert_eq!(
                (&one["detail"]["deliveries"], &one["detail"]["deaf"]["count"]),
                (&Value::from(120), &deaf)
            );
        }
    }
    // They are read in the end.
    assert_eq!(detail["runs_with"][0]["detail"]["deaf"]["events_read_in_the_end"], 3 * 60);
}

#[test]
fn idle_connections_are_held_and_counted() {
    let arguments = format!("idle --connections 5 --hold-s 1 --pid {}", std::process::id());
    let run = against(Fault::Nothing, &arguments);
    assert_kept(&run);
    let (report, detail) = (&run.report, &run.report["detail"]);
    assert_eq!((&report["pacing"], &report["latency_us"]), (&Value::from("none"), &Value::Null));
    assert_eq!(
        (&report["operations"], &detail["held_to_the_end"]),
        (&Value::from(5), &Value::from(5))
    );
    // The relay is in this process, and keeps three handles of each.
    let fds = |at: &str| detail["memory"][at].as_u64().unwrap();
    assert!(fds("fds_open") >= fds("fds_before") + 5, "{detail}");
    assert!(detail["cpu_us_per_connection_second"].is_f64(), "{detail}");
    assert!(report["seconds"].as_f64() >= Some(1.0));
}
