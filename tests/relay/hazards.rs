//! What goes wrong around a relay: a client that floods, a kernel that refuses io_uring, signals, a
//! directory or a port that is taken.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Answer, Author, Client, Draft, Event, Filter, Launch};
use crate::support::{PATIENCE, alone, now};
use rustix::process::Signal;

on_every_backend!(a_flood_does_not_hold_up_the_others);

/// One client has 6,000 signatures checked on the one shard; meanwhile another's pings and queries are
/// answered many times over, each after a few signatures, and an event of its own is stored. The
/// signatures are wrong, so that no commit groups the answers.
fn a_flood_does_not_hold_up_the_others(backend: &str) {
    const EVENTS: usize = 6_000;
    /// Signatures that may be checked while one ping and one query are answered, in the median.
    const ROUND_MAX: usize = 60;
    let _alone = alone();
    let server =
        Launch::default().shards(1).backend(backend).set("limits.replies_max", EVENTS + 10).start();
    let author = Author::new(1);
    let wrong = author.note(now(), "another").sig;
    let forged = |n| Event { sig: wrong.clone(), ..author.note(now(), &format!("flood {n}")) };
    let events: Vec<_> = (0..EVENTS).map(forged).collect();
    let mut other = server.connect();
    let mut flood = server.connect();
    let count = AtomicUsize::new(0);
    let checked = &count;
    let mut rounds = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            flood.send_all(events.iter().map(Event::message));
            for event in &events {
                assert!(!flood.wait_ok(&event.id).0);
                checked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut rounds = Vec::new();
        let friend = Author::new(2);
        while checked.load(Ordering::Relaxed) == 0 {}
        while !sender.is_finished() {
            let before = checked.load(Ordering::Relaxed);
            other.ping(b"are you there");
            assert_eq!(other.next(), Answer::Pong(b"are you there".to_vec()));
            assert_eq!(other.query(&[Filter::default().authors([friend.hex()]).limit(0)]), []);
            rounds.push(checked.load(Ordering::Relaxed) - before);
            if rounds.len() == 3 {
                other.publish_ok(&friend.note(now(), "in the middle"));
                assert!(checked.load(Ordering::Relaxed) < EVENTS, "it waited for the whole flood");
            }
        }
        rounds
    });
    rounds.sort_unstable();
    let median = rounds[rounds.len() / 2];
    eprintln!("{backend}: {} rounds during the flood, {median} signatures each", rounds.len());
    assert!(median <= ROUND_MAX, "{rounds:?}");
}

#[test]
fn without_io_uring_it_runs_on_epoll() {
    let server = Launch::default().backend("auto").refuse_io_uring().start();
    assert_eq!(server.said("backend"), "epoll");
    server.connect().publish_ok(&Author::new(1).note(now(), "over epoll"));
    let log = server.stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("io_uring")).collect();
    assert_eq!(lines.len(), 1, "one line says so:\n{log}");
    assert!(lines[0].contains("epoll"), "{}", lines[0]);
    assert!(server.stop().success());
}

#[test]
fn with_io_uring_it_runs_on_it() {
    let server = Launch::default().backend("auto").start();
    assert_eq!(server.said("backend"), "tokio-uring");
    assert!(!server.stderr().contains("io_uring"), "nothing to say:\n{}", server.stderr());
}

#[test]
fn io_uring_asked_for_and_refused_is_an_error() {
    let backends: &[&str] = match cfg!(feature = "glommio") {
        true => &["tokio-uring", "glommio"],
        false => &["tokio-uring"],
    };
    for backend in backends {
        let error = Launch::default().backend(backend).refuse_io_uring().try_start().unwrap_err();
        assert!(error.status.is_some_and(|status| status.code().is_some_and(|code| code != 0)));
        assert!(error.stderr.contains("io_uring") && error.stderr.contains("epoll"), "{error:?}");
        assert!(!error.stderr.contains("panicked"), "{error:?}");
        assert_eq!(error.stdout, "");
    }
}

#[cfg(not(feature = "glommio"))]
#[test]
fn a_backend_that_is_not_built_in_is_an_error() {
    let error = Launch::default().backend("glommio").try_start().unwrap_err();
    assert!(error.status.is_some_and(|status| status.code().is_some_and(|code| code != 0)));
    assert!(error.stderr.contains("--features glommio"), "{error:?}");
    assert_eq!(error.stdout, "");
}

/// Events that were sent before the signal are answered, and stored if the answer says so.
#[test]
fn a_stop_answers_what_was_sent() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut server = Launch::default().shards(2).data(&data).start();
    let author = Author::new(1);
    let events: Vec<_> = (0..300).map(|n| author.note(now(), &format!("event {n}"))).collect();
    let mut client = server.connect();
    client.send_all(events.iter().map(Event::message));
    client.wait_ok(&events[0].id);
    server.signal(Signal::TERM);
    let mut taken = vec![events[0].id.clone()];
    loop {
        match client.next() {
            Answer::Ok { id, accepted: true, .. } => taken.push(id),
            Answer::Close(code) => break assert_eq!(code, Some(1001)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.wait(PATIENCE).expect("it ends").code(), Some(0));
    let server = Launch::default().data(&data).start();
    let mut client = server.connect();
    let found: Vec<_> =
        client.query(&[Filter::default()]).into_iter().map(|event| event.id).collect();
    let missing: Vec<_> = taken.iter().filter(|id| !found.contains(id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing", missing.len(), taken.len());
}

/// A shard without connections has nothing to wait for when the relay stops, but another one's question
/// to it may be on its way: whether anybody hears an ephemeral event.
#[test]
fn a_stop_answers_what_one_shard_asks_another() {
    const EVENTS: usize = 300;
    let _alone = alone();
    let author = Author::new(1);
    for round in 0..3 {
        let mut server = Launch::default()
            .shards(2)
            .set("limits.drain_ms_max", 2 * PATIENCE.as_millis())
            .start();
        let event = |n: usize| Draft::new(20_001, now()).content(format!("{round} {n}"));
        let events: Vec<_> = (0..EVENTS).map(|n| event(n).sign(&author)).collect();
        let mut client = server.connect();
        client.send_all(events.iter().map(Event::message));
        assert_eq!(client.next(), mute(&events[0]));
        server.signal(Signal::TERM);
        // What comes after the signal may not be read.
        let mut unanswered = events[1..].iter();
        let code = loop {
            match client.next() {
                Answer::Close(code) => break code,
                answer => assert_eq!(Some(answer), unanswered.next().map(mute)),
            }
        };
        assert_eq!(code, Some(1001));
        drop(client);
        assert_eq!(server.wait(PATIENCE).expect("it ends").code(), Some(0));
    }
}

fn mute(event: &Event) -> Answer {
    let text = "mute: nobody was listening".into();
    Answer::Ok { id: event.id.clone(), accepted: false, text }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Launch::default()
        .set("limits.drain_ms_max", 60_000)
        .set("limits.write_stall_ms_max", 60_000)
        .set("limits.live_queue_age_ms_max", 60_000)
        .start();
    // Someone who never reads, and to whom much is owed.
    let mut deaf = server.connect();
    deaf.req("s", &[Filter::default()]);
    assert_eq!(deaf.stored("s"), []);
    let mut publisher = server.connect();
    for n in 0..200 {
        let draft = Draft::new(1, now()).content(format!("{n} {}", "x".repeat(60_000)));
        publisher.publish_ok(&draft.sign(&Author::new(1)));
    }
    server.signal(Signal::TERM);
    assert_eq!(publisher.next(), Answer::Close(Some(1001)));
    std::thread::sleep(Duration::from_millis(500));
    assert!(server.is_alive(), "it waits for the one who does not read");
    let from = Instant::now();
    server.signal(Signal::INT);
    assert!(server.wait(Duration::from_secs(5)).is_some(), "{}", server.stderr());
    assert!(from.elapsed() < Duration::from_secs(5));
}

#[test]
fn two_relays_on_one_directory_are_refused() {
    let first = Launch::default().start();
    let error = Launch::default().data(&first.data).try_start().unwrap_err();
    assert!(error.status.is_some_and(|status| !status.success()), "{error:?}");
    let directory = first.data.to_str().expect("UTF-8");
    assert!(error.stderr.contains(directory), "it names the directory: {error:?}");
    assert_eq!(error.stdout, "");
    first.connect().publish_ok(&Author::new(1).note(now(), "the first goes on"));
}

#[test]
fn a_port_in_use_is_refused() {
    let first = Launch::default().start();
    let address = first.address();
    let error = Launch::default().listen(address).try_start().unwrap_err();
    assert!(error.status.is_some_and(|status| !status.success()), "{error:?}");
    assert!(error.stderr.contains(&address.to_string()), "it names the address: {error:?}");
    assert_eq!(error.stdout, "");
    let mut client: Client = first.connect();
    client.nothing_else();
}
