//! `attn eval`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_attention::evaluate::evaluate;
use candle_attention::run::Run;
use candle_attention::text::{Corpus, Rest, Validation, windows};
use candle_core::Device;
use clap::Args;

use super::{document, grouped};

/// Arguments of `attn eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// The folder of a run, or any Hugging Face model folder of a GPT-2
    run: PathBuf,
    /// Text files
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<PathBuf>,
}

/// Tokens of a batch: enough for large matrix products.
const BATCH_TOKENS: usize = 4096;

/// Prints how well a trained model predicts the texts, in windows of its context that do not overlap.
pub fn run(args: &EvalArgs, out: &mut dyn Write) -> Result<()> {
    let run = Run::open(&args.run, &Device::Cpu)?;
    let context_len = run.model.config().context_len;
    let corpus = Corpus::new(&run.tokenizer, &document::read_all(&args.texts)?, &Validation::Fraction(0.0), 1)?;
    let batches = windows(&corpus.train, context_len, (BATCH_TOKENS / context_len).max(1), Rest::Keep)?;
    let evaluation = evaluate(&run.model, batches, &Device::Cpu)?;
    writeln!(out, "loss           {:.4} nats a token", evaluation.loss)?;
    writeln!(out, "perplexity     {:.4}", evaluation.perplexity())?;
    let bits = evaluation.bits_per_byte(corpus.train.len(), corpus.train_bytes);
    writeln!(out, "bits per byte  {bits:.4}")?;
    writeln!(out, "tokens         {} predicted, in {} bytes", grouped(evaluation.tokens), grouped(corpus.train_bytes))?;
    Ok(())
}
