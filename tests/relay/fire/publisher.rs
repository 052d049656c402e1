//! Publishers that send more than the relay takes at the moment, or do not read their answers.

use std::collections::HashSet;

use crate::support::raw::{Frame, Raw, Seen, opcode};
use crate::support::{Author, Counts, Draft, Event, Launch, Server, alone, now, wait_until};

on_every_backend!(who_does_not_read_answers_is_not_read);
on_every_backend!(who_sends_more_than_can_be_verified_is_not_read);

/// Answers a connection may have outstanding.
const REPLIES_MAX: usize = 64;

/// A client sends tens of thousands of events and reads no answer: the relay soon reads no more of them,
/// serves others, and once the answers are read goes on until every event has one, exactly one.
fn who_does_not_read_answers_is_not_read(backend: &str) {
    const EVENTS: usize = 30_000;
    let _alone = alone();
    let server = launch(backend, &[("limits.replies_max", REPLIES_MAX)]);
    let (mut sender, mut receiver) = halves(&server);
    // From a year that the relay refuses: each costs it a parse and an answer, nothing else.
    let author = Author::new(1);
    let event = author.note(now() + 1_000_000_000, "from the future");
    let events: Vec<_> = (0..EVENTS).map(|n| unsigned(&event, n)).collect();
    let bytes = frames(&events);
    let mut wanted: HashSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(wanted.len(), EVENTS);
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(&bytes));
        wait_until("the relay to pause", || server.counts().get("reads_paused") > 0);
        let taken = settled(&server, |counts| counts.get("received_messages"));
        assert!(taken < EVENTS as u64 / 2, "{taken} were read without an answer being taken");
        let mut other = server.connect();
        other.publish_ok(&author.note(now(), "another client is served"));
        assert_eq!(server.counts().of("events", "blocked"), taken, "all that was read is answered");
        for _ in 0..EVENTS {
            let Seen::Text(text) = receiver.next() else { panic!("{} to come", wanted.len()) };
            let (id, rest) = text.strip_prefix("[\"OK\",\"").expect("an OK").split_at(64);
            assert!(wanted.remove(id), "answered twice: {id}");
            assert!(rest.starts_with("\",false,\"invalid: "), "{text}");
        }
    });
    let end = Frame::new(opcode::PING, "end").bytes();
    receiver.send(&end);
    assert_eq!(receiver.next(), Seen::Pong(b"end".into()), "nothing else was answered");
}

/// A client sends several megabytes of events at once: more than the relay keeps unverified for one
/// connection, and more than its writer takes at a time. Its socket is left alone meanwhile; every event is
/// stored and answered once.
fn who_sends_more_than_can_be_verified_is_not_read(backend: &str) {
    const EVENTS: usize = 1_000;
    const UNVERIFIED_BYTES_MAX: usize = 1 << 20;
    const CONTENT_BYTES: usize = 10_000;
    let _alone = alone();
    let server = launch(backend, &[("store.batch_events_max", 1)]);
    let (mut sender, mut receiver) = halves(&server);
    let author = Author::new(1);
    let event = |n: usize| {
        let content = format!("{n} {}", "x".repeat(CONTENT_BYTES));
        Draft::new(1, now()).content(content).sign(&author)
    };
    let events: Vec<Event> = (0..EVENTS).map(event).collect();
    let mut wanted: HashSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    let bytes = frames(&events);
    let mut most = 0;
    std::thread::scope(|scope| {
        scope.spawn(move || sender.send(&bytes));
        while !wanted.is_empty() {
            let Seen::Text(text) = receiver.next() else { panic!("{} to come", wanted.len()) };
            let (id, rest) = text.strip_prefix("[\"OK\",\"").expect("an OK").split_at(64);
            assert!(wanted.remove(id), "answered twice, or never sent: {id}");
            assert_eq!(rest, "\",true,\"\"]");
            if wanted.len().is_multiple_of(20) {
                most = most.max(server.counts().of("queue_depth", "verify"));
            }
        }
    });
    let counts = server.counts();
    eprintln!("{backend}: read {} times; {most} unverified at most", counts.get("reads_paused"));
    assert!(counts.get("reads_paused") > 0);
    assert!(most <= (UNVERIFIED_BYTES_MAX / CONTENT_BYTES + 1) as u64, "{most} waited");
    assert_eq!(counts.get("store_events"), EVENTS as u64);
    assert!(server.stop().success());
}

fn launch(backend: &str, set: &[(&str, usize)]) -> Server {
    let launch = Launch::default().backend(backend).counted();
    set.iter().fold(launch, |launch, (key, value)| launch.set(key, value)).start()
}

/// All of them, ready to be sent at once.
fn frames(events: &[Event]) -> Vec<u8> {
    events.iter().flat_map(|event| Frame::new(opcode::TEXT, event.message()).bytes()).collect()
}

/// One connection for two threads: who sends, and who receives.
fn halves(server: &Server) -> (Raw, Raw) {
    let mut raw = Raw::narrow(server.address(), 2, 16 << 10);
    raw.upgrade();
    let sender = raw.twin();
    (sender, raw)
}

/// The event with another content and id; its signature is wrong.
fn unsigned(event: &Event, n: usize) -> Event {
    let draft = Draft::new(event.kind, event.created_at).content(n.to_string());
    draft.unsigned(&event.pubkey)
}

/// A count, once it has stood still for a while.
fn settled(server: &Server, count: impl Fn(&Counts) -> u64) -> u64 {
    let mut last = count(&server.counts());
    loop {
        std::thread::sleep(std::time::Duration::from_millis(700));
        let now = count(&server.counts());
        if now == last {
            return now;
        }
        last = now;
    }
}
