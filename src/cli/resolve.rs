//! From options to those of the library, with defaults, and their checks.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use candle_attention::model::{Architecture, DropoutRates, ModelConfig, ResidualInit};
use candle_attention::train::{FIRST_MOMENTUM, OptimizerKind, Schedule, TrainOptions};

use super::merge::MODEL_OPTIONS;
use super::options::Options;

impl Options {
    /// The training options, with defaults for those that are not set.
    pub fn train_options(&self) -> TrainOptions {
        let default = TrainOptions::default();
        let steps = self.steps.unwrap_or(default.steps);
        let learning_rate = self.lr.unwrap_or(default.learning_rate);
        let most_warmup = steps.saturating_sub(self.decay_steps.unwrap_or(0));
        let warmup_steps = self.warmup.unwrap_or(default.warmup_steps.min(steps / 10).min(most_warmup));
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

    /// The model, with defaults for options that are not set; the vocabulary is the tokenizer's.
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

    /// The model in the folder `init`, with the given dropout, if any.
    pub fn init_config(&self, init: &Path) -> Result<ModelConfig> {
        let mut config = ModelConfig::open(init)?;
        if let Some(rate) = self.dropout {
            config.dropout = DropoutRates::all(rate);
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks values and combinations.
    pub fn check(&self) -> Result<()> {
        self.check_combinations()?;
        self.check_architecture()?;
        Ok(self.train_options().validate()?)
    }

    /// Refuses options that have no effect with the others.
    pub fn check_combinations(&self) -> Result<()> {
        self.save_time()?;
        if self.decay_steps.is_some() && self.schedule != Some(Schedule::WarmupStableDecay) {
            bail!("--decay-steps needs --schedule warmup-stable-decay");
        }
        if self.min_lr.is_some() && self.schedule == Some(Schedule::Constant) {
            bail!("--min-lr has no effect with --schedule constant");
        }
        let of_muon = [
            ("matrix-lr", self.matrix_lr.is_some()),
            ("matrix-weight-decay", self.matrix_weight_decay.is_some()),
            ("momentum", self.momentum.is_some()),
            ("momentum-warmup", self.momentum_warmup.is_some()),
        ];
        let is_muon = self.optimizer == Some(OptimizerKind::Muon);
        if let Some((name, _)) = of_muon.iter().find(|(_, is_given)| *is_given && !is_muon) {
            bail!("--{name} needs --optimizer muon");
        }
        let options = self.train_options();
        if options.momentum_warmup_steps > 0 && options.momentum <= FIRST_MOMENTUM {
            bail!("--momentum-warmup needs a --momentum above {FIRST_MOMENTUM}, which it rises from");
        }
        if options.cautious_decay && options.weight_decay == 0.0 && !(is_muon && options.matrix_weight_decay > 0.0) {
            let or_matrices = if is_muon { " or --matrix-weight-decay" } else { "" };
            bail!("--cautious-decay needs a --weight-decay{or_matrices} above 0");
        }
        Ok(())
    }

    /// The maximum time between checkpoints, if it is given.
    pub fn save_time(&self) -> Result<Option<Duration>> {
        let time = |minutes: f64| match Duration::try_from_secs_f64(60.0 * minutes) {
            Ok(time) => Ok(time),
            Err(_) => bail!("--save-every expects a number of minutes of at least 0, got {minutes}"),
        };
        self.save_every.map(time).transpose()
    }

    /// Refuses options that the architecture does not have.
    fn check_architecture(&self) -> Result<()> {
        let is_rotary = self.architecture.unwrap_or_default().is_rotary();
        let given = self.given()?;
        match ["kv-heads", "head-dim", "rope-theta"].iter().find(|name| given.iter().any(|given| given == *name)) {
            Some(name) if !is_rotary => bail!("--{name} needs --architecture llama or qwen3"),
            _ => Ok(()),
        }
    }

    /// Refuses `--init` with options that its folder sets.
    pub fn check_init(&self) -> Result<()> {
        if self.preset.is_some() {
            bail!("--preset cannot be given with --init; set training options one by one, or with --config");
        }
        match self.given()?.iter().find(|name| MODEL_OPTIONS.contains(&name.as_str())) {
            Some(name) => bail!("--{name} cannot be given with --init, whose model has its own"),
            None => Ok(()),
        }
    }
}
