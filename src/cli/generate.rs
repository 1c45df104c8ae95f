//! `attn generate`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_attention::generate::{Sampler, SamplingOptions};
use candle_attention::run::Run;
use candle_core::Device;
use clap::Args;

use super::sample::{self, Form};

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
    /// The same seed writes the same text
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Texts to write, separated by lines of dashes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N", default_value_t = 1)]
    samples: u64,
}

/// Writes text with a trained model.
pub fn run(args: &GenerateArgs, out: &mut dyn Write) -> Result<()> {
    let options = SamplingOptions { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    options.validate()?;
    let run = Run::open(&args.run, &Device::Cpu)?;
    let form = if run.tokenizer.kind_name() == "byte" { Form::Bytes } else { Form::Text };
    for sample in 0..args.samples {
        if sample > 0 {
            writeln!(out, "---------------")?;
        }
        let mut sampler = Sampler::new(options, args.seed, sample)?;
        sample::write(&run, &args.prompt, args.max_tokens, &mut sampler, form, out)?;
    }
    Ok(())
}
