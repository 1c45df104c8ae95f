//! One variable and its optimizer state.

use candle_core::{Result, Tensor, Var};

use super::OptimizerKind;
use super::group::{Group, Rates};
use crate::ops::{Moments, adamw, muon};

/// A variable with its state.
pub(super) struct Slot {
    name: String,
    var: Var,
    group: Group,
    state: State,
}

enum State {
    AdamW(Moments),
    /// The running mean of the gradient.
    Muon(Tensor),
}

impl Slot {
    /// A variable with a state of zeros.
    pub(super) fn new(name: String, var: Var, kind: OptimizerKind) -> Result<Self> {
        let group = Group::of(&name, &var, kind);
        let state = match group {
            Group::Matrices => State::Muon(var.zeros_like()?.detach()),
            _ => State::AdamW(Moments::zeros(&var)?),
        };
        Ok(Self { name, var, group, state })
    }

    pub(super) fn update(&mut self, gradient: &Tensor, rates: &Rates) -> Result<()> {
        match &mut self.state {
            State::AdamW(moments) => adamw(&self.var, gradient, moments, &rates.adamw(self.group, &self.var)),
            State::Muon(mean) => muon(&self.var, gradient, mean, &rates.muon()),
        }
    }

    /// The approximate work of an update.
    pub(super) fn cost(&self) -> usize {
        let side = match self.state {
            State::AdamW(_) => 1,
            State::Muon(_) => self.var.dims().iter().copied().min().unwrap_or(1),
        };
        self.var.elem_count() * side
    }

    /// The state by its name in a checkpoint.
    pub(super) fn named_state(&self) -> Vec<(String, &Tensor)> {
        let named = |kind: &str, tensor| (format!("{kind}.{}", self.name), tensor);
        match &self.state {
            State::AdamW(Moments { first, second }) => {
                vec![named("first_moment", first), named("second_moment", second)]
            }
            State::Muon(mean) => vec![named("momentum", mean)],
        }
    }

    /// In the order of [`Slot::named_state`].
    pub(super) fn state_mut(&mut self) -> Vec<&mut Tensor> {
        match &mut self.state {
            State::AdamW(Moments { first, second }) => vec![first, second],
            State::Muon(mean) => vec![mean],
        }
    }
}
