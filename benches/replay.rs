//! What the messages of a capture cost in the pure core, by their kind:
//! `cargo bench --bench replay -- CAPTURE.jsonl [--trust]`; with `--trust` signatures are not checked.
//!
//! All connections are on one shard, events are stored at once and nothing is found stored, so that no store
//! and no socket is in the figures: CPU time from a message's bytes to the last byte it makes the relay send.

#[path = "support/core.rs"]
mod core;
#[path = "support/replay.rs"]
mod replay;

use std::collections::BTreeMap;

use rustix::time::{ClockId, clock_gettime};

use self::core::Core;

fn cpu_ns() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let (flags, files): (Vec<_>, Vec<_>) = arguments.iter().partition(|a| a.starts_with("--"));
    let [file] = &files[..] else {
        println!("cargo bench --bench replay -- CAPTURE.jsonl [--trust]");
        return;
    };
    let text = std::fs::read_to_string(file).expect("a readable capture");
    let (said, dropped) = replay::read(&text);
    println!("{} messages; the capture lacks {dropped}", said.len());
    let mut core = Core::verifying(!flags.iter().any(|flag| *flag == "--trust"));
    // By kind: how many, and nanoseconds.
    let mut kinds = BTreeMap::<String, (u64, i64)>::new();
    let before = core.counters();
    replay::feed(&mut core, &said, |message, work| {
        let from = cpu_ns();
        work();
        let took = cpu_ns() - from;
        let kind: String =
            message.text.chars().skip(2).take_while(char::is_ascii_uppercase).collect();
        let (count, ns) = kinds.entry(kind).or_default();
        (*count, *ns) = (*count + 1, *ns + took);
    });
    let after = core.counters();
    for (kind, (count, ns)) in &kinds {
        println!("{kind:<8} {count:>9} messages {:>10.0} ns CPU each", *ns as f64 / *count as f64);
    }
    let ns: i64 = kinds.values().map(|(_, ns)| ns).sum();
    let frames = after.frames_out - before.frames_out;
    println!(
        "all      {:>9} messages {:>10.0} ns CPU each; {frames} frames out, {:.0} ns each",
        said.len(),
        ns as f64 / said.len().max(1) as f64,
        ns as f64 / frames.max(1) as f64,
    );
}
