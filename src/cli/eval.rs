//! `attn eval`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_attention::evaluate::{Evaluation, evaluate};
use candle_attention::run::Run;
use candle_attention::text::{Corpus, CorpusOptions, Document, Rest, Validation, windows};
use candle_core::Device;
use clap::Args;

use super::terminal::note;
use super::terminal::one_line;
use super::text_progress::{Stage, text_progress};
use super::{counted, document, grouped, signals};

/// Arguments of `attn eval`.
#[derive(Args)]
pub struct EvalArgs {
    /// The folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3
    run: PathBuf,
    /// Text files, and folders of them; several texts are evaluated separately. The tokens of a text above 16 MB go to
    /// a temporary file in TMPDIR, or in /tmp
    #[arg(required = true, value_name = "TEXT")]
    texts: Vec<PathBuf>,
}

/// Tokens in a batch: enough for large matrix products.
const BATCH_TOKENS: usize = 4096;

/// How well a text is predicted, and its length.
struct Measured {
    evaluation: Evaluation,
    /// Tokens, including the first.
    tokens: usize,
    bytes: usize,
}

impl Measured {
    fn bits_per_byte(&self) -> f64 {
        self.evaluation.bits_per_byte(self.tokens, self.bytes)
    }
}

/// Prints how well a trained model predicts the texts, in non-overlapping windows of its context length.
pub fn run(args: &EvalArgs, out: &mut dyn Write) -> Result<()> {
    signals::listen()?;
    let run = Run::open(&args.run, &Device::Cpu)?;
    let documents = document::open_all(&args.texts)?;
    if let [document] = &documents[..] {
        let ids = encode(&run, document)?;
        if ids.train.len() < 2 {
            bail!("expected a text of at least 2 tokens, got {}: {}", ids.train.len(), one_line(document.name()));
        }
        return report(&measure(&run, document, &ids)?, out);
    }
    let all = report_each(&run, &documents, out)?;
    if all.is_empty() {
        bail!("expected a text of at least 2 tokens, got none in {}", counted(documents.len(), "text"));
    }
    if all.len() > 1 {
        writeln!(out, "all {} texts:", all.len())?;
    }
    report_all(&all, out)
}

/// Prints a line for each text; those with nothing to predict are left out, with a note.
fn report_each(run: &Run, documents: &[Document], out: &mut dyn Write) -> Result<Vec<Measured>> {
    let mut all = vec![];
    for document in documents {
        let (ids, name) = (encode(run, document)?, one_line(document.name()));
        if ids.train.len() < 2 {
            note(&format!("left out, as it has {}: {name}", counted(ids.train.len(), "token")));
            continue;
        }
        let measured = measure(run, document, &ids)?;
        if all.is_empty() {
            let [loss, tokens] = ["loss", "tokens"];
            writeln!(out, "{loss:>10} {:>12} {:>10} {tokens:>14} {:>14}  text", "perplexity", "bits/byte", "bytes")?;
        }
        let Measured { evaluation, bytes, .. } = &measured;
        writeln!(
            out,
            "{:>10.4} {:>12.4} {:>10.4} {:>14} {:>14}  {name}",
            evaluation.loss,
            evaluation.perplexity(),
            measured.bits_per_byte(),
            grouped(evaluation.tokens),
            grouped(*bytes),
        )?;
        all.push(measured);
    }
    Ok(all)
}

/// The ids of a whole document, of any length.
fn encode(run: &Run, document: &Document) -> Result<Corpus> {
    let options = CorpusOptions { context_len: 0, spill: Some(document::spill_for_now()) };
    let documents = std::slice::from_ref(document);
    Ok(Corpus::new(&run.tokenizer, documents, &Validation::Fraction(0.0), &options, &mut text_progress())?)
}

fn measure(run: &Run, document: &Document, corpus: &Corpus) -> Result<Measured> {
    let context_len = run.model.config().context_len;
    let batches = windows(&corpus.train, context_len, (BATCH_TOKENS / context_len).max(1), Rest::Keep)?;
    let (mut stage, mut done, total) = (Stage::new("evaluating"), 0, corpus.train.len() as u64 - 1);
    let batches = batches.inspect(|batch| {
        done += batch.as_ref().map_or(0, |batch| batch.targets.len() as u64);
        stage.show("evaluating", done, total, "M tokens");
    });
    let evaluation = evaluate(&run.model, batches, &Device::Cpu).with_context(|| one_line(document.name()))?;
    Ok(Measured { evaluation, tokens: corpus.train.len(), bytes: corpus.train_bytes })
}

fn report(measured: &Measured, out: &mut dyn Write) -> Result<()> {
    let Measured { evaluation, bytes, .. } = measured;
    lines(evaluation, measured.bits_per_byte(), *bytes, out)
}

/// Prints the mean over all tokens of all texts.
fn report_all(all: &[Measured], out: &mut dyn Write) -> Result<()> {
    let tokens = all.iter().map(|measured| measured.evaluation.tokens).sum();
    let nats: f64 = all.iter().map(|Measured { evaluation, .. }| evaluation.loss * evaluation.tokens as f64).sum();
    let bits: f64 = all.iter().map(|measured| measured.bits_per_byte() * measured.bytes as f64).sum();
    let bytes = all.iter().map(|measured| measured.bytes).sum();
    lines(&Evaluation { loss: nats / tokens as f64, tokens }, bits / bytes as f64, bytes, out)
}

fn lines(evaluation: &Evaluation, bits_per_byte: f64, bytes: usize, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "loss           {:.4} nats per token", evaluation.loss)?;
    writeln!(out, "perplexity     {:.4}", evaluation.perplexity())?;
    writeln!(out, "bits per byte  {bits_per_byte:.4}")?;
    writeln!(out, "tokens         {} predicted, in {} bytes", grouped(evaluation.tokens), grouped(bytes))?;
    Ok(())
}
