//! Settings that repeat a run, and what one option changes of them.

use std::collections::BTreeSet;

use crate::support::{SMALL, Space};

/// The options in what a dry run prints, and its lines on model, data and recipe.
fn planned(space: &Space, line: &str) -> (toml::Table, Vec<String>) {
    let printed = space.works(&format!("train {line} --dry-run"));
    let plan =
        printed.lines().filter(|line| ["# model", "# data", "# recipe"].iter().any(|name| line.starts_with(name)));
    let plan: Vec<String> = plan.map(String::from).collect();
    assert_eq!(plan.len(), 3, "{printed}");
    space.write("printed.toml", &printed);
    (printed.parse().unwrap(), plan)
}

/// The names of the options in which two settings differ.
fn differing(one: &toml::Table, other: &toml::Table) -> BTreeSet<String> {
    let names = one.keys().chain(other.keys());
    names.filter(|name| one.get(*name) != other.get(*name)).cloned().collect()
}

/// The options of the help that shape a run, without those that say where it is and what is done with it.
fn options_of_the_help(space: &Space) -> BTreeSet<String> {
    let help = space.works("train --help");
    let options = help.lines().filter_map(|line| line.strip_prefix("      --"));
    let names = options.map(|line| line.split(' ').next().unwrap().to_string());
    let others = ["preset", "config", "out", "resume", "dry-run", "overfit-one-batch", "no-samples", "threads"];
    names.chain(["texts".to_string()]).filter(|name| !others.contains(&name.as_str())).collect()
}

#[test]
fn every_option_is_in_the_help_and_in_the_settings() {
    let space = Space::new();
    let help = options_of_the_help(&space);
    assert!(help.len() > 40, "{help:?}");
    let (printed, _) = planned(&space, "text.txt --steps 300");
    assert_eq!(printed.keys().cloned().collect::<BTreeSet<_>>(), help);
    // Where the time decides, they are an estimate.
    let (printed, _) = planned(&space, "text.txt");
    assert_eq!(help.difference(&printed.keys().cloned().collect()).collect::<Vec<_>>(), ["steps"]);
    space.works(&format!("train text.txt {SMALL} --out run"));
    assert_eq!(space.settings("run").keys().cloned().collect::<BTreeSet<_>>(), help);
    // A run that starts from a model has that model's sizes.
    space.works("train text.txt --init run --steps 2 --out next");
    let saved: BTreeSet<_> = space.settings("next").keys().cloned().collect();
    let missing: Vec<&str> = help.difference(&saved).map(String::as_str).collect();
    let model = [
        "architecture",
        "bias",
        "dim",
        "head-dim",
        "heads",
        "hidden",
        "kv-heads",
        "layers",
        "rope-theta",
        "tie",
        "tokenizer",
        "zero-residual",
    ];
    assert_eq!(missing, model);
    assert!(saved.is_subset(&help), "{saved:?}");
}

/// Options, and others of the same name, some that depend on others and some that are off.
const GIVEN: [&str; 7] = [
    "text.txt --steps 300",
    "text.txt --layers 3 --dim 96 --hidden 384 --steps 20",
    "text.txt --dim 64 --steps 8400 --validation-fraction 0.3",
    "--preset llama --heads 2 --no-tie --shards 1",
    "text.txt --preset best --lr 0.003 --warmup 0.1 --schedule linear --optimizer adamw",
    "text.txt --validation other.txt --tokenizer byte --context 40 --batch 3 --steps 40 --average 0.5 --patience 3 --clip 0",
    "text.txt other.txt --preset gpt2 --isolate-documents --eval-every 7 --head-dim 24 --tokenizer bpe:300",
];

/// What a dry run prints is a file that gives the same settings, to the letter, and the same split of the text.
#[test]
fn what_a_dry_run_prints_is_complete() {
    let space = Space::new();
    space.write("other.txt", "Os gatos pretos correram ontem.\n".repeat(70));
    for given in GIVEN {
        let planned_first = planned(&space, given);
        std::fs::rename(space.path("printed.toml"), space.path("first.toml")).unwrap();
        assert_eq!(planned(&space, "--config first.toml"), planned_first, "{given}");
        let options = |name: &str| space.read(name).split_once("\n\n").unwrap().1.to_string();
        assert_eq!(options("printed.toml"), options("first.toml"), "{given}");
    }
}

#[test]
fn settings_give_the_same_run_again() {
    let space = Space::new();
    space.write("other.txt", "Os gatos pretos correram ontem.\n".repeat(70));
    let small = "--layers 1 --head-dim 8 --heads 2 --context 16 --steps 7 --batch 3";
    for given in [
        "text.txt",
        "text.txt --preset gpt2 --optimizer muon --accumulate 2 --shards 3 --dropout 0.1 --average 0.9 --label-smoothing 0.1",
        "text.txt --preset quick --validation-fraction 0.2 --statistics-every 3 --warmup 0.2 --seed 9",
        "text.txt other.txt --preset llama --kv-heads 1 --isolate-documents --bias --rope-theta 500 --tokenizer bpe:300",
        "--preset qwen3 --head-dim 6 --no-tie --zero-residual",
    ] {
        space.works(&format!("train {small} {given} --out a"));
        let printed = space.works(&format!("train {small} {given} --dry-run"));
        space.write("printed.toml", printed);
        let expected = space.result("a");
        for config in ["a/training/settings.toml", "printed.toml"] {
            space.works(&format!("train --config {config} --out b"));
            crate::support::assert_same(&format!("{given}: {config}"), &space.result("b"), &expected);
            space.remove("b");
        }
        space.remove("a");
    }
}

/// What one flag changes on top of settings: itself, and what is defined by it.
#[test]
fn a_flag_on_top_of_settings_changes_that_and_what_is_defined_by_it() {
    let space = Space::new();
    let (settings, plan) = planned(&space, "text.txt --preset quick --validation-fraction 0.2");
    std::fs::rename(space.path("printed.toml"), space.path("settings.toml")).unwrap();
    for (flag, changed, told) in [
        ("--steps 600", "steps", "600 steps"),
        ("--lr 0.005", "lr", "Muon at 0.015, AdamW at 0.005, embeddings at 0.01"),
        ("--dim 128", "dim heads", "4 heads, 128 channels"),
        ("--optimizer adamw", "optimizer", "AdamW at 0.01, embeddings"),
        ("--tie --shards 2", "shards tie", "in 2 shards"),
        ("--validation-fraction 0.1", "validation-fraction", "data"),
    ] {
        let (with, plan_with) = planned(&space, &format!("--config settings.toml {flag}"));
        let expected: BTreeSet<String> = changed.split(' ').map(String::from).collect();
        assert_eq!(differing(&with, &settings), expected, "{flag}");
        assert!(plan_with.iter().any(|line| line.contains(told)), "{flag}: {told} is not in {plan_with:?}");
        // The texts are cut where they were.
        assert_eq!(plan_with[1] == plan[1], changed != "validation-fraction", "{flag}: {plan_with:?}");
    }
}

/// Nothing else is chosen anew, in a recipe that is chosen either, but what a sentence of docs/recipe.md says: the batch by the
/// width, windows by that and the tokens to train on, momentum by the steps and dropout by the passes.
#[test]
fn giving_two_options_changes_only_those() {
    let space = Space::new();
    for text in ["text.txt --steps 300 --dropout 0", "--steps 300 --dropout 0"] {
        let (chosen, plan) = planned(&space, text);
        for (given, changed) in
            [("--dim 160 --steps 2400", "dim steps heads momentum batch context"), ("--batch 7 --lr 0.002", "batch lr")]
        {
            let (with, plan_with) = planned(&space, &format!("{text} {given}"));
            let expected: BTreeSet<String> = changed.split(' ').map(String::from).collect();
            assert_eq!(differing(&with, &chosen), expected, "{text} {given}");
            assert_eq!(plan_with[1], plan[1], "{text} {given}");
        }
    }
}

#[test]
fn options_come_from_a_file_and_the_command_line_goes_first() {
    let space = Space::new();
    space.write(
        "small.toml",
        "texts = ['text.txt']\nlayers = 1\ndim = 16\nheads = 2\ncontext = 16\nbatch = 4\nsteps = 7\n",
    );
    space.works("train --config small.toml --steps 5 --preset gpt2 --out run");
    let saved = space.settings("run");
    for (name, value) in [("steps", 5), ("layers", 1), ("dim", 16), ("heads", 2), ("batch", 4)] {
        assert_eq!(saved[name].as_integer(), Some(value), "{name}");
    }
    assert_eq!(saved["optimizer"].as_str(), Some("adamw"));
    // A text to validate on and a part of the text are two answers to one question: the one above counts.
    space.write("other.txt", "Os gatos pretos correram ontem.\n".repeat(70));
    space.write("held-out.toml", "validation = 'other.txt'");
    let (with_file, _) = planned(&space, "--config held-out.toml text.txt");
    assert_eq!(with_file["validation"].as_array().unwrap().len(), 1);
    let (with_fraction, _) = planned(&space, "--config held-out.toml text.txt --validation-fraction 0.2");
    assert_eq!(with_fraction["validation"].as_array().unwrap().len(), 0);
}
