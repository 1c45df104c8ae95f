//! Watching a model learn: attention maps of one prompt, at some steps of a run, in `training/watch/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{TrainOptions, checkpoint};
use crate::host::{Error, Result, bail_option, disk, input, memory};
use crate::inspect::AttentionMap;
use crate::model::{CausalLm, ModelConfig};
use crate::text::Tokenizer;

/// The folder of the maps, in that of the run's training.
pub(super) const FOLDER: &str = "watch";

/// Maps of a run that reaches its last step, beside that of its start.
const MAPS: u64 = 40;

/// Writes the maps of a run.
pub(super) struct Watch {
    ids: Vec<u32>,
    folder: PathBuf,
    tokens: String,
}

/// The bytes of all maps that a run keeps for its option `watch`; `None` without it.
///
/// # Errors
/// If the tokenizer cannot encode the text, or the model's context cannot hold it.
pub fn watch_bytes(options: &TrainOptions, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Option<usize>> {
    let Some(ids) = ids(&options.watch, tokenizer, config)? else { return Ok(None) };
    let (t, maps) = (ids.len(), MAPS.min(options.steps) as usize + 1);
    // Beside the weights, the rest is small.
    let weights = memory::tensor_bytes(&[maps, config.num_layers, config.num_heads, t, t], size_of::<f32>());
    Ok(Some(weights.unwrap_or(usize::MAX)))
}

/// The ids of the text to watch, if there is one.
fn ids(text: &str, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Option<Vec<u32>>> {
    if text.is_empty() {
        return Ok(None);
    }
    let option = |what: Error| Error::Option { name: "watch".into(), what: what.to_string() };
    let ids = tokenizer.encode_prompt(text.as_bytes(), false).map_err(option)?;
    let max = config.context_len;
    if ids.len() > max {
        bail_option!("watch", "expected a text of at most {max} tokens, the model's context, got {}", ids.len());
    }
    Ok(Some(ids))
}

impl Watch {
    /// For the text of the option `watch`, if there is one. Nothing is written yet.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text, or the model's context cannot hold it.
    pub(super) fn new(
        text: &str,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
        training: &Path,
    ) -> Result<Option<Self>> {
        let Some(ids) = ids(text, tokenizer, config)? else { return Ok(None) };
        let tokens =
            serde_json::to_string(&tokenizer.token_texts(&ids)?).map_err(|error| Error::Input(error.to_string()))?;
        Ok(Some(Self { ids, folder: training.join(FOLDER), tokens }))
    }

    /// Makes the folder ready for a run that has made `step` steps: maps of another text go, and those of later steps, which
    /// will be made again.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub(super) fn begin(&self, step: u64) -> Result<()> {
        disk::create_folder(&self.folder)?;
        for old in checkpoint::steps(&self.folder)? {
            let path = checkpoint::path(&self.folder, old);
            if old > step || !AttentionMap::open(&path).is_ok_and(|map| map.ids == self.ids) {
                disk::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Whether a map is due at `step` of `steps`: more often in the beginning, when attention changes fast. Map `i` is due at
    /// `steps * (i / MAPS)^2`.
    pub(super) fn is_due(step: u64, steps: u64) -> bool {
        let of = |i: u64| (steps as f64 * (i as f64 / MAPS as f64).powi(2)).round() as u64;
        let nearest = (MAPS as f64 * (step as f64 / steps as f64).sqrt()).round() as u64;
        nearest <= MAPS && of(nearest) == step
    }

    /// Writes the map of `model` after `step` steps.
    ///
    /// # Errors
    /// If it is not finite, or cannot be written.
    pub(super) fn write(&self, model: &CausalLm, step: u64) -> Result<()> {
        let map = AttentionMap::of(model, &self.ids)?;
        if !map.is_finite()? {
            return Err(Error::Diverged { step, what: "the attention of the text to watch".into(), value: f64::NAN });
        }
        let metadata = BTreeMap::from([("tokens", self.tokens.clone()), ("step", step.to_string())]);
        map.save(&checkpoint::path(&self.folder, step), metadata)
    }
}

/// The steps of the maps in the folder `training`, in order.
pub(super) fn steps(training: &Path) -> Result<Vec<u64>> {
    if fs::symlink_metadata(training.join(FOLDER)).is_err() {
        return Ok(vec![]);
    }
    let newest_first = checkpoint::steps(&input::inside(training, FOLDER)?)?;
    Ok(newest_first.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_due_at_the_first_and_the_last_step_and_more_often_in_the_beginning() {
        for steps in [1, 7, 40, 320, 2658, 1_000_000] {
            let due: Vec<u64> = (0..=steps).filter(|step| Watch::is_due(*step, steps)).collect();
            assert_eq!((due[0], due[due.len() - 1]), (0, steps));
            assert!(due.len() as u64 <= (MAPS + 1).min(steps + 1), "{steps}: {}", due.len());
            if steps > MAPS * MAPS {
                assert_eq!(due.len() as u64, MAPS + 1);
                assert!(due.windows(3).all(|three| three[2] - three[1] + 1 >= three[1] - three[0]), "{due:?}");
            }
        }
    }
}
