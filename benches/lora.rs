//! Fine-tuning with adapters (LoRA): speed, memory and losses beside torch with PEFT, in the same run; and whether PEFT
//! opens what a run leaves.
//!
//!     CANDLE_ATTENTION_PYTHON=venv/bin/python cargo bench -p candle-attention --features lm --bench lora -- MODEL TEXT
//!
//! MODEL is the folder of a model; adapters of rank 8 are trained on all linear layers of its blocks, on consecutive windows
//! of the text: the same for both sides, whose losses differ by their random A alone. Without MODEL and TEXT there is only
//! the second part, with models of random weights; without the variable, only this crate's side.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::generate::Pipeline;
use candle_attention::model::{Architecture, CausalLm, ModelConfig, save_weights};
use candle_attention::nn::{LoraConfig, Parameters};
use candle_attention::optim::Schedule;
use candle_attention::text::{Batch, Corpus, Document, IdsStore, Tokenizer, Validation, encode, windows};
use candle_attention::train::{FrozenBase, RunDir, TrainOptions, Trainer, train};
use candle_core::{DType, Device, Tensor};

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod contest;
    pub mod peer;
    pub mod rivals;
    pub mod status;
    pub mod timing;
}
use support::{args, contest::Contest, peer, rivals, status::mebibytes, timing};

/// Tokens in a window.
const CONTEXT: usize = 128;
const STEPS: &str = "30";
const LORA: LoraConfig = LoraConfig { rank: 8, alpha: 16.0 };
const LR: f64 = 5e-4;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if let Some(side) = peer::served_side() {
        return serve(&side);
    }
    if let [model, text] = &args::read().1[..] {
        for batch in [1, 4] {
            println!("\n{CONTEXT} tokens, {batch} sequences:\n");
            contest(model, text, batch)?;
        }
    }
    for architecture in [Architecture::Gpt2, Architecture::Llama, Architecture::Qwen3] {
        open_with_peft(architecture)?;
    }
    Ok(())
}

/// Both sides, each a process of its own that makes so many steps.
fn contest(model: &str, text: &str, batch: usize) -> Result<()> {
    let mut contest = Contest::default();
    contest.enter("candle-attention", peer::this_bench(&format!("{model}\n{text}\n{batch}"))?)?;
    if let Some(mut command) = rivals::python("lora_peft.py") {
        let numbers = [("--batch", batch), ("--context", CONTEXT), ("--rank", LORA.rank)];
        command.args(numbers.iter().flat_map(|(name, value)| [name.to_string(), value.to_string()]));
        command.args(["--lr", &LR.to_string(), "--alpha", &LORA.alpha.to_string(), model, text]);
        contest.enter("torch with PEFT", command)?;
    }
    contest.ask(STEPS, 1)?;
    contest.print_sides(&["ms per step", "tokens/s", "peak, MiB", "loss of the first 5 steps", "of the last 5"]);
    Ok(())
}

/// Answers to a number of steps with the median of their milliseconds, tokens per second, the peak of memory, and the mean
/// loss of the first and the last five.
fn serve(side: &str) -> Result<()> {
    let [model, text, batch] = side.split('\n').collect::<Vec<_>>()[..] else { bail!("expected a model and a text") };
    let (model, batch) = (Path::new(model), batch.parse()?);
    let (mut config, tokenizer) = Pipeline::open_config(model)?;
    config.context_len = CONTEXT;
    let corpus = corpus(&tokenizer, fs::read(text)?)?;
    let ids = corpus.train.clone();
    let options = TrainOptions {
        batch,
        shards: peer::threads(),
        lr: LR,
        schedule: Schedule::Constant,
        warmup: 0.0,
        weight_decay: 0.0,
        beta2: 0.999,
        ..Default::default()
    };
    let mut trainer = trainer(model, &config, &options, corpus)?;
    peer::serve(|steps| {
        let (mut times, mut losses) = (vec![], vec![]);
        for batch in windows(&ids, (batch, CONTEXT), true, None, &Device::Cpu)?.take(steps.parse()?) {
            let batch: Batch = batch?;
            times.push(timing::ms(|| {
                losses.push(trainer.step(&batch)?.loss);
                Ok::<_, candle_attention::Error>(())
            })?);
        }
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (ms, last) = (timing::median(times), losses.len().saturating_sub(5));
        let speed = (batch * CONTEXT) as f64 / ms * 1e3;
        Ok(vec![ms, speed, mebibytes("VmHWM"), mean(&losses[..losses.len().min(5)]), mean(&losses[last..])])
    })
}

fn trainer(base: &Path, config: &ModelConfig, options: &TrainOptions, corpus: Corpus) -> Result<Trainer> {
    let base = FrozenBase::open(base, &LORA, config, &Device::Cpu)?;
    Ok(Trainer::with_lora(base, config, options, corpus, &Device::Cpu)?)
}

fn corpus(tokenizer: &Tokenizer, text: Vec<u8>) -> Result<Corpus> {
    let (documents, validation) = ([Document::new("text", text)], Validation::Fraction(0.0));
    Ok(encode(tokenizer, &documents, &validation, Default::default(), IdsStore::Temporary, &mut |_| {})?)
}

/// A few steps with a model of random weights, whose folder PEFT opens with the same logits.
fn open_with_peft(architecture: Architecture) -> Result<()> {
    let space = tempfile::tempdir()?;
    let (base, root) = (space.path().join("base"), space.path().join("run"));
    let config = write_base(&base, architecture)?;
    let tokenizer = Tokenizer::open(&base)?;
    let options = TrainOptions { steps: 9, batch: 3, lr: 0.02, ..Default::default() };
    let mut run = RunDir::create(&root)?;
    let mut trainer = trainer(&base, &config, &options, corpus(&tokenizer, text().into())?)?;
    run.begin(&tokenizer, &trainer, &Default::default())?;
    train(&mut trainer, Some(&mut run), &mut |_| ControlFlow::Continue(()))?;
    let ids: Vec<u32> = (0..11).map(|i| (i * i) % 7).collect();
    let logits = trainer.model().forward(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?)?.squeeze(0)?;
    let expected: PathBuf = space.path().join("logits.json");
    fs::write(&expected, format!("{{\"ids\": {ids:?}, \"logits\": {:?}}}", logits.to_vec2::<f32>()?))?;
    if let Some(mut command) = rivals::python("open_adapter.py") {
        let status = command.arg(&root).arg("--expect").arg(&expected).status()?;
        status.success().then_some(()).context("PEFT opens another model")?;
    }
    Ok(())
}

fn text() -> String {
    "one two three four five six seven eight nine ten. ".repeat(20)
}

/// A model of random weights with a tokenizer.
fn write_base(folder: &Path, architecture: Architecture) -> Result<ModelConfig> {
    let tokenizer = Tokenizer::characters(&[&text()], false)?;
    let config = ModelConfig {
        context_len: 16,
        embed_dim: 24,
        num_layers: 2,
        num_kv_heads: architecture.is_rotary().then_some(2),
        hidden_dim: 40,
        init_stdev: 0.1,
        ..ModelConfig::of(architecture, tokenizer.vocab_size())
    };
    let parameters = Parameters::new(1);
    CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu))?;
    let tensors: BTreeMap<String, Tensor> =
        parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    fs::create_dir(folder)?;
    save_weights(&folder.join("model.safetensors"), &config, &tensors)?;
    fs::write(folder.join("config.json"), config.to_json()?)?;
    tokenizer.save(folder, config.context_len)?;
    Ok(config)
}
