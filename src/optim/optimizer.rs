//! An optimizer over many variables, with a state that can be saved.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};

use super::{AdamWStep, Cautious, Moments, MuonStep, adamw, muon};
use crate::cpu::parallel::for_each;
use crate::cpu::storage::precise;

/// What updates a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// [`adamw`], for any variable.
    AdamW,
    /// [`muon`], for matrices only.
    Muon,
}

impl Rule {
    /// What an optimizer keeps of each variable: the beginnings of the names in its state.
    #[cfg(feature = "lm")]
    pub(crate) fn state(self) -> &'static [&'static str] {
        match self {
            Self::AdamW => &["first_moment", "second_moment"],
            Self::Muon => &["momentum"],
        }
    }
}

/// How a variable is updated. Which variables form a group is the caller's choice: nothing here looks at names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) rule: Rule,
    /// Its peak learning rate, as a multiple of the run's.
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
}

/// The numbers of one step that all groups share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// The run's learning rate at this step.
    pub(crate) lr: f64,
    /// The factor on the gradients.
    pub(crate) gradient_scale: f64,
    /// The number of the step, from 1.
    pub(crate) step: u64,
    pub(crate) betas: (f64, f64),
    pub(crate) eps: f64,
    pub(crate) momentum: f64,
}

/// Variables with their groups and states.
pub(crate) struct Optimizer {
    slots: Vec<Slot>,
}

struct Slot {
    name: String,
    var: Var,
    group: Group,
    state: State,
}

enum State {
    AdamW(Moments),
    /// The moving average of the gradient.
    Muon(Tensor),
}

impl Optimizer {
    /// A state of zeros for each variable.
    ///
    /// # Errors
    /// If [`Rule::Muon`] is given something else than a matrix.
    pub(crate) fn new(vars: impl IntoIterator<Item = (String, Var, Group)>) -> Result<Self> {
        let slot = |(name, var, group): (String, Var, Group)| {
            let state = match group.rule {
                Rule::AdamW => State::AdamW(Moments::zeros(&var)?),
                Rule::Muon if var.rank() == 2 => {
                    State::Muon(Tensor::zeros(var.shape(), precise(var.dtype()), var.device())?)
                }
                Rule::Muon => bail!("muon: expected a matrix, got {name} of shape {:?}", var.dims()),
            };
            Ok(Slot { name, var, group, state })
        };
        Ok(Self { slots: vars.into_iter().map(slot).collect::<Result<_>>()? })
    }

    /// Makes one step along `gradients`, given in the order of the variables.
    ///
    /// # Errors
    /// If number or shapes of the gradients are not those of the variables.
    pub(crate) fn step(&mut self, gradients: &[Tensor], rates: &Rates) -> Result<()> {
        /// A larger tensor is worth all threads; smaller ones are updated side by side.
        const LARGE: usize = 1 << 20;
        if gradients.len() != self.slots.len() {
            bail!("optimizer: expected {} gradients, got {}", self.slots.len(), gradients.len());
        }
        let mut updates: Vec<_> = self.slots.iter_mut().zip(gradients).map(|pair| (pair, Ok(()))).collect();
        // The most expensive first, so that all threads finish at about the same time.
        updates.sort_by_key(|((slot, _), _)| std::cmp::Reverse(slot.cost()));
        for ((slot, gradient), result) in updates.iter_mut().filter(|((_, gradient), _)| gradient.elem_count() >= LARGE)
        {
            *result = slot.update(gradient, rates);
        }
        for_each(updates.iter_mut(), |((slot, gradient), result)| {
            if gradient.elem_count() < LARGE {
                *result = slot.update(gradient, rates);
            }
        });
        updates.into_iter().try_for_each(|(_, result)| result)
    }

    /// Names and variables, in the order of the gradients.
    pub(crate) fn vars(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.slots.iter().map(|slot| (&slot.name, &slot.var))
    }

    /// The state by name: `first_moment.NAME` and `second_moment.NAME` for AdamW's variables, `momentum.NAME` for Muon's.
    /// The next step changes these tensors in place.
    pub(crate) fn state(&self) -> Vec<(String, Tensor)> {
        let named = |slot: &Slot| match &slot.state {
            State::AdamW(moments) => vec![
                (format!("first_moment.{}", slot.name), moments.first().clone()),
                (format!("second_moment.{}", slot.name), moments.second().clone()),
            ],
            State::Muon(average) => vec![(format!("momentum.{}", slot.name), average.clone())],
        };
        self.slots.iter().flat_map(named).collect()
    }

    /// Takes a state that [`Optimizer::state`] gave, with the same names, shapes and dtypes, out of `saved`.
    ///
    /// # Errors
    /// If a tensor is missing or cannot be copied.
    pub(crate) fn restore(&mut self, saved: &mut BTreeMap<String, Tensor>) -> Result<()> {
        for Slot { name, state, .. } in &mut self.slots {
            let mut take = |kind: &str| match saved.remove(&format!("{kind}.{name}")) {
                Some(tensor) => Ok(tensor),
                None => bail!("optimizer: {kind}.{name} is missing"),
            };
            *state = match state {
                State::AdamW(_) => {
                    State::AdamW(Moments::from_tensors(&take("first_moment")?, &take("second_moment")?)?)
                }
                State::Muon(_) => State::Muon(take("momentum")?.copy()?),
            };
        }
        Ok(())
    }
}

impl Slot {
    fn update(&mut self, gradient: &Tensor, rates: &Rates) -> Result<()> {
        let &Rates { lr, gradient_scale, step, betas: (beta1, beta2), eps, momentum } = rates;
        let (learning_rate, weight_decay, cautious) =
            (lr * self.group.lr, self.group.weight_decay, Cautious::default());
        match &mut self.state {
            State::AdamW(moments) => {
                let step = AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, gradient_scale, step, cautious };
                adamw(&self.var, gradient, moments, &step)
            }
            State::Muon(average) => {
                let step = MuonStep { learning_rate, momentum, weight_decay, gradient_scale, cautious };
                muon(&self.var, gradient, average, &step)
            }
        }
    }

    /// The approximate work of an update.
    fn cost(&self) -> usize {
        let side = match self.state {
            State::AdamW(_) => 1,
            State::Muon(_) => self.var.dims().iter().copied().min().unwrap_or(1),
        };
        self.var.elem_count() * side
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn optimizer() -> Optimizer {
        let vars = [("up_proj", &[3, 5][..], Rule::Muon), ("norm", &[5], Rule::AdamW)];
        let vars = vars.map(|(name, shape, rule)| {
            let group = Group { rule, lr: 1.0, weight_decay: 0.0 };
            (name.to_string(), Var::ones(shape, DType::F32, &Device::Cpu).unwrap(), group)
        });
        Optimizer::new(vars).unwrap()
    }

    #[test]
    fn muon_keeps_one_tensor_and_adamw_two() {
        let names: Vec<String> = optimizer().state().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["momentum.up_proj", "first_moment.norm", "second_moment.norm"]);
    }

    #[test]
    fn a_state_comes_back_into_its_places() {
        let mut optimizer = optimizer();
        let state: BTreeMap<String, Tensor> =
            (1..).zip(optimizer.state()).map(|(i, (name, tensor))| (name, (tensor + f64::from(i)).unwrap())).collect();
        let mut saved = state.clone();
        optimizer.restore(&mut saved).unwrap();
        assert!(saved.is_empty());
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, tensor) in optimizer.state() {
            assert_eq!(values(&tensor), values(&state[&name]), "{name}");
        }
        let error = optimizer.restore(&mut saved).unwrap_err().to_string();
        assert!(error.contains("momentum.up_proj is missing"), "{error}");
    }

    #[test]
    fn muon_is_for_matrices() {
        let group = Group { rule: Rule::Muon, lr: 1.0, weight_decay: 0.0 };
        let var = Var::ones(5, DType::F32, &Device::Cpu).unwrap();
        let error = Optimizer::new([("norm".to_string(), var, group)]).err().unwrap().to_string();
        assert!(error.contains("expected a matrix, got norm of shape [5]"), "{error}");
    }
}
