//! The gradients of one step, and the audit of whether they reach every tensor.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var, bail};

use crate::ops;

/// The gradients of all trainable tensors, sorted by name.
pub struct Gradients {
    tensors: Vec<Tensor>,
    scale: f64,
}

impl Gradients {
    /// Takes the gradients of `vars` out of the store that a backward pass returned.
    ///
    /// # Errors
    /// If some of them have no gradient: every such tensor is named.
    pub fn collect(mut store: GradStore, vars: &[(String, Var)]) -> Result<Self> {
        Self::take(|var| store.remove(var), vars)
    }

    /// As [`Gradients::collect`], from the backward pass of a recording.
    pub(super) fn collect_recorded(mut store: HashMap<TensorId, Tensor>, vars: &[(String, Var)]) -> Result<Self> {
        Self::take(|var| store.remove(&var.id()), vars)
    }

    fn take(mut gradient: impl FnMut(&Var) -> Option<Tensor>, vars: &[(String, Var)]) -> Result<Self> {
        let (mut tensors, mut missing) = (Vec::with_capacity(vars.len()), Vec::new());
        for (name, var) in vars {
            match gradient(var) {
                Some(gradient) => tensors.push(gradient),
                None => missing.push(name.as_str()),
            }
        }
        if !missing.is_empty() {
            bail!("gradient audit: no gradient reaches {}", missing.join(", "));
        }
        Ok(Self { tensors, scale: 1.0 })
    }

    /// The sum of the gradients of the shards of a batch, added in order.
    ///
    /// # Errors
    /// If the shards differ in number or shapes of tensors.
    pub fn sum(shards: &[Self]) -> Result<Self> {
        let count = shards.first().map_or(0, |shard| shard.tensors.len());
        if let Some(other) = shards.iter().find(|shard| shard.tensors.len() != count) {
            bail!("gradients: expected shards of {count} tensors, got one of {}", other.tensors.len());
        }
        let of = |i: usize| shards.iter().map(|shard| &shard.tensors[i]).collect::<Vec<_>>();
        let tensors = ops::map(count, |i| ops::add(&of(i))).into_iter().collect::<Result<_>>()?;
        Ok(Self { tensors, scale: 1.0 })
    }

    /// The factor to apply to the gradients: below 1 after clipping.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// One gradient per trainable tensor, sorted by name, before [`Gradients::scale`] is applied.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The Euclidean norm of each gradient, before [`Gradients::scale`] is applied.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn norms(&self) -> Result<Vec<f64>> {
        ops::map(self.tensors.len(), |i| ops::euclidean_norm(&self.tensors[i])).into_iter().collect()
    }

    /// Sets the scale so that the global norm, now `norm`, becomes at most `most`.
    pub fn clip(&mut self, norm: f64, most: f64) {
        // As torch's clip_grad_norm_, which adds 1e-6.
        self.scale = if norm > most { most / (norm + 1e-6) } else { 1.0 };
    }
}

/// The fewest steps that allow a verdict: behind a projection that starts at zero the first gradients are zero too.
const LEAST: u64 = 2;

/// Checks that every trainable tensor learns.
///
/// That each *has* a gradient is checked whenever gradients are collected, at every step. Whether it is ever *non-zero*
/// shows only after some steps.
#[derive(Debug)]
pub struct GradientAudit {
    /// Tensors that have had only zero gradients, and excused ones with the reason.
    silent: BTreeMap<String, Option<&'static str>>,
    observed: u64,
    deadline: u64,
}

impl GradientAudit {
    /// Audits the tensors `names`, except the `excused` ones, whose gradient is always zero. Each of the others must
    /// have had a non-zero gradient after `deadline` steps, or two if that is less.
    pub fn new<'a>(names: impl Iterator<Item = &'a String>, excused: &[(String, &'static str)], deadline: u64) -> Self {
        let reason = |name: &String| excused.iter().find(|(excused, _)| excused == name).map(|(_, reason)| *reason);
        Self {
            silent: names.map(|name| (name.clone(), reason(name))).collect(),
            observed: 0,
            deadline: deadline.max(LEAST),
        }
    }

    /// Adds the gradient norms of one more step, by name.
    ///
    /// # Errors
    /// From the deadline on, if tensors that are not excused have had only zero gradients: every such tensor is named.
    pub fn observe<'a>(&mut self, norms: impl Iterator<Item = (&'a String, f64)>) -> Result<()> {
        for (name, norm) in norms {
            if norm != 0.0 && self.silent.get(name) == Some(&None) {
                self.silent.remove(name);
            }
        }
        self.observed += 1;
        if self.observed >= self.deadline { self.conclude() } else { Ok(()) }
    }

    /// The verdict when training ends before the deadline; a single step allows none.
    ///
    /// # Errors
    /// Those of [`GradientAudit::observe`] at the deadline.
    pub fn conclude(&self) -> Result<()> {
        let stuck: Vec<&str> =
            self.silent.iter().filter(|(_, reason)| reason.is_none()).map(|(name, _)| name.as_str()).collect();
        if self.observed >= LEAST && !stuck.is_empty() {
            bail!("gradient audit: after {} steps the gradient is still zero at {}", self.observed, stuck.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    fn var(values: &[f32]) -> Var {
        Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap()
    }

    #[test]
    fn a_tensor_that_no_gradient_reaches_is_named() {
        let vars = vec![
            ("cut".to_string(), var(&[1.0])),
            ("fine".to_string(), var(&[2.0])),
            ("lost".to_string(), var(&[3.0])),
        ];
        let sum = (vars[1].1.as_tensor() + vars[0].1.as_detached_tensor()).unwrap();
        let error = Gradients::collect(sum.sum_all().unwrap().backward().unwrap(), &vars).err().unwrap();
        assert!(error.to_string().contains("no gradient reaches cut, lost"), "{error}");
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let vars = vec![("a".to_string(), var(&[3.0])), ("b".to_string(), var(&[4.0]))];
        let loss = (vars[0].1.sqr().unwrap() + vars[1].1.sqr().unwrap()).unwrap().affine(0.5, 0.0).unwrap();
        let mut gradients = Gradients::collect(loss.sum_all().unwrap().backward().unwrap(), &vars).unwrap();
        assert_eq!(gradients.norms().unwrap(), [3.0, 4.0]);
        gradients.clip(5.0, 6.0);
        assert_eq!(gradients.scale(), 1.0);
        gradients.clip(5.0, 1.0);
        assert!((gradients.scale() * 5.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn shards_that_do_not_agree_are_not_added() {
        let of = |shapes: &[&[usize]]| {
            let tensors = shapes.iter().map(|shape| Tensor::ones(*shape, DType::F32, &Device::Cpu).unwrap()).collect();
            Gradients { tensors, scale: 1.0 }
        };
        for (shards, expected) in [
            ([of(&[&[3], &[5]]), of(&[&[3], &[5]]), of(&[&[3]])], "expected shards of 2 tensors, got one of 1"),
            ([of(&[&[6]]), of(&[&[6]]), of(&[&[7]])], "add: expected tensors of shape [6], got [7]"),
            ([of(&[&[2, 3]]), of(&[&[3, 2]]), of(&[&[2, 3]])], "add: expected tensors of shape [2, 3], got [3, 2]"),
        ] {
            let error = Gradients::sum(&shards).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_tensor_whose_gradient_stays_zero_is_named_unless_excused() {
        let names = ["awake", "asleep", "excused"].map(String::from);
        let mut audit = GradientAudit::new(names.iter(), &[("excused".to_string(), "a reason")], 1);
        let norms = |awake| names.iter().zip([awake, 0.0, 0.0]);
        audit.observe(norms(0.5)).unwrap();
        let message = audit.observe(norms(0.0)).unwrap_err().to_string();
        let message = message.lines().next().unwrap();
        assert_eq!(message, "gradient audit: after 2 steps the gradient is still zero at asleep");
    }
}
