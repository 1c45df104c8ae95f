//! Files that anyone may have written: whatever they contain, opening them gives a model or an error and changes
//! nothing.
//!
//! The cases are the same every time; with `HOSTILE_CASES=N` there are N times as many.

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
    Corpus, CorpusOptions, Document, Ids, Rest, Separator, Tokenizer, TokenizerChoice, Validation, prepare, windows,
};
use candle_attention::train::{RunFolder, TrainOptions, Trainer};
use candle_core::{Device, Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

const TEXT: &str = "ab ba abc cab. ";

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

fn corpus(choice: &TokenizerChoice) -> (Tokenizer, Corpus) {
    let documents = [Document::new("letters", TEXT.repeat(20))];
    let options = CorpusOptions::in_memory(5);
    prepare(&documents, &Validation::Fraction(0.1), choice, &options, &mut |_| {}).unwrap()
}

fn options() -> TrainOptions {
    TrainOptions { steps: 2, batch_size: 2, shards: 1, warmup_steps: 1, eval_every: 1, ..Default::default() }
}

/// A tiny run after two steps.
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

    /// Opens the run with each of `mutants` in place of the file `name`.
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
                Ok(Err(error)) => check_message(&error),
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

/// Fails unless an error is a line for people.
fn check_message(error: &Error) {
    // candle appends a backtrace if `RUST_BACKTRACE` is set.
    if let Error::WithBacktrace { inner, .. } = error {
        return check_message(inner);
    }
    let message = error.to_string();
    // The odd name of a tensor is quoted as it is; the command escapes it.
    let message = message.replace("x\ny", "x y");
    assert!(!message.trim().is_empty() && message.lines().count() == 1, "{message:?}");
    for internal in ["panicked", "unwrap", "backtrace", "::", "Some(", "Err("] {
        assert!(!message.contains(internal), "{internal}: {message:?}");
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
    let run = Run::open(root, &Device::Cpu)?;
    let ids = run.tokenizer.encode("abc ba").or_else(|_| run.tokenizer.encode("a")).unwrap_or_default();
    let prompt = if ids.is_empty() { vec![0] } else { ids.clone() };
    let mut stream = run.tokenizer.stream();
    let mut sampler = Sampler::new(SamplingOptions::default(), 1, 0)?;
    // The model may have more ids than the tokenizer, and a third-party tokenizer gaps or a decoder that fails.
    let is_ours = run.tokenizer.kind_name() != "tokenizer.json";
    let is_known = |id: u32| is_ours && (id as usize) < run.tokenizer.vocab_size();
    let new = generate(&run.model, &prompt, 7, &mut sampler, &mut |id| {
        assert!(check_result(stream.push(id)).is_some() || !is_known(id), "{id} cannot be decoded");
        std::ops::ControlFlow::Continue(())
    });
    assert!(check_result(stream.finish()).is_some() || !is_ours, "the rest of the text cannot be decoded");
    // Weights may not be finite.
    let new = check_result(new).unwrap_or_default();
    assert!(check_result(run.tokenizer.decode(&new)).is_some() || !new.iter().all(|&id| is_known(id)));
    if ids.len() > 1 {
        let ids = Ids::from(ids);
        let batches = windows(&ids, run.model.config().context_len, 2, Rest::Keep)?;
        check_result(evaluate(&run.model, batches, &Device::Cpu));
    }
    Ok(())
}

/// Resumes the training, makes a step and validates.
fn open_training(root: &Path, choice: &TokenizerChoice) -> Result<()> {
    restamp(root);
    let (folder, config, checkpoint) = RunFolder::resume(root, &Device::Cpu)?;
    let options = TrainOptions { steps: checkpoint.state.step.saturating_add(1), ..checkpoint.state.options.clone() };
    let corpus = folder.ids(&mut |_| {})?.unwrap_or_else(|| corpus(choice).1);
    let mut trainer = Trainer::resume(checkpoint, &config, &options, corpus, &Device::Cpu)?;
    // Weights that are not finite are found here.
    check_result(trainer.train_step());
    check_result(trainer.validate());
    Ok(())
}

const CHECKPOINT: &str = "training/step-00000002";
const IDS: &str = "training/ids.safetensors";

/// The fingerprint in the header of a file of ids.
fn stored_fingerprint(ids: &[u8]) -> Option<String> {
    let len = u64::from_le_bytes(*ids.first_chunk()?) as usize;
    let header: Value = serde_json::from_slice(ids.get(8..8usize.checked_add(len)?)?).ok()?;
    Some(header["__metadata__"]["fingerprint"].as_str()?.to_string())
}

/// A file of ids whose fingerprint is right.
fn stamped(
    train: &[u32],
    validation: &[u32],
    [train_bytes, validation_bytes]: [usize; 2],
    separator: Separator,
) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update((train.len() as u64).to_le_bytes());
    train.iter().chain(validation).for_each(|id| hash.update(id.to_le_bytes()));
    let fingerprint = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let (train, validation) = (train.to_vec().into(), validation.to_vec().into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids");
    let corpus = Corpus { train, validation, train_bytes, validation_bytes, separator, fingerprint };
    corpus.save(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// Updates a checkpoint's checksums, and its fingerprint of the corpus, as whoever changed the files would.
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
    if let Some(fingerprint) = stored_fingerprint(&std::fs::read(root.join(IDS)).unwrap_or_default()) {
        state["corpus"] = fingerprint.into();
    }
    let weights = state["checksums"]["model.safetensors"].clone();
    if let Some(published) = state.get_mut("published").and_then(|published| published.get_mut("checksum")) {
        *published = weights;
    }
    std::fs::write(&path, crate::training::sealed(state)).unwrap();
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

/// Ids that are what their fingerprint says, but nothing that the run could have been trained on.
#[test]
fn ids_of_another_text() {
    let choice = TokenizerChoice::Characters;
    let victim = Victim::new(&choice);
    let (_, corpus) = corpus(&choice);
    let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.to_vec().unwrap());
    let bytes = [corpus.train_bytes, corpus.validation_bytes];
    let none = Separator::Unneeded;
    let good = stamped(&train, &validation, bytes, none);
    assert!(good == std::fs::read(victim.path(IDS)).unwrap());
    let all = |id: u32, ids: &[u32]| vec![id; ids.len()];
    let mut mutants = vec![
        stamped(&[], &[], [0, 0], none),
        stamped(&[], &validation, bytes, none),
        stamped(&train, &[], bytes, none),
        stamped(&train[..5], &validation[..5], bytes, none),
        stamped(&train[..6], &validation[..1], bytes, none),
        stamped(&train, &validation, [0, 0], none),
        stamped(&train, &validation, [usize::MAX; 2], none),
        stamped(&train, &validation, bytes, Separator::Token(u32::MAX)),
        stamped(&train, &validation, bytes, Separator::Token(0)),
        stamped(&train, &validation, bytes, Separator::Missing),
    ];
    for id in [6, 7, 8, 1000, 65_535, 65_536, u32::MAX - 1, u32::MAX] {
        mutants.push(stamped(&all(id, &train), &validation, bytes, none));
        mutants.push(stamped(&train, &all(id, &validation), bytes, none));
        mutants.push(stamped(&[&train[..], &[id]].concat(), &validation, bytes, none));
    }
    victim.endure(IDS, mutants, &|root| open_training(root, &choice));
}
