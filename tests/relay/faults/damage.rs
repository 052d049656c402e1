//! A data file that is not what LMDB wrote: the process ends and says what to run.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{nth, publish};
use crate::support::raw::{Frame, Raw, opcode};
use crate::support::{Author, Launch, PATIENCE, Server};

const EVENTS: u64 = 60;

#[test]
fn a_file_that_was_cut_short_ends_the_relay_with_a_reason() {
    ends_with_a_reason(|file, bytes| file.set_len(bytes / 2).expect("a file"));
}

#[test]
fn pages_that_are_no_pages_end_the_relay_with_a_reason() {
    ends_with_a_reason(|file, bytes| {
        // All but the two that name the roots.
        file.write_all_at(&vec![0; usize::try_from(bytes).expect("small") - 8192], 8192)
            .expect("a file");
    });
}

fn ends_with_a_reason(damage: impl FnOnce(&File, u64)) {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let server = Launch::default().data(&data).start();
    let (author, mut client) = (Author::new(1), server.connect());
    for number in 0..EVENTS {
        assert_eq!(publish(&mut client, &nth(&author, number, 3_000)), Ok(()));
    }
    let file = File::options().write(true).open(data.join("data.mdb")).expect("the store");
    damage(&file, file.metadata().expect("a file").len());
    let log = told(server);
    assert!(log.contains("rheostr check") && log.contains("rheostr restore"), "{log}");
}

/// What a relay says that is asked for everything, and ends.
fn told(mut server: Server) -> String {
    let mut raw = Raw::open(server.address());
    raw.send(&Frame::new(opcode::TEXT, "[\"REQ\",\"all\",{}]").bytes());
    let status = server.wait(PATIENCE).expect("it ends by itself");
    assert!(!status.success());
    server.stderr()
}
