//! The loss curve on a terminal.

use std::path::Path;

use anyhow::Result;
use serde::Deserialize;
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

/// A line of the metrics: a step has a loss, a validation a validation loss.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    validation_loss: Option<f64>,
}

/// Draws the training loss over the steps, from the metrics of the run in `root`, in braille dots.
pub fn loss_curve(root: &Path) -> Result<Option<String>> {
    let metrics = std::fs::read_to_string(root.join("training/metrics.jsonl"))?;
    // A line that a crash has torn is no reason not to draw the others.
    let lines: Vec<Line> = metrics.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let losses: Vec<(f32, f32)> = lines.iter().filter_map(|line| Some((line.step as f32, line.loss? as f32))).collect();
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
    let validation = lines.iter().filter_map(|line| Some((line.step, line.validation_loss?)));
    let validation: Vec<String> = validation.map(|(step, loss)| format!("{step}: {loss:.3}")).collect();
    let title = format!("training loss (nats a token, smoothed)\n{chart}");
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
