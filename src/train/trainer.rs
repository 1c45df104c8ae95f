//! The model, the optimizer and the data of a training run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Error, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};

use super::backward::Backward;
use super::{AdamW, Best, Checkpoint, GradientAudit, Gradients, TrainOptions};
use crate::evaluate::evaluate;
use crate::model::{CausalLm, DropoutSource, ModelConfig};
use crate::nn::Parameters;
use crate::text::{Batch, BatchSampler, Corpus, Rest, windows};

/// Steps within which every trainable tensor must have had a gradient other than zero.
const AUDIT_STEPS: u64 = 10;

/// Tokens of a validation batch: enough for large matrix products, few enough to stay small in memory.
const VALIDATION_BATCH_TOKENS: usize = 4096;

/// What one step of training gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean cross-entropy of the batch before the step, in nats a token.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The global norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Tokens of the batch.
    pub tokens: usize,
}

/// What a pass over the validation part gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Steps done.
    pub step: u64,
    /// Mean cross-entropy over all non-overlapping windows, in nats a token.
    pub validation_loss: f64,
    /// The same in bits a byte of text.
    pub validation_bits_per_byte: f64,
    /// Whether it is the lowest so far.
    pub is_best: bool,
}

/// A model in training: makes one step at a time and validates.
///
/// Everything random comes from the options' seed: initial weights are drawn from it, and the batch of a step is a
/// function of the seed and the step's number.
pub struct Trainer {
    parameters: Parameters,
    /// The variables of `parameters`, in their order, at hand for every step.
    vars: Vec<(String, Var)>,
    trainable: CausalLm,
    /// The same weights without a graph.
    model: CausalLm,
    optimizer: AdamW,
    corpus: Corpus,
    sampler: BatchSampler,
    options: TrainOptions,
    audit: GradientAudit,
    is_recording_checked: bool,
    step: u64,
    best: Option<Best>,
    validation_is_pending: bool,
    device: Device,
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
    /// As [`Trainer::new`], and if a weight is missing, left over or misshapen.
    pub fn from_weights(
        weights: BTreeMap<String, Tensor>,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        Self::from_parameters(Parameters::restored(weights)?, config, options, corpus, device)
    }

    fn from_parameters(
        parameters: Parameters,
        config: &ModelConfig,
        options: &TrainOptions,
        corpus: Corpus,
        device: &Device,
    ) -> Result<Self> {
        options.validate()?;
        if options.isolate_documents && config.end_of_text_id.is_none() {
            bail!("trainer: isolate_documents expects several documents, with an end-of-text token between them");
        }
        let trainable = CausalLm::new(config, parameters.var_builder(DType::F32, device))?;
        let left_over = parameters.unread();
        if !left_over.is_empty() {
            bail!("trainer: the model has no place for {}", left_over.join(", "));
        }
        let vars = parameters.vars();
        let audit = GradientAudit::new(
            vars.iter().map(|(name, _)| name),
            &config.zero_gradient_parameters(),
            options.steps.min(AUDIT_STEPS),
        );
        Ok(Self {
            model: CausalLm::new(config, parameters.frozen(DType::F32, device))?,
            optimizer: AdamW::new(vars.clone(), options)?,
            sampler: BatchSampler {
                seed: options.seed,
                batch_size: options.batch_size,
                context_len: config.context_len,
            },
            parameters,
            vars,
            trainable,
            corpus,
            options: options.clone(),
            audit,
            is_recording_checked: false,
            step: 0,
            best: None,
            validation_is_pending: false,
            device: device.clone(),
        })
    }

    /// Goes on where `checkpoint` stood. Only the number of steps and how often to validate may have changed since.
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
        let Checkpoint { state, weights, moments } = checkpoint;
        if state.corpus != corpus.fingerprint {
            bail!("resume: the text or the tokenizer is not the one that the run was trained on");
        }
        let TrainOptions { steps, eval_every, .. } = *options;
        let saved = TrainOptions { steps, eval_every, ..state.options };
        if let Some((name, expected, got)) = saved.difference(options)? {
            bail!("resume: expected {name} {expected}, as the run has, got {got}");
        }
        if steps < state.step {
            bail!("resume: expected at least the {} steps that are done, got {steps}", state.step);
        }
        let mut trainer = Self::from_weights(weights, config, options, corpus, device)?;
        trainer.optimizer.restore(moments)?;
        trainer.step = state.step;
        if state.step >= AUDIT_STEPS {
            // Passed long ago: a gradient that has become zero since is no sign of a cut.
            trainer.audit = GradientAudit::new(std::iter::empty(), &[], 0);
        }
        trainer.best = state.best;
        trainer.validation_is_pending = state.validation_is_pending;
        Ok(trainer)
    }

    /// Makes one optimizer step: batch, loss, gradients, audit, clipping, update.
    ///
    /// # Errors
    /// If the loss or a gradient is not finite, or the gradient audit fails; nothing has been updated then.
    pub fn train_step(&mut self) -> Result<StepReport> {
        let batch = self.sampler.batch(&self.corpus.train, self.step)?.kept_apart(self.isolating_id());
        self.train_step_on(&batch)
    }

    /// Makes one optimizer step on a batch of one's own.
    ///
    /// # Errors
    /// Those of [`Trainer::train_step`].
    pub fn train_step_on(&mut self, batch: &Batch) -> Result<StepReport> {
        let dropout = DropoutSource { seed: self.options.seed, step: self.step, first_sequence: 0 };
        let backward = Backward { model: &self.trainable, vars: &self.vars, device: &self.device, dropout };
        if !self.is_recording_checked {
            backward.check_recording(batch)?;
            self.is_recording_checked = true;
        }
        let (loss, mut gradients) = backward.gradients(batch, self.options.shards)?;
        let gradient_norm = self.checked_norm(&gradients, loss)?;
        if self.options.clip_norm > 0.0 {
            gradients.clip(gradient_norm, self.options.clip_norm);
        }
        let learning_rate = self.options.learning_rate_at(self.step);
        self.optimizer.step(&gradients, self.step, learning_rate)?;
        self.step += 1;
        self.validation_is_pending = false;
        Ok(StepReport { step: self.step, loss, learning_rate, gradient_norm, tokens: batch.targets.len() })
    }

    /// The global norm of the gradients, once the audit has passed and all is finite.
    fn checked_norm(&mut self, gradients: &Gradients, loss: f64) -> Result<f64> {
        let names = || self.vars.iter().map(|(name, _)| name);
        let norms = gradients.norms()?;
        if let Some((name, norm)) = names().zip(&norms).find(|(_, norm)| !norm.is_finite()) {
            bail!(
                "step {}: the norm of the gradient of {name} is {norm}, the loss is {loss}; a lower learning rate may help",
                self.step + 1
            );
        }
        if !loss.is_finite() {
            bail!("step {}: the loss is {loss}; a lower learning rate may help", self.step + 1);
        }
        self.audit.observe(names().zip(norms.iter().copied()))?;
        Ok(norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt())
    }

    /// The loss over the whole validation part, all non-overlapping windows of the context's length.
    ///
    /// # Errors
    /// If the corpus has no validation part, or the loss is not finite.
    pub fn validate(&mut self) -> Result<ValidationReport> {
        let validation = self.validate_while(&mut || ControlFlow::Continue(()))?;
        validation.ok_or_else(|| Error::Msg("validate: nobody broke it off, and there is no loss".into()))
    }

    /// [`Trainer::validate`], broken off as soon as `go_on` says so, which is asked before each batch: then there is no
    /// report, and the validation [is pending](Self::validation_is_pending).
    ///
    /// # Errors
    /// Those of [`Trainer::validate`].
    pub fn validate_while(&mut self, go_on: &mut dyn FnMut() -> ControlFlow<()>) -> Result<Option<ValidationReport>> {
        self.validation_is_pending = true;
        let context_len = self.config().context_len;
        let batch_size = (VALIDATION_BATCH_TOKENS / context_len).max(1);
        let batches = windows(&self.corpus.validation, context_len, batch_size, Rest::Drop)?;
        let end = self.isolating_id();
        let batches = batches.map(|batch| Ok(batch?.kept_apart(end)));
        let mut is_broken_off = false;
        let batches = batches.take_while(|_| {
            is_broken_off |= go_on().is_break();
            !is_broken_off
        });
        let evaluation = evaluate(&self.model, batches, &self.device);
        if is_broken_off {
            return Ok(None);
        }
        let evaluation = evaluation?;
        self.validation_is_pending = false;
        if !evaluation.loss.is_finite() {
            bail!("step {}: the validation loss is {}; a lower learning rate may help", self.step, evaluation.loss);
        }
        let is_best = self.best.is_none_or(|best| evaluation.loss < best.validation_loss);
        if is_best {
            self.best = Some(Best { step: self.step, validation_loss: evaluation.loss });
        }
        Ok(Some(ValidationReport {
            step: self.step,
            validation_loss: evaluation.loss,
            validation_bits_per_byte: evaluation
                .bits_per_byte(self.corpus.validation.len(), self.corpus.validation_bytes),
            is_best,
        }))
    }

    /// Whether a validation was broken off at this step: it is the next thing to do.
    pub fn validation_is_pending(&self) -> bool {
        self.validation_is_pending
    }

    /// The token that documents are kept apart by, where they are.
    fn isolating_id(&self) -> Option<u32> {
        self.config().end_of_text_id.filter(|_| self.options.isolate_documents)
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The lowest validation loss so far.
    pub fn best(&self) -> Option<Best> {
        self.best
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

    /// The model without a graph, sharing the weights in training.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The optimizer's moments, by name.
    pub fn moments(&self) -> Vec<(String, Tensor)> {
        self.optimizer.state()
    }
}
