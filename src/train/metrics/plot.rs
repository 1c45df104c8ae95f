//! The loss plot.

use plotters::chart::{ChartBuilder, ChartContext, SeriesLabelPosition};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    Cartesian2d, Color, DrawingAreaErrorKind, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend,
    ShapeStyle, WHITE,
};

use super::history::{History, Points, thinned};
use crate::host::{Error, Result};

type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(228, 228, 228);
const TRAINING: RGBColor = RGBColor(31, 119, 180);
const VALIDATION: RGBColor = RGBColor(214, 96, 30);

/// The loss and the learning rate over the steps, as SVG; `None` if there are fewer than two points.
///
/// # Errors
/// If a number cannot be drawn.
pub(super) fn svg(history: &History) -> Result<Option<String>> {
    /// The limit of plotters' axes.
    const MAX: f64 = 1e9;
    /// As many as a plot can show.
    const MAX_POINTS: usize = 2000;
    let points = |points: &Points| -> Points {
        thinned(points, MAX_POINTS).into_iter().map(|(step, value)| (step, value.clamp(-MAX, MAX))).collect()
    };
    let [training, validation, rates] = [&history.loss, &history.validation_loss, &history.learning_rate].map(points);
    if training.len() < 2 {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&training, &validation, &rates, &mut svg).map_err(|error| Error::Input(format!("loss plot: {error}")))?;
    Ok(Some(svg))
}

fn draw(training: &Points, validation: &Points, rates: &Points, svg: &mut String) -> Drawn {
    const SIZE: (u32, u32) = (960, 600);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 - 150);
    let smooth = smoothed(training);
    let steps = training.iter().chain(validation).map(|point| point.0).fold(1.0, f64::max);
    // Single outliers are cut off.
    let (low, high) = range(smooth.iter().chain(validation));
    let space = 0.04 * (high - low).max(1e-3);
    let mut chart = ChartBuilder::on(&upper)
        .margin(14)
        .x_label_area_size(26)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..steps, low - space..high + space)?;
    draw_mesh(&mut chart, "loss (nats per token)", "", &|loss| format!("{loss:.2}"))?;
    chart.draw_series(LineSeries::new(training.iter().copied(), TRAINING.mix(0.3)))?;
    let last = smooth.last().map_or(0.0, |point| point.1);
    draw_line(&mut chart, &smooth, TRAINING, format!("training, smoothed: {last:.3} at the end"))?;
    if let Some((step, loss)) = validation.iter().min_by(|a, b| a.1.total_cmp(&b.1)) {
        draw_line(&mut chart, validation, VALIDATION, format!("validation: lowest {loss:.3} at step {step:.0}"))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14, &TEXT))
        .background_style(WHITE.mix(0.85))
        .margin(12)
        .draw()?;
    let highest = rates.iter().map(|point| point.1).fold(1e-9, f64::max);
    let mut chart = ChartBuilder::on(&lower)
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..steps, 0.0..1.08 * highest)?;
    draw_mesh(&mut chart, "learning rate", "step", &|rate| format!("{rate:.1e}"))?;
    chart.draw_series(LineSeries::new(rates.iter().copied(), ShapeStyle::from(TEXT).stroke_width(2)))?;
    root.present()
}

fn range<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    points.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), point| (low.min(point.1), high.max(point.1)))
}

/// The mean around each point: over fewer points at the beginning, where losses fall fast, and over earlier points at
/// the end.
fn smoothed(points: &[(f64, f64)]) -> Points {
    let reach = points.len().div_ceil(80);
    let mean = |i: usize| {
        let reach = reach.min(i);
        let window = &points[i - reach..points.len().min(i + reach + 1)];
        window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64
    };
    points.iter().enumerate().map(|(i, point)| (point.0, mean(i))).collect()
}

fn draw_line(chart: &mut Chart, points: &Points, color: RGBColor, label: String) -> Drawn {
    let style = ShapeStyle::from(color).stroke_width(2);
    chart
        .draw_series(LineSeries::new(points.iter().copied(), style))?
        .label(label)
        .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
    Ok(())
}

/// Grid, axes and their titles.
fn draw_mesh(chart: &mut Chart, y_title: &str, x_title: &str, y_label: &dyn Fn(&f64) -> String) -> Drawn {
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .label_style(("sans-serif", 13, &TEXT))
        .axis_desc_style(("sans-serif", 15, &TEXT))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&y_label)
        .x_desc(x_title)
        .y_desc(y_title)
        .draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Line;

    fn history(steps: u64, loss: impl Fn(u64) -> f64) -> History {
        let mut history = History::default();
        for step in 1..=steps {
            let mut numbers = vec![("loss", loss(step)), ("learning_rate", 1e-3 / step as f64)];
            if step.is_multiple_of(100) {
                numbers.push(("validation_loss", 1.1 * loss(step)));
            }
            let numbers = numbers.into_iter().map(|(name, value)| (name.to_string(), value.into())).collect();
            history.push(&Line { step, seconds: 0.0, numbers });
        }
        history
    }

    #[test]
    fn the_plot_names_axes_and_curves_and_stays_small() {
        assert!(svg(&history(1, |_| 1.0)).unwrap().is_none());
        let few = svg(&history(1500, |step| 1.0 + 3.0 / step as f64)).unwrap().unwrap();
        let lowest = "validation: lowest 1.102 at step 1500";
        for text in ["loss (nats per token)", "learning rate", "step", "training, smoothed", lowest] {
            assert!(few.contains(text), "{text} is missing");
        }
        let many = svg(&history(50_000, |step| 1.0 + 3.0 / step as f64)).unwrap().unwrap();
        assert!(many.len() < 250_000, "{} bytes", many.len());
    }

    #[test]
    fn any_finite_loss_can_be_drawn() {
        for loss in [f64::MAX, f64::MIN, 0.0, -1.0, 1e-300] {
            assert!(svg(&history(300, |_| loss)).unwrap().is_some(), "{loss}");
        }
    }

    #[test]
    fn the_smoothed_loss_keeps_a_line_and_averages_what_jumps() {
        let line: Points = (0..400).map(|i| (f64::from(i), f64::from(i))).collect();
        assert!(smoothed(&line)[..390].iter().all(|point| (point.0 - point.1).abs() < 1e-9));
        let jumping: Points = (0..400).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        assert!(smoothed(&jumping)[20..].iter().all(|point| (point.1 - 0.5).abs() < 0.1));
    }
}
