//! The model, the optimizer and the data of a training run.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::average::{self, WeightAverage};
use super::fit;
use super::{Best, Checkpoint, Counters, GradientAudit, Optimizer, StatisticsReport, TrainOptions};
use crate::model::{CausalLm, ModelConfig};
use crate::nn::Parameters;
use crate::text::Corpus;

/// The first steps of a session, in which every trainable tensor must have a gradient other than zero at least once.
const AUDIT_STEPS: u64 = 10;

/// A model in training: makes one step at a time and validates.
///
/// All randomness comes from the options' seed: initial weights are drawn from it, and the batch of a step is a
/// function of the seed and the step's number.
pub struct Trainer {
    parameters: Parameters,
    /// The variables of `parameters`, in their order.
    pub(super) vars: Vec<(String, Var)>,
    pub(super) trainable: CausalLm,
    /// The same weights, or their average, without a graph.
    pub(super) model: CausalLm,
    pub(super) average: Option<WeightAverage>,
    pub(super) optimizer: Optimizer,
    pub(super) corpus: Corpus,
    pub(super) options: TrainOptions,
    pub(super) audit: GradientAudit,
    pub(super) is_recording_checked: bool,
    pub(super) step: u64,
    pub(super) counters: Counters,
    pub(super) statistics: Option<StatisticsReport>,
    pub(super) best: Option<Best>,
    /// The step whose validation is due and not yet made.
    pub(super) pending_validation: Option<u64>,
    pub(super) device: Device,
}

impl Trainer {
    /// A new model with initial weights drawn from the options' seed.
    ///
    /// # Errors
    /// If configuration, options and corpus do not fit together.
    pub fn new(config: &ModelConfig, options: &TrainOptions, corpus: Corpus, device: &Device) -> Result<Self> {
        Self::from_parameters(Parameters::new(options.seed), config, options, corpus, device)
    }

    /// A model that starts from the given weights, by their names in the model.
    ///
    /// # Errors
    /// Those of [`Trainer::new`], and if weights are missing, unexpected or misshapen: they are listed, the first
    /// twelve by name.
    pub fn from_weights(
        weights: BTreeMap<String, Tensor>,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        fit::check("weights", &weights, &config.parameters())?;
        Self::from_parameters(Parameters::restored(weights)?, config, options, corpus, device)
    }

    fn from_parameters(
        parameters: Parameters,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        options.validate_for(config, &corpus)?;
        let trainable = CausalLm::new(config, parameters.var_builder(DType::F32, device))?;
        let vars = parameters.vars();
        let (names, excused) = (vars.iter().map(|(name, _)| name), config.zero_gradient_parameters());
        let audit = GradientAudit::new(names, &excused, AUDIT_STEPS);
        let average = (options.ema > 0.0).then(|| WeightAverage::new(&vars, options.ema)).transpose()?;
        let shown = average.as_ref().map_or(&parameters, WeightAverage::parameters);
        Ok(Self {
            model: CausalLm::new(config, shown.frozen(DType::F32, device))?,
            optimizer: Optimizer::new(vars.clone(), options)?,
            parameters,
            vars,
            trainable,
            corpus,
            options: options.clone(),
            audit,
            average,
            is_recording_checked: false,
            step: 0,
            counters: Counters::default(),
            statistics: None,
            best: None,
            pending_validation: None,
            device: device.clone(),
        })
    }

    /// Goes on from `checkpoint`. Number of steps, learning rates and schedule may have changed since, as may how often
    /// it validates and reports, when it stops early and what it skips. If nothing has changed that matters, the result
    /// is that of an uninterrupted run.
    ///
    /// # Errors
    /// If the corpus or another option is not that of the checkpoint, or a tensor does not fit.
    pub fn resume(
        checkpoint: Checkpoint,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        let Checkpoint { state, weights, mut moments } = checkpoint;
        if state.corpus != corpus.fingerprint {
            bail!("resume: the text or the tokenizer is not the one that the run was trained on");
        }
        if let Some((name, expected, got)) = state.options.changed_as(options).differences(options)?.into_iter().next()
        {
            bail!("resume: expected {name} {expected}, as the run has, got {got}");
        }
        if options.steps < state.step {
            bail!("resume: expected at least the {} steps that are done, got {}", state.step, options.steps);
        }
        let mut trainer = if options.ema > 0.0 {
            let raw = average::take_raw_weights(&mut moments, &config.parameters())?;
            Self::from_weights(raw, config, options, corpus, device)?
        } else {
            Self::from_weights(weights.clone(), config, options, corpus, device)?
        };
        if let Some(average) = &trainer.average {
            average.restore(&weights)?;
        }
        trainer.optimizer.restore(moments)?;
        (trainer.step, trainer.best, trainer.counters) = (state.step, state.best, state.counters);
        trainer.pending_validation = state.validation_is_pending.then_some(state.step);
        Ok(trainer)
    }

    /// The id by which documents are isolated, if the options ask for that.
    pub(super) fn separator(&self) -> Option<u32> {
        self.corpus.separator.token().filter(|_| self.options.isolate_documents)
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The lowest validation loss so far.
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// The run's counters: steps skipped, validations without improvement.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether there have been as many validations without improvement as the options' patience allows.
    pub fn is_out_of_patience(&self) -> bool {
        self.options.patience > 0 && self.counters.without_improvement >= self.options.patience
    }

    /// The options.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The configuration of the model.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The data.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The model, without a graph. It shares the weights in training, or their average if the options ask for one.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights of [`Trainer::model`], by name.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let shown = self.average.as_ref().map_or(&self.parameters, WeightAverage::parameters);
        shown.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect()
    }

    /// The other tensors that a resumed run needs, by name: the optimizer's state and, if the model is an average, the
    /// weights in training.
    pub fn moments(&self) -> Vec<(String, Tensor)> {
        let mut state = self.optimizer.state();
        if self.average.is_some() {
            state.extend(average::raw_weights(&self.vars));
        }
        state
    }
}
