//! The audit of whether gradients reach every tensor.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::host::{Error, Result};

/// The steps after which every tensor must have had a gradient other than zero.
const AUDIT_STEPS: u64 = 10;

/// The fewest steps that allow a verdict: behind a projection that starts at zero the first gradients are zero too.
const MIN_STEPS: u64 = 2;

/// Checks, in the first steps of every start, that every trainable tensor learns.
///
/// That each *has* a gradient is checked at every step, where gradients are collected. Whether it is ever *non-zero* shows
/// only after some steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Audit {
    /// Tensors that have had only zero gradients so far.
    silent: BTreeSet<String>,
    steps: u64,
}

impl Audit {
    /// Of the tensors `names`.
    pub(super) fn new(names: impl Iterator<Item = String>) -> Self {
        Self { silent: names.collect(), steps: 0 }
    }

    /// Whether it has come to its end.
    pub(super) fn is_over(&self) -> bool {
        self.steps >= AUDIT_STEPS
    }

    /// Adds the gradient norms of one more step, by name.
    ///
    /// # Errors
    /// From the last step of the audit on, if tensors have had only zero gradients: every such tensor is named.
    pub(super) fn observe<'a>(&mut self, norms: impl Iterator<Item = (&'a String, f64)>) -> Result<()> {
        if self.is_over() {
            return Ok(());
        }
        for (name, norm) in norms {
            if norm != 0.0 {
                self.silent.remove(name);
            }
        }
        self.steps += 1;
        if self.is_over() { self.conclude() } else { Ok(()) }
    }

    /// The verdict when training ends before the audit does; a single step allows none.
    ///
    /// # Errors
    /// Those of [`Audit::observe`].
    pub(super) fn conclude(&self) -> Result<()> {
        if self.steps < MIN_STEPS || self.silent.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.silent.iter().map(String::as_str).collect();
        Err(Error::NoGradient(format!("after {} steps the gradient is still zero at {}", self.steps, names.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_whose_gradient_stays_zero_is_named() {
        let names = ["awake", "asleep"].map(String::from);
        let mut audit = Audit::new(names.iter().cloned());
        let norms = |awake| names.iter().zip([awake, 0.0]);
        audit.observe(norms(0.5)).unwrap();
        audit.conclude().unwrap();
        for _ in 2..AUDIT_STEPS {
            audit.observe(norms(0.0)).unwrap();
        }
        assert!(audit.conclude().is_err());
        let message = audit.observe(norms(0.0)).unwrap_err().to_string();
        assert_eq!(message, "gradient audit: after 10 steps the gradient is still zero at asleep");
        assert!(audit.is_over());
    }
}
