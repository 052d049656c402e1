//! Crashes in the middle of ingest: every event that got `OK true` is there after a restart unless another
//! one takes it away, nothing is there that was deleted, and every index agrees with every event.
//!
//! kill -9 at random points, twice over: as the kernel leaves the files, and as a power cut would. kill -9
//! keeps the page cache and proves nothing about syncing; so the relay runs on `lose_unsynced.c`, a disk that
//! forgets what was not synced when its process ends. That the shim can lose anything is shown by a disk that
//! lies. The data directory lives on from kill to kill. In [`boundaries`] power fails between any two
//! operations on the disk.
//!
//! In every other round the relay keeps replaced versions: what is archived goes with its keys, and `check`
//! compares it, too.
//!
//! `RHEOSTR_CRASH_SEED` chooses another history, `RHEOSTR_CRASH_ROUNDS` how long it is.

mod boundaries;
mod disk;
mod mixed;
mod promises;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use crate::support::raw::{Frame, Raw, Seen, opcode};
use crate::support::server::rheostr;
use crate::support::{Answer, Event, Filter, Launch, Server, alone, long, now};
use disk::Disk;
use mixed::Mix;
use promises::Promises;

/// Kills in an ordinary run, and in `tests/run --long`.
const ROUNDS: u64 = 15;
const ROUNDS_LONG: u64 = 200;
/// Connections that publish at once, and the events of each that wait for an OK.
const PUBLISHERS: u64 = 2;
const IN_FLIGHT: usize = 40;
/// Events one connection sends at most in a round.
const EVENTS_MAX: usize = 300;
/// Rounds after which the keys vanish and others go on: erasing is under way when a kill comes, and the
/// store does not grow with the number of rounds.
const GENERATION: u64 = 4;

#[test]
fn kill_in_the_middle_of_ingest() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut history = History::new(seed());
    for round in 0..rounds() {
        history.go_on(Launch::default().data(&data), round);
        assert_eq!(history.look(&data, round), [""; 0], "round {round}");
    }
    history.report("kill -9");
}

#[test]
fn kill_with_unsynced_writes_lost() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(directory.path());
    let mut history = History::new(seed() + 1_000_000);
    for round in 0..rounds() {
        // Syncs that take a while, so that an OK before its sync would be caught out.
        let delay_us = (1_000 * (round % 8)).to_string();
        history.go_on(disk.launch(&[("LOSE_UNSYNCED_DELAY_US", delay_us)]), round);
        disk.cut_power();
        assert_eq!(history.look(&disk.data, round), [""; 0], "round {round}");
    }
    history.report("kill -9 with unsynced writes lost");
}

/// The control: on a disk that reports success and keeps nothing, events are lost, and the test sees it.
#[test]
fn a_disk_that_lies_is_caught() {
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::new(directory.path());
    let mut history = History::new(seed());
    for round in 0..10 {
        history.go_on(disk.launch(&[("LOSE_UNSYNCED_LIE_AFTER", "6".into())]), round);
        disk.cut_power();
        if !history.look(&disk.data, round).is_empty() {
            return;
        }
    }
    panic!("nothing was lost: the shim does not work, or does not see the store's writes");
}

fn rounds() -> u64 {
    number("RHEOSTR_CRASH_ROUNDS").unwrap_or(if long() { ROUNDS_LONG } else { ROUNDS })
}

fn seed() -> u64 {
    number("RHEOSTR_CRASH_SEED").unwrap_or(1)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// What goes on from kill to kill.
struct History {
    seed: u64,
    rng: fastrand::Rng,
    mixes: Vec<Mix>,
    promises: Promises,
    /// Rounds after which something was archived.
    archives: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        let mixes = (0..PUBLISHERS).map(|number| Mix::new(mix_seed(seed, 0, number))).collect();
        let rng = fastrand::Rng::with_seed(seed);
        Self { seed, rng, mixes, promises: Promises::default(), archives: 0 }
    }

    /// Starts a relay, looks whether it serves what it promised, publishes, and kills it after a random time.
    fn go_on(&mut self, launch: Launch, round: u64) {
        let keeps = !round.is_multiple_of(2);
        let mut server = launch.set("store.keep_replaced", keeps).shards(2).start();
        self.is_served(&server);
        if round > 0 && round.is_multiple_of(GENERATION) {
            let mixes = (0..).zip(self.mixes.drain(..));
            let next =
                |(number, mix): (u64, Mix)| mix.succeeded_by(mix_seed(self.seed, round, number));
            self.mixes = mixes.map(next).collect();
        }
        let wait = Duration::from_millis(self.rng.u64(20..250));
        let streams: Vec<_> = std::thread::scope(|scope| {
            let publishers: Vec<_> = self
                .mixes
                .iter_mut()
                .map(|mix| (mix, Raw::open(server.address())))
                .map(|(mix, raw)| scope.spawn(move || publish_until_gone(raw, mix)))
                .collect();
            std::thread::sleep(wait);
            server.kill();
            publishers.into_iter().map(|publisher| publisher.join().expect("no panic")).collect()
        });
        for (sent, answers) in streams {
            sent.iter().for_each(|event| self.promises.sent(event));
            answers.iter().for_each(|(id, accepted, text)| {
                self.promises.answered(id, *accepted, text);
            });
        }
    }

    /// A sample of what must be served is.
    fn is_served(&mut self, server: &Server) {
        let mut ids = self.promises.kept(now() + 60);
        ids.sort_unstable();
        self.rng.shuffle(&mut ids);
        ids.truncate(100);
        let found = server.connect().query(&[Filter::default().ids(ids.iter().copied())]);
        let missing = ids.iter().filter(|id| found.iter().all(|event| event.id != **id));
        let missing: Vec<_> = missing.map(|id| self.promises.of(id)).collect();
        assert!(missing.is_empty(), "not served: {missing:#?}");
    }

    /// What is wrong with the store that the kill left.
    fn look(&mut self, data: &Path, round: u64) -> Vec<String> {
        let checked = rheostr(["check"], data);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&checked.stdout), text(&checked.stderr));
        assert!(checked.status.success(), "round {round}: {err}{out}");
        self.archives += u64::from(!out.contains(" 0 replaced versions"));
        let from = now();
        let found = exported(data);
        let broken = self.promises.broken(&found, from, now());
        self.promises.settle(&found, now());
        if round % GENERATION == GENERATION - 1 {
            self.promises.forget_the_vanished();
        }
        broken
    }

    fn report(&self, what: &str) {
        let Promises { accepted, refused, never_answered, .. } = self.promises;
        eprintln!(
            "{what}, seed {}: {} rounds, {accepted} events accepted, {refused} refused, {never_answered} never \
             answered",
            self.seed,
            rounds()
        );
        assert!(accepted > 100 && refused > 0, "too few events to mean anything");
        assert!(never_answered > 0, "never killed in the middle");
        assert!(self.archives > 0, "nothing was archived");
    }
}

/// No two mixes of all tests have a key in common.
fn mix_seed(seed: u64, round: u64, number: u64) -> u64 {
    (seed * 10_000 + round) * PUBLISHERS + number
}

/// What was sent, and each OK: of which event, whether taken, and its text.
type Stream = (Vec<Event>, Vec<(String, bool, String)>);

/// Streams events until the connection ends.
fn publish_until_gone(mut raw: Raw, mix: &mut Mix) -> Stream {
    let (mut sent, mut answers) = (Vec::new(), Vec::new());
    loop {
        while sent.len() - answers.len() < IN_FLIGHT && sent.len() < EVENTS_MAX {
            let event = mix.draw();
            raw.send(&Frame::new(opcode::TEXT, event.message()).bytes());
            sent.push(event);
        }
        // Also after the kill: an OK that was on its way was promised.
        match raw.next() {
            Seen::Text(text) => {
                if let Answer::Ok { id, accepted, text } = Answer::read(&text) {
                    answers.push((id, accepted, text));
                }
            }
            _ => return (sent, answers),
        }
    }
}

/// The ids in the store, read without a relay.
fn exported(data: &Path) -> HashSet<String> {
    let output = rheostr(["export"], data);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).expect("an event"));
    events.map(|event| event.id).collect()
}
