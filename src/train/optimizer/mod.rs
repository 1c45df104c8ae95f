//! The optimizer over all trainable tensors: AdamW, or Muon for the matrices of the blocks and AdamW for the rest.

mod group;
mod slot;

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

pub use self::group::FIRST_MOMENTUM;
use self::group::Rates;
use self::slot::Slot;
use super::{Gradients, TrainOptions};
use crate::errors::listed;
use crate::ops;

/// What updates the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// AdamW for everything
    #[default]
    #[cfg_attr(feature = "cli", value(name = "adamw"))]
    AdamW,
    /// Muon for the matrices inside the blocks, AdamW for embeddings, head and vectors
    Muon,
}

/// The options' optimizer over a set of variables, with a state that can be saved.
///
/// | group | tensors | update | learning rate | weight decay |
/// |---|---|---|---|---|
/// | matrices | of two dimensions, named `blocks.` | [`ops::muon`] where the options ask for it | `matrix_learning_rate` | `matrix_weight_decay` |
/// | embeddings | `token_embedding`, `position_embedding` | [`ops::adamw`] | `embedding_learning_rate` | `weight_decay` |
/// | head | `head.weight`, where it is no embedding | [`ops::adamw`] | `head_learning_rate` | `weight_decay` |
/// | the rest | | [`ops::adamw`] | `learning_rate` | `weight_decay` if of two dimensions or more |
///
/// All learning rates rise and fall together: each is to its highest what the schedule's is to `learning_rate`.
pub struct Optimizer {
    slots: Vec<Slot>,
    options: TrainOptions,
}

impl Optimizer {
    /// With a state of zeros for `vars`, named as in the model.
    ///
    /// # Errors
    /// If the state cannot be allocated.
    pub fn new(vars: Vec<(String, Var)>, options: &TrainOptions) -> Result<Self> {
        let slots = vars.into_iter().map(|(name, var)| Slot::new(name, var, options.optimizer));
        Ok(Self { slots: slots.collect::<Result<_>>()?, options: options.clone() })
    }

    /// One step along `gradients`, which stand in the order of the variables, at the schedule's `learning_rate`. `step`
    /// counts the steps made before.
    ///
    /// # Errors
    /// If the number or shapes of the gradients are not those of the variables.
    pub fn step(&mut self, gradients: &Gradients, step: u64, learning_rate: f64) -> Result<()> {
        if gradients.tensors().len() != self.slots.len() {
            bail!("optimizer: expected {} gradients, got {}", self.slots.len(), gradients.tensors().len());
        }
        let rates = Rates { options: &self.options, learning_rate, gradient_scale: gradients.scale(), step };
        let mut updates: Vec<_> = self.slots.iter_mut().zip(gradients.tensors()).map(|pair| (pair, Ok(()))).collect();
        // The dearest first, so that all threads finish at about the same time.
        updates.sort_by_key(|((slot, _), _)| std::cmp::Reverse(slot.cost()));
        // A large tensor is worth all threads; small ones are updated side by side.
        const LARGE: usize = 1 << 20;
        for ((slot, gradient), result) in updates.iter_mut().filter(|((_, gradient), _)| gradient.elem_count() >= LARGE)
        {
            *result = slot.update(gradient, &rates);
        }
        ops::for_each_in_order(&mut updates, |((slot, gradient), result)| {
            if gradient.elem_count() < LARGE {
                *result = slot.update(gradient, &rates);
            }
        });
        updates.into_iter().try_for_each(|(_, result)| result)
    }

    /// The running mean of the gradient of each variable, in the order of the variables.
    pub(super) fn means(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().map(Slot::mean)
    }

    /// The state by name: `first_moment.NAME` and `second_moment.NAME` of what AdamW updates, `momentum.NAME` of what Muon
    /// does; the next step changes them in place.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.slots.iter().flat_map(Slot::named_state).map(|(name, tensor)| (name, tensor.clone())).collect()
    }

    /// Takes a state back that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If a tensor is missing, left over or misshapen: all of them are listed, and nothing is changed.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>) -> Result<()> {
        let (mut problems, mut taken) = (Vec::new(), Vec::new());
        for (key, like) in self.slots.iter().flat_map(Slot::named_state) {
            match state.remove(&key) {
                Some(tensor) if tensor.shape() == like.shape() && tensor.dtype() == like.dtype() => {
                    // A copy: the next step changes it in place.
                    taken.push(tensor.copy()?);
                }
                Some(tensor) => {
                    problems.push(format!("{key}: expected {:?} of {:?}, got {:?}", like.dtype(), like.dims(), tensor));
                }
                None => problems.push(format!("{key} is missing")),
            }
        }
        problems.extend(state.keys().map(|key| format!("{key} has no place in the optimizer")));
        if !problems.is_empty() {
            bail!("optimizer state: {}", listed(&problems));
        }
        let places = self.slots.iter_mut().flat_map(Slot::state_mut);
        places.zip(taken).for_each(|(place, tensor)| *place = tensor);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
