//! The page of a comparison: its table, then its curves, then each run's plots.

use super::plots::{self, Bar, Line, OTHER};
use super::{escaped, head, quantiles, throughput};
use crate::compare::{Comparison, Taken, figure, table_text};

/// # Errors
/// As the plotting library.
pub fn comparison(comparison: &Comparison) -> anyhow::Result<String> {
    let mut page = head("Relays compared");
    page += &format!("<pre>{}</pre>\n", escaped(&table_text(comparison)));
    for (of, option) in sweeps(comparison) {
        page += &format!("<h2>{} by {}</h2>\n", escaped(of), escaped(option));
        for path in compared(comparison, of) {
            let lines = swept(comparison, of, path);
            page.extend(plots::sweep(path, option, path, &lines)?);
        }
    }
    for name in runs(comparison) {
        page += &format!("<h2>{}</h2>\n", escaped(name));
        let latency = |one: &Taken| quantiles(one.log.as_deref().unwrap_or(""));
        let taken: Vec<&Taken> = comparison.taken.iter().filter(|one| one.run == name).collect();
        let lines = |points: &dyn Fn(&Taken) -> Vec<(f64, f64)>| -> Vec<Line> {
            let line = |one: &&Taken| {
                let (name, colour) = who(comparison, one.relay);
                Line { name, colour, points: points(one) }
            };
            taken.iter().map(line).collect()
        };
        let unit = taken.first().and_then(|one| one.report["unit"].as_str()).unwrap_or("operation");
        let plots = [
            plots::percentiles("Latency", &lines(&latency))?,
            plots::over_time(
                "Throughput",
                &format!("{unit}s"),
                &lines(&|one| throughput(&one.report)),
            )?,
            bars(comparison, name)?,
        ];
        page.extend(plots.into_iter().flatten());
    }
    Ok(page + "</html>\n")
}

/// In the order of the plan.
fn runs(comparison: &Comparison) -> Vec<&str> {
    let mut runs: Vec<&str> = comparison.rows.iter().map(|row| row.run.as_str()).collect();
    runs.dedup();
    runs
}

fn who(comparison: &Comparison, number: usize) -> (String, usize) {
    match comparison.relays.get(number) {
        Some(contender) => (contender.relay.name.clone(), number),
        None => (format!("{} again", comparison.relays[0].relay.name), OTHER),
    }
}

/// The first figure of a run, by relay.
fn bars(comparison: &Comparison, run: &str) -> anyhow::Result<Option<String>> {
    let Some(row) = comparison.rows.iter().find(|row| row.run == run) else { return Ok(None) };
    let bar = |(number, cell): (usize, &crate::compare::Cell)| {
        let (name, colour) = who(comparison, number);
        Some(Bar { name, colour, median: cell.median?, min: cell.min?, max: cell.max? })
    };
    let bars: Vec<Bar> = row.cells.iter().enumerate().filter_map(bar).collect();
    plots::bars(&row.figure, &row.figure, &bars)
}

fn sweeps(comparison: &Comparison) -> Vec<(&str, &str)> {
    let points = comparison.taken.iter().filter_map(|taken| taken.point.as_ref());
    let mut sweeps: Vec<_> =
        points.map(|point| (point.of.as_str(), point.option.as_str())).collect();
    sweeps.sort_unstable();
    sweeps.dedup();
    sweeps
}

/// The figures of a curve's runs.
fn compared<'a>(comparison: &'a Comparison, of: &str) -> Vec<&'a str> {
    let is_of = |taken: &&Taken| taken.point.as_ref().is_some_and(|point| point.of == of);
    let first = comparison.taken.iter().find(is_of).map(|taken| taken.run.as_str());
    let rows = comparison.rows.iter().filter(|row| Some(row.run.as_str()) == first);
    rows.map(|row| row.figure.as_str()).collect()
}

/// A line a relay and round, over the values of the option.
fn swept(comparison: &Comparison, of: &str, path: &str) -> Vec<Line> {
    let numbers = 0..=comparison.relays.len();
    let line = |number: usize, round: u32| {
        let (name, colour) = who(comparison, number);
        let points = comparison
            .taken
            .iter()
            .filter(|taken| (taken.relay, taken.round) == (number, round))
            .filter_map(|taken| {
                let point = taken.point.as_ref().filter(|point| point.of == of)?;
                Some((point.value, figure(&taken.report, path)?))
            });
        Line { name, colour, points: points.collect() }
    };
    numbers
        .flat_map(|number| (0..comparison.rounds).map(move |round| line(number, round)))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::compare::{Comparison, Point, Taken};
    use crate::page::tests::assert_fetches_nothing;
    use serde_json::json;

    #[test]
    fn a_page_has_every_plot_and_fetches_nothing() {
        let taken = |relay: usize, value: f64| Taken {
            run: format!("ingest, in-flight {value}"),
            point: Some(Point { of: "ingest".into(), option: "in-flight".into(), value }),
            relay,
            round: 0,
            report: json!({
                "unit": "event", "server": {"cpu_us_per_op": 2.0 + value},
                "throughput": {"interval_ms": 100, "operations": [5, 6, 1]},
            }),
            log: Some("  Value Percentile\n 1.5 0.5 5 2.0\n 3.0 0.99 9 10.0\n".into()),
        };
        let all = vec![taken(0, 1.0), taken(0, 8.0), taken(1, 1.0), taken(1, 8.0), taken(2, 1.0)];
        let comparison = Comparison::sample(&["<a>", "b"], all);
        let page = super::comparison(&comparison).unwrap();
        // Three plots for each of two runs, and one of the sweep.
        assert_eq!(page.matches("<svg").count(), 7, "{page}");
        assert!(page.contains("&lt;a&gt; again") && !page.contains("<a>"), "{page}");
        assert_fetches_nothing(&page);
    }
}
