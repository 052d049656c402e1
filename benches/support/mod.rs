//! CPU time of the measuring thread, and ratios against a floor of the same run.

use std::cell::RefCell;
use std::time::Duration;

use criterion::Criterion;
use criterion::measurement::{Measurement, ValueFormatter};
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CPU this thread has used: other processes and waiting do not count.
#[must_use]
pub fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).expect("not negative") * 1_000_000_000
        + u64::try_from(time.tv_nsec).expect("not negative")
}

/// Criterion's unit of measurement here.
pub struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        cpu_ns()
    }

    fn end(&self, start: u64) -> u64 {
        cpu_ns() - start
    }

    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Nanoseconds
    }
}

struct Nanoseconds;

impl ValueFormatter for Nanoseconds {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "ns CPU"
    }

    fn scale_throughputs(&self, _: f64, _: &criterion::Throughput, _: &mut [f64]) -> &'static str {
        "ns CPU"
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns CPU"
    }
}

/// What was measured so far: the least CPU time of one pass among all samples, by name.
pub struct Bench {
    criterion: Criterion<CpuTime>,
    best_ns: RefCell<Vec<(String, f64)>>,
}

impl Bench {
    /// A run with samples of `sample_ms` each.
    #[must_use]
    pub fn new(sample_ms: u64) -> Self {
        let criterion = Criterion::default()
            .with_measurement(CpuTime)
            .sample_size(15)
            .warm_up_time(Duration::from_millis(150))
            .measurement_time(Duration::from_millis(15 * sample_ms))
            .without_plots()
            .configure_from_args();
        Self { criterion, best_ns: RefCell::default() }
    }

    /// Measures `pass`; one pass does `units` of what is reported.
    pub fn measure(&mut self, name: &str, units: usize, mut pass: impl FnMut()) {
        let Self { criterion, best_ns } = self;
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|passes| {
                let start = cpu_ns();
                (0..passes).for_each(|_| pass());
                let used = cpu_ns() - start;
                let each = used as f64 / (passes * units as u64) as f64;
                let mut best = best_ns.borrow_mut();
                match best.iter_mut().find(|(known, _)| known == name) {
                    Some((_, ns)) => *ns = ns.min(each),
                    None => best.push((name.to_owned(), each)),
                }
                used / units as u64
            });
        });
    }

    /// The best time of one unit in nanoseconds; `None` when a filter left it out.
    #[must_use]
    pub fn best(&self, name: &str) -> Option<f64> {
        self.best_ns.borrow().iter().find(|(known, _)| known == name).map(|(_, ns)| *ns)
    }

    /// Prints `name` against its floor, or against what it spares.
    pub fn compare(&self, name: &str, floor: &str) {
        let (Some(ns), Some(other)) = (self.best(name), self.best(floor)) else { return };
        if ns >= other {
            println!("{name:<40} {ns:>10.1} ns = {:>6.2} x {floor} ({other:.1} ns)", ns / other);
        } else {
            println!("{name:<40} {ns:>10.1} ns = {floor} ({other:.1} ns) / {:.1}", other / ns);
        }
    }
}
