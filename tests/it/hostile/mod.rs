//! Files that anyone may have made: whatever is in them, to open them gives a model or an error, and changes nothing.
//!
//! The cases are the same every time; `HOSTILE_CASES=N` makes N times as many random ones.

#[cfg(feature = "cli")]
mod command;
#[cfg(unix)]
mod links;
mod mutate;
mod tokenizers;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_attention::evaluate::evaluate;
use candle_attention::generate::{Sampler, SamplingOptions, generate};
use candle_attention::model::{Architecture, ModelConfig};
use candle_attention::run::Run;
use candle_attention::text::{
    Corpus, CorpusOptions, Document, Ids, Rest, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{RunFolder, TrainOptions, Trainer};
use candle_core::{Device, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

const TEXT: &str = "ab ba abc cab. ";

/// How many times as many cases as in an everyday run.
fn times() -> usize {
    std::env::var("HOSTILE_CASES").map_or(1, |times| times.parse().unwrap())
}

/// About 600 of the ordered cases, evenly spread, and 60 random ones of `good`; more if asked for.
fn cases(ordered: Vec<Vec<u8>>, good: &[u8], seed: u64) -> Vec<Vec<u8>> {
    let step = (ordered.len() / (600 * times())).max(1);
    // Not even: the values at each place have a rhythm of their own.
    let step = step + usize::from(step > 1 && step.is_multiple_of(2));
    let random = mutate::broken(good, seed, 60 * times());
    ordered.into_iter().step_by(step).chain(random).collect()
}

fn corpus(choice: &TokenizerChoice) -> (Tokenizer, Corpus) {
    let documents = [Document::new("letters", TEXT.repeat(20))];
    let options = CorpusOptions::in_memory(5);
    prepare(&documents, &Validation::Fraction(0.1), choice, &options, &mut |_| {}).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions { steps: 2, batch_size: 2, shards: 1, warmup_steps: 1, eval_every: 1, ..Default::default() }
}

/// A tiny run of two steps.
struct Victim {
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Victim {
    fn new(choice: &TokenizerChoice) -> Self {
        Self::of(Architecture::Gpt2, choice)
    }

    fn of(architecture: Architecture, choice: &TokenizerChoice) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let (tokenizer, corpus) = corpus(choice);
        let config = ModelConfig {
            context_len: 5,
            embed_dim: 4,
            num_heads: 2,
            num_layers: 1,
            hidden_dim: 3,
            ..ModelConfig::of(architecture, tokenizer.vocab_size())
        };
        let mut trainer = Trainer::new(&config, &options(), corpus, &Device::Cpu).unwrap();
        let mut folder = RunFolder::create(&root, &tokenizer, &trainer, "seed = 1\n").unwrap();
        for _ in 0..2 {
            let report = trainer.train_step().unwrap();
            folder.log(&report).unwrap();
        }
        folder.save(&trainer).unwrap();
        Self { _dir: dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Opens the run with each of `mutants` in the place of the file `name`.
    fn endure(&self, name: &str, mutants: Vec<Vec<u8>>, open: &dyn Fn(&Path) -> Result<()>) {
        let path = self.path(name);
        open(&self.root).unwrap();
        let good = std::fs::read(&path).unwrap();
        let before = contents(&self.root);
        let (mut opened, count) = (0, mutants.len());
        for mutant in mutants {
            std::fs::write(&path, &mutant).unwrap();
            let begun = std::time::Instant::now();
            match catch_unwind(AssertUnwindSafe(|| open(&self.root))) {
                Ok(Ok(())) => opened += 1,
                Ok(Err(error)) => check_message(&error.to_string()),
                Err(panic) => fail(name, &mutant, &*panic),
            }
            if begun.elapsed().as_secs() >= 5 {
                fail(name, &mutant, &"takes too long");
            }
        }
        std::fs::write(&path, &good).unwrap();
        open(&self.root).unwrap();
        assert_eq!(before, contents(&self.root), "{name}: other files have changed");
        println!("{name}: {count} cases, {opened} of them opened");
    }
}

fn check_message(message: &str) {
    assert!(!message.is_empty());
}

fn fail(name: &str, mutant: &[u8], panic: &(dyn Any + Send)) -> ! {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let kept = std::env::temp_dir().join(format!("hostile-{}", name.replace('/', "-")));
    std::fs::write(&kept, mutant).unwrap();
    panic!("{name}, kept as {}: {}", kept.display(), text.unwrap_or_default());
}

/// All files below `folder`.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

/// Opens the model, and uses it.
fn open_model(root: &Path) -> Result<()> {
    let run = Run::open(root, &Device::Cpu)?;
    let ids = run.tokenizer.encode("abc ba").or_else(|_| run.tokenizer.encode("a")).unwrap_or_default();
    let prompt = if ids.is_empty() { vec![0] } else { ids.clone() };
    let mut stream = run.tokenizer.stream();
    let mut sampler = Sampler::new(SamplingOptions::default(), 1, 0)?;
    // The vocabulary of a tokenizer may have holes, and weights may be no numbers: both are errors.
    let new = generate(&run.model, &prompt, 7, &mut sampler, &mut |id| {
        let _ = stream.push(id);
        std::ops::ControlFlow::Continue(())
    });
    let _ = stream.finish();
    let _ = run.tokenizer.decode(&new.unwrap_or_default());
    if ids.len() > 1 {
        let ids = Ids::from(ids);
        let batches = windows(&ids, run.model.config().context_len, 2, Rest::Keep)?;
        let _ = evaluate(&run.model, batches, &Device::Cpu);
    }
    Ok(())
}

/// Resumes the training, and makes a step.
fn open_training(root: &Path, choice: &TokenizerChoice) -> Result<()> {
    restamp(root);
    let (folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu)?;
    let options = TrainOptions { steps: checkpoint.state.step.saturating_add(1), ..checkpoint.state.options.clone() };
    let corpus = folder.ids(&mut |_| {})?.unwrap_or_else(|| corpus(choice).1);
    let mut trainer = Trainer::resume(checkpoint, &config, &options, corpus, &Device::Cpu)?;
    // Weights that are no numbers are found here.
    let _ = trainer.train_step();
    Ok(())
}

const CHECKPOINT: &str = "training/step-00000002";

/// Gives a checkpoint the checksums of its files, as whoever broke them would.
fn restamp(root: &Path) {
    let path = root.join(CHECKPOINT).join("state.json");
    let Ok(mut state) = serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()) else { return };
    let Some(checksums) = state.get_mut("checksums").and_then(Value::as_object_mut) else { return };
    for (name, sum) in checksums {
        let candidates = [root.join(CHECKPOINT).join(name), root.join(name)];
        let Some(bytes) = candidates.iter().find_map(|path| std::fs::read(path).ok()) else { continue };
        let now: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        *sum = now.into();
    }
    std::fs::write(&path, serde_json::to_vec_pretty(&state).unwrap()).unwrap();
}

#[test]
fn a_configuration() {
    let victim = Victim::new(&TokenizerChoice::Characters);
    for name in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        let good = std::fs::read(victim.path(name)).unwrap();
        victim.endure(name, cases(mutate::structured(&good), &good, 1), &open_model);
    }
    for architecture in [Architecture::Llama, Architecture::Qwen3] {
        let victim = Victim::of(architecture, &TokenizerChoice::Characters);
        let good = std::fs::read(victim.path("config.json")).unwrap();
        victim.endure("config.json", cases(mutate::structured(&good), &good, 12), &open_model);
    }
}

#[test]
fn weights() {
    for architecture in Architecture::ALL {
        let victim = Victim::of(architecture, &TokenizerChoice::Characters);
        let good = std::fs::read(victim.path("model.safetensors")).unwrap();
        victim.endure("model.safetensors", cases(mutate::lying_headers(&good), &good, 2), &open_model);
    }
}

#[test]
fn a_tokenizer() {
    for (seed, choice) in (3..).zip([TokenizerChoice::Characters, TokenizerChoice::Bpe(258)]) {
        let victim = Victim::new(&choice);
        let good = std::fs::read(victim.path("tokenizer.json")).unwrap();
        victim.endure("tokenizer.json", cases(mutate::structured(&good), &good, seed), &open_model);
    }
}

#[test]
fn a_state_of_training() {
    let choice = TokenizerChoice::Characters;
    let victim = Victim::new(&choice);
    let open = |root: &Path| open_training(root, &choice);
    for (seed, name) in (5..).zip(["state.json", "optimizer.safetensors", "model.safetensors", "../ids.safetensors"]) {
        let name = format!("{CHECKPOINT}/{name}");
        let good = std::fs::read(victim.path(&name)).unwrap();
        let ordered = if name.ends_with("json") { mutate::structured(&good) } else { mutate::lying_headers(&good) };
        victim.endure(&name, cases(ordered, &good, seed), &open);
    }
    for (seed, name) in (9..).zip(["training/current", "training/metrics.jsonl", "config.json"]) {
        let good = std::fs::read(victim.path(name)).unwrap();
        let ordered = ["step-00000002/../../..", "/etc", "step-99999999999999999999", "step-00000000"];
        victim.endure(name, cases(ordered.map(Into::into).into(), &good, seed), &open);
    }
}
