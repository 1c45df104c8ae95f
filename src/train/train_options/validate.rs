//! The bounds of the options.

use std::ops::RangeInclusive;

use candle_core::Device;

use super::{Precision, TrainOptions};
use crate::host::{Result, bail_option};
use crate::model::ModelConfig;
use crate::ops;
use crate::optim::Schedule;
use crate::text::Corpus;

impl TrainOptions {
    /// Checks that these values can train a model.
    ///
    /// # Errors
    /// The first option out of bounds, with what it expects and what it got.
    pub fn validate(&self) -> Result<()> {
        /// Shorter runs are no runs, and longer ones are of another kind.
        const MINUTES: RangeInclusive<f64> = 0.1..=1000.0;
        for (name, value, max) in [
            ("steps", self.steps, i64::MAX as u64),
            ("batch", self.batch as u64, 1 << 24),
            ("context", self.context.unwrap_or(1) as u64, ModelConfig::MAX_SIZE as u64),
            ("shards", self.shards as u64, 1 << 24),
            ("accumulate", self.accumulate as u64, self.batch as u64),
            ("eval-every", self.eval_every.unwrap_or(1), i64::MAX as u64),
            ("keep", self.keep as u64, 1 << 24),
        ] {
            if !(1..=max).contains(&value) {
                bail_option!(name, "expected a number from 1 to {max}, got {value}");
            }
        }
        // The largest number of a settings file.
        if i64::try_from(self.seed).is_err() {
            bail_option!("seed", "expected at most {}, got {}", i64::MAX, self.seed);
        }
        for (name, value, is_allowed, allowed) in [
            ("lr", self.lr, self.lr > 0.0, "above 0"),
            ("min-lr", self.min_lr, (0.0..=1.0).contains(&self.min_lr), "from 0 to 1, a multiple of lr"),
            ("warmup", self.warmup, (0.0..=1.0).contains(&self.warmup), "from 0 to 1, a fraction of steps"),
            ("decay", self.decay, (0.0..=1.0).contains(&self.decay), "from 0 to 1, a fraction of steps"),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "from 0 to below 1"),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "from 0 to below 1"),
            ("weight-decay", self.weight_decay, self.weight_decay >= 0.0, "of at least 0"),
            ("matrix-lr", self.matrix_lr, self.matrix_lr > 0.0, "above 0, a multiple of lr"),
            ("matrix-weight-decay", self.matrix_weight_decay, self.matrix_weight_decay >= 0.0, "of at least 0"),
            ("momentum", self.momentum, (0.0..1.0).contains(&self.momentum), "from 0 to below 1"),
            ("embedding-lr", self.embedding_lr, self.embedding_lr > 0.0, "above 0, a multiple of lr"),
            ("clip", self.clip, self.clip >= 0.0, "of at least 0"),
            ("label-smoothing", self.label_smoothing, (0.0..1.0).contains(&self.label_smoothing), "from 0 to below 1"),
            ("average", self.average, (0.0..=1.0).contains(&self.average), "from 0 to 1, a fraction of steps"),
            ("minutes", self.minutes, self.minutes == 0.0 || MINUTES.contains(&self.minutes), "from 0.1 to 1000, or 0"),
            ("save-every", self.save_every, self.save_every >= 0.0, "of at least 0, in minutes"),
        ] {
            // Updates are computed in `f32`, where a number must be neither infinite nor rounded to zero or one.
            let rounded = value as f32;
            let is_in_f32 =
                rounded.is_finite() && (rounded == 0.0) == (value == 0.0) && (rounded == 1.0) == (value == 1.0);
            if !is_allowed || !is_in_f32 {
                bail_option!(name, "expected a number {allowed}, got {value:?}");
            }
        }
        self.validate_together()
    }

    /// Checks the values that depend on one another.
    fn validate_together(&self) -> Result<()> {
        if self.is_timed() && self.schedule != Schedule::WarmupStableDecay {
            bail_option!("minutes", "expected schedule warmup-stable-decay, which can begin its decay at any step");
        }
        if self.is_timed() && self.patience > 0 {
            bail_option!(
                "patience",
                "expected 0 for a run of given minutes, or a number of steps, got {}",
                self.patience
            );
        }
        if self.schedule == Schedule::WarmupStableDecay && self.warmup + self.decay > 1.0 {
            bail_option!("warmup", "expected at most 1 together with decay, got {} and {}", self.warmup, self.decay);
        }
        Ok(())
    }

    /// Checks that this device has products of this precision.
    pub(in crate::train) fn check_precision(&self, device: &Device) -> Result<()> {
        if self.precision == Precision::Bf16 {
            if !device.is_cpu() {
                bail_option!("precision", "expected f32 on a device other than the CPU, got bf16");
            }
            if ops::bf16_products(|| ()).is_err() {
                bail_option!("precision", "expected f32 on a processor without avx512_bf16, got bf16");
            }
        }
        Ok(())
    }

    /// Checks that these values can train this model on this corpus.
    ///
    /// # Errors
    /// The first option out of bounds, with what it expects and what it got.
    pub fn validate_for(&self, config: &ModelConfig, corpus: &Corpus) -> Result<()> {
        self.validate()?;
        if self.isolate_documents && corpus.separator.is_none() {
            bail_option!(
                "isolate-documents",
                "expected several documents and a tokenizer with an end-of-text token, got none"
            );
        }
        if self.patience > 0 && corpus.validation.is_empty() {
            bail_option!("patience", "expected a validation text, got none");
        }
        let (context, max) = (self.window_len(config), config.context_len);
        if context > max {
            bail_option!("context", "expected at most {max}, the model's own, got {context}");
        }
        // Nothing would reach the weights of queries and keys.
        if context == 1 && max > 1 {
            bail_option!("context", "expected at least 2 for a model with a context of {max}, got 1");
        }
        corpus.check_context(context)
    }
}
