//! `burst`: nothing, then many events at once, again and again; an open loop, so latency counts from the burst.
//!
//! It shows how a relay takes what no average rate shows: the last event of a burst waits for all before it.

use super::mixed::{CrowdArgs, Show, SignArgs};
use super::schedule::{Arrivals, Pace};
use crate::events;
use crate::report::Outcome;
use clap::Args;
use serde::Serialize;

#[derive(Args, Clone, Debug, Serialize)]
pub struct BurstArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub crowd: CrowdArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub sign: SignArgs,
    /// Events in a burst, over all publishers
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub burst_events: u32,
    /// From the begin of one burst to the next
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    pub every_ms: u64,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub bursts: u32,
}

super::scenario!(BurstArgs, "burst", crowd.common, run);

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &BurstArgs) -> anyhow::Result<Outcome> {
    let seed = args.sign.seed(&args.crowd.common);
    let count = u64::from(args.burst_events) * u64::from(args.bursts);
    anyhow::ensure!(count <= 5_000_000, "{count} events are more than 5000000");
    let created_at = args.sign.created_at();
    let events = args.sign.sign(seed, created_at, count as u32)?;
    let index = events::index(&events)?;
    let pace = Pace::Open(Arrivals::Bursts {
        operations: args.burst_events as usize,
        every_ns: args.every_ms * 1_000_000,
    });
    let show = Show { seed, events: &events, index: &index, script: None };
    let mut outcome = show.run(&args.crowd, &pace, None)?;
    outcome.detail["created_at"] = created_at.into();
    Ok(outcome)
}
