//! The model, the optimizer and the data of a training run, and one step of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::average::WeightAverage;
use super::evaluate::evaluate_windows;
use super::frozen_base::FrozenBase;
use super::gradients::{LossAndGradients, sum_of_shards};
use super::memory_needed::{check_memory, memory_needed};
use super::part::{Part, Summed, Trained};
use super::statistics::{self, TensorStatistics};
use super::{Best, TrainOptions, bits_per_byte};
use crate::host::{Error, Result};
use crate::model::{CausalLm, DropoutRates, DropoutSource, ModelConfig};
use crate::nn::{LoraConfig, Parameters};
use crate::optim::{Optimizer, Rates, clip_factor, global_norm, norm_of_all};
use crate::processes::{Alone, Processes, share};
use crate::text::{Batch, BatchSampler, Corpus};

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

/// The result of one step of training.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps done, including this one.
    pub step: u64,
    /// The steps of the whole run; while the time is to decide on them, as many as are expected now.
    pub steps: u64,
    /// The mean loss of the batch before the step, in nats per token: cross-entropy, with label smoothing if that is on. 0
    /// if no token counts, as where all windows lie outside the assistant's turns: then only momentum and
    /// weight decay move the weights.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The global norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// The number of tokens in the batch.
    pub tokens: usize,
    /// The norms of every tensor, if the options ask for them at this step.
    pub statistics: Vec<TensorStatistics>,
}

/// The result of a pass over the validation part.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidationReport {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy over all non-overlapping windows, in nats per token.
    pub loss: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
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

    /// The batch of the next step: a function of the seed and the step's number.
    ///
    /// # Errors
    /// If the ids cannot be read.
    pub fn next_batch(&self) -> Result<Batch> {
        self.sampler().batch(&self.corpus.train, self.state.step, self.model.device())
    }

    /// Makes one optimizer step on a batch: loss, backward, check, clip, rate, update.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite, or a gradient is missing; then nothing has been updated.
    pub fn step(&mut self, batch: &Batch) -> Result<StepReport> {
        let step = self.state.step + 1;
        let dropout = DropoutSource { seed: self.options.seed, step: self.state.step, first_sequence: 0 };
        let Summed { loss, norms, gradients } = self.gradients(batch, dropout)?;
        let gradient_norm = norm_of_all(&norms);
        self.check(loss, &norms)?;
        if batch.learned()? > 0 {
            self.state.audit.observe(self.vars.iter().map(|(name, _)| name).zip(norms.iter().copied()))?;
        }
        let scale = if self.options.clip > 0.0 { clip_factor(gradient_norm, self.options.clip) } else { 1.0 };
        let learning_rate = self.options.lr * self.options.lr_schedule().factor(self.state.step);
        let every = self.options.statistics_every;
        let before = (every > 0 && step.is_multiple_of(every)).then(|| statistics::copies(&self.vars)).transpose()?;
        self.optimizer.step(&gradients, &self.rates(learning_rate, scale))?;
        if let Some(part) = &self.part {
            part.publish()?;
        }
        self.state.step = step;
        if let Some(average) = &mut self.average {
            average.update(&self.vars, self.options.average_span(step))?;
        }
        let statistics = before.map(|before| statistics::statistics(&self.vars, &before, &norms)).transpose()?;
        let (tokens, statistics) = (batch.tokens(), statistics.unwrap_or_default());
        let steps = self.options.steps;
        Ok(StepReport { step, steps, loss, learning_rate, gradient_norm, tokens, statistics })
    }

    /// The loss of a batch and its gradients: of what this process updates.
    fn gradients(&self, batch: &Batch, dropout: DropoutSource) -> Result<Summed> {
        let shards = self.options.shards_of(batch.size()).len();
        let own = share(shards, self.processes());
        let tree = sum_of_shards(&self.trainable, &self.vars, batch, &self.options, dropout, own)?;
        if let Some(part) = &self.part {
            return part.sum(tree, shards);
        }
        let LossAndGradients { loss, gradients } = LossAndGradients::of(tree)?;
        Ok(Summed { loss, norms: global_norm(&gradients)?.0, gradients })
    }

    /// Stops at a loss or gradient that is not finite.
    fn check(&self, loss: f64, norms: &[f64]) -> Result<()> {
        let step = self.state.step + 1;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, what: "the loss".into(), value: loss });
        }
        let named = || self.vars.iter().map(|(name, _)| name).zip(norms.iter().copied());
        if let Some((name, norm)) = named().find(|(_, norm)| !norm.is_finite()) {
            return Err(Error::Diverged { step, what: format!("the gradient of {name}"), value: norm });
        }
        Ok(())
    }

    fn rates(&self, lr: f64, gradient_scale: f64) -> Rates {
        /// The constant that AdamW adds to the denominator.
        const EPS: f64 = 1e-8;
        let &TrainOptions { beta1, beta2, momentum, .. } = &self.options;
        Rates { lr, gradient_scale, step: self.state.step + 1, betas: (beta1, beta2), eps: EPS, momentum }
    }

    /// The loss over the whole validation part: all non-overlapping windows of the length trained on. `on_batch` is told,
    /// before each batch, how many of how many tokens are done or in progress, and may break off: then there is no
    /// result.
    ///
    /// # Errors
    /// If the corpus has no validation part, or the loss is not finite.
    pub fn validate(
        &mut self,
        on_batch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<ValidationReport>> {
        let (step, ids) = (self.state.step, &self.corpus.validation);
        let BatchSampler { context_len, separator, .. } = self.sampler();
        let evaluation =
            evaluate_windows(&self.model, ids, (context_len, true), separator, self.processes(), on_batch)?;
        let Some(evaluation) = evaluation else { return Ok(None) };
        let loss = evaluation.loss;
        if !loss.is_finite() {
            return Err(Error::Diverged { step, what: "the validation loss".into(), value: loss });
        }
        let is_best = self.state.best.is_none_or(|best| loss < best.loss);
        let TrainState { best, without_improvement, validated, .. } = &mut self.state;
        *validated = step;
        *without_improvement = if is_best { 0 } else { *without_improvement + 1 };
        *best = if is_best { Some(Best { step, loss }) } else { *best };
        let bits_per_byte = self.validation_bits_per_byte(loss);
        Ok(Some(ValidationReport { step, loss, bits_per_byte, is_best }))
    }

    /// A validation loss, such as that of [`Trainer::best`], in bits per byte of the validation part.
    pub fn validation_bits_per_byte(&self, loss: f64) -> f64 {
        bits_per_byte(loss, self.corpus.validation.learned(), self.corpus.validation_bytes)
    }

    /// A loss on the training part in bits per byte.
    pub fn training_bits_per_byte(&self, loss: f64) -> f64 {
        bits_per_byte(loss, self.corpus.train.learned(), self.corpus.train_bytes)
    }

    /// Whether this step ends with a validation, or a checkpoint where there is no validation text, that is still to be
    /// made.
    pub(super) fn validation_is_due(&self) -> bool {
        let step = self.state.step;
        let every = self.eval_interval();
        step > self.state.validated && (step == self.options.last_step() || step.is_multiple_of(every))
    }

    /// Steps between validations.
    pub(super) fn eval_interval(&self) -> u64 {
        self.options.eval_interval(self.corpus.validation.len(), self.options.window_len(self.config()))
    }

    /// Begins the decay of a run whose length the time decides: from here on it is a run of so many steps.
    pub(super) fn begin_decay(&mut self) {
        self.options = self.options.decaying_from(self.state.step, self.eval_interval());
    }

    /// Whether there have been as many validations without improvement as the options' patience allows.
    pub(super) fn is_out_of_patience(&self) -> bool {
        self.options.patience > 0 && self.state.without_improvement >= self.options.patience
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

    /// The lowest validation loss so far.
    pub fn best(&self) -> Option<Best> {
        self.state.best
    }

    /// Validations since the one with the lowest loss.
    pub fn validations_without_improvement(&self) -> u64 {
        self.state.without_improvement
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
        memory_needed(self.config(), &self.corpus, &self.options, self.lora())
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
