//! `replay --captured`: events and subscribers of a capture, at its pace.

use super::{Run, assert_caught, assert_kept, events, generate, scratch};
use crate::relay::{self, Fault};
use serde_json::json;

/// Two subscribers, one of which asks three times and closes the last as soon as it has asked, beside twenty events in 0.6 s.
fn capture(name: &str) -> String {
    let signed = std::fs::read_to_string(events(name, 20)).unwrap();
    let events = signed
        .lines()
        .enumerate()
        .map(|(n, event)| (n as u64 * 30_000, 1, format!("[\"EVENT\",{event}]")));
    let said = |ms: u64, connection: u64, text: &str| (ms * 1000, connection, text.to_owned());
    let subscribers = [
        said(10, 2, r#"["REQ","a",{"kinds":[1],"limit":5}]"#),
        said(200, 3, r#"["REQ","a",{"kinds":[1],"limit":0}]"#),
        said(300, 2, r#"["CLOSE","a"]"#),
        said(400, 2, r#"["REQ","b",{"limit":1}]"#),
        said(600, 2, r#"["REQ","a",{"limit":1}]"#),
        said(600, 2, r#"["CLOSE","a"]"#),
    ];
    let line = |(us, connection, text): (u64, u64, String)| {
        json!({"us": us, "shard": 0, "connection": connection, "text": text}).to_string() + "\n"
    };
    let path = scratch(&format!("{name}.capture"));
    std::fs::write(&path, events.chain(subscribers).map(line).collect::<String>()).unwrap();
    path
}

fn replay(fault: Fault, capture: &str) -> Run {
    let arguments = format!(
        "replay --captured --events {capture} --followers 0 --check-queries 0 --check-ids 0"
    );
    let address = relay::start(fault);
    generate(&format!("{arguments} --url ws://{address} --settle-ms 0 --timeout-s 1 --json"))
}

#[test]
fn captured_subscribers_ask_when_they_did() {
    let run = replay(Fault::Nothing, &capture("captured"));
    assert_kept(&run);
    let (report, detail) = (&run.report, &run.report["detail"]);
    assert_eq!(detail["accepted"], 20);
    assert_eq!(
        (&detail["queries"], &report["latencies_us"]["req_to_eose"]["count"]),
        (&4.into(), &4.into())
    );
    assert!(report["seconds"].as_f64() >= Some(0.6), "{report}");
}

#[test]
fn a_captured_close_waits_for_the_answer() {
    let run = replay(Fault::AnswersLate(50), &capture("late-answers"));
    assert_kept(&run);
    assert_eq!(run.report["detail"]["queries"], 4);
    let eose = &run.report["latencies_us"]["req_to_eose"];
    assert!(eose["p50"].as_f64() >= Some(50_000.0), "{eose}");
}

#[test]
fn captured_subscribers_must_be_answered() {
    let capture = capture("unanswered");
    let run = replay(Fault::IgnoresQueries(3), &capture);
    assert_caught(&run, "query_unanswered");
    assert_eq!(run.report["oracle"]["violations"], 1);
    let run = replay(Fault::ClosesQueries(3), &capture);
    assert_kept(&run);
    assert_eq!(run.report["detail"]["queries_refused"]["error: not today"], 1);
}
