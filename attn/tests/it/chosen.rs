//! What `attn train` chooses by itself and what it says before it starts.

use crate::support::{SMALL, Space};

#[test]
fn without_options_all_is_chosen_and_said_before_the_start() {
    let space = Space::new();
    let (_, told) = space.told("train text.txt --minutes 0.1 --out run");
    let at = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what} is not in {told}"));
    let start = at("run from step 0 for ");
    for what in [
        "model: qwen3, ",
        "data: ",
        "recipe: ",
        "Muon at 0.02, AdamW at 0.01, embeddings at 0.02",
        "memory: ",
        "a text this short teaches a model little but itself",
    ] {
        assert!(at(what) < start, "{told}");
    }
    let settings = space.settings("run");
    let of = |name: &str| settings[name].as_str().unwrap();
    assert_eq!([of("architecture"), of("optimizer"), of("tokenizer")], ["qwen3", "muon", "char"]);
}

/// Once its decay has begun, a run has a number of steps, and its settings repeat it: the same rates from the first step on,
/// the same validations, the same weights.
#[test]
fn the_time_settles_the_steps_and_the_settings_repeat_the_run() {
    let space = Space::new();
    let small = "--layers 1 --dim 32 --context 16 --batch 2";
    let (_, told) = space.told(&format!("train text.txt {small} --minutes 0.1 --out run"));
    let settings = space.settings("run");
    let last = space.metrics("run").last().unwrap()["step"].as_i64().unwrap();
    assert_eq!((&settings["minutes"], settings["steps"].as_integer()), (&0.0.into(), Some(last)));
    assert!(told.contains(&format!("step {last}/{last}  validation loss ")), "{told}");
    space.works("train --config run/training/settings.toml --out again");
    crate::support::assert_same("repeated", &space.result("again"), &space.result("run"));
    // The time can be extended.
    let more = space.works("train --resume --out run --minutes 0.25");
    let settled = space.settings("run")["steps"].as_integer().unwrap();
    assert!(settled > last && more.contains(&format!("{settled} steps in ")), "{more}");
    space.refuses("train --resume --out run --minutes 0.1", "--minutes: expected more than the 0.");
}

#[test]
fn what_cannot_be_timed_is_refused_or_has_a_number_of_steps() {
    let space = Space::new();
    for (given, expected) in [
        ("--minutes 0.05", "--minutes: expected a number from 0.1 to 1000, got 0.05"),
        ("--minutes 1001", "--minutes: expected a number from 0.1 to 1000, got 1001"),
        ("--minutes 0", "--minutes: expected a number from 0.1 to 1000, got 0"),
        ("--minutes 1 --steps 5", "--minutes cannot be given with --steps"),
        ("--minutes 1 --preset gpt2", "--minutes needs --schedule warmup-stable-decay"),
        ("--minutes 1 --schedule linear", "--minutes needs --schedule warmup-stable-decay"),
        ("--minutes 1 --patience 2", "--patience: expected 0 for a run of given minutes, or a number of steps, got 2"),
    ] {
        space.refuses(&format!("train text.txt {given}"), expected);
    }
    space.write("long.txt", "O gato preto correu rapidamente.\n".repeat(100_000));
    // Of a model so large that no machine has the time.
    let large = "--layers 8 --dim 384 --heads 6 --batch 1 --minutes 0.1";
    let printed = space.works(&format!("train text.txt {large} --validation long.txt --dry-run"));
    assert!(printed.contains("\n# validating once takes about as long as all steps, or longer"), "{printed}");
    space.write("short.txt", "O gato preto correu rapidamente.\n");
    let printed = space.works("train long.txt --tokenizer char --validation short.txt --dry-run");
    assert!(printed.contains("\n# the context is no longer than half of the validation text"), "{printed}");
    for given in ["--schedule cosine", "--schedule constant", "--patience 3"] {
        let printed = space.works(&format!("train text.txt {given} --dry-run"));
        let settings: toml::Table = printed.parse().unwrap();
        assert_eq!(settings["minutes"], 0.0.into(), "{given}");
        assert!(settings["steps"].as_integer().unwrap() > 100, "{given}: {printed}");
    }
}

/// A run in its constant stretch can be killed and go on, or be given a number of steps; one without a decay ends with a
/// validation.
#[test]
fn a_timed_run_is_resumed_given_steps_and_ended_without_a_decay() {
    let space = Space::new();
    let small = "--layers 1 --dim 32 --context 16 --batch 2 --eval-every 50";
    let mut child = space.command(&format!("train text.txt {small} --minutes 2 --out run")).spawn().unwrap();
    while space.checkpoints("run").last().is_none_or(|step| *step == 0) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(space.settings("run")["minutes"], 2.0.into());
    let done = *space.checkpoints("run").last().unwrap();
    space.works(&format!("train --resume --out run --steps {}", done + 7));
    let settings = space.settings("run");
    assert_eq!((&settings["minutes"], settings["steps"].as_integer()), (&0.0.into(), Some(done as i64 + 7)));

    space.works(&format!("train text.txt {small} --minutes 0.1 --decay 0 --eval-every 1000000 --out flat"));
    let (last, steps) = (space.metrics("flat").last().cloned().unwrap(), space.settings("flat")["steps"].as_integer());
    assert!(last.get("validation_loss").is_some() && last["step"].as_i64() == steps, "{last}");
}

/// With a preset, with a model to start from, and for a check of one batch.
#[test]
fn a_time_goes_with_presets_and_models() {
    let space = Space::new();
    space.works("train text.txt --preset quick --layers 1 --minutes 0.1 --out run");
    assert_eq!(space.settings("run")["minutes"], 0.0.into());
    space.works("train text.txt --init run --minutes 0.1 --out next");
    let settings = space.settings("next");
    assert_eq!((&settings["minutes"], settings["schedule"].as_str()), (&0.0.into(), Some("warmup-stable-decay")));
    assert!(space.works(&format!("train text.txt {SMALL} --overfit-one-batch --steps 300")).contains("memorised"));
    space.works("train text.txt --preset quick --tokenizer auto --steps 3 --out auto");
    assert_eq!(space.settings("auto")["tokenizer"].as_str(), Some("char"));
}

/// After each validation, unless it is turned off.
#[test]
fn a_run_says_what_the_model_would_say() {
    let space = Space::new();
    let samples = |more: &str| {
        let (_, told) = space.told(&format!("train text.txt {SMALL} --out run{more}"));
        space.remove("run");
        told.lines().filter(|line| line.starts_with("  > ")).count()
    };
    assert_eq!((samples(""), samples(" --no-samples")), (2, 0));
}

/// 16 tokens for each channel, at least 1024; windows of 128 tokens; from 192 channels on, or in a run that trains on 5 million
/// tokens, of 256.
#[test]
fn the_batch_follows_from_what_is_given() {
    let space = Space::new();
    space.write("long.txt", "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(200));
    for (given, context, batch) in [
        ("--dim 32 --heads 2 --steps 4882", 128, 8),
        ("--dim 32 --heads 2 --steps 4883", 256, 4),
        ("--dim 128 --heads 4 --steps 2441", 128, 16),
        ("--dim 128 --heads 4 --steps 2442", 256, 8),
        ("--dim 384 --heads 6 --steps 300", 256, 24),
        ("--dim 384 --heads 6 --context 64 --steps 300", 64, 96),
        ("--context 512 --steps 300", 512, 2),
        ("--context 512 --steps 100000", 512, 2),
        ("--dim 128 --heads 4 --batch 5 --steps 2442", 128, 5),
        ("--dim 128 --heads 4 --batch 50 --steps 782", 256, 50),
        // On any machine.
        ("--dim 32 --heads 2 --minutes 1000", 256, 4),
    ] {
        let settings: toml::Table =
            space.works(&format!("train long.txt --layers 1 {given} --dry-run")).parse().unwrap();
        let numbers = ["context", "batch"].map(|name| settings[name].as_integer().unwrap());
        assert_eq!(numbers, [context, batch], "{given}");
    }
}

/// Sizes that do not go with what is set are not chosen, and what is chosen does not hang on how the choice is asked for.
#[test]
fn what_is_set_goes_with_what_is_chosen() {
    let space = Space::new();
    space.write("long.txt", "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(20));
    space.write("steps.toml", "minutes = 0.0\nsteps = 300\ndropout = 0.01");
    space.write("length.toml", "minutes = 0.0");
    let chosen =
        |given: &str| -> toml::Table { space.works(&format!("train long.txt {given} --dry-run")).parse().unwrap() };
    let by_steps = chosen("--steps 300");
    assert!(by_steps["dropout"].as_float().unwrap() > 0.01, "{by_steps}");
    assert_eq!(chosen("--steps 300 --dropout auto"), by_steps);
    assert_eq!(chosen("--config steps.toml --dropout auto"), by_steps);
    // The time of the machine has no say here either.
    assert_eq!(chosen("--config length.toml"), chosen("--steps 2000"));
    for given in ["--kv-heads 3 --steps 300", "--kv-heads 3 --minutes 0.1"] {
        let settings = chosen(given);
        assert_eq!(settings["heads"].as_integer().unwrap() % 3, 0, "{given}: {settings}");
    }
    let refused = "--kv-heads: expected a divisor of --heads 1, got 7";
    space.refuses("train long.txt --minutes 0.1 --kv-heads 7", refused);
}

/// The recipe decides what an option needs, also where it is chosen by itself.
#[test]
fn options_are_given_on_top_of_the_recipe() {
    let space = Space::new();
    let small = "--layers 1 --context 16 --batch 2";
    for (given, expected) in [
        ("--momentum 0.9 --matrix-lr 3 --lr 0.005", "Muon at 0.015, AdamW at 0.005, embeddings at 0.01"),
        ("--kv-heads 1 --heads 2", "2 heads (1 for keys and values)"),
        ("--rope-theta 500 --head-dim 6 --dim 30 --heads 2", "2 heads, 30 channels"),
        ("--decay 0.5 --steps 40", "decay to 0.003 over the last 20"),
        ("--preset best --momentum 0.5 --dim 64", "1 head, 64 channels"),
        ("--preset llama --heads 6", "6 heads (2 for keys and values), 192 channels"),
        ("--preset gpt2 --optimizer muon --matrix-lr 10", "Muon at 0.01, AdamW at 0.001; warm-up"),
        ("--preset gpt2 --lr 0.003 --steps 1000", "AdamW at 0.003; warm-up over 50 steps, cosine decay to 0.0003"),
        ("--preset quick --schedule constant --warmup 0.5 --steps 6", "warm-up over 3 steps, then constant"),
    ] {
        let line = format!("train text.txt {small} {given} --dry-run");
        let printed = space.works(&line);
        assert!(printed.contains(expected), "attn {line}: {expected} is not in {printed}");
    }
    for (given, expected) in [
        ("--optimizer adamw --momentum 0.9", "--momentum needs --optimizer muon"),
        ("--schedule cosine --decay 0.3", "--decay needs --schedule warmup-stable-decay"),
        ("--architecture gpt2 --kv-heads 1", "--kv-heads: expected --architecture llama or qwen3, got gpt2"),
        ("--preset gpt2 --rope-theta 500", "--rope-theta: expected --architecture llama or qwen3, got gpt2"),
        ("--preset quick --warmup 0.3", "--warmup: expected at most 1 together with decay, got 0.3 and 0.8"),
    ] {
        space.refuses(&format!("train text.txt {given}"), expected);
    }
}

#[test]
fn a_short_text_of_long_characters_is_counted_in_characters() {
    let space = Space::new();
    space.write("text.txt", "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏\n".repeat(20));
    space.works("train text.txt --out run --steps 2");
}

/// All validations but the last cost at most a tenth of the steps, however few these are.
#[test]
fn a_short_run_on_a_large_text_validates_once() {
    let space = Space::new();
    let mut rng = 1u32;
    let words = (0..500_000).map(|_| {
        rng = rng.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("{:x} ", rng >> 12)
    });
    space.write("text.txt", words.collect::<String>());
    let sizes = "--layers 1 --dim 32 --heads 2 --context 32 --batch 4";
    // A step of 128 tokens takes as long as one of 256, and a pass over the validation text, which has 262,144, as long as 341 steps.
    for (steps, validations) in [(12, 1), (3_000, 1), (3_500, 2), (14_000, 5)] {
        let printed = space.works(&format!("train text.txt {sizes} --tokenizer char --steps {steps} --dry-run"));
        assert!(printed.contains("262,144 for validation"), "{printed}");
        let expected = format!(" ms per step, {validations} x ");
        assert!(printed.contains(&expected), "{steps} steps: {expected} is not in {printed}");
    }
    // A run does what was said.
    space.write("text.txt", &space.read("text.txt")[..300_000]);
    space.works(&format!("train text.txt {sizes} --tokenizer char --steps 12 --out run"));
    let validations = space.metrics("run").iter().filter(|line| line.get("validation_loss").is_some()).count();
    assert_eq!(validations, 1);
}

#[test]
fn a_dry_run_writes_nothing() {
    let space = Space::new();
    let printed = space.works(&format!("train text.txt {SMALL} --dry-run"));
    assert!(printed.starts_with("# model: qwen3, ") && printed.contains("\n# data: "), "{printed}");
    for expected in ["\n# recipe: 12 steps of 4 sequences", "\n# memory: ", "\n# time: about ", "\nlayers = 1\n"] {
        assert!(printed.contains(expected), "{printed}");
    }
    let printed = space.works(&format!("train text.txt {SMALL} --preset gpt2 --lr 1e30 --warmup 0 --dry-run"));
    assert!(printed.contains("# time: unknown: a step to measure it failed: step "), "{printed}");
    assert_eq!(space.entries("."), ["text.txt"]);
}

#[test]
fn a_run_that_diverges_names_step_and_tensor_and_keeps_its_last_checkpoint() {
    let space = Space::new();
    let output = space.attn(&format!("train text.txt {SMALL} --preset gpt2 --lr 1e30 --warmup 0 --out run"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    let message = told.lines().last().unwrap();
    assert!(message.starts_with("attn: step ") && message.contains(" is "), "{told}");
    let advice = "; the last checkpoint is kept: attn train --resume --out run --lr RATE";
    assert!(message.ends_with(advice), "{told}");
    // What fails saves nothing.
    assert_eq!(space.checkpoints("run"), [0]);
    let (_, told) = space.told("train --resume --out run --lr 0.001");
    assert!(told.contains("changed: lr; the result will differ from the unchanged run's"), "{told}");
    assert_eq!(space.checkpoints("run"), [6, 12]);
    let (_, told) = space.told("train --resume --out run --lr 0.001 --steps 14");
    assert!(told.contains("changed: steps; the result"), "{told}");
}
