//! The model card of a run, `README.md`: what Hugging Face shows of a model.

use std::path::Path;

use toml::{Table, Value};

use super::Trainer;
use crate::host::file_names::ADAPTER_CONFIG;
use crate::host::{Result, disk, input};

pub(super) const CARD: &str = "README.md";

/// How a card begins that may be replaced. Whoever edits one deletes the second line.
const OURS: &str =
    "---\n# Written by attn during training, again and again. Delete this line to keep changes of your own.\n";

/// Writes the card of the run in `root` if it would say something new, and unless somebody has made it their own.
pub(super) fn write(root: &Path, trainer: &Trainer, settings: &Table) -> Result<()> {
    let (path, is_adapter) = (root.join(CARD), root.join(ADAPTER_CONFIG).is_file());
    let text = text(trainer, settings, is_adapter);
    if path.symlink_metadata().is_ok() {
        let there = input::inside(root, CARD).and_then(|path| input::read_text(&path, input::MAX_CONFIG_BYTES));
        if there.is_ok_and(|there| there == text || !there.starts_with(OURS)) {
            return Ok(());
        }
    }
    disk::replace_with(&path, text.as_bytes())
}

fn text(trainer: &Trainer, settings: &Table, is_adapter: bool) -> String {
    let kind = trainer.config().architecture.model_type();
    let base = settings.get("init").and_then(Value::as_str).and_then(base_model);
    let front = front_matter(kind, base.as_deref(), is_adapter);
    let model = model(trainer, base.as_deref(), is_adapter);
    let (data, recipe, losses) = (data(trainer, settings), recipe(trainer), losses(trainer));
    let usage = usage(trainer, is_adapter);
    format!(
        "{OURS}{front}---\n\n# {kind}\n\n{model}\n\n## Data\n\n{data}\n\n## Recipe\n\n{recipe}\n\n## Losses\n\n{losses}\n\n\
         ## How to load it\n\n{usage}"
    )
}

fn front_matter(kind: &str, base: Option<&str>, is_adapter: bool) -> String {
    let (library, tag) = if is_adapter { ("peft", "- lora\n") } else { ("transformers", "") };
    // A string of JSON is one of YAML.
    let base = base.map_or(String::new(), |base| format!("base_model: {}\n", serde_json::Value::from(base)));
    format!("library_name: {library}\npipeline_tag: text-generation\n{base}tags:\n- candle-attention\n- {kind}\n{tag}")
}

/// The name of the model in a folder: that of its repository where it lies in Hugging Face's cache, else of the folder.
fn base_model(folder: &str) -> Option<String> {
    let path = Path::new(folder);
    let names = path.iter().filter_map(|name| name.to_str());
    let cached = names.filter_map(|name| name.strip_prefix("models--")).next_back();
    cached.map(|name| name.replace("--", "/")).or_else(|| Some(path.file_name()?.to_string_lossy().into_owned()))
}

fn model(trainer: &Trainer, base: Option<&str>, is_adapter: bool) -> String {
    let config = trainer.config();
    let what = if is_adapter { "An adapter (LoRA) of a model" } else { "A language model" };
    let from = base.map_or(String::new(), |base| format!(", starting from {}", code(base)));
    format!(
        "{what} of {} parameters ({} layers, {} heads, {} channels, context {}), trained with `attn` of \
         [candle-attention](https://crates.io/crates/candle-attention){from}.",
        grouped(config.parameter_count()),
        config.num_layers,
        config.num_heads,
        config.embed_dim,
        config.context_len,
    )
}

fn data(trainer: &Trainer, settings: &Table) -> String {
    let corpus = trainer.corpus();
    let [texts, held_out] = ["texts", "validation"].map(|name| names(settings.get(name)));
    let texts = match settings.contains_key("texts") && texts.is_empty() {
        true => "the built-in corpus".to_string(),
        false => texts,
    };
    let held_out = match (held_out.is_empty(), corpus.validation.is_empty()) {
        (_, true) => "none".to_string(),
        (true, _) if settings.get("texts").is_some_and(|texts| names(Some(texts)).is_empty()) => texts.clone(),
        (true, _) => "the end of the text".to_string(),
        (false, _) => held_out,
    };
    let row = |label: &str, names: &str, tokens: usize, bytes: usize| {
        format!("| {label} | {names} | {} | {} |", grouped(tokens), grouped(bytes))
    };
    [
        "| | texts | tokens | bytes |\n|---|---|---|---|".to_string(),
        row("training", &texts, corpus.train.len(), corpus.train_bytes),
        row("validation", &held_out, corpus.validation.learned(), corpus.validation_bytes),
    ]
    .join("\n")
}

/// The names of texts, without the folders that they are in.
fn names(paths: Option<&Value>) -> String {
    let paths = paths.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let name = |path: &str| match (path, Path::new(path).file_name()) {
        ("-", _) => "standard input".to_string(),
        (_, Some(name)) => code(&name.to_string_lossy()),
        (_, None) => code(path),
    };
    paths.map(name).collect::<Vec<_>>().join(", ")
}

/// The options that say most; the file of settings has all.
fn recipe(trainer: &Trainer) -> String {
    const NAMES: [&str; 13] = [
        "steps",
        "batch",
        "context",
        "optimizer",
        "lr",
        "schedule",
        "warmup",
        "min-lr",
        "weight-decay",
        "clip",
        "average",
        "label-smoothing",
        "seed",
    ];
    let (config, options) = (trainer.config(), trainer.options());
    let mut table = Table::try_from(options).unwrap_or_default();
    table.insert("context".into(), (options.window_len(config) as i64).into());
    let value = |name: &str| table.get(name).map(|value| value.as_str().map_or(value.to_string(), String::from));
    let rows = NAMES.iter().filter_map(|name| Some(format!("| {name} | {} |", value(name)?)));
    let dropout = format!("| dropout | {} |", config.dropout.residual);
    let rows: Vec<String> =
        ["| option | value |\n|---|---|".to_string()].into_iter().chain(rows).chain([dropout]).collect();
    format!("{}\n\n`training/settings.toml` has every option.", rows.join("\n"))
}

fn losses(trainer: &Trainer) -> String {
    let (corpus, done, steps) = (trainer.corpus(), trainer.steps_done(), trainer.options().steps);
    let of = if trainer.options().is_timed() { String::new() } else { format!(" of {steps}") };
    let trained = format!("Trained for {done}{of} steps.");
    match trainer.best() {
        Some(best) => {
            let bits = trainer.validation_bits_per_byte(best.loss);
            format!(
                "{trained} The weights are those of step {}, with the lowest validation loss: {:.4} nats per token, \
                 {bits:.4} bits per byte.",
                best.step, best.loss
            )
        }
        None if corpus.validation.is_empty() => format!("{trained} There was no text to validate on."),
        None => format!("{trained} Not validated yet."),
    }
}

fn usage(trainer: &Trainer, is_adapter: bool) -> String {
    let attn = "```sh\nattn generate path/of/this/folder --prompt \"...\"\n```\n";
    if trainer.base.as_ref().is_some_and(|base| base.path.is_file()) {
        return format!(
            "{attn}\nIts base is a GGUF file, which PEFT does not open; `attn convert --merge` makes one model of both.\n"
        );
    }
    let (package, class) = match is_adapter {
        true => ("peft", "AutoPeftModelForCausalLM"),
        false => ("transformers", "AutoModelForCausalLM"),
    };
    format!(
        "```python\nfrom {package} import {class}\nfrom transformers import AutoTokenizer\n\n\
         model = {class}.from_pretrained(\"path/of/this/folder\")\n\
         tokenizer = AutoTokenizer.from_pretrained(\"path/of/this/folder\")\n```\n\n{attn}"
    )
}

/// A name as code, on one line of a table.
fn code(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_control() || "`|".contains(c) { '\u{fffd}' } else { c }).collect();
    format!("`{plain}`")
}

/// A number with commas between its thousands.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_named_as_its_repository_or_its_folder() {
        for (folder, expected) in [
            ("/models/my base", Some("my base")),
            ("/cache/models--Some--Model-1/snapshots/abc", Some("Some/Model-1")),
            ("", None),
        ] {
            assert_eq!(base_model(folder).as_deref(), expected);
        }
        assert!(front_matter("gpt2", Some("a\"b\n"), false).contains("base_model: \"a\\\"b\\n\"\n"));
    }

    #[test]
    fn numbers_have_commas_and_names_break_no_table() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(code("a|b`c\nd"), "`a\u{fffd}b\u{fffd}c\u{fffd}d`");
    }
}
