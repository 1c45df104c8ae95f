//! AdamW over all trainable tensors, with moments that can be saved.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};

use super::{Gradients, TrainOptions};
use crate::ops::{self, AdamWStep, Moments, adamw};

/// [`adamw`] over a set of variables. Only tensors of two or more dimensions decay.
pub struct AdamW {
    slots: Vec<Slot>,
    options: TrainOptions,
}

struct Slot {
    name: String,
    var: Var,
    moments: Moments,
}

impl AdamW {
    /// With moments of zero for `vars`, and the betas, `eps` and weight decay of `options`.
    ///
    /// # Errors
    /// If the moments cannot be allocated.
    pub fn new(vars: Vec<(String, Var)>, options: &TrainOptions) -> Result<Self> {
        let slot = |(name, var): (String, Var)| Ok(Slot { name, moments: Moments::zeros(&var)?, var });
        Ok(Self { slots: vars.into_iter().map(slot).collect::<Result<_>>()?, options: options.clone() })
    }

    /// One step along `gradients`, which stand in the order of the variables. `step` counts the steps made before.
    ///
    /// # Errors
    /// If the number or shapes of the gradients are not those of the variables.
    pub fn step(&mut self, gradients: &Gradients, step: u64, learning_rate: f64) -> Result<()> {
        if gradients.tensors().len() != self.slots.len() {
            bail!("adamw: expected {} gradients, got {}", self.slots.len(), gradients.tensors().len());
        }
        let TrainOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let update = |slot: &mut Slot, gradient: &Tensor| {
            let weight_decay = if slot.var.rank() >= 2 { weight_decay } else { 0.0 };
            let gradient_scale = gradients.scale();
            let step = AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, gradient_scale, step: step + 1 };
            adamw(&slot.var, gradient, &mut slot.moments, &step)
        };
        // A large tensor is worth all threads; small ones are updated side by side.
        const LARGE: usize = 1 << 20;
        let mut updates: Vec<_> = self.slots.iter_mut().zip(gradients.tensors()).map(|pair| (pair, Ok(()))).collect();
        for ((slot, gradient), result) in &mut updates {
            if gradient.elem_count() >= LARGE {
                *result = update(slot, gradient);
            }
        }
        ops::for_each(&mut updates, |_, ((slot, gradient), result)| {
            if gradient.elem_count() < LARGE {
                *result = update(slot, gradient);
            }
        });
        updates.into_iter().try_for_each(|(_, result)| result)
    }

    /// The first moments, in the order of the variables.
    pub(super) fn first_moments(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().map(|slot| &slot.moments.first)
    }

    /// The moments by name, `first_moment.NAME` and `second_moment.NAME`; the next step changes them in place.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let moments = |Slot { name, moments, .. }: &Slot| {
            [
                (format!("first_moment.{name}"), moments.first.clone()),
                (format!("second_moment.{name}"), moments.second.clone()),
            ]
        };
        self.slots.iter().flat_map(moments).collect()
    }

    /// Takes moments back that [`AdamW::state`] gave.
    ///
    /// # Errors
    /// If a moment is missing, left over or misshapen: all of them are listed, and nothing is changed.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>) -> Result<()> {
        let mut problems = Vec::new();
        let mut take = |key: String, like: &Tensor| match state.remove(&key) {
            Some(tensor) if tensor.shape() == like.shape() && tensor.dtype() == like.dtype() => Some(tensor),
            Some(tensor) => {
                problems.push(format!("{key}: expected {:?} of {:?}, got {:?}", like.dtype(), like.dims(), tensor));
                None
            }
            None => {
                problems.push(format!("{key} is missing"));
                None
            }
        };
        let mut taken = Vec::with_capacity(self.slots.len());
        for Slot { name, moments, .. } in &self.slots {
            let first = take(format!("first_moment.{name}"), &moments.first);
            let second = take(format!("second_moment.{name}"), &moments.second);
            taken.extend(first.zip(second).map(|(first, second)| Moments { first, second }));
        }
        problems.extend(state.keys().map(|key| format!("{key} has no place in the optimizer")));
        if !problems.is_empty() {
            bail!("optimizer state: {}", problems.join("; "));
        }
        for (slot, moments) in self.slots.iter_mut().zip(taken) {
            // Copies: the next step changes its moments in place.
            slot.moments = Moments { first: moments.first.copy()?, second: moments.second.copy()? };
        }
        Ok(())
    }
}
