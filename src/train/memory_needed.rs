//! How much memory training takes.

use super::TrainOptions;
use super::evaluate::VALIDATION_BATCH_TOKENS;
use crate::cpu::parallel::threads;
use crate::host::{Memory, Result, bail};
use crate::model::ModelConfig;
use crate::nn::LoraConfig;
use crate::text::Corpus;

/// The bytes of memory that training takes, about, without the ids of the text: weights, the gradients of each shard and two
/// moments; what a step keeps for its backward pass, which is the tensors of each block and a few of C channels before and
/// after them; and a validation batch in each thread, whose memory the allocator keeps. With `lora`, adapters of this size are
/// what is trained.
pub fn memory_needed(config: &ModelConfig, options: &TrainOptions, lora: Option<&LoraConfig>) -> usize {
    const PROGRAM: usize = 60_000_000;
    let sequences = options.batch.div_ceil(options.accumulate.max(1));
    let shards = options.shards.min(sequences);
    // Partial sums of the gradients' tree, the average of the weights, the weights before a step with statistics.
    let more = [options.average > 0.0, options.statistics_every > 0];
    let sums = shards.saturating_mul(options.accumulate).max(1).ilog2() as usize;
    let sums = if options.accumulate > 1 { sums } else { 0 };
    let copies = shards.saturating_add(4 + sums + more.iter().filter(|one| **one).count());
    let (trained, frozen) = match lora {
        None => (config.parameter_count(), 0),
        Some(lora) => (config.lora_parameter_count(lora), config.parameter_count()),
    };
    let state = trained.saturating_mul(copies).saturating_add(frozen);
    let floats_per_position = config.num_layers.saturating_mul(block_floats(config)) + 5 * config.embed_dim;
    let window = options.window_len(config);
    let positions = sequences.saturating_mul(window);
    let floats = positions.saturating_mul(floats_per_position).saturating_add(state);
    let validated = VALIDATION_BATCH_TOKENS.max(window).saturating_mul(threads());
    let floats = floats.saturating_add(validated.saturating_mul(6 * config.embed_dim + 2 * config.hidden_dim));
    floats.saturating_mul(size_of::<f32>()).saturating_add(PROGRAM)
}

/// The same with the ids of the text that are in memory.
pub(super) fn memory_with_text(
    config: &ModelConfig,
    corpus: &Corpus,
    options: &TrainOptions,
    lora: Option<&LoraConfig>,
) -> usize {
    let ids = corpus.train.bytes_in_memory() + corpus.validation.bytes_in_memory();
    memory_needed(config, options, lora).saturating_add(ids)
}

/// Refuses a run that needs more memory than this machine has.
pub(super) fn check_memory(
    config: &ModelConfig,
    corpus: &Corpus,
    options: &TrainOptions,
    lora: Option<&LoraConfig>,
) -> Result<()> {
    let (needed, total) = (memory_with_text(config, corpus, options, lora), Memory::now().total);
    if needed > total {
        let megabytes = |bytes: usize| bytes.div_ceil(1_000_000);
        bail!(
            "the run would need {} MB of memory, and there are {} MB; a smaller model, \
             shorter --context, smaller --batch, larger --accumulate and fewer --shards take less",
            megabytes(needed),
            megabytes(total)
        );
    }
    Ok(())
}

/// The floats that a block keeps per position: four tensors of C channels, two of the width of all queries, four of the
/// width of all keys, and three (with a gate four) of F; queries and keys once more if they are rotated and once more
/// if normalised.
fn block_floats(config: &ModelConfig) -> usize {
    let queries = config.num_heads * config.head_channels();
    let keys = config.kv_heads() * config.head_channels();
    let again = usize::from(config.architecture.is_rotary()) + usize::from(config.architecture.has_qk_norm());
    let hidden = 3 + usize::from(config.architecture.is_gated());
    4 * config.embed_dim + 2 * queries + 4 * keys + again * (queries + keys) + hidden * config.hidden_dim
}
