//! The store beside bare LMDB, and as it grows: `cargo bench --bench store -- [write|scan|growth|import] [options]`,
//! see each part's file. `write` is what runs when none is named.
//!
//! Measured is the CPU time of the thread that calls the store. What the kernel writes back later is nobody's.

mod events;
mod growth;
mod import;
mod scan;
mod write;

use std::path::PathBuf;

use rustix::time::{ClockId, clock_gettime};

/// As in the relay.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nanoseconds of CPU this thread has used.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("not negative")
}

/// The value after `name` on the command line.
fn value(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// The number after `name` on the command line.
fn option(name: &str, default: u64) -> u64 {
    value(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Where stores are made: in a directory of its own under `--dir`, or under the system's for temporary
/// files. Gone with the value.
fn directory() -> tempfile::TempDir {
    let parent = value("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).expect("a directory")
}

/// The value in the middle, and those a quarter from each end.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[quarter * (values.len() - 1) / 4])
}

fn main() {
    let parts: [(&str, fn()); 5] = [
        ("write", write::run),
        ("scan", scan::run),
        ("growth", growth::run),
        ("import", import::run),
        (growth::WRITE_UNTIL_KILLED, growth::write_until_killed),
    ];
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| asked.iter().any(|argument| argument == name);
    let none = !parts.iter().any(|(name, _)| named(name));
    for (name, run) in parts {
        if named(name) || (none && name == "write") {
            run();
        }
    }
}
