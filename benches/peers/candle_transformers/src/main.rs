//! Opens run folders of `attn` with candle-transformers' own `llama` and `qwen3`, and compares logits.
//!
//! ```sh
//! cargo run --release -- RUN [FILE.json]
//! ```
//!
//! With FILE.json it also writes our logits, for `open_run.py --expect` and `open_run_mlx.py --expect`; that works for gpt2
//! too, which candle-transformers does not have. Exit status 1 if a logit differs by more than 1e-4.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen3};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let run = args.next().context("usage: candle-transformers-peer RUN [FILE.json]")?;
    let run = Path::new(&run);
    let model = Pipeline::open(run, &Device::Cpu)?.model;
    let config = model.config();
    // Any ids will do.
    let len = config.context_len.min(48);
    let ids: Vec<u32> = (0..len).map(|i| (i * i * 7 + 3 * i) as u32 % config.vocab_size as u32).collect();
    let ours = model.forward(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?)?.squeeze(0)?; // (T, V)
    if let Some(file) = args.next() {
        fs::write(file, json!({ "ids": ids, "logits": ours.to_vec2::<f32>()? }).to_string())?;
    }
    let text = fs::read_to_string(run.join("config.json"))?;
    let kind: Value = serde_json::from_str(&text)?;
    // SAFETY: nobody writes the file meanwhile.
    let vb = unsafe {
        VarBuilder::from_mmaped_safetensors(&[run.join("model.safetensors")], DType::F32, &Device::Cpu)?
    };
    let mut difference = 0f32;
    for end in 1..=len {
        // Both give the logits after the last position only.
        let input = Tensor::new(&ids[..end], &Device::Cpu)?.unsqueeze(0)?;
        let theirs = match kind["model_type"].as_str() {
            Some("llama") => {
                let config = serde_json::from_str::<llama::LlamaConfig>(&text)?.into_config(false);
                let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
                llama::Llama::load(vb.clone(), &config)?.forward(&input, 0, &mut cache)?
            }
            Some("qwen3") => {
                qwen3::ModelForCausalLM::new(&serde_json::from_str(&text)?, vb.clone())?.forward(&input, 0)?
            }
            other => {
                println!("candle-transformers has no {other:?} to compare with");
                return Ok(());
            }
        };
        let theirs = theirs.flatten_all()?;
        let worst = (theirs - ours.get(end - 1)?)?.abs()?.max(D::Minus1)?.to_scalar::<f32>()?;
        difference = difference.max(worst);
    }
    println!("logits: largest difference {difference:.3e}, at {len} positions");
    if difference > 1e-4 {
        bail!("expected the same logits");
    }
    Ok(())
}
