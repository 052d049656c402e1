//! A disk on which some operations fail: each of `POSITIONS` faults begins at a random one of the writes
//! and syncs of a commit, lasts for one to three of them, and may have done its work all the same. The
//! relay runs on `crash/lose_unsynced.c`, so that every restart finds what a power cut would have left.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{holds, nth, publish, serves};
use crate::support::{Author, Launch, Server, alone, long, preloadable, wait_until};

const POSITIONS: u64 = 240;
const POSITIONS_LONG: u64 = 5_000;
/// Between two power cuts.
const POSITIONS_A_LIFE: u64 = 30;
/// Where `store.durability` is less than a commit.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
/// Operations of a commit of one event, and some more.
const OPERATIONS: u32 = 24;

/// `struct faults` of the shim.
struct Faults(std::fs::File);

impl Faults {
    fn set(&self, fields: [u32; 4]) {
        // The count last: it is what arms the rest.
        let [after, count, error, landed] = fields.map(u32::to_ne_bytes);
        self.0.write_all_at(&0u32.to_ne_bytes(), 4).expect("a file");
        self.0.write_all_at(&after, 0).expect("a file");
        self.0.write_all_at(&[error, landed].concat(), 8).expect("a file");
        self.0.write_all_at(&count, 4).expect("a file");
    }

    fn fired(&self) -> u32 {
        let mut fired = [0; 4];
        self.0.read_exact_at(&mut fired, 16).expect("a file");
        u32::from_ne_bytes(fired)
    }
}

#[test]
fn whatever_write_or_sync_fails_no_promise_is_broken_and_the_relay_goes_on() {
    let _alone = alone();
    fail("commit", if long() { POSITIONS_LONG } else { POSITIONS });
}

/// A sync that fails takes the last commit's end with it, of which the OK is out.
#[test]
fn nor_where_a_commit_ends_with_the_next() {
    let _alone = alone();
    fail("interval", if long() { POSITIONS_LONG } else { POSITIONS / 2 });
}

fn fail(durability: &str, positions: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let library = preloadable("crash/lose_unsynced.c", directory.path());
    let (data, shadow) = (path("data"), path("shadow"));
    std::fs::write(path("faults"), [0; 20]).expect("a file");
    let file = std::fs::File::options().read(true).write(true).open(path("faults"));
    let faults = Faults(file.expect("it was made"));
    let start = || -> Server {
        let launch = Launch::default().data(&data).counted().set("store.durability", durability);
        launch
            .set("store.sync_interval_ms", SYNC_INTERVAL.as_millis())
            .environment("LD_PRELOAD", &library)
            .environment("LOSE_UNSYNCED_SHADOW", &shadow)
            .environment("LOSE_UNSYNCED_FAULTS", path("faults"))
            .start()
    };
    let author = Author::new(1);
    let (mut promised, mut refused) = (Vec::new(), 0);
    let mut server = start();
    let mut client = server.connect();
    let first = nth(&author, 0, 100);
    assert_eq!(publish(&mut client, &first), Ok(()));
    promised.push(first.clone());
    for position in 0..positions {
        let mut rng = fastrand::Rng::with_seed(position);
        let error = if rng.bool() { libc::EIO } else { libc::ENOSPC };
        let (after, count) = (rng.u32(0..OPERATIONS), rng.u32(1..4));
        faults.set([after, count, error.cast_unsigned(), rng.u32(0..2)]);
        for number in 1..4 {
            let event = nth(&author, 10 * position + number, rng.usize(10..8_000));
            match publish(&mut client, &event) {
                Ok(()) => promised.push(event),
                Err(why) => {
                    assert!(why.starts_with("error: the event could not be stored: the disk "));
                    refused += 1;
                    assert!(serves(&mut client, &first), "position {position}: queries go on");
                }
            }
        }
        faults.set([0; 4]);
        // At the first try but for what was under way when the fault ended.
        let event = nth(&author, 10 * position + 9, 10);
        wait_until("events are stored again", || client.publish(&event).0);
        promised.push(event);
        wait_until("ready", || server.ask_admin("/ready").starts_with("HTTP/1.1 200 "));
        if position % POSITIONS_A_LIFE == POSITIONS_A_LIFE - 1 {
            assert!(server.is_alive());
            if durability == "interval" {
                std::thread::sleep(10 * SYNC_INTERVAL);
            }
            server.kill();
            std::fs::copy(&shadow, data.join("data.mdb")).expect("a copy");
            holds(&data, &promised);
            server = start();
            client = server.connect();
        }
    }
    let fired = faults.fired();
    eprintln!(
        "{durability}: {fired} operations failed, {refused} events refused, {} kept",
        promised.len()
    );
    assert!(refused > 20 && u64::from(fired) > positions / 3, "{refused} refused, {fired} failed");
}
