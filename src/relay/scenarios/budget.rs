//! What one connection may have the store look at.

use super::*;

const REQ: &str = r#"["REQ","s",{"kinds":[1,7],"limit":7}]"#;
const REFUSED: &str = r#"["CLOSED","s","rate-limited: this connection's queries have looked at too many stored events"]"#;
const CUT: &str = r#"["CLOSED","s","rate-limited: the query looks at too many stored events"]"#;

/// A connection that may have a hundred entries at once, and ten more each second.
fn relay() -> (Relay, ConnectionKey) {
    let mut relay = Relay::new(Limits {
        connection_query_entries_max: 100,
        connection_query_entries_per_s: 10,
        ..Limits::default()
    });
    let key = relay.connect();
    (relay, key)
}

fn looked(relay: &mut Relay, scan: ScanKey, examined: u64, done: bool) -> bool {
    let wanted =
        relay.core.handle_chunk(scan, Chunk { examined, done, ..Chunk::default() }, relay.now);
    relay.act();
    wanted
}

#[test]
fn who_asks_and_closes_in_turn_pays_for_every_question() {
    let (mut relay, key) = relay();
    // A range, two kinds and seven events.
    for _ in 0..10 {
        relay.say(key, REQ);
        assert_eq!(relay.hear(key), [""; 0]);
        relay.say(key, r#"["CLOSE","s"]"#);
    }
    relay.say(key, REQ);
    assert_eq!(relay.hear(key), [REFUSED]);
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE], "what asks for nothing stored is taken");
    let other = relay.connect();
    relay.say(other, REQ);
    assert_eq!(relay.hear(other), [""; 0], "another connection has its own");
    relay.pass(999);
    relay.say(key, REQ);
    assert_eq!(relay.hear(key), [REFUSED]);
    assert_eq!(relay.core.counters().subscriptions_refused, 2);
    relay.pass(1);
    relay.say(key, REQ);
    assert_eq!(relay.hear(key), [""; 0]);
}

#[test]
fn a_query_is_charged_with_what_its_slices_looked_at() {
    let (mut relay, key) = relay();
    relay.say(key, REQ);
    let scan = relay.scans()[0];
    assert!(looked(&mut relay, scan, 4, false), "it was charged with ten");
    let scan = relay.scans()[0];
    assert!(looked(&mut relay, scan, 96, false));
    let scan = relay.scans()[0];
    assert!(!looked(&mut relay, scan, 1, false));
    assert_eq!(relay.hear(key), [CUT]);
    assert_eq!(relay.core.filed_at(scan), None);
    let counters = relay.core.counters();
    assert_eq!((counters.subscriptions_over_budget, counters.scans), (1, 0));
    // The last slice is paid for, and handed on.
    relay.pass(10_100);
    relay.say(key, REQ);
    let scan = relay.scans()[0];
    assert!(looked(&mut relay, scan, 1_000, true));
    assert_eq!(relay.hear(key), [EOSE]);
    relay.say(key, REQ);
    assert_eq!(relay.hear(key), [REFUSED]);
}

#[test]
fn what_a_query_did_not_need_is_given_back_with_its_last_slice() {
    let (mut relay, key) = relay();
    // The next is charged with ten until it is done.
    for _ in 0..91 {
        relay.say(key, REQ);
        let scan = relay.scans()[0];
        assert!(looked(&mut relay, scan, 1, true));
        assert_eq!(relay.hear(key), [EOSE]);
    }
    relay.say(key, REQ);
    assert_eq!(relay.hear(key), [REFUSED]);
}
