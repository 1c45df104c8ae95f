//! `attn generate`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_attention::generate::{Continuation, Form, SamplingOptions};
use candle_attention::run::Run;
use candle_core::Device;
use clap::Args;

use super::sample;

/// Arguments of `attn generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// The folder of a run, or any Hugging Face model folder of a GPT-2
    run: PathBuf,
    /// The text to go on from [default: a line break]
    #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    prompt: String,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 500)]
    max_tokens: usize,
    /// Below 1 safer, above 1 bolder; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Choose among this many likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the fewest likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Choose among the tokens at least this share as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Above 1 makes tokens that the text has already less likely: divides their logits, or multiplies negative ones
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// End where this text would follow, which is not written; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// The same seed writes the same text
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Texts to write: all in one batch, shown one behind the other, separated by lines of dashes
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), value_name = "N", default_value_t = 1)]
    samples: u16,
}

/// Writes text with a trained model.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<()> {
    let &GenerateArgs { max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = args;
    let sampling = SamplingOptions { temperature, top_k, top_p, min_p, repetition_penalty };
    sampling.validate()?;
    let run = Run::open(&args.run, &Device::Cpu)?;
    let form = if run.tokenizer.kind_name() == "byte" { Form::Bytes } else { Form::Text };
    let (samples, stop) = (args.samples.into(), args.stop.clone());
    sample::write(&run, &args.prompt, &Continuation { max_tokens, sampling, seed, samples, stop, form }, out)
}
