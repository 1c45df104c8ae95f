//! The model, the optimizer and the data of a training run.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use super::average::{self, WeightAverage};
use super::fit;
use super::{Best, Checkpoint, Counters, GradientAudit, Optimizer, StatisticsReport, TrainOptions};
use crate::model::{CausalLm, ModelConfig};
use crate::nn::Parameters;
use crate::ops;
use crate::text::Corpus;

/// Steps within which every trainable tensor must have had a gradient other than zero.
const AUDIT_STEPS: u64 = 10;

/// A model in training: makes one step at a time and validates.
///
/// Everything random comes from the options' seed: initial weights are drawn from it, and the batch of a step is a
/// function of the seed and the step's number.
pub struct Trainer {
    parameters: Parameters,
    /// The variables of `parameters`, in their order, at hand for every step.
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
    /// The step at which a validation was broken off.
    pub(super) broken_off_at: Option<u64>,
    pub(super) device: Device,
}

impl Trainer {
    /// A new model with initial weights drawn from the options' seed.
    ///
    /// # Errors
    /// If configuration, options and corpus do not go together.
    pub fn new(config: &ModelConfig, options: &TrainOptions, corpus: Corpus, device: &Device) -> Result<Self> {
        Self::from_parameters(Parameters::new(options.seed), config, options, corpus, device)
    }

    /// A model that starts from the given weights, by their names in the model.
    ///
    /// # Errors
    /// As [`Trainer::new`], and if weights are missing, left over or misshapen: they are listed, the first twelve by name.
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
        let audit = GradientAudit::new(
            vars.iter().map(|(name, _)| name),
            &config.zero_gradient_parameters(),
            options.steps.min(AUDIT_STEPS),
        );
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
            broken_off_at: None,
            device: device.clone(),
        })
    }

    /// Goes on where `checkpoint` stood. The number of steps, rates and schedule may have changed since, how often it validates
    /// and reports, when it stops and what it skips; the end is that of the whole run only if nothing has that it depends on.
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
        trainer.broken_off_at = state.validation_is_pending.then_some(state.step);
        trainer.resume_audit()?;
        Ok(trainer)
    }

    /// Goes on with the gradient audit: the running mean of a tensor's gradients is other than zero once one of them was.
    fn resume_audit(&mut self) -> Result<()> {
        let observed = self.step.saturating_sub(self.counters.skipped);
        if observed >= AUDIT_STEPS {
            // Passed long ago: a gradient that has become zero since is no sign of a cut.
            self.audit = GradientAudit::new(std::iter::empty(), &[], 0);
            return Ok(());
        }
        let norms = self.optimizer.means().map(ops::euclidean_norm).collect::<Result<Vec<_>>>()?;
        self.audit.resume(self.vars.iter().map(|(name, _)| name).zip(norms), observed);
        Ok(())
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

    /// Steps skipped, and validations without improvement.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether there were as many validations without improvement as the options have patience for.
    pub fn is_out_of_patience(&self) -> bool {
        self.options.patience > 0 && self.counters.without_improvement >= self.options.patience
    }

    /// The options.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Sizes and options of the model.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The data.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The model without a graph, sharing the weights in training, or their average where the options ask for one.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights of [`Trainer::model`], by name: those to publish.
    pub fn weights(&self) -> BTreeMap<String, Tensor> {
        let shown = self.average.as_ref().map_or(&self.parameters, WeightAverage::parameters);
        shown.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect()
    }

    /// What a resumed run needs beside these: the optimizer's state and, where the weights are an average, those in
    /// training, by name.
    pub fn moments(&self) -> Vec<(String, Tensor)> {
        let mut state = self.optimizer.state();
        if self.average.is_some() {
            state.extend(average::raw_weights(&self.vars));
        }
        state
    }
}
