//! What a comparison may say: medians, ratios to the first relay round by round, and which of them are noise.

use serde::Serialize;

/// One figure of one run, over all relays.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Row {
    pub run: String,
    pub figure: String,
    /// The largest factor between two runs of the first relay in one round, over all rounds; none where it ran once.
    pub noise: Option<f64>,
    pub cells: Vec<Cell>,
}

/// A relay's share of a row.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Cell {
    pub relay: String,
    /// By round; none where the run is not reported.
    pub values: Vec<Option<f64>>,
    pub median: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// To the first relay; none for itself.
    pub ratio: Option<Ratio>,
}

/// Over the rounds in which both have a value.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Ratio {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// It is no larger than the difference between two runs of one relay, or nothing is known about that: no
    /// difference was found.
    pub within_noise: bool,
}

/// `values` has a list a relay, by round, the first relay's first; `again` is the first relay's second run.
pub fn row(
    run: &str,
    figure: &str,
    values: Vec<(String, Vec<Option<f64>>)>,
    again: &[Option<f64>],
) -> Row {
    let first = values.first().map_or(Vec::new(), |(_, values)| values.clone());
    let noise = ratios(again, &first).into_iter().map(factor).reduce(f64::max);
    let cells = values.into_iter().enumerate().map(|(number, (relay, values))| {
        let known = sorted(values.iter().copied().flatten());
        let ratios = sorted(ratios(&values, &first).into_iter());
        let ratio = median(&ratios).filter(|_| number > 0).map(|median| Ratio {
            median,
            min: ratios[0],
            max: ratios[ratios.len() - 1],
            within_noise: noise.is_none_or(|noise| factor(median) <= noise),
        });
        let (min, max) = (known.first().copied(), known.last().copied());
        Cell { relay, median: median(&known), min, max, values, ratio }
    });
    Row { run: run.to_owned(), figure: figure.to_owned(), noise, cells: cells.collect() }
}

/// How far a ratio is from 1, in whichever direction.
fn factor(ratio: f64) -> f64 {
    ratio.max(1.0 / ratio)
}

fn ratios(of: &[Option<f64>], to: &[Option<f64>]) -> Vec<f64> {
    let both = of.iter().zip(to).filter_map(|(of, to)| of.zip(*to));
    both.filter(|(of, to)| *of > 0.0 && *to > 0.0).map(|(of, to)| of / to).collect()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The lower one of two in the middle is as good as the other, and was measured.
fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(values: [f64; 3]) -> Vec<Option<f64>> {
        values.map(Some).into()
    }

    #[test]
    fn a_difference_within_the_noise_is_called_so() {
        let values = vec![
            ("a".to_owned(), some([10.0, 20.0, 10.0])),
            ("near".to_owned(), some([12.0, 20.0, 11.0])),
            ("far".to_owned(), some([30.0, 40.0, 15.0])),
            ("below".to_owned(), some([5.0, 8.0, 4.0])),
        ];
        // 10/8 is the largest factor between the two runs of a.
        let row = row("r", "f", values, &some([8.0, 21.0, 10.0]));
        assert_eq!(row.noise, Some(1.25));
        let ratio = |at: usize| row.cells[at].ratio.clone();
        assert_eq!(ratio(0), None);
        assert_eq!(ratio(1), Some(Ratio { median: 1.1, min: 1.0, max: 1.2, within_noise: true }));
        assert_eq!(ratio(2), Some(Ratio { median: 2.0, min: 1.5, max: 3.0, within_noise: false }));
        assert!(!ratio(3).unwrap().within_noise);
        let a = &row.cells[0];
        assert_eq!((a.median, a.min, a.max), (Some(10.0), Some(10.0), Some(20.0)));
    }

    #[test]
    fn rounds_that_are_not_reported_do_not_count_and_no_noise_is_no_difference() {
        let values = vec![
            ("a".to_owned(), vec![Some(1.0), None, Some(2.0)]),
            ("b".to_owned(), vec![None, Some(5.0), Some(4.0)]),
            ("c".to_owned(), vec![None; 3]),
        ];
        let row = row("r", "f", values, &[None; 3]);
        assert_eq!(row.noise, None);
        assert_eq!(
            row.cells[1].ratio,
            Some(Ratio { median: 2.0, min: 2.0, max: 2.0, within_noise: true })
        );
        assert_eq!(row.cells[1].median, Some(4.0));
        assert_eq!((row.cells[2].median, &row.cells[2].ratio), (None, &None));
    }
}
