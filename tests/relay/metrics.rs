//! A scrape of a relay that serves: every family an operator looks for is there, and moves with what
//! happens.

use crate::support::raw::{Raw, Seen};
use crate::support::{Author, Client, Counts, Draft, Filter, Launch, Server, now, wait_until};

/// What is counted a few times a second, once `done`.
fn settled(server: &Server, what: &str, done: impl Fn(&Counts) -> bool) -> Counts {
    wait_until(what, || done(&server.counts()));
    server.counts()
}

#[test]
fn every_family_moves_with_the_traffic() {
    let server = Launch::default()
        .shards(2)
        .counted()
        .set("limits.outbox_messages_max", 2)
        .set("limits.live_queue_events_max", 2)
        .set("limits.send_buffer_bytes_max", 4_096)
        .start();
    let before = server.counts();
    for (name, label) in [
        ("events", "stored"),
        ("drops", "abandoned"),
        ("drops", "purged"),
        ("drops", "expired"),
        ("drops", "pong"),
        ("slow_client_closed", ""),
        ("req_eose_seconds_count", ""),
        ("fanout_latency_seconds_count", "commit"),
        ("fanout_latency_seconds_count", "enqueue"),
        ("fanout_latency_seconds_count", "sent"),
        ("commit_seconds_count", ""),
    ] {
        assert_eq!(before.of(name, label), 0, "{name} {label}");
    }
    for queue in ["verify", "store", "scans", "outbox", "replies", "live", "bus"] {
        assert_eq!(before.of("queue_depth", queue), 0, "{queue}");
    }
    assert!(server.scrape().lines().any(|line| line.starts_with("build_info{version=\"")));
    assert!(server.scrape().lines().any(|line| line.starts_with("relay_tuning_info{batch_")));
    for path in ["/health", "/ready"] {
        assert!(server.ask_admin(path).starts_with("HTTP/1.1 200 OK"), "{path}");
    }

    // Six listeners stand on both shards; each hears the one event that is stored.
    let author = Author::new(1);
    let mut listeners: Vec<Client> = (0..6).map(|_| server.connect()).collect();
    for (n, listener) in (0..).zip(&mut listeners) {
        let mut filters = vec![Filter::default().authors([author.hex()])];
        // The store is asked by one of them; for the others all that is stored is at hand.
        filters.extend((n == 0).then(|| Filter::default().ids([&*"0".repeat(64)])));
        listener.req("s", &filters);
        assert_eq!(listener.stored("s"), []);
    }
    let note = author.note(now(), "heard");
    let mut publisher = server.connect();
    publisher.publish_ok(&note);
    assert!(publisher.publish(&note).0, "a duplicate");
    assert!(!publisher.publish(&Draft::new(1, now()).content("x").unsigned(&author.hex())).0);
    assert!(!publisher.publish(&Draft::new(20_000, now()).sign(&Author::new(2))).0, "mute");
    let mut wrong = author.note(now(), "malformed");
    wrong.content.push_str(" since");
    assert!(!publisher.publish(&wrong).0, "its id is not its hash");
    listeners.iter_mut().for_each(|listener| assert_eq!(listener.live("s"), note));
    let counts = settled(&server, "what was sent", |counts| {
        counts.of("fanout_latency_seconds_count", "sent") >= 6 + 6 + 5
            && counts.of("events", "mute") == 1
            && counts.delivered() == 6
            && counts.get("connections") == 7
    });
    let events = ["stored", "duplicate", "bad_signature", "mute", "malformed"];
    assert_eq!(events.map(|reason| counts.of("events", reason)), [1; 5]);
    assert_eq!((counts.get("req_eose_seconds_count"), counts.get("scans_recalled")), (6, 5));
    assert_eq!(counts.get("recent_events"), 2, "the one that is stored, on each shard");
    assert!(counts.get("recent_bytes") > 2 * 64);
    assert_eq!(counts.of("fanout_latency_seconds_count", "commit"), 1, "of the one that is stored");
    assert_eq!(counts.of("fanout_latency_seconds_count", "enqueue"), 2, "on each shard");
    assert!(counts.get("commit_seconds_count") >= 1);
    assert_eq!(counts.get("slow_client_closed"), 0);
    // Each stage took some of the time that passed, and not more.
    let times = server.scrape();
    for name in [
        "relay_req_eose_seconds_sum",
        "relay_fanout_latency_seconds_sum{stage=\"commit\"}",
        "relay_fanout_latency_seconds_sum{stage=\"sent\"}",
    ] {
        let line = times.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        let seconds: f64 = line.trim().parse().expect("a number");
        // A backend whose writes are done at once sends in the turn that enqueues.
        let took = seconds > 0. || name.contains("sent");
        assert!(took && seconds < 60., "{name} {seconds}");
    }

    // One that does not read is told so, and what waited for it is counted.
    let mut deaf = Raw::narrow(server.address(), 9, 2_304);
    deaf.upgrade();
    deaf.text(&crate::support::client::req("d", &[Filter::default().kinds([7])]));
    assert_eq!(deaf.next(), Seen::Text(r#"["EOSE","d"]"#.into()));
    for n in 0..40 {
        let content = "x".repeat(20_000);
        publisher.publish_ok(&Draft::new(7, now() + n).content(content).sign(&author));
        listeners.iter_mut().for_each(|listener| drop(listener.live("s")));
    }
    let counts = settled(&server, "the slow one to be ended", |counts| {
        counts.get("slow_client_closed") == 1
    });
    assert_eq!(counts.of("subscriptions_ended", "slow_consumer"), 1);
    assert!(counts.of("drops", "abandoned") > 0 && counts.of("drops", "purged") > 0);
    assert!(counts.of("queue_depth", "outbox") > 0, "its CLOSED waits");
}
