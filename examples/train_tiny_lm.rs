//! A small causal language model with the library: text, model, training, a run folder and a sample.
//!
//!     cargo run --release --example train_tiny_lm

use std::error::Error;
use std::ops::ControlFlow;

use candle_attention::candle_core::Device;
use candle_attention::generate::{Pipeline, Sampler, SamplingOptions, generate};
use candle_attention::model::ModelConfig;
use candle_attention::text::{Document, IdsStore, TextOptions, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Event, RunDir, TrainOptions, Trainer, train};

fn main() -> Result<(), Box<dyn Error>> {
    // A new run. It can be resumed, and `transformers` can open its folder.
    let space = tempfile::tempdir()?;
    let root = space.path().join("run");
    let mut run = RunDir::create(&root)?;

    // Text: about two thousand sentences as characters, a tenth of them held out.
    let documents = [Document::open(concat!(env!("CARGO_MANIFEST_DIR"), "/data/validation.txt"))?];
    let (validation, choice) = (Validation::Fraction(0.1), TokenizerChoice::Characters);
    let (tokenizer, corpus) = prepare(
        &documents,
        &validation,
        &choice,
        TextOptions::default(),
        IdsStore::File(&run.ids_path()),
        &mut |_| {},
    )?;

    // Model and training: a smaller version of nanoGPT's recipe for CPUs.
    let config = ModelConfig {
        context_len: 32,
        embed_dim: 48,
        num_layers: 2,
        hidden_dim: 192,
        ..ModelConfig::gpt2(tokenizer.vocab_size())
    };
    let options = TrainOptions { steps: 300, warmup: 0.1, lr: 3e-3, eval_every: Some(100), ..Default::default() };
    let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu)?;
    println!("{} parameters", config.parameter_count());

    // Training reports events.
    run.begin(&tokenizer, &trainer, &Default::default())?;
    train(&mut trainer, Some(&mut run), &mut |event| {
        match event {
            Event::Step(report) if report.step % 50 == 0 => println!("step {:3}  loss {:.3}", report.step, report.loss),
            Event::Validation(report) => println!("step {:3}  validation loss {:.3}", report.step, report.loss),
            _ => {}
        }
        ControlFlow::Continue(())
    })?;

    // A sample from the best model.
    let Pipeline { model, tokenizer, .. } = Pipeline::open(&root, &Device::Cpu)?;
    let mut sampler = Sampler::new(SamplingOptions { temperature: 0.5, ..Default::default() }, 1, 0)?;
    let ids = generate(&model, &tokenizer.encode("A ")?, 100, &mut sampler, &mut |_| ControlFlow::Continue(()))?;
    println!("A {}", tokenizer.decode(&ids)?);
    Ok(())
}
