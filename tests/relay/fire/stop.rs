//! A stop while every queue is full.

use std::time::Duration;

use rustix::process::Signal;

use super::subscribe;
use crate::support::listeners::Topic;
use crate::support::raw::{Raw, Seen};
use crate::support::{Answer, Author, Launch, PATIENCE, alone, now, wait_until};

on_every_backend!(a_stop_delivers_what_is_queued);

const READERS: u8 = 24;
const EVENTS: usize = 200;

/// Readers read nothing until the relay has been told to stop: events wait for each in the kernel, in its
/// outbox, and in its subscriptions. Each, at its own pace, still gets every event of both its
/// subscriptions in order, then a close with 1001. A client with unread answers gets those, and the relay
/// exits 0.
fn a_stop_delivers_what_is_queued(backend: &str) {
    let _alone = alone();
    let mut server = Launch::default()
        .shards(2)
        .backend(backend)
        .counted()
        .set("limits.live_queue_age_ms_max", 60_000)
        .set("limits.write_stall_ms_max", 60_000)
        .set("limits.drain_ms_max", 60_000)
        .start();
    let topic = Topic::sign("stop", EVENTS, 20_000);
    let readers: Vec<_> = (0..READERS)
        .map(|n| {
            let receive_bytes = if n % 2 == 0 { 64 << 10 } else { 1 << 20 };
            let mut raw = Raw::narrow(server.address(), 2 + n, receive_bytes);
            raw.upgrade();
            subscribe(&mut raw, &topic.req("a"));
            subscribe(&mut raw, &topic.req("b"));
            raw
        })
        .collect();
    let mut publisher = server.connect();
    topic.publish(&mut publisher);
    let matched = 2 * EVENTS as u64 * u64::from(READERS);
    wait_until("everything to be matched", || server.counts().get("live_matched") == matched);
    assert!(server.counts().waiting() > 0, "some wait behind the outboxes");
    let mut owed = Raw::open(server.address());
    let notes: Vec<_> = (0..50).map(|n| Author::new(2).note(now(), &format!("owed {n}"))).collect();
    notes.iter().for_each(|note| owed.text(&note.message()));
    wait_until("the last to be stored", || {
        server.counts().of("events", "stored") == (EVENTS + notes.len()) as u64
    });

    server.signal(Signal::TERM);
    assert_eq!(publisher.next(), Answer::Close(Some(1001)), "nothing is owed to the publisher");
    assert_eq!(publisher.next(), Answer::Gone);
    wait_until("the listeners to close", || {
        std::net::TcpStream::connect(server.address()).is_err()
    });
    for note in &notes {
        let Seen::Text(text) = owed.next() else { panic!("no OK for {}", note.id) };
        assert_eq!(text, format!(r#"["OK","{}",true,""]"#, note.id));
    }
    assert_eq!(owed.next(), Seen::Close(Some(1001)));
    drop(owed);
    std::thread::scope(|scope| {
        for (n, reader) in readers.into_iter().enumerate() {
            scope.spawn(move || read_to_the_end(reader, n));
        }
    });
    drop(publisher);
    let status = server.wait(PATIENCE).expect("it ends by itself");
    assert_eq!(status.code(), Some(0), "{}", server.stderr());
}

fn read_to_the_end(mut reader: Raw, number: usize) {
    let mut got = [0; 2];
    loop {
        match reader.next() {
            Seen::Text(text) => {
                let which = usize::from(text.starts_with("[\"EVENT\",\"b\""));
                assert_eq!(Topic::number(text.as_bytes()), got[which], "reader {number}");
                got[which] += 1;
                // Some take their time.
                if number.is_multiple_of(3) {
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
            Seen::Close(code) => break assert_eq!(code, Some(1001), "reader {number}"),
            other => panic!("reader {number} after {got:?} events: {other:?}"),
        }
    }
    assert_eq!(got, [EVENTS; 2], "reader {number}");
    assert_eq!(reader.next(), Seen::End);
}
