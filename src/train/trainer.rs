//! The model, the optimizer and the data of a training run.

mod step;
mod validation;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::average::WeightAverage;
use super::frozen_base::FrozenBase;
use super::memory_needed::{check_memory, memory_with_text};
use super::part::{Part, Trained};
use super::{Best, TrainOptions};
use crate::host::Result;
use crate::model::{CausalLm, DropoutRates, ModelConfig};
use crate::nn::{LoraConfig, Parameters};
use crate::optim::Optimizer;
use crate::processes::{Alone, Processes};
use crate::text::{BatchSampler, Corpus};

pub use step::StepReport;
pub use validation::ValidationReport;

/// A model in training: makes one step at a time and validates.
///
/// All randomness comes from the options' seed: initial weights are drawn from it, and the batch of a step is a
/// function of the seed and the step's number.
pub struct Trainer {
    pub(super) vars: Vec<(String, Var)>,
    trainable: CausalLm,
    /// The same weights, or their average, without a graph.
    model: CausalLm,
    /// The model whose adapters are trained, if that is what is trained.
    pub(super) base: Option<FrozenBase>,
    pub(super) average: Option<WeightAverage>,
    pub(super) optimizer: Optimizer,
    /// What this process updates, if there are others.
    pub(super) part: Option<Part>,
    corpus: Corpus,
    options: TrainOptions,
    pub(super) state: TrainState,
}

/// What changes from step to step beside tensors. The position in the data and the random state are not part of it: both
/// are functions of the step and the options' seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TrainState {
    /// Steps done.
    pub(super) step: u64,
    /// The step of the last validation, or of the last checkpoint in the place of one.
    pub(super) validated: u64,
    pub(super) best: Option<Best>,
    /// Validations since the best.
    pub(super) without_improvement: u64,
    pub(super) audit: Audit,
    /// The fingerprint of the corpus.
    pub(super) corpus: String,
    /// The fingerprint of the model whose adapters are trained.
    #[serde(default)]
    pub(super) base: Option<String>,
}

impl Trainer {
    /// A new model with initial weights drawn from the options' seed.
    ///
    /// # Errors
    /// If configuration, options and corpus do not fit together, or need more memory than this machine has.
    pub fn new(config: &ModelConfig, options: &TrainOptions, corpus: Corpus, device: &Device) -> Result<Self> {
        Self::from_parameters(Parameters::new(options.seed), None, config, options, corpus, device)
    }

    /// A model that starts from the given weights, by their names in the model.
    ///
    /// # Errors
    /// Those of [`Trainer::new`], and if a weight is missing or misshapen.
    pub fn from_weights(
        weights: BTreeMap<String, Tensor>,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        Self::from_parameters(Parameters::restored(weights)?, None, config, options, corpus, device)
    }

    /// New adapters (LoRA) on all linear layers in the blocks of `base`: they are all that is trained and saved. `config` is
    /// the one that the base was opened with.
    ///
    /// # Errors
    /// Those of [`Trainer::new`].
    pub fn with_lora(
        base: FrozenBase,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        Self::from_parameters(Parameters::new(options.seed), Some(base), config, options, corpus, device)
    }

    /// The same start, with everything turned off that keeps a model from overfitting one batch: dropout, and what
    /// [`TrainOptions::for_overfitting`] lists.
    ///
    /// # Errors
    /// Those of [`Trainer::new`].
    pub fn for_overfitting(self) -> Result<Self> {
        let config = ModelConfig { dropout: DropoutRates::default(), ..self.config().clone() };
        let (options, device) = (self.options.for_overfitting(), self.model.device().clone());
        Self::from_parameters(Parameters::restored(self.weights())?, self.base, &config, &options, self.corpus, &device)
    }

    /// From the parameters of adapters, if there is a base, or those of a whole model.
    pub(super) fn from_parameters(
        parameters: Parameters,
        base: Option<FrozenBase>,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        options.validate_for(config, &corpus)?;
        options.check_precision(device)?;
        check_memory(config, &corpus, options, base.as_ref().map(|base| &base.lora))?;
        let model = |vb| match &base {
            None => CausalLm::new(config, vb),
            Some(base) => base.with_adapters(config, vb),
        };
        let trainable = model(parameters.var_builder(DType::F32, device))?;
        let vars = parameters.vars();
        let average = (options.average > 0.0).then(|| WeightAverage::new(&vars)).transpose()?;
        let shown = average.as_ref().map_or(&parameters, |average| &average.parameters);
        let state = TrainState {
            step: 0,
            validated: 0,
            best: None,
            without_improvement: 0,
            audit: audit_of(config, &vars),
            corpus: corpus.fingerprint.clone(),
            base: base.as_ref().map(|base| base.fingerprint.clone()),
        };
        Ok(Self {
            model: model(shown.frozen(DType::F32, device))?,
            base,
            optimizer: Optimizer::new(trained(&vars, options))?,
            part: None,
            vars,
            trainable,
            average,
            corpus,
            options: options.clone(),
            state,
        })
    }

    /// Begins the decay, of so many steps, of a run whose length the time decides: from here on it has a number of steps.
    pub(super) fn begin_decay(&mut self, decay_steps: u64) {
        self.options = self.options.decaying_from(self.state.step, decay_steps, self.eval_interval());
    }

    /// The processes that share the work.
    pub(super) fn processes(&self) -> &dyn Processes {
        self.part.as_ref().map_or(&Alone, |part| &*part.processes)
    }

    /// What is trained, and how.
    pub(super) fn trained(&self) -> Vec<Trained> {
        trained(&self.vars, &self.options)
    }

    fn sampler(&self) -> BatchSampler {
        self.options.sampler(self.config(), &self.corpus)
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.state.step
    }

    /// Whether nothing is left to do: all steps are made and validated.
    pub fn is_finished(&self) -> bool {
        self.state.step >= self.options.last_step() && !self.validation_is_due()
    }

    /// The options.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The size of the adapters, if these are what is trained.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.base.as_ref().map(|base| &base.lora)
    }

    /// The bytes of memory that training takes, about.
    pub fn memory_needed(&self) -> usize {
        memory_with_text(self.config(), &self.corpus, &self.options, self.lora())
    }

    /// The data.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The model, without a graph. It shares the weights in training, or their average if the options ask for one.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// The weights of [`Trainer::model`], by name: those of the adapters if these are what is trained.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let shown = self.average.as_ref().map_or(&self.vars, |average| &average.vars);
        shown.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect()
    }

    /// All tensors of a checkpoint, by name: `weight.NAME`, `average.NAME` if the options ask for one, and the optimizer's
    /// state: `first_moment.NAME` and `second_moment.NAME` for tensors that AdamW updates, `momentum.NAME` for Muon's. Of
    /// several processes the first gets it all, the others none of the optimizer's state.
    ///
    /// # Errors
    /// If the processes cannot exchange it.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let average = self.average.iter().flat_map(|average| &average.vars);
        let named = |kind: &'static str| {
            move |(name, var): &(String, Var)| (format!("{kind}.{name}"), var.as_detached_tensor())
        };
        let weights = self.vars.iter().map(named("weight")).chain(average.map(named("average")));
        let optimizer = match &self.part {
            None => self.optimizer.state(),
            Some(part) => part.gather_state(&self.optimizer)?,
        };
        Ok(weights.chain(optimizer).collect())
    }
}

fn trained(vars: &[(String, Var)], options: &TrainOptions) -> Vec<Trained> {
    let group = |(name, var): &(String, Var)| (name.clone(), var.clone(), options.group(name, var.rank()));
    vars.iter().map(group).collect()
}

/// The audit of the tensors in training, without those whose gradient is zero for any data.
pub(super) fn audit_of(config: &ModelConfig, vars: &[(String, Var)]) -> Audit {
    let names = vars.iter().map(|(name, _)| name);
    Audit::new(names.filter(|name| config.zero_gradient_reason(name).is_none()).cloned())
}
