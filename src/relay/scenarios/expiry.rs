//! Events that expire while they wait for a socket (NIP-40): none is sent, and nothing else is lost.

use super::*;

/// An event that expires so many seconds after a relay's clock begins.
fn expiring(content: &str, in_s: u64) -> Event {
    let at = (1_700_000_000 + in_s).to_string();
    let draft = Draft { content: content.into(), ..Draft::tagged(&[&["expiration", &at]]) };
    draft.candidate().event().clone()
}

#[test]
fn stored_events_that_expire_behind_a_slow_reader_are_not_sent() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let key = relay.connect();
    relay.say(key, r#"["REQ","s",{}]"#);
    let scan = relay.scans()[0];
    let slice = [expiring("a", 5), event("b"), expiring("c", 2), expiring("d", 3), event("e")];
    relay.chunk(scan, &slice, true);
    assert_eq!(frames(&relay.fill(key).unwrap()), ["s \"a\"", "s \"b\""], "on their way");
    // Two wait in the outbox, one behind them.
    relay.pass(2_999);
    relay.written(key);
    assert_eq!(relay.hear(key), ["s \"d\"", "s \"e\"", EOSE]);
    let c = relay.core.counters();
    assert_eq!((c.delivered_stored, c.expired_events, c.frames_out), (5, 1, 1 + 5));
}

#[test]
fn live_events_that_expire_behind_a_slow_reader_are_not_sent() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 1, ..Limits::default() });
    let key = relay.connect();
    relay.say(key, LIVE);
    assert_eq!(relay.fill(key).map(|bytes| frames(&bytes)), Some(vec![EOSE.into()]));
    // One waits in the outbox, the others behind it.
    for event in [expiring("a", 1), expiring("b", 9), expiring("c", 1), event("d")] {
        relay.publish(&event);
    }
    relay.pass(1_000);
    relay.written(key);
    assert_eq!(relay.hear(key), ["s \"b\"", "s \"d\""]);
    let c = relay.core.counters();
    assert_eq!((c.matched_live, c.delivered_live, c.expired_events), (4, 4, 2));
    assert_eq!((c.live_waiting, c.live_bytes), (0, 0));
}

#[test]
fn a_connection_all_of_whose_events_expire_is_still_told_what_follows_and_closed() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 1, ..Limits::default() });
    let [stays, ends] = [(); 2].map(|()| relay.connect());
    for key in [stays, ends] {
        relay.say(key, LIVE);
        assert_eq!(relay.hear(key), [EOSE]);
    }
    for _ in 0..3 {
        relay.publish(&expiring("gone", 1));
    }
    relay.core.handle_eof(ends, relay.now);
    relay.pass(1_000);
    assert_eq!(relay.fill(stays), None, "nothing is left of it");
    assert_eq!(relay.core.counters().expired_events, 3);
    relay.publish(&event("next"));
    assert_eq!(relay.hear(stays), ["s \"next\""]);
    assert_eq!(relay.hear(ends), [String::new()], "the close");
    assert!(relay.was_released(ends));
    assert_eq!(relay.core.counters().expired_events, 6);
}
