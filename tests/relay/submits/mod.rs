//! On the ring, one system call submits the writes of a tick, however many sockets they go to.

use std::path::Path;
use std::time::Duration;

use crate::support::listeners::Topic;
use crate::support::raw::{HANDSHAKE, Raw, Seen};
use crate::support::{Client, Launch, Server, alone, preloadable};

const EVENTS: usize = 15;
/// The publisher's bytes, the commit with every write, and what little may come between.
const CALLS_MAX: u64 = 6;
/// The publisher's socket is waited for again, and the shard may breathe; three writes and their breath would be
/// as many more.
const ENTRIES_OF_FEW_MAX: u64 = 3;

/// An event that 100 or 400 connections listen for is submitted to all of them at once; the publisher's
/// answer goes with it. What the relay calls for an event does not grow with the listeners.
#[test]
fn one_call_submits_the_writes_of_a_tick() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("counts");
    let library = preloadable("submits/count_submits.c", directory.path());
    let server = Launch::default()
        .backend("tokio-uring")
        .environment("LD_PRELOAD", library)
        .environment("COUNT_SUBMITS", &file)
        .start();
    let few = median_of_events(&server, &file, "few", 100);
    let many = median_of_events(&server, &file, "many", 400);
    eprintln!("calls and the largest of them: {few:?} for 100 listeners, {many:?} for 400");
    assert!(few.largest >= 100 && many.largest >= 400);
    assert!(few.calls <= CALLS_MAX && many.calls <= CALLS_MAX);
    assert!(many.entries < few.entries + 310, "an entry a listener, not two");
    let two = median_of_events(&server, &file, "two", 2);
    eprintln!("{two:?} for 2");
    assert!(two.entries <= ENTRIES_OF_FEW_MAX, "a few writes do without the ring");
    assert!(server.stop().success());
}

#[derive(Clone, Copy, Debug)]
struct Counts {
    calls: u64,
    entries: u64,
    largest: u64,
}

/// What one event to `listeners` takes, each number's median by itself.
fn median_of_events(server: &Server, file: &Path, name: &'static str, listeners: usize) -> Counts {
    let topic = Topic::sign(name, EVENTS, 0);
    let mut readers: Vec<_> = (0..listeners).map(|_| listen(server, &topic)).collect();
    let mut publisher: Client = server.connect();
    let mut all: Vec<Counts> = Vec::new();
    for n in 0..EVENTS {
        // The writers of the event before have ended.
        std::thread::sleep(Duration::from_millis(20));
        let before = read_and_set_back(file);
        topic.publish_one(&mut publisher, n);
        for reader in &mut readers {
            let Seen::Text(frame) = reader.next() else { panic!("no event") };
            assert_eq!(Topic::number(frame.as_bytes()), n);
        }
        let after = read_and_set_back(file);
        let (calls, entries) = (after.calls - before.calls, after.entries - before.entries);
        all.push(Counts { calls, entries, largest: after.largest });
    }
    let median = |of: fn(&Counts) -> u64| {
        let mut values: Vec<_> = all.iter().map(of).collect();
        values.sort_unstable();
        values[EVENTS / 2]
    };
    Counts {
        calls: median(|c| c.calls),
        entries: median(|c| c.entries),
        largest: median(|c| c.largest),
    }
}

fn listen(server: &Server, topic: &Topic) -> Raw {
    let mut raw = Raw::connect(server.address());
    raw.send(HANDSHAKE.as_bytes());
    raw.head();
    raw.text(&topic.req("s"));
    while !matches!(raw.next(), Seen::Text(text) if text.starts_with("[\"EOSE\"")) {}
    raw
}

/// What the shim has counted; the largest call is counted afresh.
fn read_and_set_back(file: &Path) -> Counts {
    let bytes = std::fs::read(file).expect("the shim's file");
    let number =
        |n: usize| u64::from_ne_bytes(bytes[8 * n..8 * n + 8].try_into().expect("8 bytes"));
    let counts = Counts { calls: number(0), entries: number(1), largest: number(2) };
    let open = std::fs::OpenOptions::new().write(true).open(file).expect("the shim's file");
    std::os::unix::fs::FileExt::write_all_at(&open, &[0; 8], 16).expect("the shim's file");
    counts
}
