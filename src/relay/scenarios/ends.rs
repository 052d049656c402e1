//! How connections end: deadlines, shutdown, one HTTP exchange.

use serde_json::json;

use super::*;

#[test]
fn a_client_that_stops_sending_still_gets_the_rest_of_its_answer() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.core.handle_accept(CLIENT, Arrival::Client, relay.now);
    relay.send(key, b"GET / HTTP/1.1\r\nHost: r\r\n\r\n");
    assert!(relay.fill(key).is_some());
    relay.core.handle_eof(key, relay.now);
    assert!(!relay.was_released(key), "a batch is with the socket");
    relay.written(key);
    assert!(relay.was_released(key));
}

/// It asked for stored events and for live ones, published one, and then only reads.
#[test]
fn a_client_that_stops_sending_gets_what_it_asked_for_before_and_nothing_new() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let (key, idle) = (relay.connect(), relay.connect());
    relay.say(key, r#"["REQ","t",{}]"#);
    let scan = relay.scans()[0];
    for key in [key, idle] {
        relay.say(key, LIVE);
        assert_eq!(relay.hear(key), [EOSE]);
    }
    let published = event("published");
    relay.say(key, &format!(r#"["EVENT",{}]"#, std::str::from_utf8(&published.json()).unwrap()));
    let submissions = relay.verify();
    relay.publish(&event("before the end"));
    for key in [key, idle] {
        relay.core.handle_eof(key, relay.now);
    }
    assert_eq!(relay.core.index.len(), 0);
    relay.publish(&event("after it"));
    relay.chunk(scan, &events(3), false);
    assert_eq!(relay.hear(key), ["s \"before the end\"", "t \"0\"", "t \"1\"", "t \"2\""]);
    assert_eq!(relay.scans(), [scan], "the query goes on");
    assert_eq!(relay.hear(idle), ["s \"before the end\"", ""]);
    assert!(relay.was_released(idle), "that was all");
    relay.judge(&submissions[0], Verdict::Stored);
    let ok = format!(r#"["OK","{}",true,""]"#, id(&published));
    assert_eq!(relay.hear(key), [ok]);
    relay.chunk(scan, &events(1), true);
    let rest = relay.hear(key);
    let last = ["t \"0\"", r#"["EOSE","t"]"#, ""];
    assert_eq!(rest, last, "a close without a code is the last word");
    assert!(relay.was_released(key));
    let c = relay.core.counters();
    // Its first slice was read after that event was stored.
    assert_eq!((c.matched_live, c.delivered_live, c.suppressed_live), (3, 2, 1));
}

#[test]
fn a_client_that_stops_sending_and_does_not_read_is_let_go_in_time() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.say(key, r#"["REQ","t",{}]"#);
    relay.core.handle_eof(key, relay.now);
    relay.pass(4_999);
    assert!(!relay.was_released(key));
    relay.pass(1);
    assert!(relay.was_released(key));
    assert_eq!(relay.core.counters().closed_timeout, 1);
}

/// The connections whose unacknowledged bytes the shard asks for.
fn asked(relay: &mut Relay) -> Vec<ConnectionKey> {
    relay.take(|effect| match effect {
        Effect::AskUnacked(key) => Some(key),
        _ => None,
    })
}

#[test]
fn a_peer_that_acknowledges_nothing_is_ended_and_one_that_takes_a_little_is_not() {
    let mut relay = Relay::new(Limits::default());
    let (stalled, slow) = (relay.connect(), relay.connect());
    for key in [stalled, slow] {
        relay.say(key, LIVE);
        let filled = relay.fill(key).unwrap().len();
        // The kernel takes all of it, whoever reads.
        relay.core.handle_progress(key, filled, relay.now);
        relay.written(key);
    }
    let unacked = relay.core.session(stalled).unwrap().unacked_bytes;
    relay.pass(1_249);
    assert_eq!(asked(&mut relay), []);
    relay.pass(1);
    assert_eq!(asked(&mut relay), [stalled, slow]);
    relay.pass(8_749);
    relay.core.handle_unacked(stalled, unacked, relay.now);
    relay.core.handle_unacked(slow, unacked - 1, relay.now);
    assert_eq!(asked(&mut relay), [stalled, slow], "nobody is ended unasked");
    relay.pass(1);
    assert_eq!(asked(&mut relay), [stalled], "the other has just acknowledged a byte");
    relay.core.handle_unacked(stalled, unacked, relay.now);
    let released = relay.take(|effect| match effect {
        Effect::Release { key, reset } => Some((key, reset)),
        _ => None,
    });
    assert_eq!(released, [(stalled, true)], "with what the kernel holds for it");
    relay.pass(9_998);
    relay.core.handle_unacked(slow, unacked - 1, relay.now);
    assert_eq!(relay.core.reading(slow), Reading::Ready);
    relay.pass(1);
    relay.core.handle_unacked(slow, unacked - 1, relay.now);
    assert!(relay.was_released(slow));
    assert_eq!(relay.core.counters().closed_stalled, 2);
    assert_eq!(relay.core.counters().subscriptions, 0);
}

#[test]
fn a_peer_that_has_acknowledged_all_is_not_asked_again() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.core.handle_progress(key, 100, relay.now);
    relay.pass(2_000);
    assert_eq!(asked(&mut relay), [key]);
    relay.core.handle_unacked(key, 0, relay.now);
    relay.pass(20_000);
    assert_eq!(asked(&mut relay), []);
}

#[test]
fn a_quiet_connection_is_pinged_and_a_silent_one_ended() {
    let mut relay = Relay::new(Limits::default());
    let (quiet, silent) = (relay.connect(), relay.connect());
    relay.pass(29_999);
    assert!(relay.fill(quiet).is_none());
    relay.pass(1);
    for key in [quiet, silent] {
        assert_eq!(relay.hear(key), ["ping"]);
    }
    relay.pass(59_999);
    relay.frame(quiet, Opcode::Pong, b"");
    relay.pass(1);
    assert!(relay.was_released(silent));
    assert_eq!(relay.core.counters().closed_silent, 1);
    relay.pass(30_000);
    assert_eq!(relay.hear(quiet), ["ping"], "from the pong on");
}

#[test]
fn a_request_that_does_not_come_is_answered_408() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.core.handle_accept(CLIENT, Arrival::Client, relay.now);
    relay.send(key, b"GET / HT");
    relay.pass(5_000);
    assert!(relay.hear_raw(key).starts_with(b"HTTP/1.1 408 "));
    let finished =
        relay.take(|effect| matches!(effect, Effect::Finish(k) if k == key).then_some(()));
    assert_eq!(finished.len(), 1);
    relay.pass(4_999);
    assert!(!relay.was_released(key));
    relay.pass(1);
    assert!(relay.was_released(key));
    assert_eq!(relay.core.counters().closed_timeout, 1);
}

/// The deadline is for the whole head, however it trickles in.
#[test]
fn a_request_that_comes_byte_by_byte_is_late_all_the_same() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.core.handle_accept(CLIENT, Arrival::Client, relay.now);
    for byte in HANDSHAKE.bytes().take(99) {
        relay.send(key, &[byte]);
        relay.pass(50);
    }
    assert!(relay.fill(key).is_none());
    relay.send(key, b"x");
    relay.pass(50);
    assert!(relay.hear_raw(key).starts_with(b"HTTP/1.1 408 "));
    relay.send(key, HANDSHAKE.as_bytes());
    assert!(relay.fill(key).is_none(), "nothing more is read");
    relay.pass(5_000);
    assert!(relay.was_released(key));
}

#[test]
fn who_does_not_finish_closing_is_counted_as_late() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.frame(key, Opcode::Close, &[0x03, 0xe8]);
    assert_eq!(relay.hear(key), ["close 1000 "]);
    relay.pass(5_000);
    assert!(relay.was_released(key));
    let counters = relay.core.counters();
    assert_eq!((counters.closed_timeout, counters.closed_by_client), (1, 0));
}

#[test]
fn shutdown_sends_what_is_owed_before_it_says_goodbye() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let key = relay.connect();
    let idle = relay.connect();
    let draft = Draft::saying("mine");
    relay.say(key, &json!(["EVENT", draft.event()]).to_string());
    let submitted = relay.verify();
    relay.say(key, LIVE);
    assert_eq!(relay.hear(key), [EOSE]);
    events(5).iter().for_each(|event| relay.publish(event));
    relay.core.handle_shutdown(relay.now);
    relay.publish(&event("too late"));
    assert_eq!(relay.say(key, LIVE), Reading::Ready, "nothing more is read");
    assert_eq!(relay.hear(idle), ["close 1001 relay is stopping"]);
    let queued: Vec<_> = (0..5).map(|n| format!("s \"{n}\"")).collect();
    assert_eq!(relay.hear(key), queued);
    relay.judge(&submitted[0], Verdict::Stored);
    let ok = format!("[\"OK\",\"{}\",true,\"\"]", id(draft.candidate().event()));
    assert_eq!(relay.hear(key), [ok.as_str(), "close 1001 relay is stopping"]);
    relay.core.handle_eof(key, relay.now);
    relay.core.handle_eof(idle, relay.now);
    assert!(relay.core.is_done());
    assert_eq!(relay.core.counters().closed_shutdown, 2);
}

/// A query that is done has its EOSE, and the live event behind it; of one that is not, what was read comes.
#[test]
fn shutdown_sends_what_stored_queries_have_read() {
    let mut relay = Relay::new(Limits { outbox_messages_max: 2, ..Limits::default() });
    let (done, cut, unread) = (relay.connect(), relay.connect(), relay.connect());
    let mut scans = Vec::new();
    for key in [done, cut, unread] {
        relay.say(key, r#"["REQ","t",{}]"#);
        scans.extend(relay.scans());
    }
    relay.chunk(scans[0], &events(5), true);
    relay.chunk(scans[1], &events(5), false);
    relay.publish(&event("behind"));
    relay.core.handle_shutdown(relay.now);
    let cancelled = relay.take(|effect| match effect {
        Effect::CancelScan(scan) => Some(scan),
        _ => None,
    });
    assert_eq!(cancelled, scans[1..]);
    let read: Vec<_> = (0..5).map(|n| format!("t \"{n}\"")).collect();
    let bye = ["close 1001 relay is stopping".to_owned()];
    let rest = [r#"["EOSE","t"]"#.to_owned(), "t \"behind\"".to_owned()];
    assert_eq!(relay.hear(done), [&read[..], &rest, &bye].concat());
    assert_eq!(relay.hear(cut), [&read[..], &bye].concat());
    assert_eq!(relay.hear(unread), bye);
    let c = relay.core.counters();
    assert_eq!((c.matched_live, c.delivered_live, c.abandoned_live), (3, 1, 2));
    assert_eq!((c.scans, c.subscriptions), (0, 0));
}

#[test]
fn who_does_not_read_the_goodbye_is_left_behind() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    relay.core.handle_shutdown(relay.now);
    assert!(relay.fill(key).is_some());
    relay.pass(4_999);
    assert!(!relay.core.is_done());
    relay.pass(1);
    assert!(relay.was_released(key) && relay.core.is_done());
    assert_eq!(relay.core.counters().closed_timeout, 1);
}

#[test]
fn who_answers_the_goodbye_is_done_whatever_its_socket_does() {
    let mut relay = Relay::new(Limits { replies_max: 2, ..Limits::default() });
    let (prompt, pausing, crossing) = (relay.connect(), relay.connect(), relay.connect());
    // Two messages and the half of a third one find the credit used up: their bytes come first.
    let many: Vec<u8> = (0..4).flat_map(|_| masked(Opcode::Text, b"[\"\"]")).collect();
    let (now, later) = many.split_at(many.len() - 3);
    assert_eq!(relay.send(pausing, now), Reading::Paused);
    relay.core.handle_shutdown(relay.now);
    relay.frame(crossing, Opcode::Close, &[0x03, 0xe9]);
    for key in [prompt, pausing, crossing] {
        let heard = relay.hear(key);
        assert_eq!(heard.last().unwrap(), "close 1001 relay is stopping");
        assert_eq!(heard.len(), if key == pausing { 3 } else { 1 });
    }
    relay.frame(prompt, Opcode::Close, &[0x03, 0xe9]);
    assert!(relay.was_released(prompt));
    assert_eq!(relay.core.handle_resumed(pausing, relay.now), Reading::Ready);
    relay.send(pausing, later);
    assert!(!relay.was_released(pausing));
    relay.frame(pausing, Opcode::Close, &[0x03, 0xe9]);
    assert!(relay.was_released(pausing));
    assert!(!relay.was_released(crossing), "it may not have read ours: its end is awaited");
    relay.core.handle_eof(crossing, relay.now);
    assert!(relay.core.is_done());
    assert_eq!(relay.core.counters().closed_shutdown, 3);
}

#[test]
fn what_follows_a_binary_message_in_the_same_read_keeps_its_place() {
    let mut relay = Relay::new(Limits::default());
    let key = relay.connect();
    let close = masked(Opcode::Close, &[0x03, 0xeb]);
    relay.send(key, &[masked(Opcode::Binary, b"\x00"), close[..3].to_vec()].concat());
    assert_eq!(relay.hear(key), ["close 1003 only text is spoken here"]);
    relay.send(key, &close[3..]);
    assert!(relay.was_released(key));
}

#[test]
fn http_exchanges_end_with_their_answer() {
    let mut relay = Relay::new(Limits::default());
    let nostr = "Accept: application/nostr+json\r\n";
    let cases = [
        (Arrival::Client, "GET / HTTP/1.1\r\nHost: r\r\n\r\n".to_owned(), "200", "<p>hello"),
        (
            Arrival::Client,
            format!("GET / HTTP/1.1\r\nHost: r\r\n{nostr}\r\n"),
            "200",
            r#"{"name":"r"}"#,
        ),
        (Arrival::Client, format!("HEAD / HTTP/1.1\r\nHost: r\r\n{nostr}\r\n"), "200", "\r\n\r\n"),
        (Arrival::Client, "GET /x HTTP/1.1\r\nHost: r\r\n\r\n".to_owned(), "404", "one address\n"),
        (Arrival::Full, HANDSHAKE.to_owned(), "503", "too many connections\n"),
        (Arrival::Refused, HANDSHAKE.to_owned(), "429", "too many connections from your address\n"),
    ];
    for (arrival, request, status, end) in cases {
        let key = relay.core.handle_accept(CLIENT, arrival, relay.now);
        relay.send(key, request.as_bytes());
        let answer = String::from_utf8(relay.hear_raw(key)).unwrap();
        assert_eq!(&answer[9..12], status);
        assert!(answer.ends_with(end), "{answer}");
        relay.core.handle_eof(key, relay.now);
        assert!(relay.was_released(key));
    }
    let counters = relay.core.counters();
    assert_eq!((counters.closed_http, counters.closed_full, counters.closed_per_ip), (4, 1, 1));
}

#[test]
fn the_room_of_connections_that_are_gone_is_given_back() {
    let mut relay = Relay::new(Limits::default());
    let stays = relay.connect();
    let keys: Vec<_> = (0..1_000).map(|_| relay.connect()).collect();
    for key in &keys {
        relay.say(*key, LIVE);
    }
    let gives_back = |relay: &mut Relay| {
        relay.pass(250);
        relay.take(|effect| matches!(effect, Effect::GiveBack).then_some(())).len()
    };
    let given_back: Vec<_> = (0..6).map(|_| gives_back(&mut relay)).collect();
    assert_eq!(given_back, [0, 0, 0, 0, 1, 0], "what their handshakes took");
    keys.iter().for_each(|key| relay.core.handle_broken(*key));
    let given_back: Vec<_> = (0..8).map(|_| gives_back(&mut relay)).collect();
    assert_eq!(given_back, [0, 0, 0, 0, 1, 0, 0, 0], "once, when a second has passed");
    assert_eq!(relay.core.sessions.capacity(), 1);
    assert_eq!(relay.core.subscriptions.capacity(), 0);
    relay.say(stays, LIVE);
    relay.publish(&event("still heard"));
    assert_eq!(relay.hear(stays), [EOSE, "s \"still heard\""]);
}
