//! What the kinds mean: replaceable, addressable, ephemeral (NIP-01), deletion (NIP-09), expiration
//! (NIP-40), vanishing (NIP-62).

use std::time::Duration;

use crate::nip01::on_one_and_two_shards;
use crate::support::raw::{Raw, Seen};
use crate::support::{Author, Client, Draft, Event, Filter, Launch, client, now, wait_until};

on_one_and_two_shards!(
    the_newest_replaceable_is_kept,
    an_address_is_kind_author_and_d,
    on_a_tie_the_lowest_id_is_kept,
    ephemeral_events_reach_every_shard,
    a_deletion_takes_what_it_names,
    a_deletion_of_an_address_takes_older_versions,
    a_deletion_that_comes_first_counts,
    only_the_author_deletes,
    what_has_expired_is_not_served,
    who_vanishes_is_gone,
    control_characters_come_back,
);

fn refused(client: &mut Client, event: &Event, prefix: &str) {
    let (accepted, text) = client.publish(event);
    assert!(!accepted && text.starts_with(&format!("{prefix}: ")), "{accepted} {text}");
}

fn the_newest_replaceable_is_kept(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let (mut client, mut watcher) = (server.connect(), server.connect());
    watcher.req("live", &[Filter::default()]);
    assert_eq!(watcher.stored("live"), []);
    for kind in [0, 3, 10_000, 19_999] {
        let version = |at| Draft::new(kind, at).content(format!("version {at}")).sign(&author);
        let at = now() - 100;
        client.publish_ok(&version(at));
        client.publish_ok(&version(at + 2));
        refused(&mut client, &version(at + 1), "duplicate");
        refused(&mut client, &version(at), "duplicate");
        let filter = Filter::default().kinds([kind]);
        assert_eq!(client.query(&[filter.clone()]), [version(at + 2)]);
        let old = version(at);
        let by_id = Filter::default().ids([&*old.id]);
        assert_eq!(client.query(&[by_id]), [], "an old version is gone by its id too");
        assert_eq!(watcher.live("live"), version(at));
        assert_eq!(watcher.live("live"), version(at + 2));
        watcher.nothing_else();
        let other = Draft::new(kind, at).sign(&Author::new(2));
        client.publish_ok(&other);
        assert_eq!(watcher.live("live"), other);
        assert_eq!(client.query(&[filter]).len(), 2);
    }
    for kind in [1, 2, 4, 9_999, 40_000, 65_535] {
        let at = now();
        let event = |n: u64| Draft::new(kind, at - n).sign(&author);
        (0..3).for_each(|n| client.publish_ok(&event(n)));
        assert_eq!(client.query(&[Filter::default().kinds([kind])]).len(), 3, "kind {kind}");
    }
}

fn an_address_is_kind_author_and_d(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let mut client = server.connect();
    let at = now() - 100;
    let version = |d: &str, at: u64| Draft::new(30_023, at).tag(["d", d]).sign(&author);
    for d in
        ["", "a", "A", "a:b", "\u{1f600}", &*"f".repeat(64), &*"F".repeat(64), &*"x".repeat(300)]
    {
        client.publish_ok(&version(d, at));
        client.publish_ok(&version(d, at + 2));
        refused(&mut client, &version(d, at + 1), "duplicate");
        let found = client.query(&[Filter::default().kinds([30_023]).tag('d', [d])]);
        assert_eq!(found, [version(d, at + 2)], "{d:?}");
    }
    let none = Draft::new(30_023, at + 3).tag(["t", "x"]).sign(&author);
    client.publish_ok(&none);
    assert_eq!(client.query(&[Filter::default().kinds([30_023]).tag('d', [""])]), []);
    let bare = Draft::new(30_023, at + 4).tag(["d"]).sign(&author);
    client.publish_ok(&bare);
    let all = client.query(&[Filter::default().kinds([30_023])]);
    assert_eq!(all.len(), 8, "no d tag, and one without a value, are the empty d");
    let second = Draft::new(30_023, at + 9).tag(["t", "x"]).tag(["d", "late"]).tag(["d", "a"]);
    client.publish_ok(&second.sign(&author));
    assert_eq!(client.query(&[Filter::default().kinds([30_023])]).len(), 9, "the first d counts");
    let other_kind = Draft::new(39_999, at).tag(["d", "a"]).sign(&author);
    client.publish_ok(&other_kind);
    let other_author = Draft::new(30_023, at).tag(["d", "a"]).sign(&Author::new(2));
    client.publish_ok(&other_author);
}

fn on_a_tie_the_lowest_id_is_kept(launch: Launch) {
    let server = launch.start();
    let mut client = server.connect();
    for (kind, number) in [(0, 1), (0, 2), (30_000, 3), (10_002, 4)] {
        let at = now();
        let version =
            |n: u64| Draft::new(kind, at).content(n.to_string()).sign(&Author::new(number));
        let mut versions: Vec<_> = (0..8).map(version).collect();
        let lowest = versions.iter().min_by_key(|event| event.id.clone()).unwrap().clone();
        fastrand::Rng::with_seed(number).shuffle(&mut versions);
        let mut best: Option<Event> = None;
        for event in versions {
            if best.as_ref().is_none_or(|best| event.id < best.id) {
                client.publish_ok(&event);
                best = Some(event);
            } else {
                refused(&mut client, &event, "duplicate");
            }
        }
        let filter = Filter::default().kinds([kind]).authors([Author::new(number).hex()]);
        assert_eq!(client.query(&[filter]), [lowest]);
    }
}

fn ephemeral_events_reach_every_shard(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let event = |n: u64| Draft::new(20_001, now()).content(n.to_string()).sign(&author);
    let mut publisher = server.connect();
    refused(&mut publisher, &event(0), "mute");
    // One listener, on each connection in turn: whatever its shard, it is heard of.
    for n in 1..12 {
        let mut listener = server.connect();
        listener.req("s", &[Filter::default().kinds([20_001])]);
        assert_eq!(listener.stored("s"), []);
        let event = event(n);
        publisher.publish_ok(&event);
        assert_eq!(listener.live("s"), event);
        listener.unsubscribe("s");
        listener.nothing_else();
        let unheard = Draft::new(20_001, now()).content(format!("unheard {n}")).sign(&author);
        refused(&mut publisher, &unheard, "mute");
    }
    let mut listeners: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for listener in &mut listeners {
        listener.req("s", &[Filter::default().kinds([29_999])]);
        assert_eq!(listener.stored("s"), []);
    }
    let events: Vec<_> = (0..50)
        .map(|n| Draft::new(29_999, now()).content(format!("number {n}")).sign(&author))
        .collect();
    publisher.send_all(events.iter().map(Event::message));
    for event in &events {
        assert_eq!(publisher.wait_ok(&event.id), (true, String::new()));
    }
    for listener in &mut listeners {
        for event in &events {
            assert_eq!(listener.live("s"), *event, "in the publisher's order");
        }
        assert_eq!(listener.query(&[Filter::default().kinds([20_001, 29_999])]), [], "not stored");
    }
    let expired = Draft::new(20_001, now()).tag(["expiration", "5"]).sign(&author);
    refused(&mut publisher, &expired, "invalid");
}

fn a_deletion_takes_what_it_names(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let (mut client, mut watcher) = (server.connect(), server.connect());
    watcher.req("live", &[Filter::default().kinds([5])]);
    assert_eq!(watcher.stored("live"), []);
    let notes: Vec<_> = (0..4).map(|n| author.note(now() - n, &format!("note {n}"))).collect();
    notes.iter().for_each(|note| client.publish_ok(note));
    let request = Draft::new(5, now())
        .tag(["e", &notes[0].id])
        .tag(["e", &notes[1].id])
        .tag(["e", "nonsense"]);
    let request = request.tag(["k", "1"]).content("mistakes").sign(&author);
    client.publish_ok(&request);
    assert_eq!(watcher.live("live"), request, "a deletion is an event as any other");
    assert_eq!(client.query(&[Filter::default().kinds([1])]), notes[2..]);
    let named = Filter::default().ids(notes.iter().map(|note| &*note.id));
    assert_eq!(client.query(&[named]), notes[2..]);
    assert_eq!(client.query(&[Filter::default().kinds([5])]), std::slice::from_ref(&request));
    refused(&mut client, &notes[0], "blocked");
    let (accepted, text) = client.publish(&request);
    assert!(accepted && text.starts_with("duplicate: "));
    let undo = Draft::new(5, now()).tag(["e", &request.id]).sign(&author);
    client.publish_ok(&undo);
    assert_eq!(client.query(&[Filter::default().kinds([5])]).len(), 2);
    refused(&mut client, &notes[1], "blocked");
}

fn a_deletion_of_an_address_takes_older_versions(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let mut client = server.connect();
    let at = now() - 100;
    let article = |at: u64, d: &str| Draft::new(30_023, at).tag(["d", d]).sign(&author);
    let profile = |at: u64| Draft::new(0, at).content("{}").sign(&author);
    client.publish_ok(&article(at, "a:b"));
    client.publish_ok(&article(at, "other"));
    client.publish_ok(&profile(at));
    let request = Draft::new(5, at + 10)
        .tag(["a", &format!("30023:{}:a:b", author.hex())])
        .tag(["a", &format!("0:{}:", author.hex())])
        .sign(&author);
    client.publish_ok(&request);
    let left = client.query(&[Filter::default().kinds([0, 30_023])]);
    assert_eq!(left, [article(at, "other")]);
    refused(&mut client, &article(at + 5, "a:b"), "blocked");
    refused(&mut client, &article(at + 10, "a:b"), "blocked");
    refused(&mut client, &profile(at + 9), "blocked");
    client.publish_ok(&article(at + 11, "a:b"));
    client.publish_ok(&profile(at + 11));
    assert_eq!(client.query(&[Filter::default().kinds([0, 30_023])]).len(), 3);
}

fn a_deletion_that_comes_first_counts(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let mut client = server.connect();
    let note = author.note(now() - 5, "not seen yet");
    client.publish_ok(&Draft::new(5, now() - 50).tag(["e", &note.id]).sign(&author));
    refused(&mut client, &note, "blocked");
    let address = format!("30023:{}:x", author.hex());
    client.publish_ok(&Draft::new(5, now()).tag(["a", &address]).sign(&author));
    let article = Draft::new(30_023, now() - 5).tag(["d", "x"]).sign(&author);
    refused(&mut client, &article, "blocked");
    assert_eq!(client.query(&[Filter::default().kinds([1, 30_023])]), []);
}

fn only_the_author_deletes(launch: Launch) {
    let server = launch.start();
    let (author, stranger) = (Author::new(1), Author::new(2));
    let mut client = server.connect();
    let note = author.note(now(), "mine");
    let article = Draft::new(30_023, now()).tag(["d", "x"]).sign(&author);
    let early = author.note(now(), "mine too, later");
    client.publish_ok(&note);
    client.publish_ok(&article);
    let request = Draft::new(5, now() + 5).tag(["e", &note.id]).tag(["e", &early.id]);
    let request = request.tag(["a", &format!("30023:{}:x", author.hex())]);
    client.publish_ok(&request.sign(&stranger));
    client.publish_ok(&early);
    assert_eq!(client.query(&[Filter::default().authors([author.hex()])]).len(), 3);
    assert!(client.publish(&note).1.starts_with("duplicate: "));
}

fn what_has_expired_is_not_served(launch: Launch) {
    let server = launch.start();
    let author = Author::new(1);
    let mut client = server.connect();
    let expiring =
        |at: u64| Draft::new(1, now()).tag(["expiration", &at.to_string()]).content(at.to_string());
    refused(&mut client, &expiring(now()).sign(&author), "invalid");
    refused(&mut client, &expiring(1).sign(&author), "invalid");
    let soon = expiring(now() + 3).sign(&author);
    let later = expiring(now() + 3_000).sign(&author);
    client.publish_ok(&soon);
    client.publish_ok(&later);
    let mut found = client.query(&[Filter::default()]);
    found.sort_by_key(|event| event.content.len());
    assert_eq!(found.len(), 2);
    wait_until("the event to expire", || {
        std::thread::sleep(Duration::from_millis(100));
        client.query(&[Filter::default()]) == std::slice::from_ref(&later)
    });
    assert!(now() >= soon.tag("expiration").unwrap().parse().unwrap(), "served until then");
    assert_eq!(client.query(&[Filter::default().ids([&*soon.id])]), []);
    refused(&mut client, &soon, "invalid");
}

/// What the kernel has been given is sent; the rest of what waits is not, and nothing else is lost.
#[test]
fn what_expires_behind_a_slow_reader_is_not_sent() {
    let server = Launch::default().counted().set("limits.send_buffer_bytes_max", 4_096).start();
    let (author, mut publisher) = (Author::new(1), server.connect());
    let (begun, content) = (now(), "x".repeat(20_000));
    let at = begun + 3;
    // More than a batch takes, and few enough to be at hand at once.
    for n in 0..12 {
        let event =
            Draft::new(1, now() - n).tag(["expiration", &at.to_string()]).content(&*content);
        publisher.publish_ok(&event.sign(&author));
    }
    let mut reader = Raw::narrow(server.address(), 1, 4_096);
    reader.upgrade();
    reader.text(&client::req("s", &[Filter::default()]));
    wait_until("all to be queued", || server.counts().of("delivered", "stored") == 12);
    wait_until("all to expire", || {
        std::thread::sleep(Duration::from_millis(50));
        now() > at
    });
    let mut got = 0;
    while let Seen::Text(text) = reader.next() {
        if text == r#"["EOSE","s"]"# {
            break;
        }
        assert!(text.starts_with(r#"["EVENT","s","#), "{}", &text[..30]);
        got += 1;
    }
    assert!(got < 12, "the batch is what was on its way");
    wait_until("the rest to be counted", || server.counts().of("drops", "expired") == 12 - got);
}

fn who_vanishes_is_gone(launch: Launch) {
    let server = launch.start();
    let (author, friend) = (Author::new(1), Author::new(2));
    let mut client = server.connect();
    let at = now() - 100;
    let before: Vec<_> = (0..5).map(|n| author.note(at - n, &format!("note {n}"))).collect();
    before.iter().for_each(|note| client.publish_ok(note));
    client.publish_ok(&Draft::new(5, at - 6).tag(["e", &"0".repeat(64)]).sign(&author));
    let wrap = Draft::new(1059, at - 1).tag(["p", &author.hex()]).sign(&friend);
    let kept = Draft::new(1, at - 1).tag(["p", &author.hex()]).sign(&friend);
    let after = author.note(at + 1, "after");
    for event in [&wrap, &kept, &after] {
        client.publish_ok(event);
    }
    let elsewhere = Draft::new(62, at).tag(["relay", "wss://elsewhere.example/"]).sign(&author);
    client.publish_ok(&elsewhere);
    assert!(client.publish(&before[0]).1.starts_with("duplicate: "), "another relay's");
    let request = Draft::new(62, at).tag(["relay", "ALL_RELAYS"]).sign(&author);
    client.publish_ok(&request);
    let own = Filter::default().authors([author.hex()]).kinds([1, 5]);
    assert_eq!(client.query(&[own.clone()]), std::slice::from_ref(&after));
    assert_eq!(client.query(&[Filter::default().authors([friend.hex()])]), [kept]);
    refused(&mut client, &before[0], "blocked");
    refused(&mut client, &wrap, "blocked");
    let again = author.note(now(), "back again");
    client.publish_ok(&again);
    assert_eq!(client.query(&[own]), [again, after]);
}

fn control_characters_come_back(launch: Launch) {
    use crate::support::event::Controls;
    let server = launch.start();
    let mut client = server.connect();
    client.req("live", &[Filter::default()]);
    assert_eq!(client.stored("live"), []);
    let all: String =
        (0..0x20_u8).map(char::from).chain("\u{7f}\u{80}\u{2028}\\/\"".chars()).collect();
    for (n, controls) in [(1, Controls::Verbatim), (2, Controls::Escaped)] {
        let event = Draft::new(1, now())
            .content(all.clone())
            .tag(["t", &all, &all])
            .sign_over(&Author::new(n), controls);
        client.publish_ok(&event);
        assert_eq!(client.live("live"), event);
        let by_tag = Filter::default().tag('t', [&*all]).authors([Author::new(n).hex()]);
        assert_eq!(client.query(&[by_tag]), [event]);
    }
}
