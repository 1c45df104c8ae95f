//! What a run will need, before it starts: `attn train --dry-run`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_attention::memory;
use candle_attention::model::ModelConfig;
use candle_attention::text::Corpus;
use candle_attention::train::{Forecast, OptimizerKind, Schedule, TrainOptions, VALIDATION_BATCH_TOKENS};

use super::prepared::Prepared;
use super::terminal::one_line;
use super::{counted, grouped};

/// Prints sizes, memory and time; makes some steps in memory to measure them, and leaves nothing on disk.
pub fn print(prepared: &Prepared, options: &TrainOptions, begun: Instant, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}\n{}", prepared.description(), recipe(prepared, options))?;
    writeln!(out, "memory, expected: {}", megabytes(expected_bytes(&prepared.config, &prepared.corpus, options)))?;
    if let Err(error) = check_memory(&prepared.config, &prepared.corpus, options) {
        writeln!(out, "{error}: nothing was tried")?;
        return Ok(());
    }
    let time = time(&forecast(prepared, options)?, options, begun);
    if let Some(peak) = memory::status_bytes("/proc/self/status", "VmHWM:") {
        writeln!(out, "memory, measured over some steps: {}", megabytes(peak))?;
    }
    writeln!(out, "{time}")?;
    Ok(())
}

/// How a model will be trained, in a line.
pub fn recipe(prepared: &Prepared, options: &TrainOptions) -> String {
    let context_len = prepared.config.context_len;
    let whole = options.steps as f64 * options.batch_size as f64 * context_len as f64;
    let tokens = (whole * options.mean_batch(context_len)).round() as usize;
    let schedule = match options.schedule {
        Schedule::Cosine => "cosine",
        Schedule::Linear => "linear",
        Schedule::Constant => "constant",
        Schedule::WarmupStableDecay => "warm-up, stable, decay",
    };
    let optimizer = match options.optimizer {
        OptimizerKind::AdamW => format!("AdamW at {}", options.learning_rate),
        OptimizerKind::Muon => {
            format!("Muon at {}, AdamW at {}", options.matrix_learning_rate, options.learning_rate)
        }
    };
    let own = [("embeddings", options.embedding_learning_rate), ("head", options.head_learning_rate)];
    let own = own.into_iter().filter_map(|(group, rate)| Some(format!(", {group} at {}", rate?)));
    let optimizer = optimizer + &own.collect::<String>();
    format!(
        "{} of {}: {} tokens, {:.2} times the text; {optimizer}, {schedule}; batch in {}",
        counted(options.steps as usize, "step"),
        counted(options.batch_size, "sequence"),
        grouped(tokens),
        tokens as f64 / prepared.corpus.train.len() as f64,
        counted(options.shards.min(options.batch_size), "shard"),
    )
}

/// Measures how long the run will take by some steps of a model that is equal to the run's. Where one of these fails, the
/// run will come to it.
pub fn forecast(prepared: &Prepared, options: &TrainOptions) -> Result<candle_core::Result<Forecast>> {
    Ok(Forecast::measure(prepared.trainer(options)?))
}

/// How long all will take that has `begun`, in a line.
pub fn time(forecast: &candle_core::Result<Forecast>, options: &TrainOptions, begun: Instant) -> String {
    let &Forecast { step, validation, total, .. } = match forecast {
        Ok(forecast) => forecast,
        Err(error) => {
            return format!("time: unknown, as a step to measure it by fails: {}", one_line(&error.to_string()));
        }
    };
    let validations = options.steps.div_ceil(options.eval_every);
    format!(
        "time, expected: {} ({:.1} ms a step, {validations} x {:.2} s to validate)",
        duration((begun.elapsed() + total).as_secs_f64()),
        step.as_secs_f64() * 1e3,
        validation.as_secs_f64()
    )
}

/// Refuses a run that would need more memory than there is.
pub fn check_memory(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> Result<()> {
    let (expected, available) = (expected_bytes(config, corpus, options), memory::available());
    if expected > available {
        bail!("the run would need {} of memory, with {} available here", megabytes(expected), megabytes(available));
    }
    Ok(())
}

/// The ids of the text, where they are in memory; weights, gradients of each shard, two moments; what a step keeps for its
/// backward pass, the tensors of each block and a few of C before and behind; and a batch of the validation in each thread,
/// whose memory the allocator keeps beside.
fn expected_bytes(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> usize {
    const PROGRAM: usize = 60_000_000;
    let ids = (corpus.train.bytes_in_memory() + corpus.validation.bytes_in_memory()) / size_of::<f32>();
    // Beside them the sum of the parts before, the average of the weights, and the weights before a step that is watched.
    let more = [options.accumulate > 1, options.ema > 0.0, options.statistics_every > 0];
    let sequences = options.batch_size.div_ceil(options.accumulate);
    let copies = options.shards.min(sequences).saturating_add(4 + more.iter().filter(|one| **one).count());
    let state = config.parameter_count().saturating_mul(copies);
    let floats_a_position = config.num_layers.saturating_mul(block_floats(config)) + 5 * config.embed_dim;
    let positions = sequences.saturating_mul(config.context_len);
    let floats = positions.saturating_mul(floats_a_position).saturating_add(state).saturating_add(ids);
    let validated = VALIDATION_BATCH_TOKENS.max(config.context_len).saturating_mul(rayon::current_num_threads());
    let floats = floats.saturating_add(validated.saturating_mul(6 * config.embed_dim + 2 * config.hidden_dim));
    floats.saturating_mul(4).saturating_add(PROGRAM)
}

/// Floats that a block keeps of a position: six tensors of C channels, two of
/// the width of all queries and four of that of all keys, and three or with a gate four of F; queries and keys once more
/// when they are turned and when they are normalised.
fn block_floats(config: &ModelConfig) -> usize {
    let queries = config.num_heads * config.head_channels();
    let keys = config.kv_heads() * config.head_channels();
    let again = usize::from(config.architecture.is_rotary()) + usize::from(config.architecture.has_qk_norm());
    let hidden = 3 + usize::from(config.architecture.is_gated());
    6 * config.embed_dim + 2 * queries + 4 * keys + again * (queries + keys) + hidden * config.hidden_dim
}

fn megabytes(bytes: usize) -> String {
    format!("{} MB", grouped(bytes.div_ceil(1_000_000)))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "less than a second".to_string(),
        s if s < 10.0 => format!("about {s:.1} s"),
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 7200.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} h", s / 3600.0),
    }
}
