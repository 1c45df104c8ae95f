//! `attn eval`: loss, perplexity and bits per byte of a model on texts.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::text::{Corpus, Document, IdsStore, TextOptions, Validation, encode};
use candle_attention::train::{Evaluation, bits_per_byte, evaluate};
use candle_core::Device;
use clap::{Arg, ArgMatches, Command, value_parser};
use indicatif::HumanCount;

use super::progress::{Pass, text_progress};
use super::terminal::{note, one_line};
use super::{remarks, signals, texts};

/// The command line of `attn eval`.
pub fn command() -> Command {
    let path = |name: &'static str| Arg::new(name).required(true).value_parser(value_parser!(PathBuf));
    Command::new("eval").about("Loss, perplexity and bits per byte of a trained model on text files").args([
        path("run").value_name("RUN").help("The folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3"),
        path("texts").value_name("TEXT").num_args(1..).help(
            "Text files, and folders of them; several texts are evaluated separately. The tokens of a large text go to a \
             temporary file",
        ),
    ])
}

/// How well a text is predicted, and its length.
struct Measured {
    evaluation: Evaluation,
    bits_per_byte: f64,
    bytes: usize,
}

/// Prints how well a trained model predicts the texts, in non-overlapping windows of its context length.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    signals::listen()?;
    let root = matches.get_one::<PathBuf>("run").context("RUN")?;
    let paths: Vec<PathBuf> = matches.get_many("texts").into_iter().flatten().cloned().collect();
    let pipeline = Pipeline::open(root, &Device::Cpu)?;
    let documents = texts::open_all(&paths)?;
    let mut all = vec![];
    for document in &documents {
        let name = one_line(document.name());
        let corpus = ids_of(&pipeline, document)?;
        remarks::note_in_any_text(&corpus.remarks);
        if corpus.train.len() < 2 {
            note(&format!("left out, as it has fewer than 2 tokens: {name}"));
            continue;
        }
        let measured = measure(&pipeline, &corpus).with_context(|| name.clone())?;
        if documents.len() > 1 {
            print_row(&measured, &name, all.is_empty(), out)?;
        }
        all.push(measured);
    }
    if all.is_empty() {
        bail!("expected a text of at least 2 tokens, got none");
    }
    if all.len() > 1 {
        writeln!(out, "all {} texts:", all.len())?;
    }
    print_mean(&all, out)
}

/// The ids of a whole document, of any length.
fn ids_of(pipeline: &Pipeline, document: &Document) -> Result<Corpus> {
    let (documents, progress) = (std::slice::from_ref(document), &mut text_progress());
    let (all, options) = (Validation::Fraction(0.0), TextOptions { accept_unknown: true, ..Default::default() });
    Ok(encode(&pipeline.tokenizer, documents, &all, options, IdsStore::Temporary, progress)?)
}

fn measure(Pipeline { model, .. }: &Pipeline, corpus: &Corpus) -> Result<Measured> {
    let mut pass = Pass::default();
    let evaluation = evaluate(model, &corpus.train, false, None, &mut |done, total| {
        pass.show("evaluating", done as u64, total as u64, "M tokens");
        ControlFlow::Continue(())
    })?;
    let evaluation = evaluation.context("the evaluation was broken off")?;
    let bits_per_byte = bits_per_byte(evaluation.loss, corpus.train.len(), corpus.train_bytes);
    Ok(Measured { evaluation, bits_per_byte, bytes: corpus.train_bytes })
}

/// Prints a line for one of several texts, below a heading if it is the first.
fn print_row(measured: &Measured, name: &str, is_first: bool, out: &mut dyn Write) -> Result<()> {
    if is_first {
        let [loss, perplexity, bits, tokens, bytes] = ["loss", "perplexity", "bits/byte", "tokens", "bytes"];
        writeln!(out, "{loss:>10} {perplexity:>12} {bits:>10} {tokens:>14} {bytes:>14}  text")?;
    }
    let Measured { evaluation, bits_per_byte, bytes } = measured;
    writeln!(
        out,
        "{:>10.4} {:>12.4} {bits_per_byte:>10.4} {:>14} {:>14}  {name}",
        evaluation.loss,
        evaluation.perplexity(),
        HumanCount(evaluation.tokens as u64).to_string(),
        HumanCount(*bytes as u64).to_string(),
    )?;
    Ok(())
}

/// Prints the mean over all tokens of all texts.
fn print_mean(all: &[Measured], out: &mut dyn Write) -> Result<()> {
    let evaluations: Vec<Evaluation> = all.iter().map(|measured| measured.evaluation).collect();
    let evaluation = Evaluation::mean(&evaluations);
    let bytes: usize = all.iter().map(|measured| measured.bytes).sum();
    let bits: f64 = all.iter().map(|measured| measured.bits_per_byte * measured.bytes as f64).sum();
    let (tokens, length) = (HumanCount(evaluation.tokens as u64), HumanCount(bytes as u64));
    writeln!(out, "loss           {:.4} nats per token", evaluation.loss)?;
    writeln!(out, "perplexity     {:.4}", evaluation.perplexity())?;
    writeln!(out, "bits per byte  {:.4}", bits / bytes as f64)?;
    writeln!(out, "tokens         {tokens} predicted, in {length} bytes")?;
    Ok(())
}
