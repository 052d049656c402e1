//! EVENT, REQ, CLOSE, EOSE, OK as NIP-01 has them, on one shard and on two.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::oracle::order;
use crate::support::{Answer, Author, Client, Draft, Event, Filter, Launch, Server, now};

/// Runs each function as a test on one shard and on two.
macro_rules! on_one_and_two_shards {
    ($($name:ident),+ $(,)?) => {
        // One that asks the store for all it serves, and two with the newest events at hand.
        mod one_shard {
            $(#[test] fn $name() {
                let launch = crate::support::Launch::default().shards(1);
                super::$name(launch.set("limits.recent_events_max", 0));
            })+
        }
        mod two_shards {
            $(#[test] fn $name() { super::$name(crate::support::Launch::default().shards(2)); })+
        }
    };
}
pub(crate) use on_one_and_two_shards;

on_one_and_two_shards!(
    the_ready_line_says_what_runs,
    an_event_is_stored_served_and_delivered,
    a_duplicate_is_accepted_again,
    every_subscription_gets_each_event_once,
    a_repeated_req_replaces_the_old_one,
    a_closed_subscription_is_silent,
    limit_bounds_the_stored_part_only,
    ties_go_to_the_lowest_id,
    many_subscriptions_on_one_connection,
    ids_are_any_string,
    unknown_keys_are_not_sent_on,
    nothing_is_lost_between_stored_and_live,
);

/// As many connections as it takes to have some on every shard.
fn crowd(server: &Server, n: usize) -> Vec<Client> {
    (0..n).map(|_| server.connect()).collect()
}

fn the_ready_line_says_what_runs(launch: Launch) {
    let server = launch.start();
    assert!(server.ready.starts_with("rheostr ready ws://127.0.0.1:"), "{}", server.ready);
    assert_ne!(server.address().port(), 0);
    assert!(matches!(server.said("shards"), "1" | "2"));
    assert!(matches!(server.said("backend"), "tokio-uring" | "glommio" | "epoll"));
    assert_eq!(std::path::Path::new(server.said("data")), server.data);
    assert!(server.stop().success());
}

fn an_event_is_stored_served_and_delivered(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let mut listeners = crowd(&server, 6);
    let by_author = Filter::default().authors([author.hex()]);
    let by_tag = Filter::default().tag('t', ["rheostr"]);
    let other = Filter::default().kinds([7]);
    for client in &mut listeners {
        client.req("author", &[by_author.clone()]);
        client.req("tag", &[by_tag.clone(), by_author.clone()]);
        client.req("other", &[other.clone()]);
        for subscription in ["author", "tag", "other"] {
            assert_eq!(client.stored(subscription), []);
        }
    }
    let event = Draft::new(1, now()).tag(["t", "rheostr"]).content("hello").sign(&author);
    server.connect().publish_ok(&event);
    for client in &mut listeners {
        assert_eq!(client.live("author"), event);
        assert_eq!(client.live("tag"), event, "once, though two filters match");
        client.nothing_else();
    }
    let mut late = server.connect();
    assert_eq!(late.query(&[by_tag, by_author]), [event]);
    assert_eq!(late.query(&[other]), []);
}

fn a_duplicate_is_accepted_again(launch: Launch) {
    let server = launch.start();
    let event = Author::new(1).note(now(), "twice");
    let (mut a, mut b) = (server.connect(), server.connect());
    a.req("live", &[Filter::default()]);
    assert_eq!(a.stored("live"), []);
    b.publish_ok(&event);
    assert_eq!(a.live("live"), event);
    for client in [&mut a, &mut b] {
        for _ in 0..3 {
            let (accepted, text) = client.publish(&event);
            assert!(accepted && text.starts_with("duplicate: "), "{text}");
        }
    }
    // In one write: one is stored, and each has its own OK.
    let event = Author::new(1).note(now(), "at once");
    a.send_all((0..50).map(|_| event.message()));
    let texts: Vec<_> = (0..50).map(|_| a.wait_ok(&event.id)).collect();
    assert!(texts.iter().all(|(accepted, _)| *accepted));
    assert_eq!(texts.iter().filter(|(_, text)| text.is_empty()).count(), 1);
    assert_eq!(a.live("live"), event);
    a.nothing_else();
}

fn every_subscription_gets_each_event_once(launch: Launch) {
    let server = launch.start();
    let (a, b) = (Author::new(1), Author::new(2));
    let mut listeners = crowd(&server, 5);
    let filters = [
        Filter::default().authors([a.hex(), b.hex()]),
        Filter::default().kinds([1, 7]),
        Filter::default().tag('e', [&*"e".repeat(64), &*"f".repeat(64)]),
        Filter::default().tag('t', ["x", "y", "z"]).kinds([1]),
        Filter::default(),
    ];
    let events: Vec<_> = (0..40)
        .map(|n| {
            let draft = Draft::new(if n % 3 == 0 { 7 } else { 1 }, now() - 100 + n);
            let draft = draft.tag(["e", &"e".repeat(64)]).tag(["e", &"f".repeat(64)]);
            draft.tag(["t", "x"]).tag(["t", "y"]).sign(if n % 2 == 0 { &a } else { &b })
        })
        .collect();
    let mut publisher = server.connect();
    events[..20].iter().for_each(|event| publisher.publish_ok(event));
    for client in &mut listeners {
        client.req("s", &filters);
        let mut first = client.stored("s");
        assert!(first.is_sorted_by(|a, b| order(a) < order(b)));
        // What its shard has not heard of yet comes live.
        while first.len() < 20 {
            first.push(client.live("s"));
        }
        first.sort_by(|a, b| order(a).cmp(&order(b)));
        let mut expected: Vec<_> = events[..20].to_vec();
        expected.sort_by(|a, b| order(a).cmp(&order(b)));
        assert_eq!(first, expected);
    }
    events[20..].iter().for_each(|event| publisher.publish_ok(event));
    for client in &mut listeners {
        for event in &events[20..] {
            assert_eq!(client.live("s"), *event);
        }
        client.nothing_else();
    }
}

fn a_repeated_req_replaces_the_old_one(launch: Launch) {
    let server = launch.start();
    let (a, b) = (Author::new(1), Author::new(2));
    let mut publisher = server.connect();
    let (first, second) = (a.note(now() - 2, "a"), b.note(now() - 1, "b"));
    publisher.publish_ok(&first);
    publisher.publish_ok(&second);
    let mut client = server.connect();
    client.req("s", &[Filter::default().authors([a.hex()])]);
    assert_eq!(client.stored("s"), std::slice::from_ref(&first));
    client.req("s", &[Filter::default().authors([b.hex()])]);
    assert_eq!(client.stored("s"), std::slice::from_ref(&second));
    let (third, fourth) = (a.note(now(), "not wanted any more"), b.note(now(), "wanted"));
    publisher.publish_ok(&third);
    publisher.publish_ok(&fourth);
    assert_eq!(client.live("s"), fourth);
    client.nothing_else();
    // A refused REQ ends what its id named.
    client.send("[\"REQ\",\"s\",{\"kinds\":[\"x\"]}]");
    assert!(matches!(client.next(), Answer::Closed { subscription, .. } if subscription == "s"));
    publisher.publish_ok(&b.note(now(), "unheard"));
    client.nothing_else();
    // The same id on another connection is another subscription.
    let mut other = server.connect();
    other.req("s", &[Filter::default().authors([b.hex()]).limit(0)]);
    assert_eq!(other.stored("s"), []);
    client.req("s", &[Filter::default().authors([a.hex()]).limit(0)]);
    assert_eq!(client.stored("s"), []);
    let fifth = b.note(now(), "for the other");
    publisher.publish_ok(&fifth);
    assert_eq!(other.live("s"), fifth);
    client.nothing_else();
}

fn a_closed_subscription_is_silent(launch: Launch) {
    let server = launch.start();
    let mut publisher = server.connect();
    let mut client = server.connect();
    client.req("a", &[Filter::default()]);
    client.req("b", &[Filter::default()]);
    assert_eq!(client.stored("a"), []);
    assert_eq!(client.stored("b"), []);
    client.unsubscribe("a");
    client.nothing_else();
    let event = Author::new(1).note(now(), "for b");
    publisher.publish_ok(&event);
    assert_eq!(client.live("b"), event);
    client.nothing_else();
    client.close();
    assert_eq!(client.next(), Answer::Close(None));
    assert_eq!(client.next(), Answer::Gone);
}

fn limit_bounds_the_stored_part_only(launch: Launch) {
    let server = launch.set("limits.filter_limit_max", 30).start();
    let author = Author::new(1);
    let start = now() - 1_000;
    let events: Vec<_> = (0..50).map(|n| author.note(start + n, &n.to_string())).collect();
    let mut publisher = server.connect();
    events.iter().for_each(|event| publisher.publish_ok(event));
    let newest = |n: usize| events.iter().rev().take(n).cloned().collect::<Vec<_>>();
    let mut client = server.connect();
    for limit in [0, 1, 2, 29, 30] {
        client.req("s", &[Filter::default().limit(limit)]);
        assert_eq!(client.stored("s"), newest(usize::try_from(limit).unwrap()), "limit {limit}");
        let event = author.note(now() + limit, &format!("live after limit {limit}"));
        let id = event.id.clone();
        publisher.publish_ok(&event);
        assert_eq!(client.live("s"), event);
        let deletion = Draft::new(5, start).tag(["e", &id]).sign(&author);
        publisher.publish_ok(&deletion);
        assert_eq!(client.live("s"), deletion);
        let deletion = Draft::new(5, 1).tag(["e", &deletion.id]).sign(&author);
        assert!(publisher.publish(&deletion).0, "deleting a deletion is kept and has no effect");
        assert_eq!(client.live("s"), deletion);
    }
    let notes = Filter::default().kinds([1]);
    assert_eq!(client.query(&[notes.clone()]), newest(30), "the cap is the limit of no limit");
    assert_eq!(client.query(&[notes.clone().limit(4_000)]), newest(30), "and of a larger one");
    let two = [notes.clone().limit(2), notes.until(start + 9).limit(3)];
    let expected: Vec<_> =
        newest(2).into_iter().chain(events[7..10].iter().rev().cloned()).collect();
    assert_eq!(client.query(&two), expected, "a limit is its own filter's");
}

fn ties_go_to_the_lowest_id(launch: Launch) {
    let server = launch.start();
    let at = now() - 10;
    let mut events: Vec<_> =
        (0..30).map(|n| Author::new(n).note(at + n % 2, &format!("tie {n}"))).collect();
    let mut publisher = server.connect();
    events.iter().for_each(|event| publisher.publish_ok(event));
    events.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut client = server.connect();
    for limit in 1..=30 {
        let expected = &events[..usize::try_from(limit).unwrap()];
        assert_eq!(client.query(&[Filter::default().limit(limit)]), expected, "limit {limit}");
        let kinds = Filter::default().kinds([1]).limit(limit);
        assert_eq!(client.query(&[kinds]), expected, "kind, limit {limit}");
    }
}

fn many_subscriptions_on_one_connection(launch: Launch) {
    let server = launch.set("limits.subscriptions_max", 40).start();
    let mut client = server.connect();
    let name = |n: u64| format!("subscription {n}");
    for n in 0..40 {
        client.req(&name(n), &[Filter::default().kinds([u16::try_from(n).unwrap()])]);
        assert_eq!(client.stored(&name(n)), []);
    }
    client.req("one too many", &[Filter::default()]);
    match client.next() {
        Answer::Closed { subscription, text } => {
            assert_eq!(subscription, "one too many");
            assert!(text.starts_with("rate-limited: ") || text.starts_with("error: "), "{text}");
        }
        other => panic!("{other:?}"),
    }
    client.req(&name(7), &[Filter::default().kinds([7]).limit(0)]);
    assert_eq!(client.stored(&name(7)), [], "replacing is not opening");
    client.unsubscribe(&name(0));
    client.req("one for one", &[Filter::default().kinds([41])]);
    assert_eq!(client.stored("one for one"), []);
    let mut publisher = server.connect();
    for (kind, subscription) in [(7, name(7)), (41, "one for one".into()), (39, name(39))] {
        let event = Draft::new(kind, now()).tag(["e", &"0".repeat(64)]).sign(&Author::new(1));
        publisher.publish_ok(&event);
        assert_eq!(client.live(&subscription), event);
    }
    client.nothing_else_but(&name(1));
}

impl Client {
    /// As `nothing_else`, on a connection that has no room for another subscription.
    fn nothing_else_but(&mut self, subscription: &str) {
        self.req(subscription, &[Filter::nothing()]);
        assert_eq!(self.next(), Answer::Eose { subscription: subscription.into() });
    }
}

fn ids_are_any_string(launch: Launch) {
    let server = launch.start();
    let mut client = server.connect();
    let names = [
        "a\"b",
        "\\",
        "\u{0}",
        "\n\r\t",
        "\u{1f600}\u{1f468}\u{200d}\u{1f469}",
        " ",
        "]",
        "\",{}]",
        "\u{7f}\u{2028}",
        "null",
    ];
    for name in names {
        client.req(name, &[Filter::default()]);
        assert_eq!(client.stored(name), []);
    }
    let event = Author::new(1).note(now(), "to all");
    server.connect().publish_ok(&event);
    for name in names {
        assert_eq!(client.live(name), event, "{name:?}");
        client.unsubscribe(name);
    }
    client.nothing_else();
    server.connect().publish_ok(&Author::new(1).note(now(), "to nobody"));
    client.nothing_else();
}

fn unknown_keys_are_not_sent_on(launch: Launch) {
    let server = launch.start();
    let event = Author::new(1).note(now(), "plain");
    let mut client = server.connect();
    client.req("s", &[Filter::default()]);
    assert_eq!(client.stored("s"), []);
    client.send(event.message().replace("}]", ",\"relays\":[\"x\"],\"seen\":{}}]"));
    assert!(client.wait_ok(&event.id).0);
    // `Answer::read` counts the keys.
    assert_eq!(client.live("s"), event);
    assert_eq!(client.query(&[Filter::default()]), [event]);
}

/// A publisher streams events while twenty clients open and reopen subscriptions at random moments:
/// each subscription that stays gets every event exactly once, stored ones newest first, live ones in
/// the order they were published.
fn nothing_is_lost_between_stored_and_live(launch: Launch) {
    const EVENTS: usize = 2_000;
    const CLIENTS: u64 = 20;
    let _alone = crate::support::alone();
    let server = launch.start();
    let author = Author::new(1);
    let start = now() - 10_000;
    let event = |n: usize| author.note(start + n as u64, &format!("event {n}"));
    let events: Vec<_> = (0..EVENTS).map(event).collect();
    let done = AtomicBool::new(false);
    let (server, done, events) = (&server, &done, &events[..]);
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let author = author.hex();
            scope.spawn(move || subscribe_at_random(server, number, &author, events, done));
        }
        let mut publisher = server.connect();
        for chunk in events.chunks(50) {
            publisher.send_all(chunk.iter().map(Event::message));
            for event in chunk {
                assert_eq!(publisher.wait_ok(&event.id), (true, String::new()));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn subscribe_at_random(
    server: &Server,
    number: u64,
    author: &str,
    events: &[Event],
    done: &AtomicBool,
) {
    let mut random = fastrand::Rng::with_seed(number);
    let mut client = server.connect();
    let filters = match number % 4 {
        0 => vec![Filter::default()],
        1 => vec![Filter::default().kinds([1]), Filter::default().authors([author.to_owned()])],
        2 => vec![Filter::default().authors([author.to_owned()])],
        _ => vec![Filter::default().kinds([1, 2])],
    };
    // Replace the subscription a few times, then stay.
    let mut replaced = random.usize(0..4);
    std::thread::sleep(std::time::Duration::from_millis(random.u64(0..600)));
    let mut sequence: Vec<Event> = Vec::new();
    let mut stored = None;
    client.req("s", &filters);
    let mut eoses_due = 1;
    while sequence.len() < events.len() || stored.is_none() || eoses_due > 0 {
        match client.next() {
            Answer::Event { event, .. } => sequence.push(event),
            Answer::Eose { .. } => {
                eoses_due -= 1;
                stored = Some(sequence.len());
            }
            other => panic!("client {number}: {other:?}"),
        }
        if replaced > 0 && stored.is_some() && !done.load(Ordering::Relaxed) && random.u8(..) < 4 {
            replaced -= 1;
            // What is on its way belongs to the old one, and ends with its EOSE if that is due.
            client.unsubscribe("s");
            client.req("mark", &[Filter::nothing()]);
            while client.next() != (Answer::Eose { subscription: "mark".into() }) {}
            client.unsubscribe("mark");
            (sequence, stored, eoses_due) = (Vec::new(), None, 1);
            client.req("s", &filters);
        }
    }
    client.nothing_else();
    let stored = stored.expect("EOSE came");
    let counts = sequence.iter().fold(HashMap::new(), |mut counts, event| {
        *counts.entry(&event.id).or_insert(0) += 1;
        counts
    });
    assert_eq!(counts.len(), events.len(), "client {number}: some are missing");
    assert!(counts.values().all(|count| *count == 1), "client {number}: some came twice");
    let mut expected: Vec<_> = events[..stored].iter().rev().cloned().collect();
    expected.extend_from_slice(&events[stored..]);
    let differs = sequence.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "client {number}: out of order, {stored} were stored");
}
