//! The optimizer over all trainable tensors: AdamW, or Muon for the matrices of the blocks and AdamW for the rest.

mod group;
mod slot;

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

pub use self::group::FIRST_MOMENTUM;
use self::group::Rates;
use self::slot::Slot;
use super::{Gradients, TrainOptions, fit};
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

/// The optimizer that the options name, over a set of variables, with a state that can be saved.
///
/// | group | tensors | update | learning rate | weight decay |
/// |---|---|---|---|---|
/// | matrices | `blocks.*` of two dimensions, if the options choose Muon | [`ops::muon`] | `matrix_learning_rate` | `matrix_weight_decay` |
/// | embeddings | `token_embedding`, `position_embedding` | [`ops::adamw`] | `embedding_learning_rate` | `weight_decay` |
/// | head | `head.weight`, unless tied to the embedding | [`ops::adamw`] | `head_learning_rate` | `weight_decay` |
/// | the rest | | [`ops::adamw`] | `learning_rate` | `weight_decay` if of two dimensions or more |
///
/// The rates in this table are peaks: the schedule scales all of them by the same factor.
pub struct Optimizer {
    slots: Vec<Slot>,
    options: TrainOptions,
}

impl Optimizer {
    /// A state of zeros for `vars`, named as in the model.
    ///
    /// # Errors
    /// If the state cannot be allocated.
    pub fn new(vars: Vec<(String, Var)>, options: &TrainOptions) -> Result<Self> {
        let slots = vars.into_iter().map(|(name, var)| Slot::new(name, var, options.optimizer));
        Ok(Self { slots: slots.collect::<Result<_>>()?, options: options.clone() })
    }

    /// Makes one step along `gradients`, given in the order of the variables. `learning_rate` is the schedule's; `step`
    /// counts the earlier steps.
    ///
    /// # Errors
    /// If number or shapes of the gradients are not those of the variables.
    pub fn step(&mut self, gradients: &Gradients, step: u64, learning_rate: f64) -> Result<()> {
        if gradients.tensors().len() != self.slots.len() {
            bail!("optimizer: expected {} gradients, got {}", self.slots.len(), gradients.tensors().len());
        }
        let rates = Rates { options: &self.options, learning_rate, gradient_scale: gradients.scale(), step };
        let mut updates: Vec<_> = self.slots.iter_mut().zip(gradients.tensors()).map(|pair| (pair, Ok(()))).collect();
        // The most expensive first, so that all threads finish at about the same time.
        updates.sort_by_key(|((slot, _), _)| std::cmp::Reverse(slot.cost()));
        // A large tensor is worth all threads; small ones are updated in parallel.
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

    /// The state by name: `first_moment.NAME` and `second_moment.NAME` for tensors that AdamW updates, `momentum.NAME`
    /// for Muon's. The next step changes these tensors in place.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.slots.iter().flat_map(Slot::named_state).map(|(name, tensor)| (name, tensor.clone())).collect()
    }

    /// Restores a state that [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected or misshapen: all of these are listed, and nothing is changed.
    pub fn restore(&mut self, state: BTreeMap<String, Tensor>) -> Result<()> {
        let named = self.slots.iter().flat_map(Slot::named_state);
        let expected: Vec<(String, Vec<usize>, DType)> =
            named.map(|(name, tensor)| (name, tensor.dims().to_vec(), tensor.dtype())).collect();
        fit::check_typed("optimizer state", &state, &expected)?;
        // Copies: the next step changes them in place.
        let saved = expected.iter().filter_map(|(name, ..)| state.get(name));
        let copies = saved.map(Tensor::copy).collect::<Result<Vec<_>>>()?;
        self.slots.iter_mut().flat_map(Slot::state_mut).zip(copies).for_each(|(place, copy)| *place = copy);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
