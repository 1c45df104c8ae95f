//! What `attn train` chooses by itself, and how recipes adapt to what is given.

use crate::command::Space;

/// What is said on standard error before the first step.
fn told(space: &Space, line: &str) -> String {
    let output = space.attn(line);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "attn {line}: {told}");
    told
}

#[test]
fn without_options_all_is_chosen_and_said_before_the_start() {
    let space = Space::new();
    let told = told(&space, "train text.txt --out run");
    let at = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what} is not in {told}"));
    let start = at("run from step 0 of 100");
    for what in [
        "model: qwen3, ",
        "data: ",
        "recipe: 100 steps of ",
        "Muon at 0.02, AdamW at 0.01, embeddings at 0.02",
        "memory: ",
        "time: about ",
    ] {
        assert!(at(what) < start, "{told}");
    }
    let settings = std::fs::read_to_string(space.path("run/training/settings.toml")).unwrap();
    for option in ["architecture = \"qwen3\"", "optimizer = \"muon\"", "matrix-lr = 0.02", "steps = 100"] {
        assert!(settings.contains(option), "{option} is not in {settings}");
    }
    assert!(!settings.contains("preset"), "{settings}");
}

#[test]
fn a_short_text_of_long_characters_is_counted_in_characters() {
    let space = Space::new();
    space.write("text.txt", "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏\n".repeat(20).as_bytes());
    told(&space, "train text.txt --out run --steps 2");
}

#[test]
fn what_is_given_moves_what_a_recipe_has_beside_it() {
    let space = Space::new();
    for (given, expected) in [
        ("--lr 0.005", "Muon at 0.01, AdamW at 0.005, embeddings at 0.01"),
        ("--lr 0.005 --matrix-lr 0.03", "Muon at 0.03, AdamW at 0.005, embeddings at 0.01"),
        ("--optimizer adamw", "AdamW at 0.001; warm-up"),
        ("--preset quick --warmup 250", "warm-up over 250 steps, decay to 0 over the last 50 steps"),
        ("--preset quick --decay-steps 295", "warm-up over 5 steps, decay to 0 over the last 295 steps"),
        ("--preset quick --steps 6 --schedule constant", "no warm-up, then constant"),
        ("--preset quick --dim 32 --tie", "32 channels"),
        ("--preset quick --dim 30", "1 head, 30 channels"),
        ("--preset best --dim 256", "4 heads, 256 channels"),
        (
            "--preset gpt2 --optimizer adamw --lr 0.003",
            "AdamW at 0.003; warm-up over 100 steps, cosine decay to 0.0003",
        ),
    ] {
        let line = format!("train text.txt --context 32 {given} --dry-run");
        let printed = space.works(&line);
        assert!(printed.contains(expected), "attn {line}: {expected} is not in {printed}");
    }
    space.refuses(
        "train text.txt --preset quick --momentum-warmup 9",
        "--momentum-warmup needs a --momentum above 0.85",
    );
    let cautious = "train text.txt --preset quick --cautious-decay";
    space.refuses(cautious, "--cautious-decay needs a --weight-decay or --matrix-weight-decay above 0");
    space.works(&format!("{cautious} --matrix-weight-decay 0.1 --dry-run"));
    // AdamW does not use the weight decay of the matrices.
    space.refuses(
        "train text.txt --preset gpt2 --weight-decay 0 --cautious-decay",
        "--cautious-decay needs a --weight-decay above 0",
    );
    space.refuses(
        "train text.txt --preset quick --warmup 300",
        "warmup_steps below the 300 steps, to leave some for the decay",
    );
    let most = u64::MAX;
    space.refuses(
        &format!("train text.txt --steps {most}"),
        &format!("--steps: expected at most {}, got {most}", i64::MAX),
    );
}

/// What is given decides about the rest: as many tokens as there is time for, and no more than 12 passes over the text.
#[test]
fn the_choice_is_made_with_what_is_given() {
    let space = Space::new();
    space.write(
        "text.txt",
        "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(1000).as_bytes(),
    );
    for (given, expected) in [
        ("--batch 64", " of 64 sequences "),
        ("--context 512", "context 512"),
        ("--heads 5", "5 heads, "),
        ("--dim 320", "320 channels"),
    ] {
        let printed = space.works(&format!("train text.txt {given} --dry-run"));
        assert!(printed.contains(expected), "{given}: {expected} is not in {printed}");
        let passes = printed.split(" passes over").next().unwrap().rsplit(' ').next().unwrap();
        assert!(passes.parse::<f64>().unwrap() <= 12.0, "{given}: {passes} passes");
    }
}

#[test]
fn a_run_without_validation_has_no_time_for_it() {
    let space = Space::new();
    let line = "train text.txt --preset quick --steps 3 --dry-run";
    assert!(space.works(line).contains("ms per step, 1 x "));
    assert!(space.works(&format!("{line} --validation-fraction 0")).contains("ms per step)"));
}

#[test]
fn a_run_whose_time_cannot_be_measured_fails_as_any_other() {
    let space = Space::new();
    let output = space
        .attn("train text.txt --preset gpt2 --dim 16 --heads 1 --layers 1 --context 16 --lr 1e30 --warmup 0 --out run");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("time: unknown: a step run to measure it failed"), "{told}");
    let metrics = std::fs::read_to_string(space.path("run/training/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"failed\""), "{metrics}");
}

#[test]
fn settings_give_the_same_run_again() {
    let space = Space::new();
    for given in ["", "--preset gpt2 --optimizer muon", "--preset quick --validation-fraction 0.2", "--preset llama"] {
        let small = "--dim 16 --heads 1 --layers 1 --context 16 --steps 3";
        space.works(&format!("train text.txt {small} {given} --out a"));
        space.works("train --config a/training/settings.toml --out b");
        let file = |run: &str, name: &str| std::fs::read(space.path(run).join(name)).unwrap();
        for name in ["model.safetensors", "training/settings.toml"] {
            assert!(file("a", name) == file("b", name), "{given}: {name} differs");
        }
        for run in ["a", "b"] {
            std::fs::remove_dir_all(space.path(run)).unwrap();
        }
    }
}
