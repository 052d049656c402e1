//! A query for everything there is.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::subscribe;
use crate::support::raw::{Raw, Seen};
use crate::support::server::PROGRAM;
use crate::support::{Author, Draft, Filter, Launch, Server, alone, client, long, now, wait_until};

on_every_backend!(a_query_for_everything_waits_for_its_reader);
on_every_backend!(a_hundred_queries_of_one_reader_take_their_turns);

/// Readers that do not read at first: more than there are threads that read the store.
const READERS: u8 = 12;
/// What the relay holds for one of them: a batch, an outbox, and the slice behind it.
const USER_BYTES_MAX: usize = (128 << 10) + (1 << 20) + (256 << 10);

/// A dozen clients ask for all of a hundred thousand stored events and do not read. The relay holds a
/// bounded amount of memory for them and no thread, uses no time, and answers others; when one goes on it
/// gets everything, newest first, once.
fn a_query_for_everything_waits_for_its_reader(backend: &str) {
    let events: usize = if long() { 1_000_000 } else { 100_000 };
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let (newest, ids) = import(&data, events, "one of very many events");
    let server = Launch::default()
        .backend(backend)
        .data(&data)
        .counted()
        .set("limits.filter_limit_max", events)
        .set("limits.write_stall_ms_max", 600_000)
        .start();
    let few = Filter::default().limit(500);
    for _ in 0..10 {
        // What reading allocates once is allocated.
        assert_eq!(server.connect().query(&[few.clone()]).len(), 500);
    }
    let before = server.memory_bytes();
    let everything = client::req("all", &[Filter::default().limit(events as u64)]);
    let mut readers: Vec<_> = (0..READERS)
        .map(|n| {
            let mut raw = Raw::narrow(server.address(), 2 + n, 16 << 10);
            raw.upgrade();
            raw.text(&everything);
            raw
        })
        .collect();
    let delivered = settled(&server);
    let grown = server.memory_bytes().saturating_sub(before);
    eprintln!(
        "{backend}: {} KiB a reader, {delivered} events",
        (grown / usize::from(READERS)) >> 10
    );
    assert!(delivered < u64::from(READERS) * 2_000, "{delivered} events for those who do not read");
    assert!(grown <= usize::from(READERS) * USER_BYTES_MAX, "{grown} bytes");
    let counts = server.counts();
    assert_eq!(counts.of("queue_depth", "scans"), u64::from(READERS), "none has ended");
    assert_eq!(counts.get("scan_queue"), 0, "none waits for a thread");
    let ticks = server.processor_ticks();
    std::thread::sleep(Duration::from_secs(1));
    let ticks = server.processor_ticks() - ticks;
    assert!(ticks <= 10, "{ticks} hundredths of a second for nothing");
    // The threads are free.
    let mut other = server.connect();
    assert_eq!(other.query(&[few]).len(), 500);

    let reader = &mut readers[0];
    for n in 0..events {
        let Seen::Text(text) = reader.next() else { panic!("event {n} is missing") };
        let created_at = format!("\"created_at\":{},", newest - n as u64);
        assert!(text.contains(&created_at), "event {n}: {text:.300}");
        assert!(text.contains(&ids[events - 1 - n]), "event {n}: {text:.300}");
    }
    assert_eq!(reader.next(), Seen::Text(r#"["EOSE","all"]"#.into()));
    drop(readers);
    wait_until("the queries to end with their readers", || {
        let counts = server.counts();
        counts.of("queue_depth", "scans") == 0 && counts.get("subscriptions") == 0
    });
    let mut again = Raw::open(server.address());
    subscribe(&mut again, &client::req("again", &[Filter::nothing()]));
}

/// One client asks a hundred times for more than it reads. Of its queries a few are under way, each with a
/// slice; when it reads, each is answered in full.
fn a_hundred_queries_of_one_reader_take_their_turns(backend: &str) {
    const QUERIES: usize = 100;
    const EVENTS: usize = 300;
    /// With all of them under way it would be 25 MB, and with a few up to four times what their slices hold.
    const SLICES_BYTES_MAX: usize = 4 * 8 * (256 << 10);
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    import(&data, EVENTS, &"x".repeat(1_000));
    let server = Launch::default().backend(backend).data(&data).counted().start();
    let everything = Filter::default().limit(EVENTS as u64);
    // What reading allocates once is allocated.
    (0..10).for_each(|_| assert_eq!(server.connect().query(&[everything.clone()]).len(), EVENTS));
    let before = server.memory_bytes();
    let mut reader = Raw::narrow(server.address(), 2, 16 << 10);
    reader.upgrade();
    for n in 0..QUERIES {
        reader.text(&client::req(&n.to_string(), &[everything.clone()]));
    }
    settled(&server);
    let grown = server.memory_bytes().saturating_sub(before);
    eprintln!("{backend}: {} KiB", grown >> 10);
    assert!(grown <= USER_BYTES_MAX + SLICES_BYTES_MAX, "{grown} bytes");
    let waiting = server.counts().of("queue_depth", "scans");
    assert!(waiting > QUERIES as u64 - 8, "{waiting} of {QUERIES} are not done");
    let (mut got, mut done) = (vec![0; QUERIES], 0);
    while done < QUERIES {
        let Seen::Text(text) = reader.next() else { panic!("{got:?}") };
        let name = text.split('"').nth(3).expect("a subscription");
        let name: usize = name.parse().expect("a number");
        if text.starts_with("[\"EOSE\"") {
            assert_eq!(got[name], EVENTS, "query {name}");
            done += 1;
        } else {
            got[name] += 1;
        }
    }
    wait_until("all to be done", || server.counts().of("queue_depth", "scans") == 0);
    assert!(server.stop().success());
}

/// Stores this many events of one author, a second apart; the newest one's time, and the ids from the
/// oldest on. Their signatures are wrong, which `--no-verify` takes.
fn import(data: &std::path::Path, events: usize, content: &str) -> (u64, Vec<String>) {
    let mut child = Command::new(PROGRAM)
        .args(["import", "-", "--no-verify", "--data"])
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary was built");
    let mut stdin = std::io::BufWriter::new(child.stdin.take().expect("it is piped"));
    let (author, newest) = (Author::new(1).hex(), now() - 60);
    let ids = (0..events).map(|n| {
        let at = newest - (events - 1 - n) as u64;
        let event = Draft::new(1, at).content(content).unsigned(&author);
        writeln!(stdin, "{}", event.json()).expect("import reads all");
        event.id
    });
    let ids = ids.collect();
    drop(stdin);
    assert!(child.wait().expect("it was started").success());
    (newest, ids)
}

/// Stored events put into outboxes, once that stands still.
fn settled(server: &Server) -> u64 {
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_millis(700));
        let now = server.counts().of("delivered", "stored");
        if now == last {
            return now;
        }
        last = now;
    }
}
