//! What a shard times, by a clock made by hand.

use super::*;
use crate::relay::timings::Durations;

/// The one duration counted since.
fn one(after: Durations, before: Durations) -> u64 {
    assert_eq!(after.count(), before.count() + 1);
    after.sum_us - before.sum_us
}

#[test]
fn a_req_is_timed_until_its_eose() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.core.begin_turn(1_000);
    relay.say(key, r#"["REQ","s",{}]"#);
    relay.core.begin_turn(1_300);
    let scan = relay.scans()[0];
    relay.chunk(scan, &events(3), false);
    assert_eq!(relay.core.timings().eose.count(), 0, "more is to come");
    assert_eq!(relay.hear(key).len(), 3);
    relay.core.begin_turn(1_900);
    relay.chunk(scan, &[], true);
    assert_eq!(one(relay.core.timings().eose, Durations::default()), 900);
}

#[test]
fn an_event_is_timed_from_its_bytes_to_its_subscriber() {
    let mut relay = Relay::new(Limits::default());
    let (author, listener) = (relay.connect(), relay.connect());
    relay.say(listener, LIVE);
    assert_eq!(relay.hear(listener), [EOSE]);
    let before = relay.core.timings();

    relay.core.begin_turn(1_000);
    let json = String::from_utf8(event("a").json().to_vec()).unwrap();
    relay.say(author, &format!("[\"EVENT\",{json}]"));
    relay.core.begin_turn(1_040);
    let submission = relay.verify().remove(0);
    let batch = CommitBatch {
        last_sequence: 1,
        durable_us: 3_000,
        stored: vec![(1, submission.event)],
        verdicts: vec![(submission.ticket, Verdict::Stored)],
        ..CommitBatch::default()
    };
    relay.core.begin_turn(3_070);
    relay.core.handle_commit(&batch, 0, u64::MAX, relay.now);
    relay.act();
    let timings = relay.core.timings();
    assert_eq!(one(timings.commit, before.commit), 2_000);
    assert_eq!(one(timings.enqueue, before.enqueue), 70);

    relay.core.begin_turn(3_100);
    assert!(relay.fill(listener).is_some());
    assert_eq!(relay.core.timings().sent, before.sent, "it is on its way");
    // What comes meanwhile has waited since the batch before it was taken, at most.
    relay.publish(&event("b"));
    relay.core.begin_turn(3_570);
    relay.written(listener);
    let sent = relay.core.timings().sent;
    assert_eq!(one(sent, before.sent), 500);
    assert!(relay.fill(listener).is_some());
    relay.core.begin_turn(3_600);
    relay.written(listener);
    assert_eq!(one(relay.core.timings().sent, sent), 500);
}

#[test]
fn what_nobody_hears_and_what_is_not_stored_is_not_timed() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    let json = String::from_utf8(event("a").json().to_vec()).unwrap();
    relay.say(key, &format!("[\"EVENT\",{json}]"));
    let submission = relay.verify().remove(0);
    relay.judge(&submission, Verdict::Duplicate);
    relay.publish(&event("b"));
    let timings = relay.core.timings();
    assert_eq!((timings.commit.count(), timings.enqueue.count()), (0, 0));
}
