//! Answers and subscriptions: credit, turns, high water, slow readers.

use serde_json::json;

use super::*;
use crate::relay::ports::Newest;

#[test]
fn a_connection_without_a_free_reply_slot_is_not_read_until_half_are_free() {
    let mut relay = Relay::new(Limits { replies_max: 4, ..Limits::default() });
    let key = relay.connect();
    for n in 0..3 {
        assert_eq!(relay.say(key, &format!("[\"{n}\"]")), Reading::Ready);
    }
    let two = [masked(Opcode::Text, b"[\"4\"]"), masked(Opcode::Text, b"[\"5\"]")].concat();
    assert_eq!(relay.send(key, &two), Reading::Paused);
    assert_eq!(relay.core.reading(key), Reading::Paused);
    assert_eq!(relay.core.counters().reads_paused, 1);
    assert_eq!(frames(&relay.fill(key).unwrap()).len(), 4);
    let resumed = relay.take(|effect| matches!(effect, Effect::ResumeRead(_)).then_some(()));
    assert_eq!(resumed.len(), 1, "told once");
    relay.written(key);
    assert_eq!(relay.core.handle_resumed(key, relay.now), Reading::Ready);
    assert_eq!(relay.hear(key).len(), 1);
}

#[test]
fn messages_without_an_answer_need_no_slot_for_long() {
    let mut relay = Relay::new(Limits { replies_max: 1, ..Limits::default() });
    let key = relay.connect();
    for _ in 0..3 {
        assert_eq!(relay.say(key, LIVE), Reading::Ready);
        assert_eq!(relay.say(key, r#"["CLOSE","s"]"#), Reading::Ready);
    }
    assert_eq!(relay.say(key, LIVE), Reading::Ready);
    assert_eq!(relay.hear(key), [EOSE]);
}

#[test]
fn a_stored_query_pauses_at_high_water_and_goes_on_when_its_slice_has_left() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 4, ..Limits::default() });
    let key = relay.connect();
    relay.say(key, r#"["REQ","s",{}]"#);
    let scan = relay.scans()[0];
    relay.chunk(scan, &events(10), false);
    assert!(relay.scans().is_empty(), "four wait in the outbox, six behind them");
    let mut sizes = Vec::new();
    while let Some(bytes) = relay.fill(key) {
        sizes.push(frames(&bytes).len());
        let resumed = relay.scans().len();
        assert_eq!(resumed, usize::from(sizes.len() == 2), "the slice has moved on: {sizes:?}");
        relay.written(key);
    }
    assert_eq!(sizes, [4, 4, 2]);
    relay.chunk(scan, &[], true);
    assert_eq!(relay.hear(key), [EOSE]);
}

/// Each query under way holds a slice of events; the next begins when one has had its EOSE, or is cancelled.
#[test]
fn of_many_stored_queries_a_few_are_under_way_at_once() {
    let limits = Limits { connection_queries_max: 2, outbox_messages_max: 2, ..Limits::default() };
    let mut relay = Relay::new(limits);
    let (key, other) = (relay.connect(), relay.connect());
    let req = |name: &str| format!("[\"REQ\",\"{name}\",{{}}]");
    let eose = |name: &str| format!("[\"EOSE\",\"{name}\"]");
    for name in ["a", "b", "c", "d", "e"] {
        relay.say(key, &req(name));
    }
    let begun = relay.scans();
    assert_eq!((begun.len(), relay.core.counters().scans), (2, 5));
    relay.say(other, &req("mine"));
    assert_eq!(relay.scans().len(), 1, "each connection has its own");
    relay.publish(&event("live"));
    relay.chunk(begun[0], &events(3), true);
    assert_eq!(relay.scans(), [], "two events wait in the outbox, one behind them, and the EOSE");
    assert_eq!(relay.hear(key), ["a \"0\"", "a \"1\"", "a \"2\"", &eose("a")]);
    let third = relay.scans();
    assert_eq!(third.len(), 1);
    relay.say(key, r#"["CLOSE","d"]"#);
    assert_eq!(relay.scans(), [], "it had not begun");
    relay.say(key, r#"["CLOSE","b"]"#);
    let last = relay.scans();
    assert_eq!(last.len(), 1);
    relay.core.handle_eof(key, relay.now);
    for (scan, name) in [(third[0], "c"), (last[0], "e")] {
        assert_eq!(
            relay.core.filed_at(scan),
            Some(0),
            "as far as its REQ saw, however late it began"
        );
        let chunk = Chunk { snapshot: 0, done: true, ..Chunk::default() };
        assert!(relay.core.handle_chunk(scan, chunk, relay.now));
        let live = format!("{name} \"live\"");
        let mut expected = vec![eose(name), live];
        expected.extend((name == "e").then(String::new));
        assert_eq!(relay.hear(key), expected);
    }
    assert!(relay.was_released(key));
    relay.core.handle_broken(other);
    assert_eq!(relay.core.counters().scans, 0);
}

#[test]
fn a_subscription_the_relay_ended_keeps_its_place_until_its_closed_has_left() {
    let limits = Limits {
        subscriptions_max: 2,
        outbox_messages_max: 1,
        live_queue_events_max: 1,
        ..Limits::default()
    };
    let mut relay = Relay::new(limits);
    let key = relay.connect();
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
    events(3).iter().for_each(|event| relay.publish(event));
    assert_eq!(relay.core.counters().subscriptions_slow, 1);
    let req = |name: &str| format!("[\"REQ\",\"{name}\",{{\"limit\":0}}]");
    relay.say(key, &req("t"));
    relay.say(key, &req("u"));
    let refused = "[\"CLOSED\",\"u\",\"rate-limited: 2 subscriptions are open, the most allowed\"]";
    let closed = "[\"CLOSED\",\"s\",\"error: slow consumer\"]";
    assert_eq!(relay.hear(key), [refused, closed, "[\"EOSE\",\"t\"]"]);
    relay.say(key, &req("u"));
    assert_eq!(relay.hear(key), ["[\"EOSE\",\"u\"]"]);
}

#[test]
fn too_many_waiting_events_end_the_subscription_and_not_the_connection() {
    let limits = Limits { outbox_messages_max: 2, live_queue_events_max: 3, ..Limits::default() };
    let mut relay = Relay::new(limits);
    let key = relay.connect();
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
    let events = events(7);
    events[..5].iter().for_each(|event| relay.publish(event));
    assert_eq!(relay.core.counters().subscriptions_slow, 0);
    relay.publish(&events[5]);
    relay.publish(&events[6]);
    assert_eq!(relay.hear(key), [SLOW]);
    let counters = relay.core.counters();
    assert_eq!((counters.subscriptions_slow, counters.subscriptions), (1, 0));
    assert_eq!((counters.matched_live, counters.abandoned_live), (6, 4));
    assert_eq!((counters.delivered_live, counters.purged_events), (2, 2));
    relay.say(key, LIVE);
    relay.publish(&event("again"));
    assert_eq!(relay.hear(key), [EOSE, r#"s "again""#]);
}

#[test]
fn an_event_that_waits_too_long_ends_its_subscription_only() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let (slow, quick) = (relay.connect(), relay.connect());
    for key in [slow, quick] {
        relay.say(key, LIVE);
        assert_eq!(relay.hear(key), [EOSE]);
    }
    for event in events(5) {
        relay.publish(&event);
        assert_eq!(relay.hear(quick).len(), 1);
    }
    relay.pass(2_999);
    assert_eq!(relay.core.counters().subscriptions_slow, 0);
    relay.pass(1);
    assert_eq!(relay.hear(slow), [SLOW]);
    relay.publish(&event("more"));
    assert_eq!(relay.hear(quick), [r#"s "more""#]);
}

#[test]
fn a_reader_who_keeps_up_is_not_slow_however_long_the_stored_query_took() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let key = relay.connect();
    relay.say(key, r#"["REQ","s",{}]"#);
    let scan = relay.scans()[0];
    relay.chunk(scan, &events(2), false);
    for n in 0..4 {
        relay.publish(&event(&format!("live {n}")));
    }
    // A long query, read as fast as it comes.
    for _ in 0..10 {
        relay.pass(1_000);
        assert_eq!(relay.hear(key).len(), 2);
        relay.chunk(scan, &events(2), false);
    }
    assert_eq!(relay.hear(key).len(), 2);
    relay.chunk(scan, &[], true);
    // EOSE and the first live event fill the outbox; the rest has not waited for the reader yet.
    relay.pass(250);
    relay.pass(250);
    let live: Vec<_> = (0..4).map(|n| format!("s \"live {n}\"")).collect();
    assert_eq!(relay.hear(key), [&[EOSE.to_owned()], &live[..]].concat());
    assert_eq!(relay.core.counters().subscriptions_slow, 0);
}

#[test]
fn the_room_of_a_closed_subscription_is_handed_on() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 1, ..Limits::default() });
    let key = relay.connect();
    for name in ["a", "b"] {
        relay.say(key, &format!("[\"REQ\",\"{name}\",{{\"limit\":0}}]"));
    }
    assert_eq!(relay.hear(key).len(), 2);
    relay.publish(&event("hello"));
    relay.say(key, r#"["CLOSE","a"]"#);
    assert_eq!(relay.hear(key), [r#"b "hello""#]);
}

#[test]
fn a_closed_that_has_not_left_does_not_answer_the_next_req() {
    let limits = Limits { outbox_messages_max: 1, live_queue_events_max: 1, ..Limits::default() };
    let mut relay = Relay::new(limits);
    let key = relay.connect();
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
    events(3).iter().for_each(|event| relay.publish(event));
    assert_eq!(relay.core.counters().subscriptions_slow, 1);
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
}

#[test]
fn each_verdict_has_its_ok() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    let cases = [
        (Verdict::Stored, "true,\"\""),
        (Verdict::Duplicate, "true,\"duplicate: already stored\""),
        (Verdict::Superseded, "false,\"duplicate: a newer version is stored\""),
        (Verdict::Deleted, "false,\"blocked: its deletion was requested\""),
        (Verdict::Vanished, "false,\"blocked: its author asked to vanish\""),
        (Verdict::Expired, "false,\"invalid: event has expired\""),
        (Verdict::Failed("disk".into()), "false,\"error: the event could not be stored: disk\""),
    ];
    for (n, (verdict, answer)) in cases.into_iter().enumerate() {
        let draft = Draft::saying(&n.to_string());
        relay.say(key, &json!(["EVENT", draft.event()]).to_string());
        let submitted = relay.verify();
        assert_eq!((submitted.len(), relay.hear(key).len()), (1, 0), "no OK before the verdict");
        relay.judge(&submitted[0], verdict);
        let ok = format!("[\"OK\",\"{}\",{answer}]", id(draft.candidate().event()));
        assert_eq!(relay.hear(key), [ok]);
    }
}

#[test]
fn an_ephemeral_event_is_answered_when_every_shard_has_spoken() {
    let mut relay = Relay::with_shards(Limits::default(), 3);
    let key = relay.connect();
    for (counts, heard) in [([0, 0], false), ([0, 2], true)] {
        let draft = Draft { kind: 20_001, ..Draft::default() };
        relay.say(key, &json!(["EVENT", draft.event()]).to_string());
        relay.core.verify(9, relay.now);
        let token = relay.take(|effect| match effect {
            Effect::PublishEphemeral { token, .. } => Some(token),
            _ => None,
        })[0];
        relay.core.handle_heard(token, counts[0]);
        assert!(relay.fill(key).is_none());
        relay.core.handle_heard(token, counts[1]);
        let text = if heard { "true,\"\"" } else { "false,\"mute: nobody was listening\"" };
        let ok = format!("[\"OK\",\"{}\",{text}]", id(draft.candidate().event()));
        assert_eq!(relay.hear(key), [ok]);
    }
}

#[test]
fn connections_take_turns_at_verification() {
    let mut relay = Relay::new(Limits::default());
    let keys = [relay.connect(), relay.connect()];
    for (n, key) in keys.into_iter().enumerate() {
        for m in 0..3 {
            let draft = Draft::saying(&format!("{n}{m}"));
            relay.say(key, &json!(["EVENT", draft.event()]).to_string());
        }
    }
    assert_eq!(relay.core.counters().verify_waiting, 6);
    assert!(relay.core.verify(4, relay.now), "two more wait");
    let contents: Vec<_> = relay
        .take(|effect| match effect {
            Effect::Submit(submission) => Some(submission.event),
            _ => None,
        })
        .iter()
        .map(|event| serde_json::from_slice::<serde_json::Value>(&event.json()).unwrap())
        .map(|event| event["content"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(contents, ["00", "10", "01", "11"]);
}

#[test]
fn a_wrong_signature_is_told_apart_from_a_wrong_id() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    let mut forged = Draft::default().event();
    forged["sig"] = Draft::saying("other").event()["sig"].clone();
    relay.say(key, &json!(["EVENT", forged]).to_string());
    assert!(relay.verify().is_empty());
    assert!(relay.hear(key)[0].ends_with(r#"false,"invalid: signature is wrong"]"#));
    assert_eq!(relay.core.counters().events_bad_signature, 1);
}

#[test]
fn one_subscription_more_than_allowed_is_refused_and_a_replacement_is_not() {
    let mut relay = Relay::new(Limits { subscriptions_max: 2, ..Limits::default() });
    let key = relay.connect();
    for name in ["a", "b", "a", "c"] {
        relay.say(key, &format!("[\"REQ\",\"{name}\",{{\"limit\":0}}]"));
    }
    let refused = r#"["CLOSED","c","rate-limited: 2 subscriptions are open, the most allowed"]"#;
    assert_eq!(relay.hear(key), [refused, r#"["EOSE","b"]"#, r#"["EOSE","a"]"#]);
}

#[test]
fn a_pong_overtakes_what_waits() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.say(key, LIVE);
    relay.say(key, "[\"junk\"]");
    relay.frame(key, Opcode::Ping, b"now");
    let heard = relay.hear(key);
    assert_eq!((heard[0].as_str(), heard[2].as_str()), ("pong now", EOSE));
}

#[test]
fn a_read_of_thousands_of_messages_takes_several_turns() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    let close = masked(Opcode::Text, br#"["CLOSE","s"]"#);
    let before = relay.core.counters().messages_in;
    let handled = |relay: &Relay| relay.core.counters().messages_in - before;
    assert_eq!(relay.send(key, &close.repeat(1_000)), Reading::Paused);
    assert_eq!(handled(&relay), 256);
    for turn in 2..=4 {
        let told = relay.take(|effect| matches!(effect, Effect::ResumeRead(_)).then_some(()));
        assert_eq!(told.len(), 1);
        relay.core.handle_resumed(key, relay.now);
        assert_eq!(handled(&relay), 1_000.min(turn * 256));
    }
    assert_eq!(relay.core.reading(key), Reading::Ready);
}

#[test]
fn filters_that_match_nothing_end_a_turn_too() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    for n in 0..100 {
        relay.say(key, &format!(r#"["REQ","{n}",{}]"#, [r#"{"until":1,"limit":0}"#; 10].join(",")));
    }
    let stored: Vec<_> = (1..).zip(events(20)).collect();
    let batch = CommitBatch { last_sequence: 20, stored, ..CommitBatch::default() };
    // A thousand filters an event are as much as 125 deliveries.
    assert_eq!(relay.core.handle_commit(&batch, 0, 1_000, relay.now), Some(8));
    assert_eq!(relay.core.handle_commit(&batch, 8, 10_000, relay.now), None);
    assert_eq!(relay.core.counters().matched_live, 0);
}

/// The store had to be opened again: nothing that was told before is sure.
#[test]
fn after_a_commit_that_may_have_become_visible_the_newest_events_are_those_told_anew() {
    let mut relay = Relay::new(Limits::default());
    events(3).iter().for_each(|event| relay.publish(event));
    assert_eq!(relay.core.recent.held().0, 3);
    let newest = Newest { events: vec![(9, event("other"))], rest: None };
    let renewed = CommitBatch { last_sequence: 9, renewed: Some(newest), ..CommitBatch::default() };
    relay.core.handle_commit(&renewed, 0, u64::MAX, relay.now);
    assert_eq!((relay.core.recent.held().0, relay.core.last_sequence), (1, 9));
}

/// Of old events each has half of the newest moved aside, and a commit may hold a thousand.
#[test]
fn a_commit_of_old_events_is_taken_in_parts() {
    let mut relay = Relay::new(Limits::default());
    let at = |n: u64| Draft { created_at: 1_000 + n, ..Draft::default() };
    let commit = |seconds: &mut dyn Iterator<Item = u64>| {
        let stored = seconds.map(|n| (n, at(n).candidate().event().clone())).collect();
        CommitBatch { stored, ..CommitBatch::default() }
    };
    let newer = commit(&mut (1..3_000).filter(|n| *n != 1_500 && *n != 1_501));
    assert_eq!(relay.core.handle_commit(&newer, 0, 1, relay.now), None, "each is the newest");
    let older = commit(&mut (1_500..1_502));
    assert_eq!(relay.core.handle_commit(&older, 0, 1, relay.now), Some(1));
    assert_eq!(relay.core.handle_commit(&older, 1, 1, relay.now), None);
    assert_eq!(relay.core.recent.held().0, 2_999);
}
