//! The groups of tensors that share learning rate and weight decay.

use candle_core::Var;

use super::{OptimizerKind, TrainOptions};
use crate::ops::{AdamWStep, Cautious, MuonStep};

/// Tensors that share an update rule, a learning rate and a weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Matrices of the blocks, under Muon.
    Matrices,
    Embeddings,
    Head,
    Rest,
}

impl Group {
    pub(super) fn of(name: &str, var: &Var, kind: OptimizerKind) -> Self {
        match name {
            _ if kind == OptimizerKind::Muon && name.starts_with("blocks.") && var.rank() == 2 => Self::Matrices,
            "token_embedding.weight" | "position_embedding.weight" => Self::Embeddings,
            "head.weight" => Self::Head,
            _ => Self::Rest,
        }
    }
}

/// Muon's momentum at the first step of a run with `momentum_warmup_steps`.
pub const FIRST_MOMENTUM: f64 = 0.85;

/// The numbers of one step.
pub(super) struct Rates<'a> {
    pub(super) options: &'a TrainOptions,
    /// The schedule's current rate.
    pub(super) learning_rate: f64,
    pub(super) gradient_scale: f64,
    /// The number of earlier steps.
    pub(super) step: u64,
}

impl Rates<'_> {
    pub(super) fn adamw(&self, group: Group, var: &Var) -> AdamWStep {
        let &TrainOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        AdamWStep {
            learning_rate: self.learning_rate(group),
            beta1,
            beta2,
            eps,
            weight_decay: if var.rank() >= 2 { weight_decay } else { 0.0 },
            gradient_scale: self.gradient_scale,
            step: self.step + 1,
            cautious: self.cautious(),
        }
    }

    pub(super) fn muon(&self) -> MuonStep {
        MuonStep {
            learning_rate: self.learning_rate(Group::Matrices),
            momentum: self.momentum(),
            weight_decay: self.options.matrix_weight_decay,
            gradient_scale: self.gradient_scale,
            cautious: self.cautious(),
        }
    }

    fn cautious(&self) -> Cautious {
        Cautious { updates: self.options.cautious_updates, decay: self.options.cautious_decay }
    }

    fn learning_rate(&self, group: Group) -> f64 {
        let highest = match group {
            Group::Matrices => Some(self.options.matrix_learning_rate),
            Group::Embeddings => self.options.embedding_learning_rate,
            Group::Head => self.options.head_learning_rate,
            Group::Rest => None,
        };
        highest.map_or(self.learning_rate, |highest| highest * (self.learning_rate / self.options.learning_rate))
    }

    fn momentum(&self) -> f64 {
        let &TrainOptions { momentum, momentum_warmup_steps: steps, .. } = self.options;
        if self.step >= steps {
            return momentum;
        }
        let first = momentum.min(FIRST_MOMENTUM);
        first + (momentum - first) * (self.step as f64 / steps as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn muon_has_the_matrices_of_the_blocks() {
        let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        for (name, shape, expected) in [
            ("blocks.0.attention.q_proj.weight", &[3, 5][..], Group::Matrices),
            ("blocks.0.attention.q_proj.bias", &[3], Group::Rest),
            ("blocks.10.mlp_norm.weight", &[3], Group::Rest),
            ("norm.weight", &[3], Group::Rest),
            ("token_embedding.weight", &[7, 3], Group::Embeddings),
            ("position_embedding.weight", &[7, 3], Group::Embeddings),
            ("head.weight", &[7, 3], Group::Head),
        ] {
            assert_eq!(Group::of(name, &var(shape), OptimizerKind::Muon), expected, "{name}");
            let with_adamw = if expected == Group::Matrices { Group::Rest } else { expected };
            assert_eq!(Group::of(name, &var(shape), OptimizerKind::AdamW), with_adamw, "{name}");
        }
    }

    #[test]
    fn the_rates_of_all_groups_rise_and_fall_together() {
        let options = TrainOptions { learning_rate: 0.004, ..Default::default() };
        let own = TrainOptions {
            embedding_learning_rate: Some(0.3),
            head_learning_rate: Some(0.07),
            matrix_learning_rate: 0.02,
            ..options.clone()
        };
        let rates =
            |options, group| Rates { options, learning_rate: 0.001, gradient_scale: 1.0, step: 3 }.learning_rate(group);
        for (group, expected) in
            [(Group::Matrices, 0.005), (Group::Embeddings, 0.075), (Group::Head, 0.0175), (Group::Rest, 0.001)]
        {
            assert!((rates(&own, group) - expected).abs() < 1e-15, "{group:?}");
        }
        for group in [Group::Embeddings, Group::Head, Group::Rest] {
            assert_eq!(rates(&options, group), 0.001);
        }
    }

    #[test]
    fn momentum_rises_where_it_has_steps_to() {
        let momentum = |momentum, momentum_warmup_steps, step| {
            let options = TrainOptions { momentum, momentum_warmup_steps, ..Default::default() };
            Rates { options: &options, learning_rate: 1.0, gradient_scale: 1.0, step }.momentum()
        };
        assert_eq!((momentum(0.95, 0, 0), momentum(0.95, 10, 0)), (0.95, 0.85));
        assert!((momentum(0.95, 10, 5) - 0.9).abs() < 1e-15);
        assert_eq!((momentum(0.95, 10, 10), momentum(0.95, 10, 99), momentum(0.6, 10, 0)), (0.95, 0.95, 0.6));
    }
}
