//! From the options that are given to those of a run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::text::TokenizerChoice;
use candle_attention::train::{FIRST_MOMENTUM, OptimizerKind, Schedule, TrainOptions};

use super::options::Options;

impl Options {
    /// The training options, with defaults for what is not given.
    pub fn train_options(&self) -> TrainOptions {
        let default = TrainOptions::default();
        let steps = self.steps.unwrap_or(default.steps);
        let learning_rate = self.lr.unwrap_or(default.learning_rate);
        let warmup_steps = self.warmup.unwrap_or(default.warmup_steps.min(steps / 10));
        let schedule = self.schedule.unwrap_or_default();
        let a_fifth = (steps / 5).min(steps.saturating_sub(warmup_steps)).max(1);
        let decay_steps = match schedule {
            Schedule::WarmupStableDecay => self.decay_steps.unwrap_or(a_fifth),
            _ => default.decay_steps,
        };
        TrainOptions {
            steps,
            batch_size: self.batch.unwrap_or(default.batch_size),
            shards: self.shards.unwrap_or(default.shards),
            learning_rate,
            min_learning_rate: self.min_lr.unwrap_or(learning_rate / 10.0),
            warmup_steps,
            schedule,
            decay_steps,
            accumulate: self.accumulate.unwrap_or(default.accumulate),
            label_smoothing: self.label_smoothing.unwrap_or(default.label_smoothing),
            ema: self.ema.unwrap_or(default.ema),
            patience: self.patience.unwrap_or(default.patience),
            skip_bad_steps: self.skip_bad_steps.unwrap_or(default.skip_bad_steps),
            statistics_every: self.statistics_every.unwrap_or(default.statistics_every),
            beta1: self.beta1.unwrap_or(default.beta1),
            beta2: self.beta2.unwrap_or(default.beta2),
            eps: default.eps,
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            optimizer: self.optimizer.unwrap_or_default(),
            matrix_learning_rate: self.matrix_lr.unwrap_or(default.matrix_learning_rate),
            matrix_weight_decay: self.matrix_weight_decay.unwrap_or(default.matrix_weight_decay),
            momentum: self.momentum.unwrap_or(default.momentum),
            momentum_warmup_steps: self.momentum_warmup.unwrap_or(default.momentum_warmup_steps),
            embedding_learning_rate: self.embedding_lr,
            head_learning_rate: self.head_lr,
            cautious_updates: self.cautious_updates.unwrap_or(default.cautious_updates),
            cautious_decay: self.cautious_decay.unwrap_or(default.cautious_decay),
            z_loss: self.z_loss.unwrap_or(default.z_loss),
            batch_ramp: self.batch_ramp,
            context_ramp: self.context_ramp,
            clip_norm: self.clip.unwrap_or(default.clip_norm),
            isolate_documents: self.isolate_documents.unwrap_or(default.isolate_documents),
            eval_every: self.eval_every.unwrap_or((steps / 5).max(1)),
            seed: self.seed.unwrap_or(default.seed),
        }
    }

    /// The model, with defaults for what is not given; the vocabulary is the tokenizer's.
    pub fn model_config(&self, vocab_size: usize, end_of_text_id: Option<u32>) -> ModelConfig {
        let architecture = self.architecture.unwrap_or_default();
        let default = ModelConfig::of(architecture, vocab_size);
        let embed_dim = self.dim.unwrap_or(default.embed_dim);
        ModelConfig {
            context_len: self.context.unwrap_or(default.context_len),
            embed_dim,
            num_layers: self.layers.unwrap_or(default.num_layers),
            num_heads: self.heads.unwrap_or(default.num_heads),
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            hidden_dim: self.hidden.unwrap_or(architecture.usual_hidden_dim(embed_dim)),
            rope_theta: self.rope_theta.unwrap_or(default.rope_theta),
            bias: self.bias.unwrap_or(default.bias),
            mlp_bias: self.bias.unwrap_or(default.bias) && architecture == Architecture::Llama,
            tie_embeddings: self.tie.unwrap_or(default.tie_embeddings),
            // A text begins where the one before it has ended.
            begin_of_text_id: end_of_text_id,
            end_of_text_id,
            dropout: DropoutRates::all(self.dropout.unwrap_or(0.0)),
            residual_init: match self.zero_residual.unwrap_or(default.residual_init == ResidualInit::Zero) {
                true => ResidualInit::Zero,
                false => ResidualInit::Scaled,
            },
            ..default
        }
    }

    /// The model in the folder `init`, with another dropout where one is given.
    pub fn init_config(&self, init: &Path) -> Result<ModelConfig> {
        let mut config = ModelConfig::open(init)?;
        if let Some(rate) = self.dropout {
            config.dropout = DropoutRates::all(rate);
        }
        config.validate()?;
        Ok(config)
    }

    /// With every option given that a later run needs to be the same, and paths that hold from anywhere: what is saved
    /// with a run.
    pub fn resolved(&self, tokenizer: &TokenizerChoice, config: &ModelConfig, options: &TrainOptions) -> Result<Self> {
        let absolute = |paths: &[PathBuf]| paths.iter().map(std::path::absolute).collect::<std::io::Result<_>>();
        let mut resolved = Self {
            texts: absolute(&self.texts)?,
            validation: absolute(&self.validation)?,
            validation_fraction: self.validation_fraction,
            init: self.init.as_ref().map(std::path::absolute).transpose()?,
            dropout: self.dropout,
            save_every: self.save_every,
            ..Self::of_training(options)
        };
        // With `init` the sizes and the tokenizer are those of its folder.
        if self.init.is_none() {
            resolved.tokenizer = Some(match tokenizer {
                TokenizerChoice::File(path) => std::path::absolute(path)?.display().to_string(),
                choice => choice.to_string(),
            });
            resolved.architecture = Some(config.architecture);
            resolved.layers = Some(config.num_layers);
            resolved.heads = Some(config.num_heads);
            resolved.dim = Some(config.embed_dim);
            if config.architecture.is_rotary() {
                resolved.kv_heads = Some(config.kv_heads());
                resolved.head_dim = Some(config.head_channels());
                resolved.rope_theta = Some(config.rope_theta);
            }
            resolved.hidden = Some(config.hidden_dim);
            resolved.context = Some(config.context_len);
            resolved.bias = Some(config.bias);
            resolved.tie = Some(config.tie_embeddings);
            resolved.zero_residual = Some(config.residual_init == ResidualInit::Zero);
            resolved.dropout = Some(config.dropout.residual);
        }
        Ok(resolved)
    }

    /// These options with texts that are found from anywhere.
    pub fn with_absolute_paths(mut self) -> Result<Self> {
        let absolute = |paths: &[PathBuf]| paths.iter().map(std::path::absolute).collect::<std::io::Result<_>>();
        (self.texts, self.validation) = (absolute(&self.texts)?, absolute(&self.validation)?);
        Ok(self)
    }

    /// Every training option that has a meaning beside the others.
    fn of_training(options: &TrainOptions) -> Self {
        let is_muon = options.optimizer == OptimizerKind::Muon;
        Self {
            steps: Some(options.steps),
            batch: Some(options.batch_size),
            shards: Some(options.shards),
            lr: Some(options.learning_rate),
            min_lr: Some(options.min_learning_rate).filter(|_| options.schedule != Schedule::Constant),
            warmup: Some(options.warmup_steps),
            beta1: Some(options.beta1),
            beta2: Some(options.beta2),
            weight_decay: Some(options.weight_decay),
            optimizer: Some(options.optimizer),
            matrix_lr: Some(options.matrix_learning_rate).filter(|_| is_muon),
            matrix_weight_decay: Some(options.matrix_weight_decay).filter(|_| is_muon),
            momentum: Some(options.momentum).filter(|_| is_muon),
            momentum_warmup: Some(options.momentum_warmup_steps).filter(|_| is_muon),
            embedding_lr: options.embedding_learning_rate,
            head_lr: options.head_learning_rate,
            cautious_updates: Some(options.cautious_updates),
            cautious_decay: Some(options.cautious_decay),
            z_loss: Some(options.z_loss),
            batch_ramp: options.batch_ramp,
            context_ramp: options.context_ramp,
            clip: Some(options.clip_norm),
            isolate_documents: Some(options.isolate_documents),
            accumulate: Some(options.accumulate),
            schedule: Some(options.schedule),
            decay_steps: Some(options.decay_steps).filter(|_| options.schedule == Schedule::WarmupStableDecay),
            label_smoothing: Some(options.label_smoothing),
            ema: Some(options.ema),
            patience: Some(options.patience),
            skip_bad_steps: Some(options.skip_bad_steps),
            statistics_every: Some(options.statistics_every),
            eval_every: Some(options.eval_every),
            seed: Some(options.seed),
            ..Self::default()
        }
    }

    /// These options of a resumed run, whose own are `saved`, where others follow from what is given.
    pub fn followed_up(mut self, given: &Self, saved: &Self) -> Self {
        // The schedule keeps its form, and the groups of parameters their proportion.
        let at_rate = saved.clone().at_rate(given.lr);
        self.min_lr = given.min_lr.or(at_rate.min_lr);
        self.matrix_lr = given.matrix_lr.or(at_rate.matrix_lr);
        self.embedding_lr = given.embedding_lr.or(at_rate.embedding_lr);
        self.head_lr = given.head_lr.or(at_rate.head_lr);
        // A run that becomes shorter has no room for all of them.
        if given.warmup.is_none() {
            self.warmup = self.warmup.map(|n| n.min(self.steps.map_or(n, |steps| steps.saturating_sub(1))));
        }
        if given.decay_steps.is_none() {
            let most = self.steps.map(|steps| steps.saturating_sub(self.warmup.unwrap_or(0)).max(1));
            self.decay_steps = self.decay_steps.filter(|_| given.schedule.is_none()).map(|n| n.min(most.unwrap_or(n)));
        }
        if self.schedule == Some(Schedule::Constant) && given.min_lr.is_none() {
            self.min_lr = None;
        }
        self
    }

    /// Refuses values and combinations that make no run.
    pub fn check(&self) -> Result<()> {
        self.check_meaning()?;
        self.check_architecture()?;
        Ok(self.train_options().validate()?)
    }

    /// Refuses what has no meaning beside the other options.
    pub fn check_meaning(&self) -> Result<()> {
        self.save_time()?;
        if self.decay_steps.is_some() && self.schedule != Some(Schedule::WarmupStableDecay) {
            bail!("--decay-steps goes with --schedule warmup-stable-decay");
        }
        if self.min_lr.is_some() && self.schedule == Some(Schedule::Constant) {
            bail!("--min-lr has no meaning with --schedule constant");
        }
        let of_muon = [
            ("matrix-lr", self.matrix_lr.is_some()),
            ("matrix-weight-decay", self.matrix_weight_decay.is_some()),
            ("momentum", self.momentum.is_some()),
            ("momentum-warmup", self.momentum_warmup.is_some()),
        ];
        if let Some((name, _)) = of_muon.iter().find(|of| of.1 && self.optimizer != Some(OptimizerKind::Muon)) {
            bail!("--{name} goes with --optimizer muon");
        }
        let options = self.train_options();
        if options.momentum_warmup_steps > 0 && options.momentum <= FIRST_MOMENTUM {
            bail!("--momentum-warmup goes with a --momentum above {FIRST_MOMENTUM}, where it rises from");
        }
        if options.cautious_decay && options.weight_decay == 0.0 && options.matrix_weight_decay == 0.0 {
            bail!("--cautious-decay goes with a --weight-decay or --matrix-weight-decay above 0");
        }
        Ok(())
    }

    /// The time between two checkpoints, where it is given.
    pub fn save_time(&self) -> Result<Option<Duration>> {
        let time = |minutes: f64| match Duration::try_from_secs_f64(60.0 * minutes) {
            Ok(time) => Ok(time),
            Err(_) => bail!("--save-every expects minutes from 0 on, got {minutes}"),
        };
        self.save_every.map(time).transpose()
    }

    /// Refuses what the architecture has no place for.
    fn check_architecture(&self) -> Result<()> {
        let is_rotary = self.architecture.unwrap_or_default().is_rotary();
        let given = self.given()?;
        match ["kv-heads", "head-dim", "rope-theta"].iter().find(|name| given.iter().any(|given| given == *name)) {
            Some(name) if !is_rotary => bail!("--{name} goes with --architecture llama or qwen3"),
            _ => Ok(()),
        }
    }

    /// Refuses sizes beside `--init`, whose model has its own.
    pub fn check_init(&self) -> Result<()> {
        let names = [
            "preset",
            "architecture",
            "layers",
            "heads",
            "dim",
            "kv-heads",
            "head-dim",
            "rope-theta",
            "hidden",
            "context",
            "bias",
            "tie",
            "zero-residual",
            "tokenizer",
        ];
        let given = self.given()?;
        match names.iter().find(|name| given.iter().any(|given| given == *name)) {
            Some(name) => bail!("--{name} cannot be given with --init, whose model has its own"),
            None => Ok(()),
        }
    }
}
