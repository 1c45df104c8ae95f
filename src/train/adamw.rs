//! AdamW, with moments that can be saved.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};

use super::{Gradients, TrainOptions};

/// AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101):
///
/// ```text
/// m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
/// w = w - lr weight_decay w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
/// ```
///
/// with `t` the number of steps, this one included. Only tensors of two or more dimensions decay.
pub struct AdamW {
    slots: Vec<Slot>,
    options: TrainOptions,
}

/// A trainable tensor and its moments m and v.
struct Slot {
    name: String,
    var: Var,
    first_moment: Tensor,
    second_moment: Tensor,
}

impl AdamW {
    /// With moments of zero for `vars`.
    ///
    /// # Errors
    /// If the moments cannot be allocated.
    pub fn new(vars: Vec<(String, Var)>, options: &TrainOptions) -> Result<Self> {
        let slots = vars
            .into_iter()
            .map(|(name, var)| {
                let (first_moment, second_moment) = (var.zeros_like()?.detach(), var.zeros_like()?.detach());
                Ok(Slot { name, var, first_moment, second_moment })
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots, options: options.clone() })
    }

    /// One step along `gradients`, which stand in the order of the variables. `step` counts from 0.
    ///
    /// # Errors
    /// If the number or shapes of the gradients are not those of the variables.
    pub fn step(&mut self, gradients: &Gradients, step: u64, learning_rate: f64) -> Result<()> {
        if gradients.tensors().len() != self.slots.len() {
            bail!("adamw: expected {} gradients, got {}", self.slots.len(), gradients.tensors().len());
        }
        let TrainOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let steps = (step + 1) as f64;
        let (bias1, bias2) = (1.0 - beta1.powf(steps), 1.0 - beta2.powf(steps));
        for (slot, gradient) in self.slots.iter_mut().zip(gradients.tensors()) {
            slot.first_moment = ((&slot.first_moment * beta1)? + (gradient * (1.0 - beta1))?)?;
            slot.second_moment = ((&slot.second_moment * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let denominator = ((&slot.second_moment * (1.0 / bias2))?.sqrt()? + eps)?;
            let update = ((&slot.first_moment * (learning_rate / bias1))? / denominator)?;
            let decay = if slot.var.rank() >= 2 { learning_rate * weight_decay } else { 0.0 };
            let kept = (slot.var.as_detached_tensor() * (1.0 - decay))?;
            slot.var.set(&(kept - update)?)?;
        }
        Ok(())
    }

    /// The moments by name, `first_moment.NAME` and `second_moment.NAME`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let moments = |slot: &Slot| {
            let Slot { name, first_moment, second_moment, .. } = slot;
            [
                (format!("first_moment.{name}"), first_moment.clone()),
                (format!("second_moment.{name}"), second_moment.clone()),
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
        for slot in &self.slots {
            let first = take(format!("first_moment.{}", slot.name), &slot.first_moment);
            let second = take(format!("second_moment.{}", slot.name), &slot.second_moment);
            taken.extend(first.zip(second));
        }
        problems.extend(state.keys().map(|key| format!("{key} has no place in the optimizer")));
        if !problems.is_empty() {
            bail!("optimizer state: {}", problems.join("; "));
        }
        for (slot, (first, second)) in self.slots.iter_mut().zip(taken) {
            (slot.first_moment, slot.second_moment) = (first, second);
        }
        Ok(())
    }
}
