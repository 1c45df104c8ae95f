//! A small causal language model with the library: text, model, training, a run folder and a sample.
//!
//!     cargo run --release --example train_tiny_lm

use std::ops::ControlFlow;

use anyhow::Result;
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::ModelConfig;
use candle_attention::run::Run;
use candle_attention::text::{CorpusOptions, Document, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Event, RunFolder, TrainOptions, Trainer, train};
use candle_core::Device;

fn main() -> Result<()> {
    // Text: about two thousand sentences as characters, a tenth of them held out.
    let documents = [Document::open(concat!(env!("CARGO_MANIFEST_DIR"), "/data/validation.txt"))?];
    let context_len = 32;
    let (choice, in_memory) = (TokenizerChoice::Characters, CorpusOptions::in_memory(context_len));
    let (tokenizer, corpus) = prepare(&documents, &Validation::Fraction(0.1), &choice, &in_memory, &mut |_| {})?;

    // Model and training: a smaller version of nanoGPT's recipe for CPUs.
    let config = ModelConfig {
        context_len,
        embed_dim: 48,
        num_layers: 2,
        hidden_dim: 192,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    };
    let options =
        TrainOptions { steps: 300, warmup_steps: 30, learning_rate: 3e-3, eval_every: 100, ..Default::default() };
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu)?;
    println!("{} parameters", config.parameter_count());

    // Training reports events. The run folder can be resumed, and `transformers` can open it.
    let space = tempfile::tempdir()?;
    let root = space.path().join("run");
    let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "")?;
    train(&mut trainer, Some(&mut folder), &mut |event| {
        match event {
            Event::Step(report) if report.step % 50 == 0 => println!("step {:3}  loss {:.3}", report.step, report.loss),
            Event::Validation(report) => {
                println!("step {:3}  validation loss {:.3}", report.step, report.validation_loss)
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;

    // A sample from the best model.
    let run = Run::open(&root, &Device::Cpu)?;
    let mut sampler = Sampler::new(SamplingOptions { temperature: 0.5, ..Default::default() }, 1, 0)?;
    let prompt = run.tokenizer.encode("A ")?;
    let ids = generate(&run.model, &prompt, 100, &mut sampler, &mut |_| ControlFlow::Continue(()))?;
    println!("A {}", run.tokenizer.decode(&ids)?);
    Ok(())
}
