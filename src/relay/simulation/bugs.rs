//! Shows that the simulation would find each mistake of [`Bug`]: with one planted, a history fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::run;
use crate::relay::planted::{ALL, Bug, plant};

/// Histories within which each must be found.
const SEEDS_MAX: u64 = 1_000;

/// The first seed whose history fails with the bug planted.
fn found_at(bug: Bug) -> Option<u64> {
    plant(Some(bug));
    let fails = |seed: &u64| catch_unwind(AssertUnwindSafe(|| run(*seed, *seed))).is_err();
    let found = (0..SEEDS_MAX).find(fails);
    plant(None);
    found
}

#[test]
fn every_planted_bug_is_found() {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(bug) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((*bug, found_at(*bug)));
        }
        found
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all = workers.into_iter().flat_map(|worker| worker.join().expect("no bug here")).collect();
    });
    all.sort_by_key(|(bug, _)| *bug as usize);
    let missed: Vec<_> = all.iter().filter(|(_, found)| found.is_none()).collect();
    for (bug, found) in &all {
        let seeds = found.map_or("not found".to_owned(), |seed| (seed + 1).to_string());
        println!("{seeds:>10}  {bug:?}");
    }
    assert!(missed.is_empty(), "{missed:?}");
}
