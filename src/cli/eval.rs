//! `attn eval`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_attention::evaluate::{Evaluation, evaluate};
use candle_attention::run::Run;
use candle_attention::text::{Corpus, CorpusOptions, Document, Rest, Validation, windows};
use candle_core::Device;
use clap::Args;

use super::terminal::one_line;
use super::text_progress::{Stage, text_progress};
use super::{document, grouped, signals};

/// Arguments of `attn eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// The folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3
    run: PathBuf,
    /// Text files, and folders of them; of several texts each is evaluated on its own
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<PathBuf>,
}

/// Tokens of a batch: enough for large matrix products.
const BATCH_TOKENS: usize = 4096;

/// How well a text is predicted, and how long it is.
struct Measured {
    evaluation: Evaluation,
    /// Tokens, the first included.
    tokens: usize,
    bytes: usize,
}

impl Measured {
    fn bits_per_byte(&self) -> f64 {
        self.evaluation.bits_per_byte(self.tokens, self.bytes)
    }
}

/// Prints how well a trained model predicts the texts, in windows of its context that do not overlap.
pub fn run(args: &EvalArgs, out: &mut dyn Write) -> Result<()> {
    signals::listen()?;
    let run = Run::open(&args.run, &Device::Cpu)?;
    let documents = document::open_all(&args.texts)?;
    if let [document] = &documents[..] {
        return report(&measure(&run, document)?, out);
    }
    writeln!(out, "{:>10} {:>12} {:>10} {:>14} {:>14}  text", "loss", "perplexity", "bits/byte", "tokens", "bytes")?;
    let (mut all, mut bits) = (vec![], 0.0);
    for document in &documents {
        let measured =
            measure(&run, document).map_err(|error| match error.to_string().starts_with(document.name()) {
                true => error,
                false => error.context(one_line(document.name())),
            })?;
        let Measured { evaluation, bytes, .. } = &measured;
        writeln!(
            out,
            "{:>10.4} {:>12.4} {:>10.4} {:>14} {:>14}  {}",
            evaluation.loss,
            evaluation.perplexity(),
            measured.bits_per_byte(),
            grouped(evaluation.tokens),
            grouped(*bytes),
            one_line(document.name())
        )?;
        bits += measured.bits_per_byte() * measured.bytes as f64;
        all.push(measured);
    }
    writeln!(out, "all {} texts:", documents.len())?;
    report_all(&all, bits, out)
}

fn measure(run: &Run, document: &Document) -> Result<Measured> {
    let context_len = run.model.config().context_len;
    let options = CorpusOptions { context_len: 1, spill: Some(document::spill_for_now()) };
    let documents = std::slice::from_ref(document);
    let corpus = Corpus::new(&run.tokenizer, documents, &Validation::Fraction(0.0), &options, &mut text_progress())?;
    let batches = windows(&corpus.train, context_len, (BATCH_TOKENS / context_len).max(1), Rest::Keep)?;
    let (mut stage, mut done, total) = (Stage::new("evaluating"), 0, corpus.train.len() as u64 - 1);
    let batches = batches.inspect(|batch| {
        done += batch.as_ref().map_or(0, |batch| batch.targets.len() as u64);
        stage.show("evaluating", done, total, "M tokens");
    });
    let evaluation = evaluate(&run.model, batches, &Device::Cpu)?;
    Ok(Measured { evaluation, tokens: corpus.train.len(), bytes: corpus.train_bytes })
}

fn report(measured: &Measured, out: &mut dyn Write) -> Result<()> {
    let Measured { evaluation, bytes, .. } = measured;
    lines(evaluation, measured.bits_per_byte(), *bytes, out)
}

/// The mean over all tokens of all texts.
fn report_all(all: &[Measured], bits: f64, out: &mut dyn Write) -> Result<()> {
    let tokens = all.iter().map(|measured| measured.evaluation.tokens).sum();
    let nats: f64 = all.iter().map(|Measured { evaluation, .. }| evaluation.loss * evaluation.tokens as f64).sum();
    let bytes = all.iter().map(|measured| measured.bytes).sum();
    lines(&Evaluation { loss: nats / tokens as f64, tokens }, bits / bytes as f64, bytes, out)
}

fn lines(evaluation: &Evaluation, bits_per_byte: f64, bytes: usize, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "loss           {:.4} nats a token", evaluation.loss)?;
    writeln!(out, "perplexity     {:.4}", evaluation.perplexity())?;
    writeln!(out, "bits per byte  {bits_per_byte:.4}")?;
    writeln!(out, "tokens         {} predicted, in {} bytes", grouped(evaluation.tokens), grouped(bytes))?;
    Ok(())
}
