//! What a comparison file says: relays, runs, the machine's division. `compare.toml` is one, with every key explained.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub rounds: u32,
    /// Of the events that `{events}` names: how many, and the generator's seed.
    pub events: u32,
    #[serde(default = "one")]
    pub seed: u64,
    /// Keys that sign them; a few write most.
    #[serde(default = "thousand")]
    pub authors: u32,
    pub server_cpus: Vec<usize>,
    pub generator_cpus: Vec<usize>,
    /// Where data directories are made; the system's directory for temporary files if it is not said.
    pub data_root: Option<PathBuf>,
    #[serde(default = "twenty")]
    pub ready_s_max: u64,
    #[serde(default = "twenty")]
    pub stop_s_max: u64,
    /// Placeholders; `--set NAME=VALUE` goes before them.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    pub relay: Vec<Relay>,
    pub run: Vec<Run>,
}

fn one() -> u64 {
    1
}

fn thousand() -> u32 {
    1000
}

fn twenty() -> u64 {
    20
}

/// A contender.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    pub name: String,
    /// The program and its arguments; it stays in the foreground, its working directory is `{data}`.
    pub command: Vec<String>,
    #[serde(default = "default_url")]
    pub url: String,
    /// Written before the start, below `{data}`.
    #[serde(default)]
    pub files: BTreeMap<PathBuf, String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// It takes part in these only; in all where none is named.
    #[serde(default)]
    pub scenarios: Vec<String>,
    /// What an OK promises.
    pub durability: String,
    #[serde(default)]
    pub notes: Vec<String>,
    /// Of the generator, by scenario: what this relay needs so that it is not beaten by a rule of its own.
    #[serde(default)]
    pub options: BTreeMap<String, toml::Table>,
}

fn default_url() -> String {
    "ws://127.0.0.1:{port}".to_owned()
}

impl Relay {
    pub fn takes_part(&self, run: &Run) -> bool {
        self.scenarios.is_empty() || self.scenarios.contains(&run.scenario)
    }
}

/// A scenario and its options.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub name: String,
    pub scenario: String,
    #[serde(default)]
    pub options: toml::Table,
    /// Goes on with the relay that the run before has filled; else each run begins with an empty one.
    #[serde(default)]
    pub continues: bool,
    /// The relay may use these CPUs instead; only of a run that begins with an empty relay.
    pub server_cpus: Option<Vec<usize>>,
    /// One option and its values: the run is made with each, and drawn over them. `{name}` is a placeholder of the
    /// relay's command instead.
    #[serde(default)]
    pub sweep: BTreeMap<String, Vec<toml::Value>>,
    /// What is compared: paths in the report.
    #[serde(default = "default_figures")]
    pub figures: Vec<String>,
    /// Its place in a curve whose points are runs of their own; those of a sweep have theirs once [`Plan::read`] has
    /// spread it out.
    pub point: Option<Point>,
    /// Placeholders of the relay's command that a sweep has set.
    #[serde(skip)]
    pub variables: BTreeMap<String, String>,
}

/// One point of a curve.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The curve.
    pub of: String,
    /// What its x is.
    pub option: String,
    pub value: f64,
}

fn default_figures() -> Vec<String> {
    ["server.cpu_us_per_op", "ops_per_s", "latency_us.p50", "latency_us.p99"]
        .map(str::to_owned)
        .into()
}

impl Plan {
    /// # Errors
    /// A file that cannot be read, an unknown key, a plan that compares nothing.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(name)?;
        Self::parse(&text).with_context(name)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut plan: Self = toml::from_str(text)?;
        let runs = std::mem::take(&mut plan.run);
        plan.run = runs.into_iter().map(Run::spread).collect::<anyhow::Result<Vec<_>>>()?.concat();
        plan.check()?;
        Ok(plan)
    }

    /// # Errors
    /// It compares nothing, or names it in a way that is not clear.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=100).contains(&self.rounds), "rounds: 1 to 100");
        ensure!((1..=10_000_000).contains(&self.events), "events: 1 to 10000000");
        ensure!(!self.generator_cpus.is_empty(), "generator_cpus: none");
        ensure!(!self.server_cpus.is_empty(), "server_cpus: none");
        ensure!(!self.relay.is_empty() && !self.run.is_empty(), "nothing is compared");
        ensure!(!self.run[0].continues, "{}: there is no run before it", self.run[0].name);
        for (number, relay) in self.relay.iter().enumerate() {
            ensure!(!relay.command.is_empty(), "{}: no command", relay.name);
            let same = self.relay[..number].iter().any(|other| other.name == relay.name);
            ensure!(!same, "two relays have one name, {}", relay.name);
        }
        for run in &self.run {
            let alters = run.server_cpus.is_some() || !run.variables.is_empty();
            ensure!(!(run.continues && alters), "{}: its relay has begun already", run.name);
        }
        Ok(())
    }

    /// Runs that share one start of a relay.
    pub fn groups(&self) -> Vec<Vec<&Run>> {
        let mut groups: Vec<Vec<&Run>> = Vec::new();
        for run in &self.run {
            match groups.last_mut() {
                Some(group) if run.continues => group.push(run),
                _ => groups.push(vec![run]),
            }
        }
        groups
    }
}

impl Run {
    /// Where there are calls an operation; connections that do nothing make none.
    pub fn count_syscalls(&mut self) {
        if self.scenario != "idle" {
            self.options.insert("syscalls".to_owned(), true.into());
            self.figures.push("server.syscalls.per_op".to_owned());
        }
    }

    /// A run of each value of the sweep, or the run itself.
    fn spread(self) -> anyhow::Result<Vec<Self>> {
        let Some((option, values)) = self.sweep.first_key_value() else { return Ok(vec![self]) };
        ensure!(self.sweep.len() == 1, "{}: one option is swept, not several", self.name);
        ensure!(self.point.is_none(), "{}: a sweep has its points itself", self.name);
        let variable = option.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let option = variable.unwrap_or(option);
        values
            .iter()
            .map(|value| {
                let number = value.as_float().or(value.as_integer().map(|value| value as f64));
                let number = number.with_context(|| format!("{}: a number is swept", self.name))?;
                let mut run = self.clone();
                run.name = format!("{}, {option} {number}", self.name);
                if variable.is_some() {
                    run.variables.insert(option.to_owned(), value.to_string());
                } else {
                    run.options.insert(option.to_owned(), value.clone());
                }
                let (of, option) = (self.name.clone(), option.to_owned());
                run.point = Some(Point { of, option, value: number });
                Ok(run)
            })
            .collect()
    }

    /// The generator's arguments; what the relay asks for goes before what the run says.
    ///
    /// # Errors
    /// A value that no option has, a placeholder that is not known.
    pub fn arguments(&self, relay: &Relay, known: &Known) -> anyhow::Result<Vec<String>> {
        let mut options = self.options.clone();
        options.extend(relay.options.get(&self.scenario).cloned().unwrap_or_default());
        let mut arguments = vec![self.scenario.clone()];
        for (name, value) in options {
            let value = match value {
                toml::Value::Boolean(false) => continue,
                toml::Value::Boolean(true) => None,
                toml::Value::String(text) => Some(known.fill(&text)?),
                toml::Value::Integer(number) => Some(number.to_string()),
                toml::Value::Float(number) => Some(number.to_string()),
                other => bail!("{}: {name} = {other}: not an option's value", self.name),
            };
            arguments.push(format!("--{name}"));
            arguments.extend(value);
        }
        Ok(arguments)
    }
}

/// Placeholders and what they stand for.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<String, String>);

impl Known {
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Replaces every `{name}`; braces around anything else are text.
    ///
    /// # Errors
    /// A name that is not known.
    pub fn fill(&self, text: &str) -> anyhow::Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let name = &rest[open + 1..];
            let end = name.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
            match end.filter(|end| *end > 0 && name[*end..].starts_with('}')) {
                Some(end) => {
                    let value = self.0.get(&name[..end]);
                    let value = value.with_context(|| {
                        format!("{{{}}} is not known: --set {0}=…", &name[..end])
                    })?;
                    filled += &rest[..open];
                    filled += value;
                    rest = &name[end + 1..];
                }
                None => {
                    filled += &rest[..=open];
                    rest = name;
                }
            }
        }
        Ok(filled + rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const HEAD: &str = "rounds = 1\nevents = 10\nserver_cpus = [0]\ngenerator_cpus = [1]\n";
    const RELAY: &str = "[[relay]]\nname = \"a\"\ncommand = [\"x\"]\ndurability = \"none\"\n\
        [relay.options.ingest]\nin-flight = 8\nquick = true\nslow = false\n";
    const RUN: &str = "[[run]]\nname = \"r\"\nscenario = \"ingest\"\n\
        options = { events = \"{events}\", in-flight = 128, rate = 1.5 }\n";

    #[test]
    fn the_shipped_files_are_plans() {
        for text in [include_str!("../../compare.toml"), include_str!("../../scaling.toml")] {
            assert_is_a_plan(&Plan::parse(text).unwrap());
        }
    }

    fn assert_is_a_plan(plan: &Plan) {
        let known = ["port", "data", "events", "bin", "here", "glommio", "peers", "strfry"]
            .map(|name| (name.to_owned(), "x".to_owned()));
        let known = Known(plan.variables.clone().into_iter().chain(known).collect());
        for relay in &plan.relay {
            for text in relay.command.iter().chain(relay.files.values()) {
                known.fill(text).unwrap();
            }
            for run in &plan.run {
                let arguments = run.arguments(relay, &known).unwrap();
                let command = ["rheostr-loadtest".to_owned()].into_iter().chain(arguments);
                assert!(
                    crate::Cli::try_parse_from(command).is_ok(),
                    "{}, {}",
                    run.name,
                    relay.name
                );
            }
        }
    }

    #[test]
    fn a_relay_s_options_go_before_the_run_s() {
        let plan = Plan::parse(&[HEAD, RELAY, RUN].concat()).unwrap();
        let mut known = Known::default();
        assert!(plan.run[0].arguments(&plan.relay[0], &known).is_err());
        known.set("events", "e.jsonl");
        let arguments = plan.run[0].arguments(&plan.relay[0], &known).unwrap();
        let expected =
            ["ingest", "--events", "e.jsonl", "--in-flight", "8", "--quick", "--rate", "1.5"];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn a_sweep_is_a_run_of_each_value() {
        let swept = "sweep = { in-flight = [1, 64] }\n";
        let plan = Plan::parse(&[HEAD, RELAY, RUN, swept].concat()).unwrap();
        let names: Vec<_> = plan.run.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["r, in-flight 1", "r, in-flight 64"]);
        assert_eq!(plan.run[1].options["in-flight"].as_integer(), Some(64));
        let of = Point { of: "r".into(), option: "in-flight".into(), value: 64.0 };
        assert_eq!(plan.run[1].point, Some(of));
        assert!(Plan::parse(&[HEAD, RELAY, RUN, "sweep = { x = [\"y\"] }\n"].concat()).is_err());
    }

    #[test]
    fn a_placeholder_is_swept_by_starting_the_relay_anew() {
        let swept = "sweep = { \"{shards}\" = [1, 2] }\nserver_cpus = [0, 1]\n";
        let plan = Plan::parse(&[HEAD, RELAY, RUN, swept].concat()).unwrap();
        let last = &plan.run[1];
        assert_eq!((last.name.as_str(), last.variables["shards"].as_str()), ("r, shards 2", "2"));
        assert!(!last.options.contains_key("shards") && plan.groups().len() == 2);
        assert_eq!(last.point.as_ref().map(|point| point.option.as_str()), Some("shards"));
        let own = "point = { of = \"c\", option = \"stored\", value = 10 }\n";
        let plan = Plan::parse(&[HEAD, RELAY, RUN, own].concat()).unwrap();
        assert_eq!(plan.run[0].point.as_ref().map(|point| point.value), Some(10.0));
        for (more, says) in [
            ([swept, own].concat(), "its points itself"),
            (format!("{swept}continues = true\n"), "begun already"),
        ] {
            let error = Plan::parse(&[HEAD, RELAY, RUN, RUN, &more].concat()).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
    }

    #[test]
    fn runs_go_on_where_they_say_so_and_mistakes_are_named() {
        let next = RUN.replace("\"r\"", "\"next\"") + "continues = true\n";
        let plan = Plan::parse(&[HEAD, RELAY, RUN, &next, RUN].concat()).unwrap();
        let groups: Vec<usize> = plan.groups().iter().map(Vec::len).collect();
        assert_eq!(groups, [2, 1]);
        for (wrong, says) in [
            ([HEAD, RELAY, &next].concat(), "no run before"),
            ([HEAD, RELAY, RELAY, RUN].concat(), "one name"),
            ([HEAD, RELAY, RUN, "typo = 1\n"].concat(), "unknown field"),
            ([&HEAD.replace("rounds = 1", "rounds = 0"), RELAY, RUN].concat(), "rounds"),
        ] {
            let error = format!("{:#}", Plan::parse(&wrong).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn only_names_in_braces_are_placeholders() {
        let mut known = Known::default();
        known.set("port", "7777");
        assert_eq!(known.fill("{ a = {port}, {} {A} {port").unwrap(), "{ a = 7777, {} {A} {port");
        assert!(known.fill("{prot}").unwrap_err().to_string().contains("--set prot="));
    }
}
