//! The comparison for a person: a table in Markdown, and under it what one must know to read it.

use super::judge::{Cell, Row};
use super::{Comparison, Contender};

pub fn text(comparison: &Comparison) -> String {
    let mut header = vec!["run".to_owned(), "figure".to_owned()];
    header.extend(comparison.relays.iter().map(|contender| contender.relay.name.clone()));
    header.push("noise".to_owned());
    let mut lines = vec![header];
    lines.extend(comparison.rows.iter().map(cells));
    let listed = |what: &str, list: &[String]| {
        list.iter().map(|one| format!("- {what}: {one}\n")).collect::<Vec<_>>()
    };
    let mut text = listed("refused", &comparison.refused).concat();
    text += if text.is_empty() { "" } else { "\n" };
    text += &aligned(&lines);
    let worst = &comparison.worst;
    let (first, rounds) = (&comparison.relays[0].relay.name, comparison.rounds);
    text += &format!(
        "\nMedian (minimum–maximum); rounds in turn: {rounds}. × is the ratio to {first} round by round, and ≈ one within\n\
         noise: no larger than the factor between two runs of {first}. Worst of all runs: steal {:.1} %, {:.2} CPUs busy\n\
         with something else, load {:.1}.\n",
        worst.steal_share * 100.0,
        worst.others_cores,
        worst.load_1m,
    );
    for contender in &comparison.relays {
        text += &about(contender);
    }
    text + &listed("not compared", &comparison.skipped).concat()
}

fn about(contender: &Contender) -> String {
    let relay = &contender.relay;
    let software = contender.software.as_deref().unwrap_or("no NIP-11 document");
    let notes: Vec<String> = relay.notes.iter().map(|note| format!(" {note}")).collect();
    format!("- {} ({software}): {}{}\n", relay.name, relay.durability, notes.concat())
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.run.clone(), row.figure.clone()];
    cells.extend(row.cells.iter().map(cell));
    cells.push(row.noise.map_or_else(|| "?".to_owned(), |noise| format!("{noise:.2}×")));
    cells
}

fn cell(cell: &Cell) -> String {
    let (Some(median), Some(min), Some(max)) = (cell.median, cell.min, cell.max) else {
        return "–".to_owned();
    };
    let values = format!("{} ({}–{})", short(median), short(min), short(max));
    match &cell.ratio {
        None => values,
        Some(ratio) if ratio.within_noise => format!("{values} ≈ {:.2}×", ratio.median),
        Some(ratio) => {
            format!("{values} **{:.2}×** ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
        }
    }
}

/// Three digits that count, or all before the point.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

/// A Markdown table, its columns one under the other; the first line is the header, and all are as long.
pub fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines[0].len();
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
            text += &format!("|{}|\n", rules.join("|"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::judge;

    #[test]
    fn a_cell_says_its_ratio_or_that_it_is_noise() {
        let values = vec![
            ("a".to_owned(), vec![Some(10.0), Some(12.0)]),
            ("b".to_owned(), vec![Some(11.0), Some(13.0)]),
            ("c".to_owned(), vec![Some(12_345.0), Some(23_456.0)]),
            ("d".to_owned(), vec![None, None]),
        ];
        let row = judge::row("r", "f", values, &[Some(12.0), Some(12.0)]);
        assert_eq!(
            cells(&row),
            [
                "r",
                "f",
                "10.0 (10.0–12.0)",
                "11.0 (11.0–13.0) ≈ 1.08×",
                "12,345 (12,345–23,456) **1234.50×** (1234.50–1954.67)",
                "–",
                "1.20×"
            ]
        );
        for (value, text) in [
            (0.01234, "0.012"),
            (1.2345, "1.23"),
            (999.6, "1,000"),
            (1e6, "1,000,000"),
            (-123.0, "-123"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn columns_stand_one_under_the_other() {
        let lines = [vec!["a".to_owned(), "é".to_owned()], vec!["bcd".to_owned(), "f".to_owned()]];
        assert_eq!(aligned(&lines), "| a   | é |\n|-----|---|\n| bcd | f |\n");
    }
}
