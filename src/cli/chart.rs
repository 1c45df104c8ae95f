//! The loss curve on a terminal.

use std::path::Path;

use anyhow::Result;
use candle_attention::metrics::History;
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

/// Draws the training loss over the steps in braille dots, from the metrics of the run in `root`.
pub fn loss_curve(root: &Path) -> Result<Option<String>> {
    let history = History::open(&root.join("training/metrics.jsonl"))?;
    let losses: Vec<(f32, f32)> =
        history.loss.points().iter().map(|&(step, loss)| (step as f32, loss as f32)).collect();
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else { return Ok(None) };
    if losses.len() < 2 {
        return Ok(None);
    }
    let smooth = smoothed(&losses, losses.len().div_ceil(60));
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
    let validation = history.validation.get("validation_loss").map(|losses| losses.points()).unwrap_or_default();
    let validation: Vec<String> =
        spread(&validation).iter().map(|(step, loss)| format!("{step:.0}: {loss:.3}")).collect();
    let title = format!("training loss (nats per token, smoothed)\n{chart}");
    Ok(Some(match validation.is_empty() {
        true => title,
        false => format!("{title}validation loss at step {}\n", validation.join(", ")),
    }))
}

/// The means of groups of `size` points.
fn smoothed(points: &[(f32, f32)], size: usize) -> Vec<(f32, f32)> {
    let mean = |group: &[(f32, f32)]| {
        let n = group.len() as f32;
        (group.iter().map(|p| p.0).sum::<f32>() / n, group.iter().map(|p| p.1).sum::<f32>() / n)
    };
    points.chunks(size).map(mean).collect()
}

/// Validations that fit on a line.
const MAX_VALIDATIONS: usize = 8;

/// At most [`MAX_VALIDATIONS`] of the points at equal distances, the last among them.
fn spread<T: Copy>(points: &[T]) -> Vec<T> {
    let every = points.len().div_ceil(MAX_VALIDATIONS).max(1);
    let mut shown: Vec<T> = points.iter().rev().step_by(every).copied().collect();
    shown.reverse();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_validations_are_thinned_out() {
        let shown = |n: u64| spread(&(1..=n).collect::<Vec<_>>());
        assert_eq!((shown(0), shown(8)), (vec![], (1..=8).collect()));
        assert_eq!(shown(9), [1, 3, 5, 7, 9]);
        assert_eq!(shown(400), (1..=8).map(|i| 50 * i).collect::<Vec<_>>());
    }
}
