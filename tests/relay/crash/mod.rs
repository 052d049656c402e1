//! kill -9 in the middle of ingest: every event that got `OK true` is there after a restart, and every
//! index agrees with every event.
//!
//! Twice over: as the kernel leaves the files, and as a power cut would. kill -9 keeps the page cache and
//! proves nothing about syncing; so the relay runs on `lose_unsynced.c`, a disk that forgets what was
//! not synced when its process ends. That the shim can lose anything is shown by a disk that lies.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::raw::{Frame, Raw, Seen, opcode};
use crate::support::server::rheostr;
use crate::support::{Answer, Author, Draft, Event, Filter, Launch, Server};
use crate::support::{alone, long, now, preloadable};

/// Kills in an ordinary run, and in `tests/run --long`.
const ROUNDS: u64 = 15;
const ROUNDS_LONG: u64 = 200;
/// Connections that publish at once, and the events of each that wait for an OK.
const PUBLISHERS: u64 = 2;
const IN_FLIGHT: usize = 40;
/// Events one connection sends at most in a round.
const EVENTS_MAX: u64 = 300;

#[test]
fn kill_in_the_middle_of_ingest() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut promised = Promised::default();
    for round in 0..rounds() {
        let launch = Launch::default().shards(2).data(&data);
        let server = start(launch);
        promised.are_served(&server, round);
        ingest_and_kill(server, round, &mut promised);
        check(&data, round);
    }
    assert_eq!(promised.missing(&data), [""; 0]);
    promised.report("kill -9");
}

#[test]
fn kill_with_unsynced_writes_lost() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(directory.path());
    let mut promised = Promised::default();
    for round in 0..rounds() {
        // Syncs that take a while, so that an OK before its sync would be caught out.
        let launch = disk.launch(&[("LOSE_UNSYNCED_DELAY_US", 1_000 * (round % 8))]);
        let server = start(launch);
        promised.are_served(&server, round);
        ingest_and_kill(server, round, &mut promised);
        disk.cut_power();
        check(&disk.data, round);
        assert_eq!(promised.missing(&disk.data), [""; 0], "round {round}");
    }
    promised.report("kill -9 with unsynced writes lost");
}

/// The control: on a disk that reports success and keeps nothing, events are lost, and the test sees it.
#[test]
fn a_disk_that_lies_is_caught() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(directory.path());
    let mut promised = Promised::default();
    for round in 0..10 {
        let launch = disk.launch(&[("LOSE_UNSYNCED_LIE_AFTER", 6)]);
        ingest_and_kill(start(launch), round, &mut promised);
        disk.cut_power();
        if !promised.missing(&disk.data).is_empty() {
            return;
        }
    }
    panic!("nothing was lost: the shim does not work, or does not see the store's writes");
}

fn rounds() -> u64 {
    if long() { ROUNDS_LONG } else { ROUNDS }
}

/// The shim, compiled, with the files it works on.
struct Disk {
    data: PathBuf,
    shadow: PathBuf,
    library: PathBuf,
}

impl Disk {
    fn new(directory: &Path) -> Self {
        let library = preloadable("crash/lose_unsynced.c", directory);
        Self { data: directory.join("data"), shadow: directory.join("shadow"), library }
    }

    fn launch(&self, settings: &[(&str, u64)]) -> Launch {
        let launch = Launch::default()
            .shards(2)
            .data(&self.data)
            .environment("LD_PRELOAD", &self.library)
            .environment("LOSE_UNSYNCED_SHADOW", &self.shadow);
        settings
            .iter()
            .fold(launch, |launch, (name, value)| launch.environment(name, value.to_string()))
    }

    /// The file becomes what was synced of it. The shadow stays: the next relay goes on with it.
    fn cut_power(&self) {
        let file = self.data.join("data.mdb");
        let lost = std::fs::metadata(&file).expect("the store").len();
        let kept = std::fs::metadata(&self.shadow).expect("the shim saw the store").len();
        assert!(kept > 0 && kept <= lost, "{kept} of {lost} bytes were synced");
        std::fs::copy(&self.shadow, &file).expect("a copy");
    }
}

/// What the relay said it has.
#[derive(Default)]
struct Promised {
    /// Ids of regular events with `OK true`.
    regular: HashSet<String>,
    /// Newest replaceable version with `OK true`, by author.
    replaceable: HashMap<String, u64>,
    /// Sent and never answered, because the relay was killed first.
    unanswered: usize,
}

impl Promised {
    fn note(&mut self, event: &Event) {
        if event.kind == 0 {
            let newest = self.replaceable.entry(event.pubkey.clone()).or_default();
            *newest = event.created_at.max(*newest);
        } else {
            self.regular.insert(event.id.clone());
        }
    }

    /// What is not there, read from the store without a relay.
    fn missing(&self, data: &Path) -> Vec<String> {
        let output = rheostr(["export"], data);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let mut ids = HashSet::new();
        let mut newest: HashMap<String, u64> = HashMap::new();
        for line in text.lines() {
            let event: Event = serde_json::from_str(line).expect("an event a line");
            if event.kind == 0 {
                assert_eq!(newest.insert(event.pubkey, event.created_at), None, "two versions");
            }
            ids.insert(event.id);
        }
        let lost = self.regular.iter().filter(|id| !ids.contains(*id)).cloned();
        let stale = self.replaceable.iter().filter(|(author, at)| newest.get(*author) < Some(*at));
        lost.chain(stale.map(|(author, at)| format!("profile of {author} at {at}"))).collect()
    }

    /// A sample of it is served by a relay.
    fn are_served(&self, server: &Server, round: u64) {
        let mut ids: Vec<_> = self.regular.iter().map(String::as_str).collect();
        ids.sort_unstable();
        fastrand::Rng::with_seed(round).shuffle(&mut ids);
        ids.truncate(100);
        let found = server.connect().query(&[Filter::default().ids(ids.iter().copied())]);
        assert_eq!(found.len(), ids.len(), "round {round}: some are not served");
    }

    fn report(&self, what: &str) {
        let (kept, unanswered) = (self.regular.len(), self.unanswered);
        eprintln!("{what}: {} rounds, {kept} promises kept, {unanswered} unanswered", rounds());
        assert!(kept > 100, "too few events to mean anything: {kept}");
        assert!(unanswered > 0, "never killed in the middle");
    }
}

fn start(launch: Launch) -> Server {
    launch.set("limits.created_at_ahead_s_max", 0).start()
}

/// Publishes, and kills the relay after a random time.
fn ingest_and_kill(mut server: Server, round: u64, promised: &mut Promised) {
    let connections: Vec<_> = (0..PUBLISHERS).map(|_| Raw::open(server.address())).collect();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..)
            .zip(connections)
            .map(|(number, raw)| scope.spawn(move || publish_until_gone(raw, round, number)))
            .collect();
        let wait = fastrand::Rng::with_seed(round).u64(20..250);
        std::thread::sleep(Duration::from_millis(wait));
        server.kill();
        publishers.into_iter().map(|publisher| publisher.join().expect("no panic")).collect()
    });
    for (accepted, unanswered) in outcomes {
        accepted.iter().for_each(|event| promised.note(event));
        promised.unanswered += unanswered;
    }
}

/// Streams events until the connection ends; those with `OK true`, and how many were not answered.
fn publish_until_gone(mut raw: Raw, round: u64, number: u64) -> (Vec<Event>, usize) {
    let author = Author::new(number);
    let mut waiting: HashMap<String, Event> = HashMap::new();
    let mut accepted = Vec::new();
    let mut sent = 0;
    loop {
        while waiting.len() < IN_FLIGHT && sent < EVENTS_MAX {
            let at = now() + round * EVENTS_MAX + sent;
            let kind = u16::from(sent % 10 != 9);
            let content = format!("round {round}, {number}, {sent}: {}", "x".repeat(200));
            let draft = Draft::new(kind, at).content(content).tag(["t", &(sent % 7).to_string()]);
            let event = draft.sign(&author);
            raw.send(&Frame::new(opcode::TEXT, event.message()).bytes());
            waiting.insert(event.id.clone(), event);
            sent += 1;
        }
        // Also after the kill: an OK that was on its way was promised.
        let Seen::Text(text) = raw.next() else { return (accepted, waiting.len()) };
        let Answer::Ok { id, accepted: taken, text } = Answer::read(&text) else { continue };
        let event = waiting.remove(&id).expect("an OK for each event");
        assert!(taken, "{text}");
        accepted.push(event);
        if waiting.is_empty() && sent == EVENTS_MAX {
            // Nothing left to send; wait for the end.
            assert_eq!(raw.next(), Seen::End);
            return (accepted, 0);
        }
    }
}

fn check(data: &Path, round: u64) {
    let output = rheostr(["check"], data);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "round {round}: {text}{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
