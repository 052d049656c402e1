//! Several runs of one scenario: how far they are apart.

use super::{Report, SCHEMA, round};
use serde_json::{Value, json};

/// What is compared, by its place in a report.
const FIGURES: [&str; 5] = [
    "/ops_per_s",
    "/latency_us/p50",
    "/latency_us/p99",
    "/latency_us/max",
    "/server/cpu_us_per_op",
];

/// The line that follows the reports of `--runs`: median, least and most of the main figures.
pub fn spread(scenario: &str, reports: &[Report]) -> Value {
    let runs: Vec<Value> = reports
        .iter()
        .map(|report| serde_json::to_value(report).expect("a report is JSON"))
        .collect();
    let mut figures = serde_json::Map::new();
    for path in FIGURES {
        let values = runs.iter().filter_map(|run| run.pointer(path)?.as_f64());
        if let Some(spread) = of(values.collect()) {
            figures.insert(path[1..].replace('/', "."), spread);
        }
    }
    json!({
        "schema": SCHEMA, "scenario": scenario, "ok": reports.iter().all(Report::is_ok), "runs": runs.len(),
        "spread": figures,
    })
}

fn of(mut values: Vec<f64>) -> Option<Value> {
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = match values.len() % 2 {
        1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    };
    Some(json!({"median": round(median, 3), "min": least, "max": most}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_median_least_and_most() {
        assert_eq!(of(vec![3.0, 1.0, 2.0]), Some(json!({"median": 2.0, "min": 1.0, "max": 3.0})));
        assert_eq!(of(vec![4.0, 1.0]), Some(json!({"median": 2.5, "min": 1.0, "max": 4.0})));
        assert_eq!(of(Vec::new()), None);
    }
}
