//! `--capture`: what was said is in the file, and goes through the pure core as it went through the relay.

#[path = "../../benches/support/core.rs"]
mod core;
#[path = "../../benches/support/replay.rs"]
mod replay;

use self::core::Core;
use crate::support::{Author, Event, Filter, Launch, now, wait_until};

#[test]
fn what_was_said_can_be_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.jsonl");
    let server = Launch::default().shards(2).counted().flag("--capture", &path).start();
    let author = Author::new(1);
    let mut listeners: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for listener in &mut listeners {
        listener.req("s", &[Filter::default().authors([author.hex()])]);
        assert_eq!(listener.stored("s"), []);
    }
    // A message has the time at which its shard's turn began: those of two turns at once have no order.
    wait_until("their turns to be over", || server.counts().get("received_messages") == 3);
    let mut publisher = server.connect();
    let notes: Vec<_> = (0..10).map(|n| author.note(now(), &format!("\"{n}\"\n"))).collect();
    for note in &notes {
        publisher.publish_ok(note);
        listeners.iter_mut().for_each(|listener| assert_eq!(listener.live("s"), *note));
    }
    publisher.send("not \"JSON\"");
    wait_until("all to be read", || server.counts().get("received_messages") == 14);
    assert!(server.stop().success());

    let text = std::fs::read_to_string(&path).unwrap();
    let (said, dropped) = replay::read(&text);
    assert_eq!((said.len(), dropped), (14, 0));
    let events: Vec<_> = said.iter().filter(|m| m.text.starts_with("[\"EVENT\"")).collect();
    assert!(events.iter().map(|m| m.text.clone()).eq(notes.iter().map(Event::message)));
    assert!(
        events.iter().all(|m| (m.shard, m.connection) == (events[0].shard, events[0].connection))
    );
    assert_eq!(said[13].text, "not \"JSON\"");

    let mut core = Core::verifying(true);
    let mut fed = 0;
    replay::feed(&mut core, &said, |_, work| {
        work();
        fed += 1;
    });
    let counters = core.counters();
    assert_eq!((fed, counters.messages_in, counters.messages_invalid), (14, 14, 1));
    assert_eq!((counters.events_stored, counters.delivered_live), (10, 30));
}
