//! `rheostr import` beside its two floors: judging the lines on all cores, and the writer with all signatures
//! trusted. `cargo bench --bench store -- import --file SIGNED.jsonl [--rounds N] [--dir DIR]`
//!
//! In turn, each into a new store. What both floors take of all cores together is the bound where
//! cores are few: an import cannot be faster than that.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{directory, option, quartiles, value};

/// Ways to import.
const WAYS: [(&str, &[&str]); 3] = [
    ("verification alone (--dry-run)", &["--dry-run"]),
    ("the writer alone (--no-verify)", &["--no-verify"]),
    ("import", &[]),
];

struct Run {
    seconds: f64,
    cpu_s: f64,
    anonymous_kb: u64,
}

/// Runs this part.
pub fn run() {
    let file =
        value("--file").expect("--file: signed events, as `rheostr-loadtest gen` writes them");
    let rounds = option("--rounds", 3);
    let mut runs: [Vec<Run>; 3] = Default::default();
    for _ in 0..rounds {
        for ((_, flags), runs) in WAYS.iter().zip(&mut runs) {
            runs.push(import(&file, flags));
        }
    }
    let middle = |values: Vec<f64>| quartiles(values)[1];
    println!("\n{:<32} {:>8} {:>8} {:>12}", "", "s", "CPU s", "MB of its own");
    for ((name, _), runs) in WAYS.iter().zip(&runs) {
        let seconds = middle(runs.iter().map(|run| run.seconds).collect());
        let cpu = middle(runs.iter().map(|run| run.cpu_s).collect());
        let kb = runs.iter().map(|run| run.anonymous_kb).max().unwrap_or(0);
        println!("{name:<32} {seconds:>8.2} {cpu:>8.2} {:>12}", kb / 1024);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let [verifying, writing, all] = &runs;
    let ratios = |floor: &dyn Fn(usize) -> f64| {
        middle((0..all.len()).map(|round| floor(round) / all[round].seconds).collect())
    };
    let slower = ratios(&|round| verifying[round].seconds.max(writing[round].seconds));
    let both = ratios(&|round| (verifying[round].cpu_s + writing[round].cpu_s) / cores);
    println!(
        "speed over the slower floor's: {slower:.2}; over both floors' CPU on {cores} cores: {both:.2}"
    );
}

fn import(file: &str, flags: &[&str]) -> Run {
    let dir = directory();
    let cpu_before = children_cpu_s();
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rheostr"))
        .args(["import", "--data"])
        .arg(dir.path().join("data"))
        .args(flags)
        .arg(file)
        .stderr(Stdio::null())
        .spawn()
        .expect("the relay's binary");
    let mut anonymous_kb = 0;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        anonymous_kb = anonymous_kb.max(anonymous_kb_of(child.id()));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{flags:?}");
    let seconds = start.elapsed().as_secs_f64();
    Run { seconds, cpu_s: children_cpu_s() - cpu_before, anonymous_kb }
}

/// Anonymous memory of a process; 0 when it has ended.
fn anonymous_kb_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|kb| kb.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// CPU seconds of children that have ended.
fn children_cpu_s() -> f64 {
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // cutime and cstime, the 16th and 17th of all.
    let ticks: f64 = [13, 14].iter().map(|at| fields[*at].parse::<f64>().expect("a number")).sum();
    ticks / TICKS_PER_S
}
