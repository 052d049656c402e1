//! What every module here stands on: the server as a process, clients, signed events, the oracle.

pub mod client;
pub mod counts;
pub mod event;
pub mod listeners;
pub mod oracle;
pub mod raw;
pub mod server;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use client::{Answer, Client};
pub use counts::Counts;
pub use event::{Author, Draft, Event};
pub use oracle::{Filter, Oracle, Rules};
pub use server::{Launch, Server};

/// How long anything may take that should take no time: debug builds share two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds since the epoch.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs()
}

/// Waits until no other heavy test runs on this machine, in this process or another; the load of two
/// at once says nothing about either.
pub fn alone() -> File {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("heavy.lock");
    let file = File::create(path).expect("the target directory is writable");
    file.lock().expect("a lock on the file");
    file
}

/// Compiles a C source of `tests/relay` into a library for `LD_PRELOAD`, in `directory`.
pub fn preloadable(source: &str, directory: &Path) -> PathBuf {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/relay")).join(source);
    let library = directory.join(source.file_stem().expect("a file")).with_extension("so");
    let compiled = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .output()
        .expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// Whether `tests/run --long` asked for the long versions.
pub fn long() -> bool {
    std::env::var_os("RHEOSTR_TEST_LONG").is_some()
}

/// Asks `done` again and again until it says yes.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(std::time::Instant::now() < end, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As many connections as the system allows.
pub fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("up to the hard limit");
}
