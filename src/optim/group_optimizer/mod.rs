//! Optimizers of whole models, as candle-nn's trait [`Optimizer`](candle_nn::Optimizer) has them.

mod hyperparameters;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, TensorId, Var, bail};

use self::hyperparameters::All;
pub use self::hyperparameters::{Hyperparameters, ParamsAdamW, ParamsMuon};
use super::{Group, Optimizer, Rates, Rule, clip_factor, global_norm};
use crate::cpu::checks::check_not_negative;
use crate::cpu::tensor_file;

/// Named variables that are updated alike. The names are those in the optimizer's state and errors.
///
/// ```
/// use candle_attention::nn::{Parameters, causal_self_attention};
/// use candle_attention::optim::{AdamW, ParamGroup, ParamsAdamW};
/// use candle_core::{DType, Device};
///
/// let parameters = Parameters::new(42);
/// let layer = causal_self_attention(8, 2, parameters.var_builder(DType::F32, &Device::Cpu))?;
/// let (matrices, vectors) = parameters.vars().into_iter().partition(|(_, var)| var.rank() >= 2);
/// let groups = vec![
///     ParamGroup { weight_decay: Some(0.1), ..ParamGroup::adamw(matrices) },
///     ParamGroup { weight_decay: Some(0.0), lr: 2.0, ..ParamGroup::adamw(vectors) },
/// ];
/// let optimizer = AdamW::with_groups(groups, ParamsAdamW::default())?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParamGroup {
    /// The variables, by name.
    pub vars: Vec<(String, Var)>,
    /// What updates them; `None` for variables that are frozen, which alone need no gradient.
    pub rule: Option<Rule>,
    /// Their learning rate, as a multiple of the optimizer's.
    pub lr: f64,
    /// Their weight decay, if not the optimizer's.
    pub weight_decay: Option<f64>,
}

impl ParamGroup {
    /// Updated by AdamW.
    pub fn adamw(vars: Vec<(String, Var)>) -> Self {
        Self { vars, rule: Some(Rule::AdamW), lr: 1.0, weight_decay: None }
    }

    /// Matrices, updated by Muon.
    pub fn muon(vars: Vec<(String, Var)>) -> Self {
        Self { rule: Some(Rule::Muon), ..Self::adamw(vars) }
    }

    /// Not updated.
    pub fn frozen(vars: Vec<(String, Var)>) -> Self {
        Self { rule: None, ..Self::adamw(vars) }
    }
}

/// AdamW (see [`adamw`](super::adamw())) in the place of candle-nn's: only the `use` line changes. To save its state, give
/// the variables names with [`GroupOptimizer::with_groups`].
pub type AdamW = GroupOptimizer<ParamsAdamW>;

/// Muon (see [`muon`](super::muon())) for matrices, and AdamW for the rest. Which variables form which group is the
/// caller's choice; [`Optimizer::new`](candle_nn::Optimizer::new) takes matrices alone.
///
/// ```
/// use candle_attention::nn::{Parameters, causal_self_attention};
/// use candle_attention::optim::{Muon, ParamGroup, ParamsMuon};
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Optimizer;
///
/// let parameters = Parameters::new(42);
/// let layer = causal_self_attention(8, 2, parameters.var_builder(DType::F32, &Device::Cpu))?;
/// let (matrices, rest) = parameters.vars().into_iter().partition(|(_, var)| var.rank() == 2);
/// let groups = vec![
///     ParamGroup::muon(matrices),
///     ParamGroup { lr: 0.1, weight_decay: Some(0.0), ..ParamGroup::adamw(rest) },
/// ];
/// let mut optimizer = Muon::with_groups(groups, ParamsMuon::default())?;
/// let loss = layer.forward(&Tensor::ones((1, 3, 8), DType::F32, &Device::Cpu)?)?.sqr()?.mean_all()?;
/// optimizer.backward_step(&loss)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
pub type Muon = GroupOptimizer<ParamsMuon>;

/// An optimizer over groups of variables: [`AdamW`] or [`Muon`].
///
/// Unlike candle-nn's, it refuses to step while a variable has no gradient, clips gradients by their global norm, and its
/// state can be saved: a run that loads it, and its weights, continues exactly.
///
/// ```
/// use candle_attention::nn::{Parameters, causal_self_attention};
/// use candle_attention::optim::{AdamW, LrSchedule, ParamGroup, ParamsAdamW, Schedule};
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::Optimizer;
///
/// let parameters = Parameters::new(42);
/// let layer = causal_self_attention(8, 2, parameters.var_builder(DType::F32, &Device::Cpu))?;
/// let numbers = ParamsAdamW { lr: 3e-3, max_grad_norm: Some(1.0), ..Default::default() };
/// let groups = || vec![ParamGroup::adamw(parameters.vars())];
/// let mut optimizer = AdamW::with_groups(groups(), numbers.clone())?;
/// let schedule = LrSchedule { warmup_steps: 2, min: 0.1, ..LrSchedule::new(Schedule::Cosine, 10) };
/// let xs = Tensor::ones((1, 3, 8), DType::F32, &Device::Cpu)?;
/// while optimizer.steps() < schedule.steps {
///     optimizer.set_learning_rate(numbers.lr * schedule.factor(optimizer.steps()));
///     optimizer.backward_step(&layer.forward(&xs)?.sqr()?.mean_all()?)?;
///     assert!(optimizer.grad_norm().is_some_and(f64::is_finite)); // before clipping
/// }
///
/// let file = tempfile::tempdir()?.keep().join("optimizer.safetensors");
/// optimizer.save(&file)?;
/// let mut resumed = AdamW::with_groups(groups(), numbers)?;
/// resumed.load(&file)?;
/// assert_eq!(resumed.steps(), 10);
/// # std::fs::remove_dir_all(file.parent().unwrap())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GroupOptimizer<P> {
    optimizer: Optimizer,
    params: P,
    steps: u64,
    grad_norm: Option<f64>,
    /// Whether the variables were given names.
    is_named: bool,
}

/// The name of the optimizers in errors.
const OP: &str = "optimizer";

/// The number of steps among the tensors of a state.
const STEPS: &str = "steps";

impl<P: Hyperparameters> GroupOptimizer<P> {
    /// From groups of variables.
    ///
    /// # Errors
    /// If a variable or a name occurs twice, Muon is given something else than a matrix, or AdamW a group of Muon.
    pub fn with_groups(groups: Vec<ParamGroup>, params: P) -> Result<Self> {
        let numbers = params.numbers();
        numbers.check()?;
        let (mut names, mut ids, mut updated) = (HashSet::new(), HashMap::<TensorId, String>::new(), vec![]);
        for ParamGroup { vars, rule, lr, weight_decay } in groups {
            check_not_negative(OP, &[("a group's rate", lr), ("a weight decay", weight_decay.unwrap_or_default())])?;
            if rule == Some(Rule::Muon) && numbers.momentum.is_none() {
                bail!("adamw: expected groups of AdamW alone, got one of Muon; the optimizer Muon takes both");
            }
            for (name, var) in vars {
                if !names.insert(name.clone()) {
                    bail!("{OP}: expected names that differ, got {name} twice");
                }
                if let Some(first) = ids.insert(var.id(), name.clone()) {
                    bail!("{OP}: expected each variable once, got one as {first} and as {name}");
                }
                let weight_decay = weight_decay.unwrap_or(numbers.weight_decay);
                updated.extend(rule.map(|rule| (name, var, Group { rule, lr, weight_decay })));
            }
        }
        Ok(Self { optimizer: Optimizer::new(updated)?, params, steps: 0, grad_norm: None, is_named: true })
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The global norm of the last step's gradients, before clipping; `None` before the first step.
    pub fn grad_norm(&self) -> Option<f64> {
        self.grad_norm
    }

    /// The numbers, with the learning rate that was last set.
    pub fn params(&self) -> &P {
        &self.params
    }

    /// Writes the state to a safetensors file, which appears by one rename: the moments and averages of each variable by
    /// name, and the number of steps. The numbers and groups are not part of it.
    ///
    /// # Errors
    /// If the file cannot be written, or the variables have no names, as those given to
    /// [`Optimizer::new`](candle_nn::Optimizer::new): in another order, they would get the state of others.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check_names()?;
        let mut state: HashMap<String, Tensor> = self.optimizer.state().into_iter().collect();
        state.insert(STEPS.to_string(), steps_tensor(self.steps)?);
        tensor_file::save(path.as_ref(), &state)
    }

    /// Takes a state that [`GroupOptimizer::save`] wrote for variables of the same names, shapes, dtypes and rules.
    ///
    /// # Errors
    /// If the file cannot be read, or holds another state: what differs is named, and the state is as it was. If the
    /// variables have no names.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.check_names()?;
        let (path, mut expected) = (path.as_ref(), self.optimizer.state());
        expected.push((STEPS.to_string(), steps_tensor(0)?));
        let mut found = tensor_file::load(path, expected.iter().map(|(name, tensor)| (name, tensor)))?;
        let mut state = BTreeMap::new();
        for (name, like) in &expected {
            let Some(tensor) = found.remove(name) else { bail!("{}: {name} is missing", path.display()) };
            if tensor.dtype() != like.dtype() {
                let (expected, got) = (like.dtype(), tensor.dtype());
                bail!("{}: expected {name} in {expected:?}, got {got:?}", path.display());
            }
            state.insert(name.clone(), tensor.to_device(like.device())?);
        }
        let steps = state.remove(STEPS).map(|steps| steps.to_scalar::<i64>()).transpose()?;
        let Some(Ok(steps)) = steps.map(u64::try_from) else {
            bail!("{}: expected steps of at least 0", path.display())
        };
        self.optimizer.restore(&mut state)?;
        self.steps = steps;
        Ok(())
    }

    fn check_names(&self) -> Result<()> {
        match self.is_named {
            true => Ok(()),
            false => bail!("{OP}: expected variables with names, which `with_groups` takes, for a state in a file"),
        }
    }
}

fn steps_tensor(steps: u64) -> Result<Tensor> {
    let Ok(steps) = i64::try_from(steps) else { bail!("{OP}: expected fewer than 2^63 steps, got {steps}") };
    Tensor::new(steps, &Device::Cpu)
}

impl<P: Hyperparameters> candle_nn::Optimizer for GroupOptimizer<P> {
    type Config = P;

    /// One group of all these variables, which errors call `variable 0`, `variable 1`, and so on. As in candle-nn, those
    /// of integers are left out.
    fn new(vars: Vec<Var>, params: P) -> Result<Self> {
        let floats = vars.into_iter().enumerate().filter(|(_, var)| var.dtype().is_float());
        let vars = floats.map(|(i, var)| (format!("variable {i}"), var)).collect();
        let group = ParamGroup { rule: Some(P::RULE), ..ParamGroup::adamw(vars) };
        Ok(Self { is_named: false, ..Self::with_groups(vec![group], params)? })
    }

    /// Fails, before anything is updated, if a variable that is not frozen has no gradient, the norm of the gradients is
    /// not finite, or a number is out of its range.
    fn step(&mut self, gradients: &GradStore) -> Result<()> {
        let (mut found, mut missing) = (vec![], vec![]);
        for (name, var) in self.optimizer.vars() {
            match gradients.get(var) {
                Some(gradient) => found.push(gradient.clone()),
                None => missing.push(format!("{name} of shape {:?}", var.dims())),
            }
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            bail!("{OP}: expected a gradient of every variable that is not frozen, got none of {missing}");
        }
        let numbers = self.params.numbers();
        numbers.check()?;
        let All { lr, betas, eps, momentum, max_grad_norm, .. } = numbers;
        let (_, norm) = global_norm(&found)?;
        if !norm.is_finite() {
            bail!("{OP}: expected gradients of a finite norm, got {norm}");
        }
        let gradient_scale = max_grad_norm.map_or(1.0, |max| clip_factor(norm, max));
        let (step, momentum) = (self.steps + 1, momentum.unwrap_or_default());
        self.optimizer.step(&found, &Rates { lr, gradient_scale, step, betas, eps, momentum })?;
        (self.steps, self.grad_norm) = (step, Some(norm));
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.params.numbers().lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        *self.params.lr() = lr;
    }
}

#[cfg(test)]
mod tests;
