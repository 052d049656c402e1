//! `soak`: the mixed load for long, and whether the relay's memory and files stay flat under it.
//!
//! The rule: of the samples after the first fifth of the run (or `--warm-up-s`, if that is longer), the median of the
//! last quarter may not be above that of the first quarter by more than a tenth and 8 MiB (anonymous memory, so that
//! the pages of a growing database do not count), or by more than 4 (open files).

use super::mixed::{MixArgs, Stage};
use crate::report::{Outcome, Violations};
use crate::server::Sample;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Of the run, before the rule begins.
const SETTLING_SHARE: f64 = 0.2;
const MEMORY_GROWTH_MAX: f64 = 1.1;
const MEMORY_GROWTH_KB_MAX: f64 = 8.0 * 1024.0;
const FDS_GROWTH_MAX: f64 = 4.0;
/// With fewer a quarter says nothing.
const SAMPLES_MIN: usize = 8;
/// So many points of each curve are reported.
const POINTS_MAX: usize = 300;

#[derive(Args, Clone, Debug, Serialize)]
pub struct SoakArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub mix: MixArgs,
    /// How long the schedule is
    #[arg(long, default_value_t = 600.0)]
    pub duration_s: f64,
}

super::scenario!(SoakArgs, "soak", mix.crowd.common, run);

/// The end of `soak --help`.
pub const HELP: &str = "\
Flat means: of the samples (one a second) after the first fifth of the run, or --warm-up-s if that is
longer, the median of the last quarter is above that of the first quarter by no more than a tenth and
8 MiB (anonymous memory) and by no more than 4 (open files).

Example: rheostr-loadtest soak --duration-s 600 --rate 300 --pid $(pidof rheostr)";

/// The relay's state at one moment.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: Duration,
    anonymous_kb: u64,
    rss_kb: u64,
    fds: u64,
}

/// # Errors
/// Anything that keeps the window from being measured; what the relay does wrong is in the outcome.
pub fn run(args: &SoakArgs) -> anyhow::Result<Outcome> {
    let common = &args.mix.crowd.common;
    let stage = Stage::new(&args.mix, args.duration_s)?;
    let (stop, stopped) = mpsc::channel::<()>();
    let (outcome, points) = thread::scope(|scope| {
        let watch = common.pid.map(|pid| scope.spawn(move || watch(pid, &stopped)));
        let outcome = stage.run(&args.mix);
        drop(stop);
        let points = watch.map(|watch| watch.join().expect("the watch panicked"));
        (outcome, points.unwrap_or_default())
    });
    let mut outcome = outcome?;
    let settled = common.warm_up_s.max(args.duration_s * SETTLING_SHARE);
    let within = settled..=args.duration_s;
    let judged: Vec<Point> =
        points.iter().filter(|point| within.contains(&point.at.as_secs_f64())).copied().collect();
    let flat = judge(&judged, &mut outcome.violations);
    outcome.summary += &match &flat {
        Value::Null => "; NOT JUDGED for flatness (needs --pid and a longer run)".to_owned(),
        flat => format!("; anonymous KiB and fds, first and last quarter: {flat}"),
    };
    outcome.detail["flat"] = flat;
    outcome.detail["curve"] = curve(&points);
    Ok(outcome)
}

/// Looks at the process once a second, until it is told to stop.
fn watch(pid: u32, stopped: &mpsc::Receiver<()>) -> Vec<Point> {
    let started = Instant::now();
    let mut points = Vec::new();
    while stopped.recv_timeout(SAMPLE_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
        if let Ok(sample) = Sample::take(pid) {
            points.push(Point {
                at: started.elapsed(),
                anonymous_kb: sample.rss_anonymous_kb,
                rss_kb: sample.rss_kb,
                fds: sample.fds,
            });
        }
    }
    points
}

/// The medians of the first and the last quarter; nothing where there are too few points.
fn judge(points: &[Point], violations: &mut Violations) -> Value {
    if points.len() < SAMPLES_MIN {
        return Value::Null;
    }
    let quarter = points.len() / 4;
    let medians = |of: fn(&Point) -> u64| {
        [&points[..quarter], &points[points.len() - quarter..]].map(|part| {
            let mut values: Vec<u64> = part.iter().map(of).collect();
            values.sort_unstable();
            values[values.len() / 2]
        })
    };
    let (memory, fds) = (medians(|point| point.anonymous_kb), medians(|point| point.fds));
    if memory[1] as f64 > memory[0] as f64 * MEMORY_GROWTH_MAX + MEMORY_GROWTH_KB_MAX {
        violations.add("memory_grows", || format!("from {} to {} KiB", memory[0], memory[1]));
    }
    if fds[1] as f64 > fds[0] as f64 + FDS_GROWTH_MAX {
        violations.add("fds_grow", || format!("from {} to {}", fds[0], fds[1]));
    }
    json!({"anonymous_kb": memory, "fds": fds, "samples": points.len()})
}

fn curve(points: &[Point]) -> Value {
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let each = |of: fn(&Point) -> u64| points.iter().step_by(step).map(of).collect::<Vec<_>>();
    json!({
        "at_s": each(|point| point.at.as_secs()), "rss_kb": each(|point| point.rss_kb),
        "anonymous_kb": each(|point| point.anonymous_kb), "fds": each(|point| point.fds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(anonymous_kb: impl Fn(u64) -> u64, fds: impl Fn(u64) -> u64) -> Vec<&'static str> {
        let point = |at| Point {
            at: Duration::from_secs(at),
            anonymous_kb: anonymous_kb(at),
            rss_kb: 0,
            fds: fds(at),
        };
        let points: Vec<Point> = (0..100).map(point).collect();
        let mut violations = Violations::default();
        assert_ne!(judge(&points, &mut violations), Value::Null);
        violations.kinds().into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_wavers() {
        let waver = |at: u64| 100_000 + at % 10 * 5_000;
        assert_eq!(judged(waver, |at| 50 + at % 7), [""; 0]);
        assert_eq!(judged(|at| waver(at) + at * 500, |_| 50), ["memory_grows"]);
        assert_eq!(judged(waver, |at| 50 + at / 10), ["fds_grow"]);
    }

    #[test]
    fn a_short_run_is_not_judged() {
        assert_eq!(judge(&[], &mut Violations::default()), Value::Null);
    }
}
