//! The page of a scenario's runs, or of a plan's: what the oracles say of all, then figures and plots of each command.

use super::plots::{self, Line};
use super::{escaped, head, quantiles, throughput};
use crate::compare::{aligned, short};
use serde_json::Value;

/// What a page shows of a report, in this order: the main things first.
const SHOWN: [&str; 17] = [
    "operations",
    "unit",
    "events",
    "seconds",
    "ops_per_s",
    "pacing",
    "latency_us",
    "latencies_us",
    "server",
    "detail",
    "generator",
    "machine",
    "relay",
    "version",
    "commit",
    "finished_at",
    "parameters",
];
/// A longer list is told by its length.
const LIST_SHOWN_MAX: usize = 8;

/// One run, as it was told on standard output.
#[derive(Debug)]
pub struct Told {
    /// With nothing but `error` in it where nothing could be measured.
    pub report: Value,
    /// The percentile log of each latency.
    pub logs: Vec<(&'static str, String)>,
}

/// `commands` has a list of runs for each.
///
/// # Errors
/// As the plotting library.
pub fn runs(commands: &[Vec<Told>]) -> anyhow::Result<String> {
    let mut page = head("Runs");
    page += "<ul>\n";
    for told in commands.iter().flatten() {
        page += &format!("<li>{}: {}</li>\n", escaped(&name(told)), escaped(&verdict(told)));
    }
    page += "</ul>\n";
    for runs in commands {
        let measured: Vec<&Told> =
            runs.iter().filter(|told| told.report["oracle"].is_object()).collect();
        let Some(first) = measured.first() else { continue };
        page += &format!("<h2>{}</h2>\n", escaped(&name(first)));
        let unit = first.report["unit"].as_str().unwrap_or("operation");
        let plots = [
            plots::percentiles("Latency", &latencies(&measured))?,
            plots::over_time("Throughput", &format!("{unit}s"), &throughputs(&measured))?,
        ];
        page += &format!("<pre>{}</pre>\n", escaped(&table(&measured)));
        page.extend(plots.into_iter().flatten());
    }
    Ok(page + "</html>\n")
}

/// The latencies of a report, a line each; nothing where nothing was asked.
pub fn latency_table(report: &Value) -> String {
    const FIGURES: [&str; 7] = ["count", "mean", "p50", "p90", "p99", "p99_9", "max"];
    let line = |name: &str, latency: &Value| {
        let figure = |figure| match &latency[figure] {
            Value::Number(number) if number.is_u64() => number.to_string(),
            number => number.as_f64().map_or_else(|| "–".to_owned(), short),
        };
        [name.to_owned()].into_iter().chain(FIGURES.map(figure)).collect()
    };
    let first = report["latency_us"]["of"].as_str().map(|of| line(of, &report["latency_us"]));
    let others = report["latencies_us"].as_object().into_iter().flatten();
    let mut lines: Vec<Vec<String>> = first.into_iter().collect();
    lines.extend(others.map(|(name, latency)| line(name, latency)));
    if lines.is_empty() {
        return String::new();
    }
    let header = ["latency, µs"].into_iter().chain(FIGURES).map(str::to_owned).collect();
    lines.insert(0, header);
    aligned(&lines)
}

fn name(told: &Told) -> String {
    let text = |field: &str| told.report[field].as_str();
    let scenario = text("scenario").unwrap_or("?");
    text("label").map_or_else(|| scenario.to_owned(), |label| format!("{scenario} ({label})"))
}

fn verdict(told: &Told) -> String {
    let report = &told.report;
    if let Some(error) = report["error"].as_str() {
        return format!("NOT MEASURED: {error}");
    }
    let complaint = |kind: &Value| {
        let examples = kind["examples"].as_array().into_iter().flatten();
        let examples: Vec<&str> = examples.filter_map(Value::as_str).collect();
        let name = kind["kind"].as_str().unwrap_or("?");
        format!("{} × {name}: {}", kind["count"], examples.join("; "))
    };
    let kinds = report["oracle"]["kinds"].as_array().into_iter().flatten();
    let complaints: Vec<String> = kinds.map(complaint).collect();
    let mut verdict = match &complaints[..] {
        [] => format!("ok, {} checked", report["oracle"]["checked"]),
        complaints => format!("VIOLATIONS: {}", complaints.join(" · ")),
    };
    if report["generator"]["limited"] == true {
        verdict += " (the generator was the limit: its speed is not the relay's)";
    }
    verdict
}

/// A column a run.
fn table(runs: &[&Told]) -> String {
    let mut header = vec!["figure".to_owned()];
    header.extend((1..=runs.len()).map(|run| format!("run {run}")));
    let mut lines = vec![header];
    let columns: Vec<Vec<(String, String)>> =
        runs.iter().map(|told| figures(&told.report)).collect();
    for (path, _) in &columns[0] {
        let of = |column: &Vec<(String, String)>| {
            let found = column.iter().find(|(other, _)| other == path);
            found.map_or_else(|| "–".to_owned(), |(_, value)| value.clone())
        };
        lines.push([path.clone()].into_iter().chain(columns.iter().map(of)).collect());
    }
    aligned(&lines)
}

/// Each figure by its path in the report, as `REPORT.md` names it; without what is null.
fn figures(report: &Value) -> Vec<(String, String)> {
    let mut figures = Vec::new();
    for field in SHOWN {
        flatten(field, &report[field], &mut figures);
    }
    figures
}

fn flatten(path: &str, value: &Value, into: &mut Vec<(String, String)>) {
    let text = match value {
        Value::Object(members) => {
            return members
                .iter()
                .for_each(|(name, member)| flatten(&format!("{path}.{name}"), member, into));
        }
        Value::Null => return,
        Value::String(text) => text.clone(),
        Value::Array(list) if list.len() > LIST_SHOWN_MAX => format!("{} values", list.len()),
        other => other.to_string(),
    };
    into.push((path.to_owned(), text));
}

/// A line a run and latency.
fn latencies(runs: &[&Told]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (number, told) in runs.iter().enumerate() {
        for (of, log) in &told.logs {
            let name = numbered(of, number, runs.len());
            lines.push(Line { name, colour: lines.len(), points: quantiles(log) });
        }
    }
    lines
}

/// A line a run.
fn throughputs(runs: &[&Told]) -> Vec<Line> {
    let line = |(number, told): (usize, &&Told)| {
        let name =
            numbered(told.report["unit"].as_str().unwrap_or("operation"), number, runs.len());
        Line { name, colour: number, points: throughput(&told.report) }
    };
    runs.iter().enumerate().map(line).collect()
}

fn numbered(name: &str, number: usize, of: usize) -> String {
    if of == 1 { name.to_owned() } else { format!("{name}, run {}", number + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::assert_fetches_nothing;
    use serde_json::json;

    fn told(label: &str, kinds: &Value) -> Told {
        let report = json!({
            "scenario": "ingest", "label": label, "unit": "event", "ops_per_s": 5.5,
            "oracle": {"checked": 7, "violations": 3, "kinds": kinds},
            "generator": {"limited": false}, "server": {"cpu_us_per_op": 2.5, "syscalls": null},
            "detail": {"long": [1, 2, 3, 4, 5, 6, 7, 8, 9], "short": [1, 2]},
            "throughput": {"interval_ms": 100, "operations": [5, 6, 1]},
        });
        let log = "  Value Percentile\n 1.5 0.5 5 2.0\n 3.0 0.99 9 10.0\n".to_owned();
        Told { report, logs: vec![("event_to_ok", log)] }
    }

    #[test]
    fn the_oracles_come_first_and_then_every_command_s_table_and_plots() {
        let lost = json!([{"kind": "lost", "count": 3, "examples": ["<x>", "y"]}]);
        let unmeasured = json!({"scenario": "fanout", "ok": false, "error": "no such host"});
        let commands = [
            vec![told("a", &json!([])), told("a", &json!([]))],
            vec![told("b", &lost)],
            vec![Told { report: unmeasured, logs: Vec::new() }],
        ];
        let page = runs(&commands).unwrap();
        let top = page.split("<h2>").next().unwrap();
        for says in [
            "ingest (a): ok, 7 checked",
            "ingest (b): VIOLATIONS: 3 × lost: &lt;x&gt;; y",
            "fanout: NOT MEASURED: no such host",
        ] {
            assert!(top.contains(says), "{says}: {top}");
        }
        assert!(!page.contains("<x>"));
        // Latency and throughput of two commands; the third has nothing to show.
        assert_eq!((page.matches("<h2>").count(), page.matches("<svg").count()), (2, 4), "{page}");
        assert!(page.contains("event_to_ok, run 2"));
        assert_fetches_nothing(&page);
    }

    #[test]
    fn a_figure_has_its_path_and_a_long_list_its_length() {
        let table = table(&[&told("a", &json!([])), &told("b", &json!([]))]);
        let row = |path: &str| {
            let cells =
                |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
            table
                .lines()
                .map(cells)
                .find(|cells| cells[1] == path)
                .map(|cells| cells[2..4].to_vec())
        };
        assert_eq!(row("figure").unwrap(), ["run 1", "run 2"]);
        assert_eq!(row("server.cpu_us_per_op").unwrap(), ["2.5", "2.5"]);
        assert_eq!(row("detail.long").unwrap(), ["9 values", "9 values"]);
        assert_eq!(row("detail.short").unwrap(), ["[1,2]", "[1,2]"]);
        assert_eq!(row("server.syscalls"), None);
    }
}
