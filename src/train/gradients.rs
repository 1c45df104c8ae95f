//! The gradients of one step, and the audit that says whether they reach everything.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var, bail};

use crate::ops;

/// The gradients of all trainable tensors, in the order of their names.
pub struct Gradients {
    tensors: Vec<Tensor>,
    scale: f64,
}

impl Gradients {
    /// Takes the gradients of `vars` out of what a backward pass left.
    ///
    /// # Errors
    /// If no gradient reached one of them: every such tensor is named.
    pub fn collect(mut store: GradStore, vars: &[(String, Var)]) -> Result<Self> {
        Self::take(|var| store.remove(var), vars)
    }

    /// As [`Gradients::collect`], from what a recorded forward pass left.
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

    /// The sum of the gradients of the shards of a batch, added in their order.
    ///
    /// # Errors
    /// If the shards do not agree.
    pub fn sum(shards: &[Self]) -> Result<Self> {
        let count = shards.first().map_or(0, |shard| shard.tensors.len());
        if let Some(other) = shards.iter().find(|shard| shard.tensors.len() != count) {
            bail!("gradients: expected shards of {count} tensors, got one of {}", other.tensors.len());
        }
        let of = |i: usize| shards.iter().map(|shard| &shard.tensors[i]).collect::<Vec<_>>();
        let tensors = ops::map(count, |i| ops::add(&of(i))).into_iter().collect::<Result<_>>()?;
        Ok(Self { tensors, scale: 1.0 })
    }

    /// What the gradients are to be multiplied by: less than 1 after clipping.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// One gradient a trainable tensor, in the order of the names, before [`Gradients::scale`].
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The Euclidean norm of each tensor, before [`Gradients::scale`].
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn norms(&self) -> Result<Vec<f64>> {
        ops::map(self.tensors.len(), |i| ops::euclidean_norm(&self.tensors[i])).into_iter().collect()
    }

    /// Sets the scale so that the global norm, whose value is `norm`, becomes at most `most`.
    pub fn clip(&mut self, norm: f64, most: f64) {
        // torch's clip_grad_norm_ divides by the norm plus 1e-6; so do we.
        self.scale = if norm > most { most / (norm + 1e-6) } else { 1.0 };
    }
}

/// Steps before which nothing is said.
const LEAST: u64 = 2;

/// Watches that every trainable tensor learns.
///
/// That each *has* a gradient is checked when gradients are collected, at every step. Whether it is ever *non-zero*
/// shows only after some steps: behind a projection that starts at zero the first gradients are zero too.
#[derive(Debug)]
pub struct GradientAudit {
    /// Tensors of which only zero gradients have been seen, and those excused, with the reason.
    silent: BTreeMap<String, Option<&'static str>>,
    observed: u64,
    deadline: u64,
}

impl GradientAudit {
    /// For these tensors, of which `excused` have a gradient that is zero whatever the data. Each of the others must
    /// have had a non-zero gradient once `deadline` steps are done, at the earliest two: the first says nothing about what
    /// lies behind a projection that starts at zero.
    pub fn new<'a>(names: impl Iterator<Item = &'a String>, excused: &[(String, &'static str)], deadline: u64) -> Self {
        let reason = |name: &String| excused.iter().find(|(excused, _)| excused == name).map(|(_, reason)| *reason);
        Self {
            silent: names.map(|name| (name.clone(), reason(name))).collect(),
            observed: 0,
            deadline: deadline.max(LEAST),
        }
    }

    /// Takes note of `observed` steps that were made before, and of norms that are zero where all gradients were, by name.
    pub(super) fn resume<'a>(&mut self, norms: impl Iterator<Item = (&'a String, f64)>, observed: u64) {
        self.wake(norms);
        self.observed = observed;
    }

    fn wake<'a>(&mut self, norms: impl Iterator<Item = (&'a String, f64)>) {
        for (name, norm) in norms {
            if norm != 0.0 && self.silent.get(name) == Some(&None) {
                self.silent.remove(name);
            }
        }
    }

    /// Takes note of the norms of the gradients of one more step, by name.
    ///
    /// # Errors
    /// At the deadline, if a tensor that is not excused has had zero gradients only: every such tensor is named.
    pub fn observe<'a>(&mut self, norms: impl Iterator<Item = (&'a String, f64)>) -> Result<()> {
        self.wake(norms);
        self.observed += 1;
        if self.observed >= self.deadline { self.conclude() } else { Ok(()) }
    }

    /// The verdict after the steps observed so far, where there are no more to come; none after a single one.
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
