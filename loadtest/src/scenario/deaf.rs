//! `slow-readers`: the same fan-out without and with subscribers that never read, in turn (A B A B …), in one run.
//!
//! The others must get everything all the same, and their p99 must not be more than twice what it is without. The
//! report's own figures are those of the run beside them with the median p99.

use super::fanout::{self, FanoutArgs};
use crate::report::{Outcome, Violations, round};
use anyhow::ensure;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the deaf may cost the others.
const P99_RATIO_MAX: f64 = 2.0;

#[derive(Args, Clone, Debug, Serialize)]
pub struct DeafArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub fanout: FanoutArgs,
    /// How often the fan-out runs without, and with, those of --deaf
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub rounds: u8,
}

super::scenario!(DeafArgs, "slow-readers", fanout.common, run);

/// # Errors
/// As [`fanout::run`].
pub fn run(args: &DeafArgs) -> anyhow::Result<Outcome> {
    ensure!(args.fanout.deaf > 0, "--deaf is 0: there is nobody who does not read");
    ensure!(args.fanout.from.is_none(), "--from: each fan-out needs events of its own");
    let mut violations = Violations::default();
    let mut checked = 0;
    let mut runs: [Vec<Outcome>; 2] = Default::default();
    for _ in 0..args.rounds {
        for (with, runs) in runs.iter_mut().enumerate() {
            let deaf = if with == 0 { 0 } else { args.fanout.deaf };
            let mut outcome = fanout::run(&FanoutArgs { deaf, ..args.fanout.clone() })?;
            violations.merge(std::mem::take(&mut outcome.violations));
            outcome.judge_lateness();
            checked += outcome.checked;
            runs.push(outcome);
        }
    }
    for runs in &mut runs {
        runs.sort_by(|a, b| p99(a).total_cmp(&p99(b)));
    }
    let [without, mut with] = runs;
    let detail_of = |runs: &[Outcome]| runs.iter().map(one).collect::<Vec<_>>();
    let (before, beside) = (p99(&without[without.len() / 2]), p99(&with[with.len() / 2]));
    let ratio = round(beside / before, 3);
    if ratio.is_nan() || ratio > P99_RATIO_MAX {
        violations
            .add("others_delayed", || format!("p99 {beside} µs beside them, {before} without"));
    }
    let summary = format!(
        "p99 of the others {before} µs without, {beside} µs beside {} that never read: {ratio}; {}",
        args.fanout.deaf, with[0].detail["deaf"]
    );
    let detail = json!({
        "p99_us_without": before, "p99_us_with": beside, "p99_ratio": ratio,
        "runs_without": detail_of(&without), "runs_with": detail_of(&with),
    });
    let limited = without.iter().chain(&with).any(|run| run.accounts.generator.limited);
    let mut outcome = with.swap_remove(with.len() / 2);
    outcome.accounts.generator.limited = limited;
    Ok(Outcome { violations, checked, detail, summary, ..outcome })
}

fn p99(run: &Outcome) -> f64 {
    run.latencies.first().map_or(f64::NAN, |(_, latency)| latency.summary().p99)
}

fn one(run: &Outcome) -> Value {
    let latencies: BTreeMap<_, _> =
        run.latencies.iter().map(|(of, latency)| (of, latency.summary())).collect();
    json!({
        "latencies_us": latencies, "server": run.accounts.server, "machine": run.accounts.machine,
        "generator": run.accounts.generator, "detail": run.detail,
    })
}
