//! The loss curve on a terminal.

use std::path::Path;

use anyhow::Result;
use candle_attention::train::metrics::{History, thinned};
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

/// Draws the training loss over the steps in braille dots, from the file of a run's metrics.
pub fn loss_curve(metrics: &Path) -> Result<Option<String>> {
    /// A curve of more points is rough, and more validations do not fit on a line.
    const MAX_POINTS: usize = 60;
    const MAX_VALIDATIONS: usize = 8;
    let history = History::open(metrics)?;
    let smooth: Vec<(f32, f32)> =
        thinned(&history.loss, MAX_POINTS).iter().map(|&(step, loss)| (step as f32, loss as f32)).collect();
    let [first, .., last] = smooth[..] else { return Ok(None) };
    let values = || smooth.iter().map(|point| point.1);
    let (lowest, highest) = (values().fold(f32::INFINITY, f32::min), values().fold(0.0, f32::max));
    let curve = Shape::Lines(&smooth);
    let mut chart = Chart::new_with_y_range(120, 40, first.0, last.0, lowest.min(highest - 0.1), highest);
    let chart = chart
        .x_label_format(LabelFormat::Custom(Box::new(|step| format!("step {step:.0}"))))
        .y_label_format(LabelFormat::Custom(Box::new(|loss| format!("{loss:.2}"))))
        .lineplot(&curve);
    chart.axis();
    chart.figures();
    let validation: Vec<String> = spread(&history.validation_loss, MAX_VALIDATIONS)
        .iter()
        .map(|(step, loss)| format!("{step:.0}: {loss:.3}"))
        .collect();
    let title = format!("training loss (nats per token, smoothed)\n{chart}");
    Ok(Some(match validation.is_empty() {
        true => title,
        false => format!("{title}validation loss at step {}\n", validation.join(", ")),
    }))
}

/// At most `max` of the points at equal distances, the last among them.
pub fn spread<T: Copy>(points: &[T], max: usize) -> Vec<T> {
    let every = points.len().div_ceil(max.max(1)).max(1);
    let mut shown: Vec<T> = points.iter().rev().step_by(every).copied().collect();
    shown.reverse();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_validations_are_thinned_out() {
        let shown = |n: u64| spread(&(1..=n).collect::<Vec<_>>(), 8);
        assert_eq!((shown(0), shown(8)), (vec![], (1..=8).collect()));
        assert_eq!(shown(9), [1, 3, 5, 7, 9]);
        assert_eq!(shown(400), (1..=8).map(|i| 50 * i).collect::<Vec<_>>());
    }
}
