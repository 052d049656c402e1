//! `deaf`: the same fan-out without and with subscribers that never read, in turn (A B A B …), in one run.
//!
//! The others must get everything all the same, and their p99 must not be more than twice what it is without.

use super::fanout::{self, FanoutArgs};
use crate::report::{Outcome, Violations, round};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

/// What the deaf may cost the others.
const P99_RATIO_MAX: f64 = 2.0;

#[derive(Args, Clone, Debug, Serialize)]
pub struct DeafArgs {
    #[command(flatten)]
    pub fanout: FanoutArgs,
    /// How often the fan-out runs without, and with, those of --deaf
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub rounds: u8,
}

/// # Errors
/// As [`fanout::run`].
pub fn run(args: &DeafArgs) -> anyhow::Result<Outcome> {
    let mut violations = Violations::default();
    let mut runs: [Vec<Value>; 2] = Default::default();
    for _ in 0..args.rounds {
        for (with, runs) in runs.iter_mut().enumerate() {
            let deaf = if with == 0 { 0 } else { args.fanout.deaf };
            let outcome = fanout::run(&FanoutArgs { deaf, ..args.fanout.clone() })?;
            violations.merge(outcome.violations);
            runs.push(outcome.body);
        }
    }
    let p99 = |runs: &[Value]| {
        let all = runs.iter().filter_map(|run| run["delivery_latency_us"]["p99"].as_f64());
        let mut all: Vec<f64> = all.collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let [without, with] = &runs;
    let (before, beside) = (p99(without), p99(with));
    let ratio = round(beside / before, 3);
    if ratio.is_nan() || ratio > P99_RATIO_MAX {
        violations
            .add("others_delayed", || format!("p99 {beside} µs beside them, {before} without"));
    }
    let summary = format!(
        "p99 of the others {before} µs without, {beside} µs beside {} that never read: {ratio}; {}",
        args.fanout.deaf, with[0]["deaf"]
    );
    let limited = runs.iter().flatten().any(|run| run["generator_limited"] == json!(true));
    let body = json!({
        "p99_us_without": before, "p99_us_with": beside, "p99_ratio": ratio,
        "generator_limited": limited, "runs_without": without, "runs_with": with,
    });
    Ok(Outcome { violations, body, summary })
}
