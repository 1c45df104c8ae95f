//! The loss plot.

use candle_core::{Error, Result};
use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, Circle, Color, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, IntoLogRange, LineSeries,
    PathElement, RGBColor, SVGBackend, ShapeStyle, WHITE,
};

use super::history::{History, Series};

type Points = Vec<(f64, f64)>;
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

const SIZE: (u32, u32) = (960, 600);
const LEARNING_RATE_HEIGHT: u32 = 150;
const MARGIN: u32 = 14;
const LABELS_WIDTH: u32 = 76;

const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
const TRAINING: RGBColor = RGBColor(31, 119, 180);
const VALIDATION: [RGBColor; 4] =
    [RGBColor(214, 96, 30), RGBColor(44, 140, 60), RGBColor(140, 86, 175), RGBColor(120, 80, 60)];

/// If the highest loss is more than this many times the lowest, the axis is logarithmic.
const MOST_LINEAR: f64 = 20.0;
/// The smoothed loss at a point is the mean of the points around it: this fraction of all points.
const WINDOW: f64 = 1.0 / 40.0;
/// The most orders of magnitude on a logarithmic axis.
const MOST_DECADES: i32 = 6;
/// The limit of plotters' axes.
const MOST: f64 = 1e9;
/// Up to this many validations, each has a dot.
const MOST_DOTS: usize = 60;

/// The loss and the learning rate over the steps, as SVG; `None` if there are fewer than two points.
///
/// # Errors
/// If a number cannot be drawn.
pub fn svg(history: &History) -> Result<Option<String>> {
    let losses = Losses::new(history);
    if losses.training.len() < 2 {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&losses, &history.learning_rate.points(), &mut svg)
        .map_err(|error| Error::Msg(format!("loss plot: {error}")))?;
    Ok(Some(svg))
}

fn draw(losses: &Losses, learning_rate: &Points, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 - LEARNING_RATE_HEIGHT);
    draw_losses(losses, &upper)?;
    draw_learning_rate(learning_rate, losses.steps(), &lower)?;
    root.present()
}

/// The curves of the upper panel.
struct Losses {
    training: Points,
    smoothed: Points,
    validation: Vec<(String, Points)>,
}

impl Losses {
    fn new(history: &History) -> Self {
        let points =
            |series: &Series| series.points().into_iter().map(|(step, x)| (step, x.clamp(-MOST, MOST))).collect();
        let training: Points = points(&history.loss);
        let validation = history.validation.iter().map(|(path, series)| (path.clone(), points(series))).collect();
        Self { smoothed: smoothed(&training), training, validation }
    }

    fn steps(&self) -> f64 {
        let curves = self.validation.iter().map(|(_, points)| points);
        curves.chain([&self.training]).flatten().map(|point| point.0).fold(1.0, f64::max)
    }

    /// The lowest and the highest loss to show: single outliers are cut off.
    fn range(&self) -> (f64, f64) {
        let mut sorted: Vec<f64> = self.training.iter().map(|point| point.1).collect();
        sorted.sort_by(f64::total_cmp);
        let aside = sorted.len() / 200;
        let curves = self.validation.iter().map(|(_, points)| points).chain([&self.smoothed]);
        let shown = curves.flatten().map(|point| point.1).chain([sorted[aside], sorted[sorted.len() - 1 - aside]]);
        shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(lowest, highest), x| (lowest.min(x), highest.max(x)))
    }
}

/// The mean around each point: over fewer points at the beginning, where losses fall fast, and over earlier points at
/// the end.
fn smoothed(points: &[(f64, f64)]) -> Points {
    let most = (points.len() as f64 * WINDOW / 2.0).ceil() as usize;
    let mean = |i: usize| {
        let reach = most.min(i);
        let window = &points[i - reach..points.len().min(i + reach + 1)];
        window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(i, point)| (point.0, mean(i))).collect()
}

fn draw_losses(losses: &Losses, area: &Area) -> Drawn {
    let (lowest, highest) = losses.range();
    let mut builder = ChartBuilder::on(area);
    builder.margin(MARGIN).margin_bottom(2).x_label_area_size(26).y_label_area_size(LABELS_WIDTH);
    if lowest > 0.0 && highest > MOST_LINEAR * lowest {
        let lowest = lowest.max(highest * 10f64.powi(-MOST_DECADES));
        let range = (lowest / 1.1..highest * 1.1).log_scale();
        draw_curves(losses, &mut builder.build_cartesian_2d(0.0..losses.steps(), range)?)
    } else {
        let space = (0.04 * (highest - lowest)).max(1e-3 * highest.abs().max(1.0));
        let range = lowest - space..highest + space;
        draw_curves(losses, &mut builder.build_cartesian_2d(0.0..losses.steps(), range)?)
    }
}

fn draw_curves<'a, Y>(
    losses: &Losses,
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    draw_mesh(chart, "loss (nats per token)", "", 10, &short)?;
    chart.draw_series(LineSeries::new(losses.training.iter().copied(), TRAINING.mix(0.3)))?;
    let last = losses.smoothed.last().map_or(0.0, |point| point.1);
    draw_line(chart, &losses.smoothed, TRAINING, format!("training, smoothed: {last:.3} at the end"))?;
    for ((path, points), color) in losses.validation.iter().zip(VALIDATION.into_iter().cycle()) {
        let lowest = points.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
        let name = path.replace("_loss", "").replace(['_', '/'], " ");
        draw_line(chart, points, color, format!("{name}: lowest {:.3} at step {:.0}", lowest.1, lowest.0))?;
        if points.len() <= MOST_DOTS {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14, &TEXT))
        .background_style(WHITE.mix(0.85))
        .legend_area_size(26)
        .margin(12)
        .draw()
}

fn draw_line<'a, Y: Ranged<ValueType = f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    points: &Points,
    color: RGBColor,
    label: String,
) -> Drawn {
    let style = ShapeStyle::from(color).stroke_width(2);
    chart
        .draw_series(LineSeries::new(points.iter().copied(), style))?
        .label(label)
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
    Ok(())
}

fn draw_learning_rate(points: &Points, steps: f64, area: &Area) -> Drawn {
    let highest = points.iter().map(|point| point.1).fold(1e-9, f64::max).min(MOST);
    let mut chart = ChartBuilder::on(area)
        .margin(MARGIN)
        .margin_top(4)
        .x_label_area_size(42)
        .y_label_area_size(LABELS_WIDTH)
        .build_cartesian_2d(0.0..steps, 0.0..1.08 * highest)?;
    draw_mesh(&mut chart, "learning rate", "step", 4, &scientific)?;
    let style = ShapeStyle::from(TEXT).stroke_width(2);
    chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
    Ok(())
}

/// Grid, axes and their titles.
fn draw_mesh<'a, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, Y>>,
    y_title: &str,
    x_title: &str,
    y_labels: usize,
    y_label: &dyn Fn(&f64) -> String,
) -> Drawn
where
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .label_style(("sans-serif", 13, &TEXT))
        .axis_desc_style(("sans-serif", 15, &TEXT))
        .x_labels(9)
        .y_labels(y_labels)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&y_label)
        .x_desc(x_title)
        .y_desc(y_title)
        .draw()
}

/// A number without trailing zeros: 2.5, 0.01.
fn short(value: &f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A number in scientific notation: 7.5e-4.
fn scientific(value: &f64) -> String {
    if *value == 0.0 { "0".into() } else { format!("{value:.1e}").replace(".0e", "e") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Line;

    fn history(steps: u64, loss: impl Fn(u64) -> f64) -> History {
        let mut history = History::default();
        for step in 1..=steps {
            let scalars = [("loss", loss(step)), ("learning_rate", 1e-3 / step as f64)];
            let mut scalars = scalars.map(|(path, value)| (path.to_string(), value)).to_vec();
            if step.is_multiple_of(100) {
                scalars.extend(
                    ["validation_loss", "ema_validation_loss"].map(|path| (path.to_string(), 1.1 * loss(step))),
                );
            }
            history.push(&Line { step, seconds: 0.0, scalars });
        }
        history
    }

    #[test]
    fn the_plot_names_axes_and_curves_and_stays_small() {
        assert!(svg(&history(1, |_| 1.0)).unwrap().is_none());
        let few = svg(&history(1500, |step| 1.0 + 3.0 / step as f64)).unwrap().unwrap();
        for text in ["loss (nats per token)", "learning rate", "step", "training, smoothed", "ema validation: lowest"] {
            assert!(few.contains(text), "{text} is missing");
        }
        let many = svg(&history(50_000, |step| 1.0 + 3.0 / step as f64)).unwrap().unwrap();
        assert!(many.len() < 250_000, "{} bytes", many.len());
        for loss in [f64::MAX, 0.0, -1.0, 1e-300] {
            assert!(svg(&history(3, |_| loss)).is_ok(), "{loss}");
        }
    }

    #[test]
    fn a_loss_that_falls_by_magnitudes_has_a_logarithmic_axis() {
        let falling = svg(&history(300, |step| 10f64.powf(-(step as f64) / 100.0))).unwrap().unwrap();
        let labels = |svg: &str, label: &str| svg.lines().filter(|line| line.trim() == label).count();
        assert_eq!([1, 1, 1], ["0.1", "0.01", "0.001"].map(|label| labels(&falling, label)));
    }

    #[test]
    fn the_smoothed_loss_keeps_a_line_and_averages_what_jumps() {
        let line: Points = (0..400).map(|i| (f64::from(i), f64::from(i))).collect();
        assert!(smoothed(&line)[..390].iter().all(|point| (point.0 - point.1).abs() < 1e-9));
        let jumping: Points = (0..400).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smoothed(&jumping)[20..].iter().all(|point| (point.1 - 0.5).abs() < 0.1));
    }
}
