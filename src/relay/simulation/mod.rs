//! Seeded simulation of the pure core: one to three shards in one thread, a store that is a list,
//! clients that speak raw frames, a virtual clock. One seed is one history.
//!
//! | file | holds |
//! |---|---|
//! | `model` | events, naive filters, the store as a list |
//! | `expect` | what a connection is owed, judged frame by frame as batches are filled |
//! | `socket` | one socket and the client behind it |
//! | `node` | one shard and its driver's duties |
//! | `world` | all shards, the writer, chance, and what must hold |
//!
//! `RHEOSTR_SEEDS=100000 cargo test --lib simulation` runs more; `RHEOSTR_SEED=42` runs one.

mod expect;
mod model;
mod node;
mod socket;
mod world;

use world::{Outcome, World};

const STEPS: usize = 300;

/// Says which seed failed.
struct Failing(u64);

impl Drop for Failing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("run again with RHEOSTR_SEED={}", self.0);
        }
    }
}

fn run(seed: u64, hash_seed: u64) -> Outcome {
    let _failing = Failing(seed);
    // Every tenth history is long.
    let steps = if seed.is_multiple_of(10) { 5 * STEPS } else { STEPS };
    World::new(seed, hash_seed).run(steps)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_each_is_given_what_it_is_owed() {
    let seeds = match (number("RHEOSTR_SEED"), number("RHEOSTR_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 0..count.unwrap_or(1_000),
    };
    let mut seen = crate::relay::counters::Counters::default();
    for seed in seeds.clone() {
        for c in run(seed, seed).counters {
            seen.delivered_stored += c.delivered_stored;
            seen.delivered_live += c.delivered_live;
            seen.suppressed_live += c.suppressed_live;
            seen.abandoned_live += c.abandoned_live;
            seen.subscriptions_slow += c.subscriptions_slow;
            seen.subscriptions_failed += c.subscriptions_failed;
            seen.subscriptions_refused += c.subscriptions_refused;
            seen.purged_events += c.purged_events;
            seen.reads_paused += c.reads_paused;
            seen.events_stored += c.events_stored;
            seen.events_duplicate += c.events_duplicate;
            seen.events_ephemeral += c.events_ephemeral;
            seen.events_mute += c.events_mute;
            seen.closed_stalled += c.closed_stalled;
            seen.closed_silent += c.closed_silent;
            seen.closed_shutdown += c.closed_shutdown;
        }
    }
    if seeds.end - seeds.start >= 1_000 {
        let often = [
            seen.delivered_stored,
            seen.delivered_live,
            seen.suppressed_live,
            seen.abandoned_live,
            seen.subscriptions_slow,
            seen.subscriptions_failed,
            seen.subscriptions_refused,
            seen.purged_events,
            seen.reads_paused,
            seen.events_stored,
            seen.events_duplicate,
            seen.events_ephemeral,
            seen.events_mute,
            seen.closed_stalled,
            seen.closed_silent,
            seen.closed_shutdown,
        ];
        assert!(often.iter().all(|count| *count >= 100), "all of it happens: {seen:?}");
    }
}

#[test]
fn one_seed_is_one_history_whatever_the_hash() {
    for seed in 0..40 {
        assert_eq!(run(seed, 1), run(seed, 2), "seed {seed}");
    }
}
