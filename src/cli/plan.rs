//! What a run will need, before it starts: `attn train --dry-run`.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_attention::memory;
use candle_attention::model::ModelConfig;
use candle_attention::text::Corpus;
use candle_attention::train::{TrainOptions, Trainer};

use super::grouped;
use super::prepared::Prepared;

/// Steps that are made to measure: the first warms up.
const MEASURED_STEPS: u32 = 3;

/// A pass forward costs about this part of a step.
const FORWARD_PART: f64 = 0.3;

/// Prints sizes, memory and time; makes some steps in memory to measure them, and leaves nothing on disk.
pub fn print(prepared: Prepared, options: &TrainOptions, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}", prepared.description())?;
    let whole = options.steps as f64 * options.batch_size as f64 * prepared.config.context_len as f64;
    let tokens = (whole * options.mean_batch(prepared.config.context_len)).round() as usize;
    writeln!(
        out,
        "{} steps of {} sequences: {} tokens, {:.1} times the text",
        grouped(options.steps as usize),
        grouped(options.batch_size),
        grouped(tokens),
        tokens as f64 / prepared.corpus.train.len() as f64
    )?;
    writeln!(out, "memory, expected: {}", megabytes(expected_bytes(&prepared.config, &prepared.corpus, options)))?;
    if let Err(error) = check_memory(&prepared.config, &prepared.corpus, options) {
        writeln!(out, "{error}: nothing was tried")?;
        return Ok(());
    }
    // Steps of whole batches are measured.
    let mean_batch = options.mean_batch(prepared.config.context_len);
    let options = &TrainOptions { batch_ramp: None, context_ramp: None, ..options.clone() };
    let (trainer, _) = prepared.trainer(options)?;
    let (step, total) = measure(trainer, options, mean_batch)?;
    if let Some(peak) = memory::status_bytes("/proc/self/status", "VmHWM:") {
        writeln!(out, "memory, measured over {} steps: {}", MEASURED_STEPS + 1, megabytes(peak))?;
    }
    writeln!(out, "time, from {MEASURED_STEPS} steps of {:.0} ms: {}", step * 1e3, duration(total))?;
    Ok(())
}

/// Seconds of a step, and of the whole run with its validations, whose steps are `mean_batch` of that on the average.
fn measure(mut trainer: Trainer, options: &TrainOptions, mean_batch: f64) -> Result<(f64, f64)> {
    trainer.train_step()?;
    let begun = Instant::now();
    for _ in 0..MEASURED_STEPS {
        trainer.train_step()?;
    }
    let step = begun.elapsed().as_secs_f64() / f64::from(MEASURED_STEPS);
    let validations = options.steps.div_ceil(options.eval_every) as f64;
    let tokens_a_step = (options.batch_size * trainer.config().context_len) as f64;
    let validation = step * FORWARD_PART * trainer.corpus().validation.len() as f64 / tokens_a_step;
    Ok((step, step * mean_batch * options.steps as f64 + validation * validations))
}

/// Refuses a run that would need more memory than there is.
pub fn check_memory(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> Result<()> {
    let (expected, available) = (expected_bytes(config, corpus, options), memory::available());
    if expected > available {
        bail!("the run would need {} of memory, with {} available here", megabytes(expected), megabytes(available));
    }
    Ok(())
}

/// The ids of the text, where they are in memory; weights, gradients of each shard, two moments; and what a step keeps for its backward pass: the
/// tensors of each block, and a few of C before and behind.
fn expected_bytes(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> usize {
    const PROGRAM: usize = 40_000_000;
    let ids = (corpus.train.bytes_in_memory() + corpus.validation.bytes_in_memory()) / size_of::<f32>();
    // Beside them the sum of the parts before, the average of the weights, and the weights before a step that is watched.
    let more = [options.accumulate > 1, options.ema > 0.0, options.statistics_every > 0];
    let sequences = options.batch_size.div_ceil(options.accumulate);
    let copies = options.shards.min(sequences).saturating_add(4 + more.iter().filter(|one| **one).count());
    let state = config.parameter_count().saturating_mul(copies);
    let floats_a_position = config.num_layers.saturating_mul(block_floats(config)) + 5 * config.embed_dim;
    let positions = sequences.saturating_mul(config.context_len);
    let floats = positions.saturating_mul(floats_a_position).saturating_add(state).saturating_add(ids);
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
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 7200.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} h", s / 3600.0),
    }
}
