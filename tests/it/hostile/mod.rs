//! Files that anyone may have written: whatever they contain, opening them gives a model or an error and changes
//! nothing.
//!
//! The cases are the same every time; with `HOSTILE_CASES=N` there are N times as many.

#[cfg(unix)]
mod links;
mod mutate;
mod tokenizers;
mod training;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_attention::generate::{Pipeline, Sampler, SamplingOptions, generate};
use candle_attention::model::{Architecture, ModelConfig};
use candle_attention::text::{
    Corpus, Document, Ids, IdsStore, TextOptions, Tokenizer, Validation, hide_caught_panics, prepare,
};
use candle_attention::train::{RunDir, TrainOptions, Trainer, evaluate, train};
use candle_attention::{Error, Result};
use candle_core::Device;

const TEXT: &str = "ab ba abc cab. ";

/// A hundred times what a case takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The factor for the number of cases.
fn times() -> usize {
    std::env::var("HOSTILE_CASES").map_or(1, |times| times.parse().unwrap())
}

/// About 600 of the ordered cases, evenly spread, and 60 random edits of `good`; more if asked for.
fn cases(ordered: Vec<Vec<u8>>, good: &[u8], seed: u64) -> Vec<Vec<u8>> {
    let step = (ordered.len() / (600 * times())).max(1);
    // An odd step, as the cases repeat in even periods.
    let step = step + usize::from(step > 1 && step.is_multiple_of(2));
    let random = mutate::broken(good, seed, 60 * times());
    ordered.into_iter().step_by(step).chain(random).collect()
}

/// A corpus of characters, bytes or merges.
fn corpus(choice: &str, store: IdsStore) -> (Tokenizer, Corpus) {
    let (documents, choice) = ([Document::new("letters", TEXT.repeat(20))], choice.parse().unwrap());
    prepare(&documents, &Validation::Fraction(0.1), &choice, TextOptions::default(), store, &mut |_| {}).unwrap()
}

/// A tiny run after two steps.
pub struct Victim {
    _dir: tempfile::TempDir,
    pub root: PathBuf,
}

impl Victim {
    pub fn new(choice: &str) -> Self {
        Self::of(Architecture::Gpt2, choice)
    }

    fn of(architecture: Architecture, choice: &str) -> Self {
        hide_caught_panics();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let mut run = RunDir::create(&root).unwrap();
        let (tokenizer, corpus) = corpus(choice, IdsStore::File(&run.ids_path()));
        let config = ModelConfig {
            context_len: 5,
            embed_dim: 4,
            num_heads: 2,
            num_layers: 1,
            hidden_dim: 3,
            ..ModelConfig::of(architecture, tokenizer.vocab_size())
        };
        let options = TrainOptions { steps: 2, batch: 2, shards: 1, eval_every: Some(1), ..Default::default() };
        let mut trainer = Trainer::new(&config, &options, corpus, &Device::Cpu).unwrap();
        run.begin(&tokenizer, &trainer, &toml::Table::new()).unwrap();
        train(&mut trainer, Some(&mut run), &mut |_| ControlFlow::Continue(())).unwrap();
        Self { _dir: dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Opens the run with each of `mutants` in place of the file `name`.
    fn endure(&self, name: &str, mutants: Vec<Vec<u8>>, open: &dyn Fn(&Path) -> Result<()>) {
        let path = self.path(name);
        open(&self.root).unwrap();
        let good = std::fs::read(&path).unwrap();
        let before = contents(&self.root);
        let (mut opened, count) = (0, mutants.len());
        for mutant in mutants {
            std::fs::write(&path, &mutant).unwrap();
            opened += usize::from(is_endured(name, &mutant, || open(&self.root)));
        }
        std::fs::write(&path, &good).unwrap();
        open(&self.root).unwrap();
        assert_eq!(before, contents(&self.root), "{name}: other files have changed");
        println!("{name}: {count} cases, {opened} of them opened");
    }
}

/// Whether a mutant opens. It may be an error, but no panic, and takes no longer than anything of its size may.
fn is_endured(name: &str, mutant: &[u8], open: impl FnOnce() -> Result<()>) -> bool {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| fail(name, mutant, &*panic));
    if started.elapsed() >= LIMIT {
        fail(name, mutant, &"takes too long");
    }
    check_result(result).is_some()
}

/// Fails unless an error is a line for people.
fn check_message(error: &Error) {
    let message = error.to_string();
    // The odd name of a tensor is quoted as it is; the command escapes it.
    let message = message.replace("x\ny", "x y");
    assert!(!message.trim().is_empty() && message.lines().count() == 1, "{message:?}");
    // What the tokenizers library says in a panic is passed on.
    let own = message.split("but it fails: ").next().unwrap_or_default();
    for internal in ["panicked", "unwrap", "backtrace", "::", "Some(", "Err("] {
        assert!(!own.contains(internal), "{internal}: {message:?}");
    }
}

fn check_result<T>(result: Result<T>) -> Option<T> {
    result.map_err(|error| check_message(&error)).ok()
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

/// Opens the model and uses it.
fn open_model(root: &Path) -> Result<()> {
    let Pipeline { model, tokenizer, .. } = Pipeline::open(root, &Device::Cpu)?;
    let ids = tokenizer.encode("abc ba").or_else(|_| tokenizer.encode("a")).unwrap_or_default();
    let prompt = if ids.is_empty() { vec![0] } else { ids.clone() };
    let mut stream = tokenizer.stream();
    let mut sampler = Sampler::new(SamplingOptions::default(), 1, 0)?;
    // The model may have more ids than the tokenizer, and a third-party tokenizer gaps or a decoder that fails.
    let is_ours = tokenizer.kind_name() != "tokenizer.json";
    let is_known = |id: u32| is_ours && (id as usize) < tokenizer.vocab_size();
    let new = generate(&model, &prompt, 7, &mut sampler, &mut |id| {
        assert!(check_result(stream.push(id)).is_some() || !is_known(id), "{id} cannot be decoded");
        ControlFlow::Continue(())
    });
    assert!(check_result(stream.finish()).is_some() || !is_ours, "the rest of the text cannot be decoded");
    // Weights may not be finite.
    let new = check_result(new).unwrap_or_default();
    assert!(check_result(tokenizer.decode(&new)).is_some() || !new.iter().all(|&id| is_known(id)));
    if ids.len() > 1 {
        let separator = tokenizer.end_of_text_id();
        check_result(evaluate(&model, &Ids::from(ids), false, separator, &mut |_, _| ControlFlow::Continue(())));
    }
    Ok(())
}

#[test]
fn a_configuration() {
    let victim = Victim::new("char");
    for name in ["config.json", "generation_config.json", "tokenizer_config.json"] {
        let good = std::fs::read(victim.path(name)).unwrap();
        victim.endure(name, cases(mutate::structured(&good), &good, 1), &open_model);
    }
    for architecture in [Architecture::Llama, Architecture::Qwen3] {
        let victim = Victim::of(architecture, "char");
        let good = std::fs::read(victim.path("config.json")).unwrap();
        victim.endure("config.json", cases(mutate::structured(&good), &good, 12), &open_model);
    }
}

#[test]
fn weights() {
    for architecture in Architecture::ALL {
        let victim = Victim::of(architecture, "char");
        let good = std::fs::read(victim.path("model.safetensors")).unwrap();
        victim.endure("model.safetensors", cases(mutate::lying_headers(&good), &good, 2), &open_model);
    }
}

#[test]
fn a_tokenizer() {
    for (seed, choice) in [(3, "char"), (4, "bpe:258")] {
        let victim = Victim::new(choice);
        let good = std::fs::read(victim.path("tokenizer.json")).unwrap();
        victim.endure("tokenizer.json", cases(mutate::structured(&good), &good, seed), &open_model);
    }
}
