//! Plots as SVG text.

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::fmt::Debug;

const SIZE: (u32, u32) = (760, 360);
const FONT: (&str, u32) = ("sans-serif", 13);

/// One line, or several of one name: rounds of one relay.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub colour: usize,
    pub points: Vec<(f64, f64)>,
}

/// One bar, with whiskers.
#[derive(Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub colour: usize,
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

/// Distinct up to seven; the last is for what is not a contender of its own.
fn colour(number: usize) -> RGBColor {
    const COLOURS: [RGBColor; 7] = [
        RGBColor(0, 90, 181),
        RGBColor(220, 50, 32),
        RGBColor(0, 140, 90),
        RGBColor(170, 60, 170),
        RGBColor(220, 140, 0),
        RGBColor(90, 90, 30),
        RGBColor(0, 170, 190),
    ];
    if number == OTHER { RGBColor(150, 150, 150) } else { COLOURS[number % COLOURS.len()] }
}

/// Of a line or bar that is there to be looked past.
pub const OTHER: usize = usize::MAX;

/// Latency over the share of operations that took no longer, the tail stretched: each nine has the same width.
///
/// # Errors
/// As the plotting library.
pub fn percentiles(title: &str, lines: &[Line]) -> anyhow::Result<Option<String>> {
    let stretched = lines.iter().map(|line| Line {
        points: line
            .points
            .iter()
            .filter(|(quantile, us)| *quantile < 1.0 && *us > 0.0)
            .map(|(quantile, us)| (-(1.0 - quantile).log10(), us / 1000.0))
            .collect(),
        ..line.clone()
    });
    let lines: Vec<Line> = stretched.collect();
    let Some((x, y)) = ends(&lines) else { return Ok(None) };
    let mut svg = String::new();
    let nines = x.1.ceil();
    let labels = Labels {
        x: "of all operations",
        y: "took at most, ms",
        x_text: percent,
        x_count: 1 + nines as usize,
    };
    draw(&mut svg, title, &lines, 0.0..nines, (y.0 * 0.8..y.1 * 1.25).log_scale(), &labels)?;
    Ok(Some(svg))
}

fn plain(value: f64) -> String {
    format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percent(nines: f64) -> String {
    let share = 100.0 * (1.0 - 10f64.powf(-nines));
    let digits = (nines.ceil() - 2.0).max(0.0) as usize;
    format!("{share:.digits$} %")
}

/// # Errors
/// As the plotting library.
pub fn over_time(title: &str, unit: &str, lines: &[Line]) -> anyhow::Result<Option<String>> {
    let Some((x, y)) = ends(lines) else { return Ok(None) };
    let mut svg = String::new();
    let y_label = format!("{unit} a second");
    let labels = Labels { x: "seconds", y: &y_label, x_text: plain, x_count: 10 };
    draw(&mut svg, title, lines, 0.0..x.1, 0.0..y.1 * 1.1, &labels)?;
    Ok(Some(svg))
}

/// A figure over the values of an option.
///
/// # Errors
/// As the plotting library.
pub fn sweep(
    title: &str,
    option: &str,
    figure: &str,
    lines: &[Line],
) -> anyhow::Result<Option<String>> {
    let Some((x, y)) = ends(lines).filter(|(x, _)| x.0 > 0.0 && x.0 < x.1) else {
        return Ok(None);
    };
    let mut svg = String::new();
    let labels = Labels { x: option, y: figure, x_text: plain, x_count: 10 };
    let x = (x.0..x.1 * 1.001).log_scale();
    draw(&mut svg, title, lines, x, 0.0..y.1 * 1.1, &labels)?;
    Ok(Some(svg))
}

/// # Errors
/// As the plotting library.
pub fn bars(title: &str, figure: &str, bars: &[Bar]) -> anyhow::Result<Option<String>> {
    let top = bars.iter().map(|bar| bar.max).fold(0.0, f64::max);
    if top <= 0.0 {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, FONT)
            .margin(10)
            .x_label_area_size(10)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..bars.len() as f64 * 1.6, 0.0..top * 1.1)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(WHITE)
            .x_labels(0)
            .y_desc(figure)
            .draw()?;
        for (at, bar) in bars.iter().enumerate() {
            let (left, style) = (at as f64 + 0.2, colour(bar.colour));
            let body = Rectangle::new([(left, 0.0), (left + 0.6, bar.median)], style.filled());
            let label = format!("{}: {}", bar.name, crate::compare::short(bar.median));
            let legend =
                move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], style.filled());
            chart.draw_series([body])?.label(label).legend(legend);
            let middle = left + 0.3;
            chart.draw_series([PathElement::new([(middle, bar.min), (middle, bar.max)], BLACK)])?;
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).label_font(FONT).draw()?;
        root.present()?;
    }
    Ok(Some(svg))
}

type Ends = ((f64, f64), (f64, f64));

/// The least and the largest x and y; none where there is no point.
fn ends(lines: &[Line]) -> Option<Ends> {
    let points = lines.iter().flat_map(|line| &line.points);
    let wider = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    let (x, y) = points.fold((none, none), |(x, y), point| (wider(x, point.0), wider(y, point.1)));
    (x.1 > 0.0 && y.1 > 0.0).then_some((x, y))
}

struct Labels<'a> {
    x: &'a str,
    y: &'a str,
    x_text: fn(f64) -> String,
    x_count: usize,
}

fn draw<X, Y>(
    svg: &mut String,
    title: &str,
    lines: &[Line],
    x: X,
    y: Y,
    labels: &Labels<'_>,
) -> anyhow::Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, FONT)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_labels(labels.x_count)
        .x_label_formatter(&|value| (labels.x_text)(*value))
        .draw()?;
    let mut named: Vec<&str> = Vec::new();
    for line in lines {
        let style = colour(line.colour);
        let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        if !named.contains(&line.name.as_str()) {
            named.push(&line.name);
            drawn.label(&line.name).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 12, y)], style.stroke_width(3))
            });
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "a < b".to_owned(), colour: 0, points: points.to_vec() }
    }

    #[test]
    fn every_plot_is_one_svg_with_its_names_escaped() {
        let lines = [line(&[(0.5, 1000.0), (0.99, 3000.0), (1.0, 9000.0)]), line(&[(0.5, 900.0)])];
        let bar = Bar { name: "a < b".to_owned(), colour: 9, median: 2.0, min: 1.0, max: 3.0 };
        for svg in [
            percentiles("t", &lines).unwrap().unwrap(),
            over_time("t", "event", &lines).unwrap().unwrap(),
            sweep("t", "in-flight", "CPU", &lines).unwrap().unwrap(),
            bars("t", "CPU", &[bar]).unwrap().unwrap(),
        ] {
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
            assert!(svg.contains("a &lt; b"), "{svg}");
            assert_eq!(svg.matches("<svg").count(), 1);
        }
    }

    #[test]
    fn nothing_to_draw_is_no_plot() {
        assert!(percentiles("t", &[line(&[(1.0, 5.0)])]).unwrap().is_none());
        assert!(over_time("t", "event", &[]).unwrap().is_none());
        assert!(sweep("t", "o", "f", &[line(&[(1.0, 1.0)])]).unwrap().is_none());
        assert!(bars("t", "f", &[]).unwrap().is_none());
    }

    #[test]
    fn each_nine_is_named() {
        let named: Vec<String> = [0.0, 1.0, 2.0, 3.0, 4.0].map(percent).into();
        assert_eq!(named, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }
}
