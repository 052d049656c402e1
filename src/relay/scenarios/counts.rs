//! COUNT beside subscriptions: who waits for whom, and who leaves whom alone.

use super::*;
use crate::relay::ports::Counted;

impl Relay {
    fn counted(&mut self, scan: ScanKey, events: u64) {
        let counted = Some(Counted::Exactly { events, sketch: None });
        let chunk = Chunk { done: true, counted, ..Chunk::default() };
        assert!(self.core.handle_chunk(scan, chunk, self.now));
        self.act();
    }
}

const COUNT: &str = r#"["COUNT","s",{}]"#;

fn answer(events: u64) -> String {
    format!(r#"["COUNT","s",{{"count":{events}}}]"#)
}

#[test]
fn a_count_goes_on_slice_by_slice_and_sees_what_was_stored_when_it_was_asked() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    events(3).iter().for_each(|event| relay.publish(event));
    relay.say(key, COUNT);
    relay.publish(&event("later"));
    let scan = relay.scans()[0];
    assert_eq!(relay.core.filed_at(scan), Some(3));
    for _ in 0..3 {
        assert!(relay.core.handle_chunk(scan, Chunk::default(), relay.now));
        assert_eq!(relay.scans(), [scan], "nobody need read what there is not");
        assert_eq!(relay.hear(key), [""; 0]);
    }
    relay.counted(scan, 3);
    assert_eq!(relay.hear(key), [answer(3)]);
    assert_eq!(relay.core.filed_at(scan), None);
    let c = relay.core.counters();
    assert_eq!((c.counts_answered, c.scans), (1, 0));
}

/// Its id is no subscription's.
#[test]
fn a_count_and_a_subscription_of_one_id_leave_each_other_alone() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
    relay.say(key, COUNT);
    let scan = relay.scans()[0];
    relay.say(key, r#"["COUNT","s",{"search":"x"}]"#);
    let refused = r#"["CLOSED","s","unsupported: no filter field \"search\""]"#;
    assert_eq!(relay.hear(key), [refused]);
    relay.publish(&event("live"));
    assert_eq!(relay.hear(key), ["s \"live\""]);
    relay.say(key, r#"["CLOSE","s"]"#);
    relay.counted(scan, 7);
    assert_eq!(relay.hear(key), [answer(7)]);
    assert_eq!(relay.core.counters().counts_refused, 1);
}

#[test]
fn counts_wait_for_the_queries_of_their_connection_and_hold_places_among_subscriptions() {
    let limits = Limits { subscriptions_max: 3, connection_queries_max: 1, ..Limits::default() };
    let mut relay = Relay::new(limits);
    let key = relay.connect();
    relay.say(key, r#"["REQ","t",{}]"#);
    let scan = relay.scans()[0];
    relay.say(key, COUNT);
    relay.say(key, COUNT);
    assert_eq!(relay.scans(), [], "one query at a time");
    relay.say(key, COUNT);
    relay.say(key, LIVE);
    let refused = r#"["CLOSED","s","rate-limited: 3 subscriptions are open, the most allowed"]"#;
    assert_eq!(relay.hear(key), [refused, refused]);
    relay.chunk(scan, &[], true);
    assert_eq!(relay.hear(key), [r#"["EOSE","t"]"#]);
    for events in [4, 5] {
        let scans = relay.scans();
        assert_eq!(scans.len(), 1);
        relay.counted(scans[0], events);
        assert_eq!(relay.hear(key), [answer(events)]);
    }
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
}

#[test]
fn counts_that_cannot_be_answered_say_why() {
    let mut relay = Relay::new(Limits { count_entries_max: 50, ..Limits::default() });
    let key = relay.connect();
    relay.say(key, COUNT);
    let scan = relay.scans()[0];
    let too_many = Chunk { done: true, counted: Some(Counted::TooMany), ..Chunk::default() };
    relay.core.handle_chunk(scan, too_many, relay.now);
    let closed = r#"["CLOSED","s","error: more than 50 index entries to count through"]"#;
    assert_eq!(relay.hear(key), [closed]);
    relay.say(key, COUNT);
    let scan = relay.scans()[0];
    let failed = Chunk { done: true, failed: Some("disk".into()), ..Chunk::default() };
    relay.core.handle_chunk(scan, failed, relay.now);
    let closed = r#"["CLOSED","s","error: the stored events could not be counted"]"#;
    assert_eq!(relay.hear(key), [closed]);
    let c = relay.core.counters();
    assert_eq!((c.counts_too_many, c.counts_failed), (1, 1));
}

#[test]
fn counts_end_with_their_connection_and_with_the_relay() {
    let mut relay = Relay::new(Limits { connection_queries_max: 1, ..Limits::default() });
    let (gone, last_words, stays) = (relay.connect(), relay.connect(), relay.connect());
    for key in [gone, last_words, stays] {
        relay.say(key, COUNT);
        relay.say(key, COUNT);
    }
    let begun = relay.scans();
    relay.core.handle_broken(gone);
    let cancelled = |effect| match effect {
        Effect::CancelScan(key) => Some(key),
        _ => None,
    };
    assert_eq!(relay.take(cancelled), [begun[0]]);
    assert!(!relay.core.handle_chunk(begun[0], Chunk::default(), relay.now), "a late slice");
    relay.core.handle_eof(last_words, relay.now);
    relay.counted(begun[1], 1);
    let second = relay.scans()[0];
    relay.counted(second, 2);
    assert_eq!(relay.hear(last_words), [answer(1), answer(2), String::new()]);
    relay.core.handle_shutdown(relay.now);
    assert_eq!(relay.take(cancelled), [begun[2]]);
    let stopping = r#"["CLOSED","s","error: the relay is stopping"]"#;
    assert_eq!(relay.hear(stays), [stopping, stopping, "close 1001 relay is stopping"]);
    assert_eq!(relay.core.counters().scans, 0);
}

#[test]
fn counts_that_look_at_too_much_for_their_connection_end() {
    let limits = Limits {
        connection_query_entries_max: 100,
        connection_query_entries_per_s: 10,
        ..Limits::default()
    };
    let mut relay = Relay::new(limits);
    let key = relay.connect();
    let (other, third) = (COUNT.replace('s', "t"), COUNT.replace('s', "u"));
    for count in [COUNT, &other, &third] {
        relay.say(key, count);
    }
    let scans = relay.scans();
    let slice = |relay: &mut Relay, nth: usize, examined, done: bool| {
        let counted = done.then_some(Counted::Exactly { events: 9, sketch: None });
        let chunk = Chunk { examined, done, counted, ..Chunk::default() };
        relay.core.handle_chunk(scans[nth], chunk, relay.now)
    };
    // Each was charged for one entry when it was asked.
    assert!(slice(&mut relay, 0, 97, false));
    assert_eq!(relay.hear(key), [""; 0]);
    assert!(!slice(&mut relay, 1, 1, false));
    let ended = r#"["CLOSED","t","rate-limited: the count looks at too many stored events"]"#;
    assert_eq!(relay.hear(key), [ended]);
    assert!(slice(&mut relay, 2, 1, true), "what is known is told");
    assert_eq!(relay.hear(key), [answer(9).replace('s', "u")]);
    relay.say(key, COUNT);
    let refused = r#"["CLOSED","s","rate-limited: this connection's queries have looked at too many stored events"]"#;
    assert_eq!(relay.hear(key), [refused]);
    relay.pass(200);
    assert!(slice(&mut relay, 0, 0, false), "it empties with time");
    let c = relay.core.counters();
    assert_eq!((c.counts_over_budget, c.counts_answered, c.counts_refused, c.scans), (1, 1, 1, 1));
}
