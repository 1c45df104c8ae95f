//! The map as a page to explore.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_attention::inspect::{AttentionMap, HeadScores};
use candle_attention::text::Tokenizer;
use candle_attention::train::metrics::{History, Points, thinned};
use candle_attention::train::{best_of, kept_model, kept_steps, watched_map, watched_steps};
use candle_core::{Device, Tensor};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

use super::{Chosen, Inspected};
use crate::chart::spread;
use crate::pages::Page;
use crate::terminal::{note, one_line};

/// What the page reads. Packed numbers are base64 of gzip of little-endian numbers; shares are `u16`, of which 65535 is 1.
#[derive(Serialize)]
struct Data<'a> {
    model: Model,
    tokens: &'a [String],
    /// The word of each token.
    words: &'a [usize],
    word_texts: &'a [String],
    losses: Option<Losses>,
    frames: Vec<Frame>,
    /// Candidates at each depth and position (K).
    candidates_each: usize,
    /// The texts of the candidates.
    vocabulary_texts: Vec<String>,
    /// For each token of the prompt, its index there, if it ever is a candidate.
    vocabulary_indices: Vec<Option<u32>>,
    start: Start,
}

/// What to begin with, if it was asked for: layer and head are counted from 1, and the units are `tokens`.
#[derive(Serialize)]
struct Start {
    layer: Option<usize>,
    head: Option<usize>,
    units: Option<&'static str>,
}

#[derive(Serialize)]
struct Model {
    name: String,
    architecture: &'static str,
    layers: usize,
    heads: usize,
    parameters: usize,
    vocabulary: usize,
}

/// Losses over steps.
#[derive(Serialize)]
struct Losses {
    training: Points,
    validation: Points,
}

/// The map at one step of training.
#[derive(Serialize)]
struct Frame {
    label: String,
    step: Option<u64>,
    /// Shares: of each layer and head, row `t` with its `t + 1` weights.
    attention: String,
    scores: Vec<Vec<HeadScores>>,
    /// `u32` (L + 1, T, K): indices of `vocabulary_texts`.
    candidates: String,
    /// Shares (L + 1, T, K).
    probabilities: String,
    /// Shares (L + 1, T).
    next: String,
}

/// Writes the page: of a run, with a frame for each step at which it watched this prompt or, if it did not, for each
/// checkpoint that it kept.
pub fn write(file: &Path, root: &Path, inspected: &Inspected, chosen: Chosen, as_tokens: bool) -> Result<()> {
    let Inspected { pipeline, words, map, .. } = inspected;
    let (layers, heads) = map.heads();
    let config = pipeline.model.config();
    let mut texts = CandidateTexts { tokenizer: &pipeline.tokenizer, map, indices: BTreeMap::new(), texts: vec![] };
    let frames = frames(root, inspected, &mut texts)?;
    let name = super::name(root);
    let data = Data {
        model: Model {
            name: name.clone(),
            architecture: config.architecture.model_type(),
            layers,
            heads,
            parameters: config.parameter_count(),
            vocabulary: config.vocab_size,
        },
        tokens: &words.tokens,
        words: &words.of_token,
        word_texts: &words.texts,
        losses: losses(root)?,
        frames,
        candidates_each: map.lens.ids.dim(2)?,
        vocabulary_indices: map.ids.iter().map(|id| texts.indices.get(id).copied()).collect(),
        vocabulary_texts: texts.texts,
        start: Start {
            layer: chosen.layer.map(|layer| layer + 1),
            head: chosen.head.map(|head| head + 1),
            units: as_tokens.then_some("tokens"),
        },
    };
    let page = Page {
        body: include_str!("../pages/map.html"),
        title: &format!("What {name} attends to"),
        css: include_str!("../pages/map.css"),
        script: concat!(
            include_str!("../pages/map_data.js"),
            include_str!("../pages/map_text.js"),
            include_str!("../pages/map_matrix.js"),
            include_str!("../pages/map_heads.js"),
            include_str!("../pages/map_lens.js"),
            include_str!("../pages/map_frames.js"),
            include_str!("../pages/map_svg.js"),
            include_str!("../pages/map.js"),
        ),
    };
    page.write(file, &data)
}

/// The maps of the steps that the run has watched or kept, and that of the model itself, the best of a run.
fn frames(root: &Path, inspected: &Inspected, texts: &mut CandidateTexts) -> Result<Vec<Frame>> {
    let map = &inspected.map;
    let watched = watched_steps(root)?;
    let is_watched = watched.last().is_some_and(|last| watched_map(root, *last).is_ok_and(|last| last.ids == map.ids));
    let before = if is_watched { watched } else { kept_steps(root)? };
    let at = |step: u64| match is_watched {
        true => watched_map(root, step),
        false => AttentionMap::new(&kept_model(root, step, &Device::Cpu)?, &map.ids),
    };
    let mut frames = vec![];
    for step in affordable(&before, map) {
        match at(step) {
            Ok(other) if other.is_comparable(map) => {
                frames.push(frame(format!("step {step}"), Some(step), &other, texts)?);
            }
            Ok(_) => note(&format!("step {step} is left out: it is of another prompt or model")),
            Err(error) => note(&format!("step {step} is left out: {}", one_line(&error.to_string()))),
        }
    }
    let best = best_of(root).map(|best| best.step);
    let label = best.map_or("the model".into(), |step| format!("step {step}, the best model"));
    // Where the best model is the last one, it is there already.
    frames.pop_if(|last| best.is_some() && last.step == best);
    frames.push(frame(label, best, map, texts)?);
    Ok(frames)
}

/// Of these steps, as many as a page can hold beside the last frame.
fn affordable(steps: &[u64], map: &AttentionMap) -> Vec<u64> {
    /// Of all frames: some 100 MB of a page.
    const MAX_WEIGHTS: usize = 100_000_000;
    let max = (MAX_WEIGHTS / map.weights.elem_count().max(1)).saturating_sub(1);
    if max < steps.len() {
        note(&format!("of the maps at {} steps, the page shows {max}: all would make it too large", steps.len()));
    }
    if max == 0 { vec![] } else { spread(steps, max) }
}

fn frame(label: String, step: Option<u64>, map: &AttentionMap, texts: &mut CandidateTexts) -> Result<Frame> {
    let ((layers, heads), t) = (map.heads(), map.ids.len());
    let mut weights = Packed::default();
    for layer in 0..layers {
        for head in 0..heads {
            let rows = map.head(layer, head)?;
            rows.chunks_exact(t).enumerate().try_for_each(|(i, row)| weights.shares(&row[..=i]))?;
        }
    }
    let mut candidates = Packed::default();
    for (place, ids) in map.lens.ids.to_vec3::<u32>()?.concat().iter().enumerate() {
        for id in ids {
            candidates.number(texts.index(place % t, *id)?)?;
        }
    }
    let shares = |tensor: &Tensor| -> Result<String> {
        let mut packed = Packed::default();
        packed.shares(&tensor.flatten_all()?.to_vec1::<f32>()?)?;
        packed.text()
    };
    Ok(Frame {
        label,
        step,
        attention: weights.text()?,
        scores: map.scores()?,
        candidates: candidates.text()?,
        probabilities: shares(&map.lens.probabilities)?,
        next: shares(&map.lens.next)?,
    })
}

/// The texts of the candidates, each once.
struct CandidateTexts<'a> {
    tokenizer: &'a Tokenizer,
    map: &'a AttentionMap,
    /// By id: a text hardly depends on what is before it, but for the first token of a text.
    indices: BTreeMap<u32, u32>,
    texts: Vec<String>,
}

impl CandidateTexts<'_> {
    /// The index of the text of an id that may follow position `t`.
    fn index(&mut self, t: usize, id: u32) -> Result<u32> {
        if let Some(index) = self.indices.get(&id) {
            return Ok(*index);
        }
        let index = u32::try_from(self.texts.len())?;
        self.texts.push(self.tokenizer.token_text_after(&self.map.ids[t..=t], id)?);
        self.indices.insert(id, index);
        Ok(index)
    }
}

/// Numbers as the page reads them.
struct Packed(GzEncoder<Vec<u8>>);

impl Default for Packed {
    fn default() -> Self {
        Self(GzEncoder::new(vec![], Compression::default()))
    }
}

impl Packed {
    fn shares(&mut self, shares: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = shares
            .iter()
            .flat_map(|share| ((share.clamp(0.0, 1.0) * f32::from(u16::MAX)).round() as u16).to_le_bytes())
            .collect();
        Ok(self.0.write_all(&bytes)?)
    }

    fn number(&mut self, number: u32) -> Result<()> {
        Ok(self.0.write_all(&number.to_le_bytes())?)
    }

    fn text(self) -> Result<String> {
        Ok(STANDARD.encode(self.0.finish().context("cannot compress")?))
    }
}

/// The losses of a run, few enough to draw.
fn losses(root: &Path) -> Result<Option<Losses>> {
    const MAX_POINTS: usize = 300;
    let metrics = root.join("training/metrics.jsonl");
    if !metrics.is_file() {
        return Ok(None);
    }
    let History { loss, validation_loss, .. } = History::open(&metrics)?;
    let [training, validation] = [loss, validation_loss].map(|points| thinned(&points, MAX_POINTS));
    Ok(Some(Losses { training, validation }))
}
