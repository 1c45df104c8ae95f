//! The numbers of the optimizers.

use candle_core::{Result, bail};

pub(super) use self::sealed::All;
use crate::cpu::checks::check_not_negative;
use crate::optim::Rule;

/// The numbers of [`AdamW`](super::AdamW). By default candle-nn's, which are torch's, and no clipping.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamsAdamW {
    /// The learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// The term in the denominator, above 0 even in `f32`.
    pub eps: f64,
    /// Weight decay of groups that have none of their own.
    pub weight_decay: f64,
    /// Gradients of a larger global norm are scaled down to it.
    pub max_grad_norm: Option<f64>,
}

impl Default for ParamsAdamW {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: None }
    }
}

/// The numbers of [`Muon`](super::Muon), and of the AdamW of its groups for everything that is not a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamsMuon {
    /// The learning rate; groups of AdamW want a fraction of it, such as 0.1.
    pub lr: f64,
    /// Decay of the moving average of the gradient.
    pub momentum: f64,
    /// Decay of AdamW's first moment.
    pub beta1: f64,
    /// Decay of AdamW's second moment.
    pub beta2: f64,
    /// The term in AdamW's denominator, above 0 even in `f32`.
    pub eps: f64,
    /// Weight decay of groups that have none of their own.
    pub weight_decay: f64,
    /// Gradients of a larger global norm are scaled down to it.
    pub max_grad_norm: Option<f64>,
}

impl Default for ParamsMuon {
    fn default() -> Self {
        let (lr, momentum, weight_decay) = (0.02, 0.95, 0.1);
        Self { lr, momentum, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay, max_grad_norm: None }
    }
}

/// The numbers of [`AdamW`](super::AdamW) or [`Muon`](super::Muon): [`ParamsAdamW`] or [`ParamsMuon`], and nothing else.
pub trait Hyperparameters: sealed::Numbers {}

impl Hyperparameters for ParamsAdamW {}
impl Hyperparameters for ParamsMuon {}

mod sealed {
    use super::Rule;

    pub trait Numbers {
        /// What updates variables without a group.
        const RULE: Rule;

        fn lr(&mut self) -> &mut f64;

        fn numbers(&self) -> All;
    }

    #[derive(Clone, Copy)]
    pub struct All {
        pub lr: f64,
        pub betas: (f64, f64),
        pub eps: f64,
        /// None without Muon.
        pub momentum: Option<f64>,
        pub weight_decay: f64,
        pub max_grad_norm: Option<f64>,
    }
}

impl All {
    /// Refuses numbers out of their range before anything is updated with them.
    pub(super) fn check(self) -> Result<()> {
        let Self { lr, betas, eps, momentum, weight_decay, max_grad_norm } = self;
        check_not_negative("optimizer", &[("a learning rate", lr), ("a weight decay", weight_decay)])?;
        for (name, decay) in [("beta1", betas.0), ("beta2", betas.1), ("momentum", momentum.unwrap_or_default())] {
            if !(0.0..1.0).contains(&decay) {
                bail!("optimizer: expected {name} from 0 to below 1, got {decay}");
            }
        }
        if !(eps as f32 > 0.0 && (eps as f32).is_finite()) {
            bail!("optimizer: expected an eps above 0 in the range of f32, got {eps:?}");
        }
        match max_grad_norm {
            Some(max) if max.is_nan() || max <= 0.0 => bail!("optimizer: expected a max_grad_norm above 0, got {max}"),
            _ => Ok(()),
        }
    }
}

impl sealed::Numbers for ParamsAdamW {
    const RULE: Rule = Rule::AdamW;

    fn lr(&mut self) -> &mut f64 {
        &mut self.lr
    }

    fn numbers(&self) -> All {
        let &Self { lr, beta1, beta2, eps, weight_decay, max_grad_norm } = self;
        All { lr, betas: (beta1, beta2), eps, momentum: None, weight_decay, max_grad_norm }
    }
}

impl sealed::Numbers for ParamsMuon {
    const RULE: Rule = Rule::Muon;

    fn lr(&mut self) -> &mut f64 {
        &mut self.lr
    }

    fn numbers(&self) -> All {
        let &Self { lr, momentum, beta1, beta2, eps, weight_decay, max_grad_norm } = self;
        All { lr, betas: (beta1, beta2), eps, momentum: Some(momentum), weight_decay, max_grad_norm }
    }
}
