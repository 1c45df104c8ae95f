//! The report on a terminal.

use std::io::Write;

use anyhow::Result;
use candle_attention::inspect::{HeadSpectra, Spectrum, TensorReport};

use super::{Inspected, described, model};

/// Heads or layers beside one another.
const COLUMNS: usize = 8;

/// Prints a table for each matrix of the heads and one for each number of the tensors.
pub fn print(inspected: &Inspected, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}: {}", inspected.name, model(&inspected.config))?;
    type Pick = fn(&HeadSpectra) -> &Spectrum;
    let spectra: [(&str, Pick); 2] =
        [("W^Q W^K^T / sqrt(D), the scores", |head| &head.qk), ("W^V W^O, what is written", |head| &head.vo)];
    for (name, pick) in spectra {
        writeln!(out, "\n{name}: Frobenius norm, and in how many directions (stable rank)")?;
        heads(&inspected.report.heads, pick, out)?;
    }
    writeln!(out, "\nnorm of each tensor")?;
    tensors(inspected, |tensor| Some(tensor.norm), out)?;
    writeln!(out, "\nchange since the start, |W - W_0| / |W_0|; inf where that was zero")?;
    match &inspected.start {
        Ok(_) => tensors(inspected, |tensor| tensor.change, out)?,
        Err(reason) => writeln!(out, "  not known: {reason}")?,
    }
    writeln!(out, "\nnorm of the gradient")?;
    match &inspected.gradients {
        Ok(gradients) => {
            writeln!(out, "  {}", described(gradients))?;
            tensors(inspected, |tensor| tensor.gradient, out)?;
        }
        Err(reason) => writeln!(out, "  not known: {reason}")?,
    }
    Ok(())
}

/// A row for each layer, heads in columns.
fn heads(all: &[Vec<HeadSpectra>], pick: fn(&HeadSpectra) -> &Spectrum, out: &mut dyn Write) -> Result<()> {
    let count = all.first().map_or(0, Vec::len);
    for first in (0..count).step_by(COLUMNS) {
        let columns = first..count.min(first + COLUMNS);
        write!(out, "{:>8}", "layer")?;
        columns.clone().try_for_each(|head| write!(out, "{:>14}", format!("head {}", head + 1)))?;
        writeln!(out)?;
        for (layer, heads) in all.iter().enumerate() {
            write!(out, "{:>8}", layer + 1)?;
            for spectrum in heads[columns.clone()].iter().map(pick) {
                write!(out, "{:>9}{:>5.1}", number(spectrum.frobenius_norm()), spectrum.stable_rank())?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

/// A row for each kind of tensor, layers in columns, then those outside the layers; with bars relative to the largest.
fn tensors(inspected: &Inspected, of: fn(&TensorReport) -> Option<f64>, out: &mut dyn Write) -> Result<()> {
    let all = inspected.report.tensors.iter().filter_map(of);
    let largest = all.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let cell = |tensor: &TensorReport| format!("{:>10}", of(tensor).map_or(String::new(), |value| bar(value, largest)));
    let layers: Vec<_> = (0..inspected.config.num_layers).map(|i| inspected.layer(i)).collect();
    let outside = inspected.outside();
    let names = layers.iter().flatten().chain(&outside).map(|(name, _)| name.len());
    let width = names.max().unwrap_or(0) + 2;
    for first in (0..layers.len()).step_by(COLUMNS) {
        let columns = &layers[first..layers.len().min(first + COLUMNS)];
        write!(out, "{:>width$}", "layer")?;
        (0..columns.len()).try_for_each(|i| write!(out, "{:>10}", first + i + 1))?;
        writeln!(out)?;
        for (row, (name, _)) in columns[0].iter().enumerate() {
            write!(out, "{name:>width$}")?;
            columns.iter().try_for_each(|layer| write!(out, "{}", cell(layer[row].1)))?;
            writeln!(out)?;
        }
    }
    for (name, tensor) in outside {
        writeln!(out, "{name:>width$}{}", cell(tensor))?;
    }
    Ok(())
}

/// A number behind a block whose height is its part of the largest.
fn bar(value: f64, largest: f64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    if !value.is_finite() {
        return "inf".into();
    }
    let height = if largest > 0.0 { value / largest * BLOCKS.len() as f64 } else { 0.0 };
    format!("{} {}", BLOCKS[(height as usize).min(BLOCKS.len() - 1)], number(value))
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if (0.001..1000.0).contains(&value) => {
            let decimals = (2 - value.log10().floor() as i32).max(0) as usize;
            format!("{value:.decimals$}")
        }
        value => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_bars_the_height_of_their_part() {
        for (value, expected) in [
            (0.0, "0"),
            (0.001234, "0.00123"),
            (0.5, "0.500"),
            (12.34, "12.3"),
            (999.6, "1000"),
            (1234.0, "1.2e3"),
            (0.00012, "1.2e-4"),
        ] {
            assert_eq!(number(value), expected);
        }
        for (value, expected) in [(0.0, "▁ 0"), (1.0, "▄ 1.00"), (2.0, "█ 2.00"), (f64::INFINITY, "inf")] {
            assert_eq!(bar(value, 2.2), expected);
        }
        assert_eq!(bar(0.0, 0.0), "▁ 0");
    }
}
