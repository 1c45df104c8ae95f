//! The map as a picture: one head with its numbers, or all heads side by side.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};
use serde::Serialize;

use super::units::Units;
use super::{Chosen, Inspected};

/// What the template draws, in pixels.
#[derive(Serialize)]
struct Picture {
    width: f64,
    height: f64,
    title: String,
    /// What a row and a column stand for, in two lines.
    caption: [String; 2],
    panels: Vec<Panel>,
}

/// One head.
#[derive(Serialize)]
struct Panel {
    x: f64,
    y: f64,
    size: f64,
    cell: f64,
    title: String,
    /// Names of rows and columns, if there is room.
    labels: Vec<String>,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    row: usize,
    column: usize,
    /// Its darkness: the square root of the weight, so that small weights show.
    opacity: f64,
    /// In percent, if there is room.
    number: Option<String>,
}

/// Space around panels, and for the title and the caption.
const MARGIN: f64 = 16.0;
const LINE: f64 = 20.0;
/// What the caption needs.
const MIN_WIDTH: f64 = 310.0;
const DARKNESS: &str = "left to right; darkness: square root of the weight";

/// Writes the picture: as SVG or as PNG.
pub fn write(file: &Path, as_png: bool, inspected: &Inspected, units: &Units, chosen: Chosen) -> Result<()> {
    let map = &inspected.map;
    let (layers, heads) = map.heads();
    let name = units.name();
    let caption = [format!("each row is a {name} and what it attends to,"), DARKNESS.to_string()];
    let weights = |at| units.weights(map, at);
    let picture = match (chosen.layer, chosen.head) {
        (Some(layer), Some(head)) => large(&units.labels, &weights((layer, head))?, [layer, head], caption),
        (layer, _) => {
            let shown: Vec<usize> = layer.map_or((0..layers).collect(), |layer| vec![layer]);
            let places = shown.iter().flat_map(|layer| (0..heads).map(move |head| (*layer, head)));
            let all = places.map(|at| Ok((at, weights(at)?))).collect::<Result<Vec<_>>>()?;
            small(units.labels.len(), &all, heads, caption)
        }
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let svg = environment.render_str(include_str!("picture.svg"), Serde(&picture))?;
    let bytes = if as_png { png(&svg)? } else { svg.into_bytes() };
    Ok(candle_attention::replace_file(file, &bytes)?)
}

/// The largest weights of blocks of units, so that there are at most `max` rows: as large as pictures can show.
fn joined(count: usize, weights: &[f32], max: usize) -> (usize, Vec<f32>) {
    let each = count.div_ceil(max).max(1);
    let blocks = count.div_ceil(each);
    let mut largest = vec![0f32; blocks * blocks];
    for (i, weight) in weights.iter().enumerate() {
        let block = &mut largest[i / count / each * blocks + i % count / each];
        *block = block.max(*weight);
    }
    (blocks, largest)
}

/// One head with the names of its rows and columns.
fn large(labels: &[String], weights: &[f32], [layer, head]: [usize; 2], mut caption: [String; 2]) -> Picture {
    /// Of a character, about.
    const WIDTH: f64 = 7.5;
    /// Rows, each of at least two pixels.
    const MAX: usize = 360;
    let (count, weights) = joined(labels.len(), weights, MAX);
    let cell = (720.0 / count as f64).min(44.0);
    let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0) as f64;
    let (has_labels, has_numbers) = (cell >= 10.0 && count == labels.len(), cell >= 30.0);
    let space = if has_labels { longest * WIDTH + 8.0 } else { 0.0 };
    let size = cell * count as f64;
    if has_numbers {
        caption[1] += "; numbers in percent";
    }
    let panel = Panel {
        x: MARGIN + space,
        y: MARGIN + LINE + space,
        size,
        cell,
        title: String::new(),
        labels: if has_labels { labels.to_vec() } else { vec![] },
        cells: cells(count, &weights, has_numbers),
    };
    Picture {
        width: (panel.x + size + MARGIN).max(MIN_WIDTH),
        height: panel.y + size + 2.0 * LINE + MARGIN,
        title: format!("layer {}, head {}", layer + 1, head + 1),
        caption,
        panels: vec![panel],
    }
}

/// Several heads, a row of panels for each layer.
fn small(count: usize, all: &[((usize, usize), Vec<f32>)], columns: usize, caption: [String; 2]) -> Picture {
    const SIZE: f64 = 132.0;
    let all = all.iter().map(|(at, weights)| (at, joined(count, weights, SIZE as usize)));
    let panels: Vec<Panel> = all
        .enumerate()
        .map(|(i, ((layer, head), (count, weights)))| Panel {
            x: MARGIN + (i % columns) as f64 * (SIZE + MARGIN),
            y: MARGIN + LINE + (i / columns) as f64 * (SIZE + MARGIN + LINE) + LINE,
            size: SIZE,
            cell: SIZE / count as f64,
            title: format!("layer {}, head {}", layer + 1, head + 1),
            labels: vec![],
            cells: cells(count, &weights, false),
        })
        .collect();
    let last = panels.last().map_or(0.0, |panel| panel.y);
    let width = MARGIN + columns as f64 * (SIZE + MARGIN);
    Picture {
        width: width.max(MIN_WIDTH),
        height: last + SIZE + 2.0 * LINE + MARGIN,
        title: String::new(),
        caption,
        panels,
    }
}

/// The cells that can be seen.
fn cells(count: usize, weights: &[f32], has_numbers: bool) -> Vec<Cell> {
    /// Hardly darker than the paper.
    const MIN: f32 = 0.001;
    let cell = |(i, weight): (usize, &f32)| Cell {
        row: i / count,
        column: i % count,
        opacity: f64::from(weight.sqrt()),
        number: (has_numbers && *weight >= 0.005).then(|| format!("{:.0}", 100.0 * weight)),
    };
    weights.iter().enumerate().filter(|(_, weight)| **weight >= MIN).map(cell).collect()
}

/// The picture in pixels, two for each of its own.
fn png(svg: &str) -> Result<Vec<u8>> {
    const SCALE: f32 = 2.0;
    const TOO_LARGE: &str = "--out: the picture is too large for a .png; --layer and --head make it smaller";
    let mut fonts = fontdb::Database::new();
    fonts.load_system_fonts();
    let families = || fonts.faces().flat_map(|face| face.families.iter().map(|(name, _)| name.clone()));
    let known = ["Arial", "Helvetica", "Liberation Sans", "DejaVu Sans", "Noto Sans"];
    let Some(family) = families().find(|name| known.contains(&name.as_str())).or_else(|| families().next()) else {
        bail!("--out: a .png needs a font, and this system has none; a .svg needs none");
    };
    fonts.set_sans_serif_family(family);
    let tree = Tree::from_str(svg, &Options { fontdb: Arc::new(fonts), ..Default::default() }).context(TOO_LARGE)?;
    let size = tree.size();
    let [width, height] = [size.width(), size.height()].map(|length| (length * SCALE).ceil() as u32);
    let mut pixels = Pixmap::new(width, height).context(TOO_LARGE)?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_map_is_joined_to_the_largest_weights_of_its_blocks() {
        let weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.1, 0.7]];
        assert_eq!(joined(3, weights.as_flattened(), 3), (3, weights.as_flattened().to_vec()));
        assert_eq!(joined(3, weights.as_flattened(), 2), (2, vec![1.0, 0.0, 0.2, 0.7]));
    }
}
