//! `plan`: the scenarios of a TOML file, one after the other.
//!
//! A key is an option of the scenario's subcommand without its dashes (`rate`, `closed-loop`, or `closed_loop`), so a
//! plan says nothing that the command line could not.

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser};
use std::fs;
use std::path::PathBuf;
use toml::{Table, Value};

/// The end of `plan --help`.
pub const EXAMPLE: &str = "\
Example: rheostr-loadtest plan nightly.toml --html nightly.html

  [defaults]                  # for each run whose scenario has the option
  url = \"ws://127.0.0.1:7777\"

  [[run]]
  scenario = \"ingest\"
  events = \"events.jsonl\"
  rate = 5000
  runs = 3

  [[run]]
  scenario = \"fanout\"
  closed-loop = true
  subscribers = 200";

#[derive(Args, Debug)]
pub struct PlanArgs {
    /// [defaults] and one [[run]] for each scenario; a key is an option without its dashes
    #[arg(value_name = "TOML")]
    pub file: PathBuf,
    /// Write a page of all runs there, as a scenario's --html
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// The runs of a plan as `C`, the command line that each of them would be.
///
/// # Errors
/// The file cannot be read, or a key in it is unknown or wrong; the message names run and key.
pub fn read<C: Parser>(args: &PlanArgs) -> anyhow::Result<Vec<C>> {
    let text = fs::read_to_string(&args.file);
    let text = text.with_context(|| format!("{}", args.file.display()))?;
    runs(&text).with_context(|| format!("{}", args.file.display()))
}

fn runs<C: Parser>(text: &str) -> anyhow::Result<Vec<C>> {
    let plan: Table = text.parse()?;
    let nothing = Table::new();
    let mut defaults = &nothing;
    let mut runs = &Vec::new();
    for (key, value) in &plan {
        match (key.as_str(), value) {
            ("defaults", Value::Table(table)) => defaults = table,
            ("run", Value::Array(list)) => runs = list,
            ("defaults" | "run", _) => {
                bail!("key `{key}`: write [defaults], and [[run]] for each run")
            }
            _ => bail!("unknown key `{key}`: a plan has `defaults` and `run`"),
        }
    }
    ensure!(!runs.is_empty(), "a plan has at least one [[run]]");
    let command = C::command();
    for key in defaults.keys() {
        let known = command.get_subcommands().any(|scenario| has(scenario, &option(key)));
        ensure!(known, "defaults: unknown key `{key}`");
    }
    let runs = runs.iter().enumerate().map(|(at, run)| {
        let scenario = run.get("scenario").and_then(Value::as_str).unwrap_or("?");
        one(&command, defaults, run).with_context(|| format!("run {} ({scenario})", at + 1))
    });
    runs.collect()
}

fn one<C: Parser>(command: &clap::Command, defaults: &Table, run: &Value) -> anyhow::Result<C> {
    let run = run.as_table().context("not a table")?;
    let name = run.get("scenario").context("no key `scenario`")?;
    let name = name.as_str().context("key `scenario`: not a string")?;
    let scenario = command
        .find_subcommand(name)
        .filter(|scenario| has(scenario, "url"))
        .with_context(|| format!("key `scenario`: there is no scenario {name:?}"))?;
    let mut arguments = vec![command.get_name().to_owned(), name.to_owned()];
    let mine = |key: &String| run.keys().any(|own| option(own) == option(key));
    let defaults = defaults.iter().filter(|(key, _)| !mine(key) && has(scenario, &option(key)));
    for (key, value) in defaults.chain(run).filter(|(key, _)| *key != "scenario") {
        ensure!(has(scenario, &option(key)), "unknown key `{key}`");
        match value {
            Value::Boolean(true) => arguments.push(format!("--{}", option(key))),
            Value::Boolean(false) => {}
            value => arguments.push(format!("--{}={}", option(key), plain(key, value)?)),
        }
    }
    // The message of a refused value names the option, which is the key.
    C::try_parse_from(arguments).map_err(|error| anyhow::anyhow!("{}", brief(&error.to_string())))
}

fn option(key: &str) -> String {
    key.replace('_', "-")
}

fn has(scenario: &clap::Command, option: &str) -> bool {
    scenario.get_arguments().any(|argument| argument.get_long() == Some(option))
}

fn plain(key: &str, value: &Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(_) | Value::Float(_) => value.to_string(),
        Value::Array(list) => {
            list.iter().map(|one| plain(key, one)).collect::<anyhow::Result<Vec<_>>>()?.join(",")
        }
        _ => bail!("key `{key}`: a {} is no value of an option", value.type_str()),
    })
}

/// Without the usage that follows.
fn brief(message: &str) -> &str {
    let end = message.find("\n\nUsage:").or_else(|| message.find("\n\nFor more"));
    message[..end.unwrap_or(message.len())].trim().trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cli, Command};

    fn error(text: &str) -> String {
        let error = runs::<Cli>(text).err().unwrap_or_else(|| panic!("{text} is taken"));
        format!("{error:#}")
    }

    #[test]
    fn a_plan_is_what_its_command_lines_are() {
        let text = r#"
            [defaults]
            url = "ws://127.0.0.1:9"
            subscribers = 7
            [[run]]
            scenario = "ingest"
            events = "x.jsonl"
            rate = 12.5
            pin = [0, 1]
            runs = 3
            [[run]]
            scenario = "fanout"
            url = "ws://127.0.0.1:8"
            closed_loop = true
            any-order = false
        "#;
        let runs = runs::<Cli>(text).unwrap();
        let [Cli { command: Command::Ingest(ingest) }, Cli { command: Command::Fanout(fanout) }] =
            &runs[..]
        else {
            panic!("two runs")
        };
        assert_eq!(
            (ingest.rate, ingest.common.runs, &ingest.common.pin[..]),
            (12.5, 3, &[0, 1][..])
        );
        assert_eq!(ingest.common.url, "ws://127.0.0.1:9");
        assert_eq!((fanout.subscribers, fanout.closed_loop, fanout.any_order), (7, true, false));
        assert_eq!(fanout.common.url, "ws://127.0.0.1:8");
    }

    #[test]
    fn an_error_names_the_run_and_the_key() {
        let run = |more: &str| {
            format!("[[run]]\nscenario = \"idle\"\n[[run]]\nscenario = \"fanout\"\n{more}")
        };
        for (text, parts) in [
            (run("rtae = 5"), &["run 2 (fanout)", "`rtae`"][..]),
            (run("rate = \"fast\""), &["run 2 (fanout)", "--rate", "fast"]),
            (run("subscribers = 0"), &["run 2 (fanout)", "--subscribers", "0"]),
            (run("rate = { a = 1 }"), &["run 2 (fanout)", "`rate`"]),
            ("[[run]]\nrate = 5".into(), &["run 1", "`scenario`"]),
            ("[[run]]\nscenario = \"fnout\"".into(), &["run 1", "`scenario`", "fnout"]),
            ("[[run]]\nscenario = \"plan\"".into(), &["run 1", "`scenario`"]),
            ("[[run]]\nscenario = \"ingest\"".into(), &["run 1 (ingest)", "--events"]),
            ("[runs]".into(), &["`runs`"]),
            ("[defaults]\nno = 1\n[[run]]\nscenario = \"idle\"".into(), &["defaults", "`no`"]),
            ("run = 3".into(), &["`run`"]),
            (String::new(), &["[[run]]"]),
        ] {
            let error = error(&text);
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }
}
