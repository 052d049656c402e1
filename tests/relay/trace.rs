//! `--trace-ticks`: the rows of a run add up to what was done in it.

use std::path::Path;
use std::process::Command;

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
    assert_drawn(&path, &text);
    for line in text.lines().skip(1) {
        let times: Vec<u64> = line.split(',').take(2).map(|us| us.parse().unwrap()).collect();
        assert!(times[0] <= times[1], "{line}");
    }
}

/// `loadtest/ticks.py` draws a point a turn twice, and tells the same totals; a last row that is cut short is left out.
fn assert_drawn(path: &Path, text: &str) {
    let cut = text.rfind(',').expect("a row");
    for (text, turns) in
        [(text, text.lines().count() - 1), (&text[..cut], text.lines().count() - 2)]
    {
        let (trace, out) = (path.with_extension("drawn.csv"), path.with_extension("svg"));
        std::fs::write(&trace, text).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/loadtest/ticks.py");
        let drawn = Command::new("python3").arg(script).args([&trace, &out]).output().unwrap();
        assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
        let says = String::from_utf8(drawn.stdout).unwrap();
        assert!(says.starts_with(&format!("{turns} turns, ")), "{says}");
        if text.ends_with('\n') {
            for column in ["verified", "matched", "delivered_live", "frames_out"] {
                let told = says.lines().find(|line| line.trim().starts_with(column)).unwrap();
                let told = told.split_whitespace().nth(1).unwrap().replace(',', "");
                assert_eq!(told, sum(text, column).to_string(), "{says}");
            }
        }
        let svg = std::fs::read_to_string(&out).unwrap();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 2 * turns);
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
