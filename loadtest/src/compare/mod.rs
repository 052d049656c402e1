//! `compare`: relays side by side, in turn (A B … A again, round by round), on the same cores.
//!
//! Every group of runs begins with a relay started anew on an empty data directory. The first relay runs twice in
//! each round: what differs between its own two runs is noise, and no smaller difference is reported. A run whose
//! oracle was violated is named and not counted; nor is the speed of one in which the generator was the limit.

mod judge;
mod plan;
mod relay;
mod table;

pub use judge::{Cell, Row};
pub use plan::{Point, Relay};
pub use table::{aligned, short, text as table_text};

use crate::page;
use crate::report::SCHEMA;
use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use plan::{Known, Plan, Run};
use relay::{Running, spawn_on};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use serde_json::Value;
use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Figures that a generator which was the limit has set itself.
const SPEEDS: [&str; 3] = ["ops_per_s", "latency_us.", "latencies_us."];

#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Relays and runs; loadtest/compare.toml explains every key
    pub file: PathBuf,
    /// The value of a {placeholder}
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub variables: Vec<String>,
    /// Only these relays; the first is what the others are compared with
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub relay: Vec<String>,
    /// Only runs whose name contains this or another such text, and those they continue
    #[arg(long, value_name = "TEXT")]
    pub run: Vec<String>,
    #[arg(long, value_name = "N")]
    pub rounds: Option<u32>,
    /// Events of the generated file
    #[arg(long, value_name = "N")]
    pub events: Option<u32>,
    /// Keys that sign them: the fewer, the more events a query by author finds
    #[arg(long, value_name = "N")]
    pub authors: Option<u32>,
    /// Where data directories are made
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Count system calls too and compare them; costs the relays time
    #[arg(long)]
    pub syscalls: bool,
    /// Keep every run there (RELAY/RUN/ROUND/run.json, NAME.hlog, NAME.hgrm), and the comparison as compare.json
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write a page with plots there
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print the comparison as one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What is printed, kept, and drawn.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub schema: u32,
    /// The first relay broke no promise.
    pub ok: bool,
    pub file: String,
    pub rounds: u32,
    /// Of the first run.
    pub machine: Value,
    pub worst: Disturbance,
    pub relays: Vec<Contender>,
    pub skipped: Vec<String>,
    pub rows: Vec<Row>,
    pub refused: Vec<String>,
    #[serde(skip)]
    pub taken: Vec<Taken>,
}

/// The worst of all runs; see `REPORT.md`.
#[derive(Debug, Default, Serialize)]
pub struct Disturbance {
    pub steal_share: f64,
    pub others_cores: f64,
    pub load_1m: f64,
}

#[derive(Debug, Serialize)]
pub struct Contender {
    #[serde(flatten)]
    pub relay: Relay,
    /// What it says of itself.
    pub software: Option<String>,
}

/// One run that counts.
#[derive(Debug)]
pub struct Taken {
    pub run: String,
    pub point: Option<Point>,
    /// Its number; that of the last one plus 1 is the first one's second run.
    pub relay: usize,
    pub round: u32,
    pub report: Value,
    /// The percentile log of its latency.
    pub log: Option<String>,
}

/// Whether the first relay, the one in question, broke no promise.
///
/// # Errors
/// A file that is no plan, a relay that does not start, SIGINT or SIGTERM.
pub fn run(args: &CompareArgs) -> anyhow::Result<bool> {
    let mut known = Known::default();
    let plan = plan(args, &mut known)?;
    let (plan, skipped) = available(plan, &known)?;
    let root = match &plan.data_root {
        Some(root) => tempfile::Builder::new().prefix("rheostr-compare-").tempdir_in(root)?,
        None => tempfile::Builder::new().prefix("rheostr-compare-").tempdir()?,
    };
    let out = args.out.clone().unwrap_or_else(|| root.path().join("runs"));
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;

    let mut course = Course::new(plan, known, root.path(), out)?;
    course.generate()?;
    course.all_rounds()?;
    let comparison = course.comparison(args.file.display().to_string(), skipped);
    let json = serde_json::to_string(&comparison)?;
    if let Some(out) = &args.out {
        fs::write(out.join("compare.json"), format!("{json}\n"))?;
    }
    if let Some(html) = &args.html {
        page::write(html, page::comparison(&comparison))?;
    }
    if args.json {
        println!("{json}");
    } else {
        print!("{}", table_text(&comparison));
    }
    ensure!(!comparison.rows.is_empty(), "no run counts");
    Ok(comparison.ok)
}

fn plan(args: &CompareArgs, known: &mut Known) -> anyhow::Result<Plan> {
    let mut plan = Plan::read(&args.file)?;
    let exe = std::env::current_exe()?;
    known.set("bin", exe.parent().context("a binary has a directory")?.display().to_string());
    let file = args.file.canonicalize().with_context(|| args.file.display().to_string())?;
    known.set("here", file.parent().context("a file has a directory")?.display().to_string());
    for (name, value) in &plan.variables {
        known.set(name, value);
    }
    for pair in &args.variables {
        let (name, value) = pair.split_once('=').context("--set NAME=VALUE")?;
        // A relay runs in a directory of its own, where a relative path would lead elsewhere. A number is none, though
        // a file be called so.
        let path = value.parse::<f64>().is_err().then(|| Path::new(value).canonicalize().ok());
        let path = path.flatten();
        known.set(name, path.map_or_else(|| value.to_owned(), |path| path.display().to_string()));
    }
    plan.rounds = args.rounds.unwrap_or(plan.rounds);
    plan.events = args.events.unwrap_or(plan.events);
    plan.authors = args.authors.unwrap_or(plan.authors);
    plan.data_root = args.data_root.clone().or(plan.data_root);
    if args.syscalls {
        plan.run.iter_mut().for_each(Run::count_syscalls);
    }
    plan.check()?;
    if !args.relay.is_empty() {
        let all = std::mem::take(&mut plan.relay);
        for name in &args.relay {
            let found = all.iter().find(|relay| relay.name == *name);
            let found = found.with_context(|| {
                let names: Vec<_> = all.iter().map(|relay| relay.name.as_str()).collect();
                format!("--relay {name}: there are {}", names.join(", "))
            })?;
            plan.relay.push(found.clone());
        }
    }
    if !args.run.is_empty() {
        let wanted = |run: &&Run| args.run.iter().any(|text| run.name.contains(text));
        let groups = plan.groups();
        let kept = groups.iter().flat_map(|group| {
            let last = group.iter().rposition(wanted);
            group[..last.map_or(0, |last| last + 1)].iter().map(|run| (*run).clone())
        });
        plan.run = kept.collect();
        ensure!(!plan.run.is_empty(), "--run {}: no run has it in its name", args.run.join(", "));
    }
    Ok(plan)
}

/// Leaves out what is not installed, and says so; the first of the file must be there.
fn available(mut plan: Plan, known: &Known) -> anyhow::Result<(Plan, Vec<String>)> {
    let missing = |relay: &Relay| match known.fill(&relay.command[0]) {
        Err(error) => Some(format!("{}: {error}", relay.name)),
        Ok(program) => (program.contains('/') && !Path::new(&program).exists())
            .then(|| format!("{}: {program} is not there", relay.name)),
    };
    if let Some(why) = missing(&plan.relay[0]) {
        bail!("{why}, and it is what the others are compared with");
    }
    let skipped = plan.relay.iter().filter_map(missing).collect();
    plan.relay.retain(|relay| missing(relay).is_none());
    Ok((plan, skipped))
}

/// A comparison under way.
struct Course {
    plan: Plan,
    known: Known,
    root: PathBuf,
    out: PathBuf,
    interrupted: Arc<AtomicBool>,
    progress: ProgressBar,
    taken: Vec<Taken>,
    refused: Vec<String>,
    /// The first relay broke no promise.
    ok: bool,
}

impl Course {
    fn new(plan: Plan, mut known: Known, root: &Path, out: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&out).with_context(|| format!("--out {}", out.display()))?;
        known.set("events", root.join("events.jsonl").display().to_string());
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let contenders = plan.relay.iter().chain(plan.relay.first());
        let runs = |relay: &Relay| plan.run.iter().filter(|run| relay.takes_part(run)).count();
        let steps = contenders.map(runs).sum::<usize>() * plan.rounds as usize;
        let style = ProgressStyle::with_template("{pos}/{len} {elapsed} {msg}")?;
        let progress = ProgressBar::new(steps as u64).with_style(style);
        let (taken, refused) = (Vec::new(), Vec::new());
        let (root, ok) = (root.to_owned(), true);
        Ok(Self { plan, known, root, out, interrupted, progress, taken, refused, ok })
    }

    fn generate(&self) -> anyhow::Result<()> {
        let events = self.known.fill("{events}")?;
        let Plan { events: count, seed, authors, .. } = &self.plan;
        let [count, seed, authors] = [count.to_string(), seed.to_string(), authors.to_string()];
        let arguments =
            ["gen", "--count", &count, "--seed", &seed, "--authors", &authors, "--out", &events];
        let (code, report, errors) = self.generator(&arguments.map(str::to_owned))?;
        ensure!(code == Some(0), "gen: {report} {errors}");
        Ok(())
    }

    fn all_rounds(&mut self) -> anyhow::Result<()> {
        let groups: Vec<Vec<Run>> = self
            .plan
            .groups()
            .into_iter()
            .map(|group| group.into_iter().cloned().collect())
            .collect();
        for round in 0..self.plan.rounds {
            for group in &groups {
                for number in 0..=self.plan.relay.len() {
                    let relay = self.plan.relay[number % self.plan.relay.len()].clone();
                    if !group.iter().any(|run| relay.takes_part(run)) {
                        continue;
                    }
                    let mut known = self.known.clone();
                    group[0].variables.iter().for_each(|(name, value)| known.set(name, value));
                    let cpus = group[0].server_cpus.as_ref().unwrap_or(&self.plan.server_cpus);
                    let running = Running::start(&self.plan, cpus, &relay, &known, &self.root)
                        .with_context(|| relay.name.clone())?;
                    for run in group.iter().filter(|run| relay.takes_part(run)) {
                        self.progress.set_message(format!("{}: {}", relay.name, run.name));
                        self.once(run, &relay, number, round, &running)?;
                        self.progress.inc(1);
                    }
                }
            }
        }
        self.progress.finish_and_clear();
        Ok(())
    }

    /// One run; a broken promise is recorded, and the course goes on.
    fn once(
        &mut self,
        run: &Run,
        relay: &Relay,
        number: usize,
        round: u32,
        running: &Running,
    ) -> anyhow::Result<()> {
        let again = if number == self.plan.relay.len() { " again" } else { "" };
        let name = format!("{}{again}", relay.name);
        let directory =
            self.out.join(slug(&name)).join(slug(&run.name)).join((round + 1).to_string());
        let mut arguments = run.arguments(relay, &self.known)?;
        let cpus: Vec<String> = self.plan.generator_cpus.iter().map(ToString::to_string).collect();
        let (pid, cpus) = (running.pid().to_string(), cpus.join(","));
        let directory_text = directory.display().to_string();
        let common = ["--url", &running.url, "--pid", &pid, "--pin", &cpus, "--label", &name];
        arguments.extend(common.map(str::to_owned));
        arguments.extend(["--out", &directory_text, "--json"].map(str::to_owned));
        let (code, report, errors) = self.generator(&arguments)?;
        let report: Value = serde_json::from_str(&report).unwrap_or_default();
        if code != Some(0) {
            self.ok &= number != 0 && number != self.plan.relay.len();
            let oracle = report["oracle"]["kinds"].as_array().filter(|kinds| !kinds.is_empty());
            let why = match (oracle, report["error"].as_str()) {
                (Some(kinds), _) => kinds.iter().map(complaint).collect::<Vec<_>>().join("; "),
                (None, Some(error)) => format!("{error} {}", running.log()),
                (None, None) => errors,
            };
            self.refused.push(format!("{}, {name}, round {}: {why}", run.name, round + 1));
            return Ok(());
        }
        if report["generator"]["limited"] == Value::Bool(true) {
            let why = "the generator was the limit, so its speed is not told";
            self.refused.push(format!("{}, {name}, round {}: {why}", run.name, round + 1));
        }
        let of = report["latency_us"]["of"].as_str();
        let log = of.and_then(|of| fs::read_to_string(directory.join(format!("{of}.hgrm"))).ok());
        let (run, point) = (run.name.clone(), run.point.clone());
        self.taken.push(Taken { run, point, relay: number, round, report, log });
        Ok(())
    }

    /// Runs this binary on the generator's CPUs: exit code, standard output, standard error.
    fn generator(&self, arguments: &[String]) -> anyhow::Result<(Option<i32>, String, String)> {
        let mut output = tempfile::tempfile_in(&self.root)?;
        let mut errors = tempfile::tempfile_in(&self.root)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(errors.try_clone()?);
        let mut child = spawn_on(&self.plan.generator_cpus, &mut command)?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if self.interrupted.load(Ordering::Relaxed) {
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
            thread::sleep(LOOK_AGAIN);
        };
        let [mut out, mut err] = [String::new(), String::new()];
        for (file, text) in [(&mut output, &mut out), (&mut errors, &mut err)] {
            file.rewind()?;
            file.read_to_string(text)?;
        }
        Ok((status.code(), out, err.trim().to_owned()))
    }

    fn comparison(self, file: String, skipped: Vec<String>) -> Comparison {
        let Self { plan, taken, refused, ok, .. } = self;
        let mut worst = Disturbance::default();
        for taken in &taken {
            let worse = |field: &str, so_far: f64| {
                so_far.max(taken.report["machine"][field].as_f64().unwrap_or(0.0))
            };
            worst = Disturbance {
                steal_share: worse("steal_share", worst.steal_share),
                others_cores: worse("others_cores", worst.others_cores),
                load_1m: worse("load_1m", worst.load_1m),
            };
        }
        let figures =
            plan.run.iter().flat_map(|run| run.figures.iter().map(move |path| (run, path)));
        let rows = figures.map(|(run, path)| row(&plan, run, path, &taken));
        let rows = rows.filter(|row| row.cells.iter().any(|cell| cell.median.is_some())).collect();
        let software = |number: usize| {
            let first = taken.iter().find(|taken| taken.relay == number)?;
            let text = |field: &str| first.report["relay"][field].as_str();
            Some(format!("{} {}", text("software")?, text("version").unwrap_or("")))
        };
        let contender = |(number, relay): (usize, &Relay)| Contender {
            relay: relay.clone(),
            software: software(number),
        };
        Comparison {
            schema: SCHEMA,
            ok,
            file,
            rounds: plan.rounds,
            machine: taken.first().map_or(Value::Null, |taken| taken.report["machine"].clone()),
            worst,
            relays: plan.relay.iter().enumerate().map(contender).collect(),
            skipped,
            rows,
            refused,
            taken,
        }
    }
}

fn row(plan: &Plan, run: &Run, path: &str, taken: &[Taken]) -> Row {
    let speed = SPEEDS.iter().any(|prefix| path.starts_with(prefix));
    let value = |number: usize, round: u32| {
        let this = |one: &&Taken| (one.relay, one.round) == (number, round) && one.run == run.name;
        let report = &taken.iter().find(this)?.report;
        let limited = report["generator"]["limited"] == Value::Bool(true);
        figure(report, path).filter(|_| !(limited && speed))
    };
    let of = |number: usize| (0..plan.rounds).map(|round| value(number, round)).collect::<Vec<_>>();
    let values =
        plan.relay.iter().enumerate().map(|(number, relay)| (relay.name.clone(), of(number)));
    judge::row(&run.name, path, values.collect(), &of(plan.relay.len()))
}

/// The number at a dotted path.
pub fn figure(report: &Value, path: &str) -> Option<f64> {
    path.split('.').try_fold(report, |at, name| at.get(name))?.as_f64()
}

fn complaint(kind: &Value) -> String {
    format!("{} × {}", kind["count"], kind["kind"].as_str().unwrap_or("?"))
}

/// A name as a directory.
fn slug(name: &str) -> String {
    let plain =
        |letter: char| if letter.is_ascii_alphanumeric() || letter == '.' { letter } else { '-' };
    name.chars().map(plain).collect()
}

#[cfg(test)]
impl Comparison {
    /// What these runs come to: the CPU time of an operation, compared.
    pub fn sample(relays: &[&str], taken: Vec<Taken>) -> Self {
        let mut runs: Vec<&str> = taken.iter().map(|taken| taken.run.as_str()).collect();
        runs.dedup();
        runs.sort_unstable();
        runs.dedup();
        let text = |list: Vec<String>| list.join(",");
        let relays = relays.iter().map(|name| {
            format!("{{ name = \"{name}\", command = [\"x\"], durability = \"none\" }}")
        });
        let runs = runs.iter().map(|name| {
            format!(
                "{{ name = \"{name}\", scenario = \"s\", figures = [\"server.cpu_us_per_op\"] }}"
            )
        });
        let plan = format!(
            "rounds = 1\nevents = 1\nserver_cpus = [0]\ngenerator_cpus = [0]\nrelay = [{}]\nrun = [{}]\n",
            text(relays.collect()),
            text(runs.collect()),
        );
        let plan: Plan = toml::from_str(&plan).expect("it is a plan");
        let mut course = Course::new(plan, Known::default(), Path::new("."), ".".into())
            .expect("nothing is made");
        course.taken = taken;
        course.comparison("sample".to_owned(), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::schema;
    use serde_json::json;

    #[test]
    fn a_figure_is_found_by_its_path_and_no_speed_is_told_of_a_limited_generator() {
        let plan: Plan = toml::from_str(
            "rounds = 1\nevents = 1\nserver_cpus = [0]\ngenerator_cpus = [0]\n\
             relay = [{ name = \"a\", command = [\"x\"], durability = \"\" }]\n\
             run = [{ name = \"r\", scenario = \"s\" }]\n",
        )
        .unwrap();
        let report = json!({
            "ops_per_s": 5.0, "server": {"cpu_us_per_op": 7.0}, "latency_us": {"p50": 3.0},
            "generator": {"limited": true},
        });
        let taken = |report: &Value| Taken {
            run: "r".into(),
            point: None,
            relay: 0,
            round: 0,
            report: report.clone(),
            log: None,
        };
        let limited = [taken(&report)];
        let mut free = report.clone();
        free["generator"]["limited"] = json!(false);
        let free = [taken(&free)];
        let median =
            |path: &str, taken: &[Taken]| row(&plan, &plan.run[0], path, taken).cells[0].median;
        for (path, value, by_limited) in [
            ("ops_per_s", Some(5.0), None),
            ("latency_us.p50", Some(3.0), None),
            ("server.cpu_us_per_op", Some(7.0), Some(7.0)),
            ("server.nothing", None, None),
        ] {
            assert_eq!(
                (median(path, &free), median(path, &limited)),
                (value, by_limited),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_not_installed_is_left_out_by_name_unless_it_is_the_first() {
        let text = |first: &str| {
            format!(
                "rounds = 1\nevents = 1\nserver_cpus = [0]\ngenerator_cpus = [0]\nrun = []\n\
                 [[relay]]\nname = \"a\"\ncommand = [\"{first}\"]\ndurability = \"\"\n\
                 [[relay]]\nname = \"b\"\ncommand = [\"{{peers}}/b\"]\ndurability = \"\"\n\
                 [[relay]]\nname = \"c\"\ncommand = [\"/no/such/c\"]\ndurability = \"\"\n"
            )
        };
        let plan = |first: &str| toml::from_str::<Plan>(&text(first)).unwrap();
        let (plan_left, skipped) = available(plan("/bin/sh"), &Known::default()).unwrap();
        assert_eq!(plan_left.relay.len(), 1);
        assert!(skipped[0].contains("--set peers=") && skipped[1].contains("/no/such/c"));
        assert!(available(plan("/no/such/a"), &Known::default()).is_err());
    }

    #[test]
    fn what_is_documented_is_what_is_emitted() {
        let taken = |relay: usize| Taken {
            run: "r".into(),
            point: None,
            relay,
            round: 0,
            report: json!({"server": {"cpu_us_per_op": 1.0}, "machine": {"cpus": 2}}),
            log: None,
        };
        let comparison = Comparison::sample(&["a", "b"], vec![taken(0), taken(1), taken(2)]);
        let json = serde_json::to_string(&comparison).unwrap();
        let open = ["machine", "relays[].files", "relays[].environment", "relays[].options"];
        schema::hold_against("# The comparison", &json, &open);
    }
}
