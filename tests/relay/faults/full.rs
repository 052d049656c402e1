//! A full disk and a full map.

use std::path::PathBuf;
use std::process::Command;

use super::{holds, nth, publish, serves};
use crate::support::{Author, Client, Event, Launch, Server, long, wait_until};

/// Content of an event that is to fill something.
const EVENT_BYTES: usize = 60_000;
/// Events refused one after the other: said once in the log, each answered.
const REFUSED: u64 = 20;

/// A small file system of its own, gone with the value.
struct Disk(PathBuf);

impl Disk {
    /// `None`, said aloud, where this process may not mount.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&at);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        eprintln!("SKIPPED: a full disk: this process may not mount a tmpfs");
        None
    }

    /// A file that takes what is free but for `left_bytes`.
    fn fill(&self, left_bytes: u64) -> PathBuf {
        let free = rustix::fs::statvfs(&self.0).expect("it is mounted");
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(left_bytes);
        let path = self.0.join("filler");
        std::fs::write(&path, vec![1; usize::try_from(bytes).expect("8 MB")]).expect("room");
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_events_serves_queries_and_recovers_by_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(disk) = Disk::mount(directory.path().join("disk")) else { return };
    let data = disk.0.join("data");
    let mut promised = Vec::new();
    let launch = || Launch::default().data(&data).counted();
    let mut server = launch().start();
    let author = Author::new(1);
    for round in 0..if long() { 20 } else { 3 } {
        let filler = disk.fill(1 << 20);
        let mut client = server.connect();
        let why = fill(&mut client, &author, round, &mut promised);
        assert_eq!(why, "error: the event could not be stored: the disk is full");
        refuses(&server, &mut client, &author, round, &promised, "the disk is full");
        std::fs::remove_file(filler).expect("it is there");
        let event = nth(&author, 1_000 * round + 999, 100);
        assert_eq!(publish(&mut client, &event), Ok(()), "the next event after there is room");
        promised.push(event);
        assert!(server.ask_admin("/ready").starts_with("HTTP/1.1 200 "));
        server.kill();
        holds(&data, &promised);
        server = launch().start();
        // Room for the next round: the events alone would fill the disk by and by.
        let delete = ["delete", "--filter", "{\"kinds\":[1]}"];
        assert!(crate::support::server::rheostr(delete, &data).status.success());
        promised.clear();
    }
    // Ready again without any event, and a start on a full disk.
    let filler = disk.fill(100 << 10);
    let mut client = server.connect();
    fill(&mut client, &author, 100, &mut promised);
    server.kill();
    let server = launch().start();
    let mut client = server.connect();
    assert!(publish(&mut client, &nth(&author, 1, EVENT_BYTES)).is_err());
    assert!(promised.iter().all(|event| serves(&mut client, event)));
    std::fs::remove_file(filler).expect("it is there");
    wait_until("ready again", || server.ask_admin("/ready").starts_with("HTTP/1.1 200 "));
    assert!(server.stop().success());
    holds(&data, &promised);
}

#[test]
fn a_full_map_refuses_events_serves_queries_and_can_be_emptied_or_grown() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let launch = |map_bytes_max: u64| {
        let launch = Launch::default().data(&data).counted();
        launch.set("store.batch_bytes_max", 1 << 20).set("store.map_bytes_max", map_bytes_max)
    };
    let server = launch(16 << 20).start();
    let author = Author::new(1);
    let (mut client, mut promised) = (server.connect(), Vec::new());
    let why = fill(&mut client, &author, 0, &mut promised);
    assert_eq!(why, "error: the event could not be stored: the store is full");
    refuses(&server, &mut client, &author, 0, &promised, "the store is full");

    // Through the running relay.
    let filter = format!("{{\"ids\":[\"{}\"]}}", ids(&promised.split_off(10)).join("\",\""));
    let deleted = crate::support::server::rheostr(["delete", "--filter", &filter], &data);
    assert!(deleted.status.success(), "{deleted:?}");
    fill(&mut client, &author, 1, &mut promised);
    assert!(promised.len() > 20, "what was erased made room: {}", promised.len());
    assert!(server.stop().success());

    let server = launch(64 << 20).start();
    let mut client = server.connect();
    let event = nth(&author, 7_777, EVENT_BYTES);
    assert_eq!(publish(&mut client, &event), Ok(()));
    promised.push(event);
    assert!(server.stop().success());
    holds(&data, &promised);
}

/// Publishes until an event is refused; why it was.
fn fill(client: &mut Client, author: &Author, round: u64, promised: &mut Vec<Event>) -> String {
    for number in 0..400 {
        let event = nth(author, 1_000 * round + number, EVENT_BYTES);
        match publish(client, &event) {
            Ok(()) => promised.push(event),
            Err(why) => return why,
        }
    }
    panic!("24 MB found room");
}

/// What holds while events find no room.
fn refuses(
    server: &Server,
    client: &mut Client,
    author: &Author,
    round: u64,
    promised: &[Event],
    why: &str,
) {
    for number in 0..REFUSED {
        let event = nth(author, 1_000 * round + 500 + number, EVENT_BYTES);
        assert_eq!(
            publish(client, &event),
            Err(format!("error: the event could not be stored: {why}"))
        );
    }
    assert!(promised.iter().all(|event| serves(client, event)), "queries go on");
    let ready = server.ask_admin("/ready");
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.contains(why), "{ready}");
    let counts = server.counts();
    assert_eq!(counts.get("store_failing"), 1);
    assert!(counts.get("commit_failures") > REFUSED);
    let said = server.stderr().matches("commits fail").count() as u64;
    assert_eq!(said, 1, "said once, whatever is refused:\n{}", server.stderr());
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| &*event.id).collect()
}
