//! Power fails between any two operations on the disk.
//!
//! A relay commits a few hundred times on the disk that logs what is done to it; the log is replayed, and at
//! every operation in it the file is made as the crash may have left it:
//!
//! - `Dropped`: nothing that was not synced is there.
//! - `Kept`: all that was written is there, synced or not, as after kill -9.
//! - `Torn`: of what was not synced a random part is there, sector by sector.
//!
//! Each such file is opened, as a relay would; every index must agree with every event, and what was
//! answered before that operation must be in it.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use rheostr::store::{ExportRange, Options, Store};

use super::disk::{Disk, Operation, read_log};
use super::mixed::Mix;
use super::promises::Promises;
use super::seed;
use crate::support::raw::{Frame, Raw, Seen, opcode};
use crate::support::{Answer, Event, alone, long, now};

/// Commits, at least, in an ordinary run and in `tests/run --long`.
const COMMITS: usize = 16;
const COMMITS_LONG: usize = 200;
/// Events sent together, at most.
const BURST_MAX: usize = 8;
/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Events sent together, and how they were answered.
struct Burst {
    sent: Vec<Event>,
    answers: Vec<(String, bool, String)>,
    /// Length of the log when it was sent, and when what was answered must last.
    sent_at: u64,
    lasts_at: u64,
}

#[test]
fn power_fails_at_every_operation_of_many_commits() {
    let _alone = alone();
    look_behind_every_operation("commit");
}

/// With `store.durability = "interval"` the last commit may be lost, and nothing else.
#[test]
fn power_fails_at_every_operation_where_the_last_commit_may_be_lost() {
    let _alone = alone();
    look_behind_every_operation("interval");
}

fn look_behind_every_operation(durability: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let (log, ready, bursts) = record(directory.path(), durability);
    let operations = read_log(&log);
    let before = operations.partition_point(|(_, end)| *end <= ready);
    let is_sync = |(what, _): &&(Operation, u64)| matches!(what, Operation::Sync);
    let syncs = operations[before..].iter().filter(is_sync).count();
    let mut crash = Crash::new();
    let mut promises = Promises::default();
    let (mut bursts, mut under_way) = (VecDeque::from(bursts), VecDeque::<Burst>::new());
    for (operation, end) in &operations {
        crash.disk.do_next(operation);
        while bursts.front().is_some_and(|burst| burst.sent_at <= *end) {
            let burst = bursts.pop_front().expect("the one looked at");
            burst.sent.iter().for_each(|event| promises.sent(event));
            under_way.push_back(burst);
        }
        while under_way.front().is_some_and(|burst| burst.lasts_at <= *end) {
            crash.is_told = true;
            for (id, accepted, text) in &under_way.pop_front().expect("the one looked at").answers {
                promises.answered(id, *accepted, text);
            }
        }
        // While the store is made its file may be half a one: nothing was promised yet.
        let crashes: &[After] = if *end <= ready {
            &[After::Dropped]
        } else {
            &[After::Dropped, After::Kept, After::Torn]
        };
        for after in crashes {
            crash.come(*after, &promises);
        }
    }
    let (accepted, refused) = (promises.accepted, promises.refused);
    eprintln!(
        "{durability}, seed {}: {} operations in {syncs} commits; {} files looked at; {accepted} events accepted, {refused} \
         refused",
        seed(),
        operations.len() - before,
        crash.looked,
    );
    assert!(
        syncs >= commits() && accepted + 2 * BURST_MAX > commits(),
        "too little to mean anything"
    );
}

fn commits() -> usize {
    if long() { COMMITS_LONG } else { COMMITS }
}

/// Publishes, burst by burst; the log, its length when the relay was ready, and what was said.
fn record(directory: &Path, durability: &str) -> (Vec<u8>, u64, Vec<Burst>) {
    let disk = Disk::new(directory);
    let path = directory.join("log");
    let log_bytes = || std::fs::metadata(&path).expect("the shim logs").len();
    let settings = [
        ("LOSE_UNSYNCED_LOG", path.to_str().expect("UTF-8").to_owned()),
        // Longer than an OK takes to come: one that is sent before its sync is seen before it.
        ("LOSE_UNSYNCED_DELAY_US", "2000".into()),
    ];
    let launch = disk.launch(&settings).set("store.durability", durability);
    let launch = launch.set("store.keep_replaced", durability == "interval");
    let server = launch.set("store.sync_interval_ms", 50).start();
    let ready = log_bytes();
    let mut raw = Raw::open(server.address());
    let mut mix = Mix::new(seed());
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut bursts = Vec::<Burst>::new();
    let mut not_lasting = 0;
    let mut commits_left = commits();
    while commits_left > 0 {
        let sent_at = log_bytes();
        let sent: Vec<_> = (0..rng.usize(1..=BURST_MAX)).map(|_| mix.draw()).collect();
        for event in &sent {
            raw.send(&Frame::new(opcode::TEXT, event.message()).bytes());
        }
        let mut answers = Vec::new();
        while answers.len() < sent.len() {
            let Seen::Text(text) = raw.next() else { panic!("the relay is gone") };
            if let Answer::Ok { id, accepted, text } = Answer::read(&text) {
                answers.push((id, accepted, text));
            }
        }
        let lasts_at = if durability == "commit" { log_bytes() } else { u64::MAX };
        // What was all refused is no commit.
        let is_commit = answers.iter().any(|(_, accepted, _)| *accepted);
        commits_left -= usize::from(is_commit);
        if is_commit {
            let before = bursts.len();
            let earlier = &mut bursts[std::mem::replace(&mut not_lasting, before)..];
            earlier.iter_mut().for_each(|burst| burst.lasts_at = burst.lasts_at.min(log_bytes()));
        }
        bursts.push(Burst { sent, answers, sent_at, lasts_at });
        if bursts.len() % 60 == 7 {
            // The writer tidies up when it has been idle for a second, and has synced by then.
            std::thread::sleep(Duration::from_millis(1_100));
            let all = bursts.iter_mut();
            all.for_each(|burst| burst.lasts_at = burst.lasts_at.min(log_bytes()));
        }
    }
    drop(server);
    (std::fs::read(&path).expect("a log"), ready, bursts)
}

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Dropped,
    Kept,
    Torn,
}

/// A disk as its operations leave it.
#[derive(Default)]
struct Replayed {
    durable: Vec<u8>,
    /// As a process sees the file: `durable` with all that waits.
    seen: Vec<u8>,
    /// What waits for a sync, sector by sector, in order; a new length.
    waiting: Vec<Result<(usize, Vec<u8>), usize>>,
    /// By the last operation.
    is_durable_changed: bool,
}

impl Replayed {
    fn do_next(&mut self, operation: &Operation) {
        self.is_durable_changed = false;
        match operation {
            Operation::Write { at, bytes, durable } => {
                write(&mut self.seen, *at, bytes);
                if *durable {
                    write(&mut self.durable, *at, bytes);
                    self.is_durable_changed = true;
                    return;
                }
                let mut at = *at;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (sector, more) =
                        rest.split_at(rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES));
                    self.waiting.push(Ok((at, sector.into())));
                    (at, rest) = (at + sector.len(), more);
                }
            }
            Operation::Cut(len) => {
                self.seen.resize(*len, 0);
                self.waiting.push(Err(*len));
            }
            Operation::Sync => {
                let waiting = std::mem::take(&mut self.waiting);
                waiting.iter().for_each(|change| apply(&mut self.durable, change));
                self.is_durable_changed = true;
            }
        }
    }
}

fn apply(file: &mut Vec<u8>, change: &Result<(usize, Vec<u8>), usize>) {
    match change {
        Ok((at, bytes)) => write(file, *at, bytes),
        Err(len) => file.resize(*len, 0),
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(bytes);
}

/// A directory for what crashes leave.
struct Crash {
    disk: Replayed,
    directory: tempfile::TempDir,
    rng: fastrand::Rng,
    /// Whether something was promised since a file without the unsynced was looked at.
    is_told: bool,
    looked: usize,
}

impl Crash {
    fn new() -> Self {
        // In memory where there is such a place: nothing here is to survive.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(root).expect("a directory");
        let rng = fastrand::Rng::with_seed(seed());
        Self { disk: Replayed::default(), directory, rng, is_told: false, looked: 0 }
    }

    /// Looks at what this crash leaves, if it is not what the one before left.
    fn come(&mut self, after: After, promises: &Promises) {
        let Replayed { durable, seen, waiting, is_durable_changed } = &self.disk;
        let torn;
        let file = match after {
            After::Dropped if *is_durable_changed || self.is_told => {
                self.is_told = false;
                durable
            }
            After::Kept => seen,
            After::Torn if !waiting.is_empty() => {
                let mut file = durable.clone();
                let some = waiting.iter().filter(|_| self.rng.bool());
                some.for_each(|change| apply(&mut file, change));
                torn = file;
                &torn
            }
            After::Dropped | After::Torn => return,
        };
        self.looked += 1;
        let directory = self.directory.path();
        std::fs::write(directory.join("data.mdb"), file).expect("room");
        // LMDB takes this for the word of a living writer.
        let _ = std::fs::remove_file(directory.join("lock.mdb"));
        let options = Options { map_bytes_max: 1 << 30, ..Options::default() };
        let store = Store::open(directory, &options)
            .unwrap_or_else(|error| panic!("file {}, {after:?}: {error}", self.looked));
        let report = store.check().expect("it can be read");
        assert_eq!(report.differences, 0, "file {}, {after:?}: {report:#?}", self.looked);
        let (mut found, from) = (HashSet::new(), now());
        let read = store.export(ExportRange::default(), from, |event| {
            found.insert(faster_hex::hex_string(event.id()));
            ControlFlow::Continue(())
        });
        read.expect("it can be read");
        let broken = promises.broken(&found, from, from);
        assert_eq!(broken, [""; 0], "file {}, {after:?}", self.looked);
    }
}
