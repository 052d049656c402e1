//! `--trace-ticks`: the rows of a run add up to what was done in it.

use std::path::Path;

use crate::support::{Author, Filter, Launch, now};

/// The sum of a column, over all rows.
fn sum(text: &str, column: &str) -> u64 {
    let mut lines = text.lines();
    let at = lines.next().and_then(|header| header.split(',').position(|name| name == column));
    let at = at.unwrap_or_else(|| panic!("no column {column} in {text:.300}"));
    lines.map(|line| line.split(',').nth(at).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn the_rows_add_up_to_what_was_done() {
    const EVENTS: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ticks.csv");
    let server = Launch::default().shards(2).flag("--trace-ticks", &path).start();
    let author = Author::new(1);
    let mut listeners: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for listener in &mut listeners {
        listener.req("s", &[Filter::default().authors([author.hex()])]);
        assert_eq!(listener.stored("s"), []);
    }
    let mut publisher = server.connect();
    for n in 0..EVENTS {
        let note = author.note(now(), &n.to_string());
        publisher.publish_ok(&note);
        listeners.iter_mut().for_each(|listener| assert_eq!(listener.live("s"), note));
    }
    let mut late = server.connect();
    assert_eq!(late.query(&[Filter::default().authors([author.hex()])]).len(), 20);
    assert!(server.stop().success());

    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(sum(&text, "dropped_rows"), 0);
    assert_eq!(sum(&text, "verified"), EVENTS);
    assert_eq!(sum(&text, "matched"), 4 * EVENTS);
    assert_eq!(sum(&text, "delivered_live"), 4 * EVENTS);
    assert_eq!(sum(&text, "delivered_stored"), EVENTS);
    // The last, a CLOSE, may not have been read.
    assert!((4 + EVENTS + 1..=4 + EVENTS + 2).contains(&sum(&text, "messages_in")));
    // Handshakes, EOSEs, OKs, events; and a close for each.
    let frames = 6 + 5 + EVENTS + 5 * EVENTS;
    assert!(
        (frames..=frames + 6).contains(&sum(&text, "frames_out")),
        "{}",
        sum(&text, "frames_out")
    );
    assert!(sum(&text, "from_bus") >= 2 * EVENTS, "each commit to each shard");
    assert!(sum(&text, "cpu_ns") > 0);
    for line in text.lines().skip(1) {
        let times: Vec<u64> = line.split(',').take(2).map(|us| us.parse().unwrap()).collect();
        assert!(times[0] <= times[1], "{line}");
    }
}

#[test]
fn a_file_that_cannot_be_had_is_a_clear_error() {
    let path = Path::new("/nonexistent/ticks.csv");
    let Err(error) = Launch::default().flag("--trace-ticks", path).try_start() else {
        panic!("it started");
    };
    assert_eq!(error.status.unwrap().code(), Some(1));
    assert!(error.stderr.contains("/nonexistent/ticks.csv"), "{}", error.stderr);
}
