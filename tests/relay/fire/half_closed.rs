//! Clients that shut their writing side after their last message, and read on.

use std::net::Shutdown;

use crate::support::raw::{Raw, Seen};
use crate::support::{Author, Draft, Filter, Launch, alone, client, now, wait_until};

on_every_backend!(who_only_reads_on_gets_what_was_asked_for);

const EVENTS: usize = 120;

/// A REQ for more than the kernel and the outbox hold, an EVENT, and the end of what the client sends: it
/// gets all that is stored, EOSE, OK and a close, and nothing that is published later. One that does not
/// read is let go after `limits.drain_ms_max`.
fn who_only_reads_on_gets_what_was_asked_for(backend: &str) {
    let _alone = alone();
    let server = Launch::default()
        .shards(1)
        .backend(backend)
        .counted()
        .set("limits.drain_ms_max", 60_000)
        .start();
    let (author, filler) = (Author::new(1), "x".repeat(20_000));
    let mut publisher = server.connect();
    for n in 0..EVENTS {
        let draft = Draft::new(1, now() - 1_000 + n as u64).content(format!("{n} {filler}"));
        publisher.publish_ok(&draft.sign(&author));
    }
    let request = client::req("all", &[Filter::default().authors([author.hex()])]);
    let mut reader = Raw::narrow(server.address(), 2, 64 << 10);
    reader.upgrade();
    let last = Author::new(2).note(now(), "last word");
    reader.text(&request);
    reader.text(&last.message());
    reader.stream.shutdown(Shutdown::Write).expect("it is connected");
    wait_until("its event to be stored", || {
        server.counts().of("events", "stored") == EVENTS as u64 + 1
    });
    wait_until("its subscription to be matched no more", || {
        server.counts().get("index_filters") == 0
    });
    publisher.publish_ok(&author.note(now(), "later"));
    let (mut events, mut oks, mut eose) = (0, 0, 0);
    let end = loop {
        match reader.next() {
            Seen::Text(text) if text.starts_with("[\"EVENT\",\"all\",") => {
                let expected = format!("\"content\":\"{} x", EVENTS - 1 - events);
                assert!(text.contains(&expected), "{events} events, then {text:.300}");
                events += 1;
            }
            Seen::Text(text) if text == r#"["EOSE","all"]"# => eose += 1,
            Seen::Text(text) => {
                assert_eq!(text, format!(r#"["OK","{}",true,""]"#, last.id));
                oks += 1;
            }
            end => break end,
        }
    };
    assert_eq!((events, eose, oks, end), (EVENTS, 1, 1, Seen::Close(None)));
    assert_eq!(reader.next(), Seen::End);
    wait_until("it to be gone", || server.counts().get("connections") == 1);
    assert_eq!(server.conserved().get("live_matched"), 0);
    drop(publisher);
    assert!(server.stop().success());

    let server =
        Launch::default().backend(backend).counted().set("limits.drain_ms_max", 300).start();
    let mut publisher = server.connect();
    for n in 0..EVENTS {
        publisher.publish_ok(&author.note(now(), &format!("{n} {filler}")));
    }
    let mut deaf = Raw::narrow(server.address(), 2, 64 << 10);
    deaf.upgrade();
    deaf.text(&request);
    deaf.stream.shutdown(Shutdown::Write).expect("it is connected");
    wait_until("it to be let go", || server.counts().of("connections_closed", "timeout") == 1);
    wait_until("its query to end", || server.counts().of("queue_depth", "scans") == 0);
    publisher.nothing_else();
    assert!(server.stop().success());
}
