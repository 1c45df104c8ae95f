//! The map on a terminal.

use std::io::Write;

use anyhow::Result;

use super::units::{Units, visible};
use super::{Chosen, Inspected};
use crate::terminal::counted;

/// Heads, rows and columns of a head, and positions shown at most.
const MAX_HEADS: usize = 3;
const MAX_UNITS: usize = 40;
const MAX_POSITIONS: usize = 3;

/// Prints the chosen heads and the next-token distribution at the last positions.
pub fn show(inspected: &Inspected, units: &Units, chosen: Chosen, out: &mut dyn Write) -> Result<()> {
    let map = &inspected.map;
    let (layers, heads) = map.heads();
    let (tokens, count, name) = (inspected.words.tokens.len(), units.labels.len(), units.name());
    let as_words = if count < tokens { format!(" in {}", counted(count, "word")) } else { String::new() };
    let sizes = [(tokens, "token"), (layers, "layer"), (heads, "head")].map(|(count, name)| counted(count, name));
    writeln!(out, "{}{as_words}; {} of {}", sizes[0], sizes[1], sizes[2])?;
    if count > MAX_UNITS {
        writeln!(out, "the last {MAX_UNITS} {name}s are shown; --out map.html shows all")?;
    }
    writeln!(out, "each {name} and those it attends to: ░ 2, ▒ 10, ▓ 25, █ 50 % and more")?;
    let scores = map.scores()?;
    for (layer, head) in chosen.heads(map)?.into_iter().take(MAX_HEADS) {
        let scores = scores[layer][head];
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        write!(out, "\nlayer {}, head {}: {:.1} tokens back, ", layer + 1, head + 1, scores.distance)?;
        write!(out, "entropy {:.1} bits, previous token {}, ", scores.entropy, percent(scores.previous))?;
        let same = scores.same.map_or(String::new(), |same| format!(", same token {}", percent(same)));
        writeln!(out, "first token {}{same}", percent(scores.first))?;
        show_head(&units.labels, &units.weights(map, (layer, head))?, out)?;
    }
    writeln!(out, "\nnext token, with its probability:")?;
    show_next(inspected, out)
}

/// A row for each of the last units: its name, a cell for each unit it may see, and those with the largest weights.
fn show_head(labels: &[String], weights: &[f32], out: &mut dyn Write) -> Result<()> {
    const NAMED: usize = 3;
    let first = labels.len().saturating_sub(MAX_UNITS);
    let shown = &labels[first..];
    let width = shown.iter().map(|label| label.chars().count()).max().unwrap_or(0).min(16);
    let cell = if shown.len() <= MAX_UNITS / 2 { 2 } else { 1 };
    for (label, row) in shown.iter().zip(weights.chunks_exact(labels.len()).skip(first)) {
        let shade = |weight: &f32| match weight {
            w if *w < 0.02 => ' ',
            w if *w < 0.1 => '░',
            w if *w < 0.25 => '▒',
            w if *w < 0.5 => '▓',
            _ => '█',
        };
        let cells: String = row[first..].iter().map(|weight| shade(weight).to_string().repeat(cell)).collect();
        let mut largest: Vec<usize> = (0..row.len()).collect();
        largest.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let named = largest.into_iter().take(NAMED).filter(|s| row[*s] >= 0.02);
        let named: Vec<String> =
            named.map(|s| format!("{} {:.0}", shortened(&labels[s], 16), 100.0 * row[s])).collect();
        writeln!(out, "  {:>width$} |{cells}| {}", shortened(label, 16), named.join("  "))?;
    }
    Ok(())
}

/// The most likely next tokens at the last positions.
fn show_next(Inspected { pipeline, words, map, .. }: &Inspected, out: &mut dyn Write) -> Result<()> {
    const NAMED: usize = 5;
    let (tokens, depth) = (&words.tokens, map.heads().0);
    let ids = map.lens.ids.get(depth)?.to_vec2::<u32>()?; // (T, K)
    let probabilities = map.lens.probabilities.get(depth)?.to_vec2::<f32>()?;
    for position in tokens.len().saturating_sub(MAX_POSITIONS)..tokens.len() {
        let before = visible(&tokens[..=position].concat());
        let text: String = before.chars().skip(before.chars().count().saturating_sub(24)).collect();
        let likely = ids[position].iter().zip(&probabilities[position]).take(NAMED).map(|(id, probability)| {
            let text = pipeline.tokenizer.token_text_after(&map.ids[position..=position], *id)?;
            Ok(format!("{} {:.1}", visible(&text), 100.0 * probability))
        });
        writeln!(out, "  {text:>24} -> {}", likely.collect::<Result<Vec<_>>>()?.join("  "))?;
    }
    Ok(())
}

/// A text of at most `max` characters.
fn shortened(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some(_) => text.chars().take(max - 1).chain(['…']).collect(),
        None => text.into(),
    }
}
