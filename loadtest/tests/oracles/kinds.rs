//! Each kind of violation that a relay can bring about, by a relay that does just that.

use super::{against, assert_caught, assert_kept, events, generate};
use crate::relay::{self, Fault};
use serde_json::Value;

/// An OK for an event that nobody has.
const STRAY_OK: &str =
    r#"["OK","00000000000000000000000000000000000000000000000000000000000000ff",true,""]"#;

/// Nobody waits longer than a second for an answer that never comes.
fn briefly(fault: Fault, arguments: &str) -> super::Run {
    let address = relay::start(fault);
    generate(&format!("{arguments} --url ws://{address} --settle-ms 0 --timeout-s 1 --json"))
}

#[test]
fn messages_that_nobody_awaits_are_told_apart() {
    let events = events("stray", 100);
    let ingest = format!("ingest --events {events} --closed-loop --check-ids 0 --check-queries 0");
    for (text, kind) in [
        (STRAY_OK, "ok_for_unsent_event"),
        (r#"["EOSE","nobody"]"#, "unexpected_message"),
        (r#"{"a":1}"#, "malformed_message"),
    ] {
        let run = against(Fault::AlsoSays(40, text), &ingest);
        assert_caught(&run, kind);
        assert_eq!(run.report["oracle"]["kinds"][0]["count"], 2, "{}", run.report["oracle"]);
        assert_eq!(run.violations(), [kind]);
    }
    let query = format!("query --events {events} --shape author --count 30 --closed-loop");
    for arguments in [&query, "churn --count 30 --rate 300 --abort-share 0"] {
        let run = against(Fault::AlsoSays(20, STRAY_OK), arguments);
        assert_caught(&run, "unexpected_message");
        assert_eq!(run.violations(), ["unexpected_message"], "{arguments}");
    }
}

#[test]
fn a_connection_that_the_relay_breaks_off_is_noticed() {
    let fanout = "fanout --events 300 --subscribers 3 --closed-loop";
    assert_caught(&briefly(Fault::DiesWith(150), fanout), "connection_lost");
    let run = against(Fault::HangsUpAfter(300), "idle --connections 3 --hold-s 1");
    assert_caught(&run, "connection_lost");
    assert_eq!(run.report["oracle"]["violations"], 3);
    assert_eq!(run.report["detail"]["held_to_the_end"], 0);
}

#[test]
fn handshakes_that_fail_or_never_end_are_noticed() {
    let run = against(Fault::HangsUpOn(10), "connect --count 30 --rate 300");
    assert_caught(&run, "handshake_failed");
    assert_eq!(
        (run.violations(), run.report["operations"].as_u64()),
        (vec!["handshake_failed"], Some(27))
    );
    // The third of them blocks the way of those after it.
    let run = briefly(Fault::NeverUpgrades(3), "connect --count 6 --closed-loop --at-once 1");
    assert_caught(&run, "visit_unfinished");
    assert_eq!(run.violations(), ["visit_unfinished", "visits_not_begun"]);
}

#[test]
fn what_an_unanswered_event_keeps_from_being_sent_is_named() {
    let events = events("unsent", 50);
    let ingest = format!("ingest --events {events} --closed-loop --check-ids 0 --check-queries 0");
    let run = briefly(Fault::AnswersAllBut(20), &format!("{ingest} --connections 1 --in-flight 1"));
    assert_caught(&run, "event_unsent");
    let kinds = run.report["oracle"]["kinds"].as_array().unwrap();
    let counts: Vec<_> = kinds.iter().map(|one| one["count"].as_u64().unwrap()).collect();
    assert_eq!((run.violations(), counts), (vec!["event_unanswered", "event_unsent"], vec![1, 30]));
}

#[test]
fn a_query_that_is_closed_or_not_answered_is_no_answer() {
    let events = events("queries", 50);
    let query = format!("query --events {events} --shape author --count 20 --connections 1");
    let run = against(Fault::ClosesQueries(10), &format!("{query} --closed-loop"));
    assert_caught(&run, "query_closed");
    assert_eq!(run.report["detail"]["refused"]["error: not today"], 2);
    let run = briefly(Fault::IgnoresQueries(10), &format!("{query} --closed-loop"));
    assert_caught(&run, "query_unanswered");
    assert_eq!(run.report["oracle"]["violations"], 11, "the tenth, and those that wait for it");
    let ingest = format!("ingest --events {events} --closed-loop");
    for fault in [Fault::IgnoresQueries(1), Fault::ClosesQueries(1)] {
        let run = briefly(fault, &ingest);
        assert_caught(&run, "check_unanswered");
        assert_eq!(run.violations(), ["check_unanswered"]);
    }
}

#[test]
fn a_refusal_is_a_violation_where_nothing_is_to_be_refused() {
    let file = events("refused", 100);
    let ingest = format!("ingest --events {file} --closed-loop --check-ids 0 --check-queries 0");
    let run = against(Fault::Refuses(25), &ingest);
    assert_kept(&run);
    assert_eq!(run.report["detail"]["rejected"]["blocked"], 4);
    let run = against(Fault::Refuses(25), &format!("{ingest} --require-accepted"));
    assert_caught(&run, "rejected");
    assert_eq!(run.violations(), ["rejected"]);
    let run = against(Fault::Refuses(25), "fanout --events 100 --subscribers 2 --closed-loop");
    assert_caught(&run, "publish_refused");
}

#[test]
fn a_subscription_that_the_relay_ends_is_declared_and_in_a_fan_out_a_violation() {
    let mixed = "mixed --duration-s 0.5 --rate 200 --followers 4 --askers 0";
    let run = against(Fault::EndsSubscriptions(50), mixed);
    assert_kept(&run);
    assert_eq!(run.report["detail"]["subscriptions_closed"], 4);
    assert!(run.report["detail"]["deliveries_declared_missing"].as_u64() > Some(0));
    let fanout = "fanout --events 100 --subscribers 3 --closed-loop";
    let run = against(Fault::EndsSubscriptions(50), fanout);
    assert_caught(&run, "subscription_closed");
    assert_eq!(
        (run.violations(), &run.report["oracle"]["violations"]),
        (vec!["subscription_closed"], &Value::from(3))
    );
}

#[test]
fn readers_that_never_read_may_not_delay_the_others() {
    let arguments =
        "slow-readers --rounds 1 --events 8 --subscribers 2 --deaf 3 --closed-loop --in-flight 1";
    let run = against(Fault::SlowBeyond(2), arguments);
    assert_caught(&run, "others_delayed");
    assert_eq!(run.violations(), ["others_delayed"]);
    assert!(run.report["detail"]["p99_ratio"].as_f64() > Some(2.0));
}
