//! What was measured as one HTML page: plots inline, nothing fetched from anywhere.

mod comparison;
mod plots;
mod runs;

pub use comparison::comparison;
pub use runs::{Told, latency_table, runs};

use anyhow::Context;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// # Errors
/// The page could not be drawn, or the file not be written.
pub fn write(file: &Path, page: anyhow::Result<String>) -> anyhow::Result<()> {
    let written = page.and_then(|page| Ok(fs::write(file, page)?));
    written.with_context(|| format!("--html {}", file.display()))
}

/// A page up to its first paragraph.
fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body{{font:16px/1.5 sans-serif;max-width:100ch;margin:2em auto;padding:0 1em}}\
         svg{{max-width:100%;height:auto}}pre{{overflow-x:auto;font-size:13px}}</style>\n<h1>{title}</h1>\n"
    )
}

/// The rows of a percentile log: quantile, µs.
fn quantiles(log: &str) -> Vec<(f64, f64)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.parse::<f64>().ok());
        let us = words.next()??;
        words.next()?.map(|quantile| (quantile, us))
    };
    log.lines().filter_map(row).collect()
}

/// Seconds, operations a second; without the last interval, which is cut short.
fn throughput(report: &Value) -> Vec<(f64, f64)> {
    let throughput = &report["throughput"];
    let interval_s = throughput["interval_ms"].as_f64().unwrap_or(0.0) / 1000.0;
    let operations = throughput["operations"].as_array().map_or(&[][..], Vec::as_slice);
    let whole = &operations[..operations.len().saturating_sub(1)];
    let points = whole.iter().enumerate().filter_map(|(at, operations)| {
        Some((at as f64 * interval_s, operations.as_f64()? / interval_s))
    });
    points.collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Everything it shows is in it.
    pub fn assert_fetches_nothing(page: &str) {
        for word in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn what_is_drawn_is_what_was_recorded() {
        let report = json!({"throughput": {"interval_ms": 100, "operations": [5, 6, 1]}});
        assert_eq!(throughput(&report), [(0.0, 50.0), (0.1, 60.0)]);
        assert_eq!(throughput(&json!({})), []);
        let log = "  Value Percentile\n 1.5 0.5 5 2.0\n 3.0 0.99 9 10.0\n#[Mean = 2]\n";
        assert_eq!(quantiles(log), [(0.5, 1.5), (0.99, 3.0)]);
    }
}
