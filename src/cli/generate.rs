//! `attn generate`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_attention::generate::{Continuation, OutputForm, SamplingOptions};
use candle_attention::run::Run;
use candle_core::Device;
use clap::Args;

use super::sample;

/// Arguments of `attn generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// Folder of a run, or any Hugging Face model folder of a gpt2, llama or qwen3
    run: PathBuf,
    /// Text to continue [default: empty; generation then starts from the beginning-of-text token or, without one, the
    /// end-of-text token, a line break or token 0]
    #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,
    /// Maximum number of tokens to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_tokens: usize,
    /// Divisor of the logits: below 1 is safer, above 1 more varied; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Sample only from this many likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample only from the fewest likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Sample only from tokens at least this many times as likely as the likeliest one
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Above 1, tokens that already occur in the text become less likely: positive logits are divided by this, negative
    /// ones multiplied
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Seed: the same one gives the same text
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of texts: generated in one batch, shown one after the other, separated by lines of dashes
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), value_name = "N", default_value_t = 1)]
    samples: u16,
}

/// Generates text with a trained model.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<()> {
    let &GenerateArgs { max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = args;
    let sampling = SamplingOptions { temperature, top_k, top_p, min_p, repetition_penalty };
    sampling.validate()?;
    let run = Run::open(&args.run, &Device::Cpu)?;
    let form = if run.tokenizer.takes_any_bytes() { OutputForm::Bytes } else { OutputForm::Text };
    let (samples, stop) = (args.samples.into(), args.stop.clone());
    sample::write(&run, &args.prompt, &Continuation { max_tokens, sampling, seed, samples, stop, form }, out)
}
