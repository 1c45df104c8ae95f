//! What a run will be and need, said before it starts: `attn train --dry-run` and the first lines of every run.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use candle_attention::memory;
use candle_attention::model::ModelConfig;
use candle_attention::text::Corpus;
use candle_attention::train::{Forecast, OptimizerKind, Ramp, Schedule, TrainOptions, VALIDATION_BATCH_TOKENS};

use super::prepared::Prepared;
use super::terminal::one_line;
use super::{counted, grouped};

/// Prints the plan as comments, then the whole recipe: together a file for `--config`. Makes some steps in memory to
/// measure them, and leaves nothing on disk.
pub fn print(prepared: &Prepared, options: &TrainOptions, begun: Instant, out: &mut dyn Write) -> Result<()> {
    let mut lines = format!("{}\n{}\n", prepared.description(), recipe(prepared, options));
    match check_memory(&prepared.config, &prepared.corpus, options) {
        Err(error) => lines += &format!("{}\n{error}; no step was run", memory(prepared, options)),
        Ok(()) => {
            let time = time(&forecast(prepared, options)?, prepared, options, begun);
            let peak = memory::status_bytes("/proc/self/status", "VmHWM:");
            let peak = peak.map_or(String::new(), |peak| format!(", {} measured over some steps", megabytes(peak)));
            lines += &format!("{}{peak}\n{time}", memory(prepared, options));
        }
    }
    lines.lines().try_for_each(|line| writeln!(out, "# {line}"))?;
    write!(out, "\n{}", prepared.settings(options)?)?;
    Ok(())
}

/// How the model will be trained, on one line.
pub fn recipe(prepared: &Prepared, options: &TrainOptions) -> String {
    let context_len = prepared.config.context_len;
    let full_batch = options.batch_size as f64 * context_len as f64;
    let tokens = (options.full_batches(0..options.steps, context_len) * full_batch).round() as usize;
    let growing = |what: &str, ramp: Option<Ramp>| {
        ramp.map_or(String::new(), |ramp| format!(", {what} growing from {} over {} steps", ramp.from, ramp.steps))
    };
    let dropout = Some(prepared.config.dropout.residual).filter(|rate| *rate > 0.0);
    format!(
        "recipe: {} of {} in {}{}{}: {} tokens, {:.2} passes over the text; {}; {}{}",
        counted(options.steps as usize, "step"),
        counted(options.batch_size, "sequence"),
        counted(options.shards.min(options.batch_size), "shard"),
        growing("batch", options.batch_ramp),
        growing("context", options.context_ramp),
        grouped(tokens),
        tokens as f64 / prepared.corpus.train.len() as f64,
        optimizer(options),
        schedule(options),
        dropout.map_or(String::new(), |rate| format!("; dropout {rate}")),
    )
}

fn optimizer(options: &TrainOptions) -> String {
    let rate = options.learning_rate;
    let optimizer = match options.optimizer {
        OptimizerKind::AdamW => format!("AdamW at {rate}"),
        OptimizerKind::Muon => format!("Muon at {}, AdamW at {rate}", options.matrix_learning_rate),
    };
    let groups = [("embeddings", options.embedding_learning_rate), ("head", options.head_learning_rate)];
    let own_rates = groups.into_iter().filter_map(|(group, own)| Some((group, own.filter(|own| *own != rate)?)));
    own_rates.fold(optimizer, |line, (group, own)| format!("{line}, {group} at {own}"))
}

fn schedule(options: &TrainOptions) -> String {
    let &TrainOptions { min_learning_rate: end, decay_steps, .. } = options;
    let warmup = match options.warmup_steps {
        0 => "no warm-up".to_string(),
        steps => format!("warm-up over {}", counted(steps as usize, "step")),
    };
    match options.schedule {
        Schedule::Cosine => format!("{warmup}, cosine decay to {end}"),
        Schedule::Linear => format!("{warmup}, linear decay to {end}"),
        Schedule::Constant => format!("{warmup}, then constant"),
        Schedule::WarmupStableDecay => {
            format!("{warmup}, decay to {end} over the last {}", counted(decay_steps as usize, "step"))
        }
    }
}

/// The memory that the run is expected to take, on one line.
pub fn memory(prepared: &Prepared, options: &TrainOptions) -> String {
    format!("memory: {} expected", megabytes(expected_bytes(&prepared.config, &prepared.corpus, options)))
}

/// Measures how long the run will take by some steps of a model that is equal to the run's. If one of these fails, the
/// run would fail at the same step.
pub fn forecast(prepared: &Prepared, options: &TrainOptions) -> Result<candle_core::Result<Forecast>> {
    Ok(Forecast::measure(prepared.trainer(options)?))
}

/// How long everything since `begun` will take, on one line.
pub fn time(
    forecast: &candle_core::Result<Forecast>,
    prepared: &Prepared,
    options: &TrainOptions,
    begun: Instant,
) -> String {
    let &Forecast { step, validation, total, .. } = match forecast {
        Ok(forecast) => forecast,
        Err(error) => {
            return format!("time: unknown: a step run to measure it failed: {}", one_line(&error.to_string()));
        }
    };
    let validations = options.steps.div_ceil(options.eval_every);
    let validating = match prepared.corpus.validation.is_empty() {
        true => String::new(),
        false => format!(", {validations} x {:.2} s for validation", validation.as_secs_f64()),
    };
    format!(
        "time: {} expected ({:.1} ms per step{validating})",
        duration(begun.elapsed().as_secs_f64() + total.as_secs_f64()),
        step.as_secs_f64() * 1e3,
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

/// The ids of the text that are in memory; weights, the gradients of each shard and two moments; what a step keeps for
/// its backward pass, which is the tensors of each block and a few of C before and after them; and a validation batch
/// in each thread, whose memory the allocator keeps.
fn expected_bytes(config: &ModelConfig, corpus: &Corpus, options: &TrainOptions) -> usize {
    const PROGRAM: usize = 60_000_000;
    let ids = (corpus.train.bytes_in_memory() + corpus.validation.bytes_in_memory()) / size_of::<f32>();
    // Further copies: the sum of the parts so far, the average of the weights, the weights before a step with
    // statistics.
    let more = [options.accumulate > 1, options.ema > 0.0, options.statistics_every > 0];
    let sequences = options.batch_size.div_ceil(options.accumulate);
    let copies = options.shards.min(sequences).saturating_add(4 + more.iter().filter(|one| **one).count());
    let state = config.parameter_count().saturating_mul(copies);
    let floats_per_position = config.num_layers.saturating_mul(block_floats(config)) + 5 * config.embed_dim;
    let positions = sequences.saturating_mul(config.context_len);
    let floats = positions.saturating_mul(floats_per_position).saturating_add(state).saturating_add(ids);
    let validated = VALIDATION_BATCH_TOKENS.max(config.context_len).saturating_mul(rayon::current_num_threads());
    let floats = floats.saturating_add(validated.saturating_mul(6 * config.embed_dim + 2 * config.hidden_dim));
    floats.saturating_mul(4).saturating_add(PROGRAM)
}

/// The floats that a block keeps per position: six tensors of C channels, two of the width of all queries, four of the
/// width of all keys, and three (with a gate four) of F; queries and keys once more if they are rotated and once more
/// if normalised.
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

/// A time in words, rounded by less than a tenth.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("about {:.2} s", s.max(0.01)),
        s if s < 10.0 => format!("about {s:.1} s"),
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 600.0 => format!("about {:.1} min", s / 60.0),
        s if s < 7200.0 => format!("about {:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("about {:.1} h", s / 3600.0),
        s => format!("about {:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_that_is_hardly_rounded() {
        for (seconds, expected) in [
            (0.002, "about 0.01 s"),
            (0.345, "about 0.34 s"),
            (8.36, "about 8.4 s"),
            (61.4, "about 61 s"),
            (149.0, "about 2.5 min"),
            (599.0, "about 10.0 min"),
            (1140.0, "about 19 min"),
            (9000.0, "about 2.5 h"),
            (1e6, "about 11.6 days"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
        let value = |said: &str| -> f64 {
            let (number, unit) = said.strip_prefix("about ").unwrap().split_once(' ').unwrap();
            let units = [("s", 1.0), ("min", 60.0), ("h", 3600.0), ("days", 86_400.0)];
            number.parse::<f64>().unwrap() * units.iter().find(|(name, _)| *name == unit).unwrap().1
        };
        for seconds in (0..200).map(|i| 0.1 * 1.1f64.powi(i)) {
            assert!((value(&duration(seconds)) / seconds - 1.0).abs() < 0.1, "{seconds} s: {}", duration(seconds));
        }
    }
}
