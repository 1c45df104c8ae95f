//! Runs that go on, and runs that start from another's model.

use crate::support::{SMALL, Space, files};

#[test]
fn a_finished_run_goes_on_with_more_steps() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let resume = "train --resume --out run";
    assert!(
        space.works(resume).contains("is already finished at step 12 of 12; a larger --steps or --minutes trains on")
    );
    space.works(&format!("{resume} --steps 18"));
    assert_eq!(space.metrics("run").iter().filter(|line| line.get("loss").is_some()).count(), 18);
    assert!(space.works(resume).contains("at step 18 of 18"));
    space.refuses(&format!("{resume} --steps 5"), "--steps: expected at least the 18 that are done, got 5");
    assert!(space.works(resume).contains("at step 18 of 18"));
    // The ids are part of the run: the text is needed no more, and is not taken.
    std::fs::remove_file(space.path("text.txt")).unwrap();
    space.works(&format!("{resume} --steps 19"));
    space.refuses(&format!("{resume} text.txt --steps 20"), "TEXT cannot be given with --resume");
}

#[test]
fn a_run_starts_from_the_model_of_another() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --preset gpt2 --dropout 0.1 --out runs/a"));
    space.works("train text.txt --init runs/a --steps 3 --out runs/b");
    space.works("train --config runs/b/training/settings.toml --out runs/c");
    assert!(space.bytes("runs/b/model.safetensors") == space.bytes("runs/c/model.safetensors"));
    space.works("train --resume --steps 4 --out runs/b");
    let settings = space.settings("runs/b");
    assert_eq!((&settings["lr"], &settings["optimizer"]), (&0.001.into(), &"adamw".into()));
    // Dropout is the model's own, unless another is given.
    for (given, expected) in [("", 0.1), ("--dropout 0", 0.0), ("--dropout 0.3", 0.3)] {
        space.works(&format!("train text.txt --init runs/a --steps 1 {given} --out dropout"));
        let config: serde_json::Value = serde_json::from_str(&space.read("dropout/config.json")).unwrap();
        assert_eq!(config["resid_pdrop"].as_f64(), Some(expected), "{given}");
        space.remove("dropout");
    }
    // The ids that begin and end a text stay those of the folder.
    let config = space.read("runs/a/config.json");
    space.write("runs/a/config.json", config.replace("\"bos_token_id\": null", "\"bos_token_id\": 3"));
    space.write("runs/a/generation_config.json", r#"{ "eos_token_id": [4, 5] }"#);
    space.works("train text.txt --init runs/a --steps 1 --out runs/d");
    for name in ["config.json", "generation_config.json"] {
        let json: serde_json::Value = serde_json::from_str(&space.read(&format!("runs/d/{name}"))).unwrap();
        assert_eq!((&json["bos_token_id"], &json["eos_token_id"]), (&3.into(), &vec![4, 5].into()), "{name}");
    }
    for option in ["--dim 32", "--kv-heads 1", "--tokenizer byte", "--no-tie", "--architecture llama"] {
        let name = option.split(' ').next().unwrap();
        let expected = format!("{} cannot be given with --init", name.replace("--no-", "--"));
        space.refuses(&format!("train text.txt --init runs/a {option}"), &expected);
    }
    // The sizes in a file give way to those of the model.
    space.works("train --config runs/a/training/settings.toml --init runs/a --steps 1 --out runs/e");
    assert!(!space.settings("runs/e").contains_key("dim"));
}

/// The run is as it was, also its settings.
#[test]
fn a_change_that_is_refused_changes_nothing() {
    let space = Space::new();
    space.works(&format!("train text.txt --preset gpt2 {SMALL} --out run"));
    let before = space.settings("run");
    space.refuses("train --resume --out run --lr 0.5 --matrix-lr 3 --steps 20", "--matrix-lr needs --optimizer muon");
    space.refuses("train --resume --out run --decay 0.5 --steps 20", "--decay needs --schedule warmup-stable-decay");
    assert_eq!(space.settings("run"), before);
}

/// Every option that the help of `--resume` lists is taken, and no other.
#[test]
fn the_options_that_a_resumed_run_may_change_are_listed() {
    let rates = [
        ("steps", "18"),
        ("lr", "0.004"),
        ("min-lr", "0.5"),
        ("warmup", "0.25"),
        ("schedule", "warmup-stable-decay"),
        ("decay", "0.5"),
        ("weight-decay", "0.05"),
        ("matrix-lr", "4.0"),
        ("matrix-weight-decay", "0.02"),
        ("embedding-lr", "5.0"),
        ("clip", "0.5"),
    ];
    let others = [
        ("eval-every", "4"),
        ("patience", "7"),
        ("save-every", "1.0"),
        ("keep", "3"),
        ("statistics-every", "5"),
        ("watch", "gato"),
    ];
    let space = Space::new();
    let help = space.works("train --help").split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, listed) = help.split_once("only these can be changed: ").unwrap();
    let listed: Vec<&str> = listed.split(". Fractions").next().unwrap().split(", ").collect();
    let all = rates.iter().chain(&others);
    let mut names: Vec<String> = all.clone().map(|(name, _)| format!("--{name}")).collect();
    // It cannot be given with --steps.
    names.insert(1, "--minutes".into());
    assert_eq!(listed, names);
    space.works(&format!("train text.txt {SMALL} --preset quick --schedule linear --out run"));
    let before = space.settings("run");
    let changes: Vec<String> = all.clone().map(|(name, value)| format!("--{name} {value}")).collect();
    let (_, told) = space.told(&format!("train --resume --out run {}", changes.join(" ")));
    let changed: Vec<&str> =
        told.lines().find_map(|line| line.strip_prefix("changed: ")).unwrap().split("; ").collect();
    let mut names: Vec<&str> = changed[0].split(", ").collect();
    let mut expected: Vec<&str> = rates.iter().map(|(name, _)| *name).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(changed[1], "the result will differ from the unchanged run's");
    assert!(told.contains("step 18/18"), "{told}");
    let settings = space.settings("run");
    for (name, value) in all.clone() {
        assert_eq!(settings[*name].to_string().trim_matches('"'), *value, "{name}");
    }
    let is_kept = |(name, value): (&String, &toml::Value)| {
        settings[name] == *value || all.clone().any(|(changed, _)| name == changed)
    };
    assert!(before.iter().all(is_kept), "{before}, then {settings}");
    for given in
        ["--batch 5", "--dropout 0.1", "--seed 2", "--optimizer adamw", "--dim 32", "--tokenizer byte", "--tie"]
    {
        let name = given.split(' ').next().unwrap().trim_start_matches('-');
        space
            .refuses(&format!("train --resume --out run {given}"), &format!("{name}: cannot be changed when resuming"));
    }
    // Options that do not change the result are not announced.
    let (_, told) = space.told("train --resume --out run --patience 3");
    assert!(!told.contains("changed"), "{told}");
    assert!(space.attn("train --resume --out run --config run/training/settings.toml").status.code() == Some(2));
}

#[test]
fn the_rates_of_a_resumed_run_follow_what_they_are_relative_to() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --preset quick --warmup 0.5 --decay 0.5 --lr 0.01 --out run"));
    let rates = |steps: std::ops::RangeInclusive<u64>| -> Vec<f64> {
        let of_step = |line: &serde_json::Value| steps.contains(&line["step"].as_u64().unwrap());
        let lines = space.metrics("run").into_iter().filter(|line| line.get("loss").is_some() && of_step(line));
        lines.map(|line| line["learning_rate"].as_f64().unwrap()).collect()
    };
    let expected = |range: std::ops::RangeInclusive<u64>, lr: f64, steps: f64| -> Vec<f64> {
        // A triangle: up over the first half, to the peak at the step after it, and down to zero at the step after the last.
        let half = steps / 2.0;
        range.map(|step| lr * (step as f64 / (half + 1.0)).min((steps + 1.0 - step as f64) / half)).collect()
    };
    let close = |got: Vec<f64>, expected: Vec<f64>| {
        assert_eq!(got.len(), expected.len());
        let is_close = |(got, expected): (&f64, &f64)| (got - expected).abs() <= 1e-12;
        assert!(got.iter().zip(&expected).all(is_close), "{got:?}, expected {expected:?}");
    };
    close(rates(1..=12), expected(1..=12, 0.01, 12.0));
    space.works("train --resume --out run --steps 40 --lr 0.002");
    close(rates(13..=40), expected(13..=40, 0.002, 40.0));
}

#[test]
fn how_often_a_run_is_saved_changes_nothing() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.works(&format!("train text.txt {SMALL} --save-every 0 --keep 20 --out often"));
    assert_eq!(space.checkpoints("run"), [6, 12]);
    assert_eq!(space.checkpoints("often"), (0..=12).collect::<Vec<_>>());
    let settings = |run: &str| space.settings(run)["save-every"].as_float();
    assert_eq!((settings("run"), settings("often")), (Some(10.0), Some(0.0)));
    space.works("train --resume --out often --save-every 0.5 --keep 2 --steps 13");
    space.works("train --resume --out run --steps 13");
    assert_eq!((space.checkpoints("run"), space.checkpoints("often")), (vec![12, 13], vec![12, 13]));
    let (mut run, mut often) = (space.result("run"), space.result("often"));
    let settings = "training/settings.toml";
    assert!(run.remove(settings) != often.remove(settings));
    crate::support::assert_same("saved often", &often, &run);
}

/// The newest checkpoint that is whole is the one to go on from.
#[test]
fn a_damaged_checkpoint_is_told_and_the_one_before_goes_on() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let expected = space.result("run");
    let newest = "run/training/step-00000012.safetensors";
    let damage = |name: &str| {
        let mut bytes = space.bytes(name);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        space.write(name, bytes);
    };
    damage(newest);
    let (_, told) = space.told("train --resume --out run");
    let line = format!("{newest} is damaged: it is not what was written: continuing from step 6\n");
    assert!(told.contains(&line), "{told}");
    crate::support::assert_same("after the damage", &space.result("run"), &expected);
    // Without any whole one there is nothing to go on from.
    damage(newest);
    damage("run/training/step-00000006.safetensors");
    let before = files(&space.path("run"));
    space.refuses("train --resume --out run", &format!("{newest} is damaged: it is not what was written"));
    assert!(files(&space.path("run")) == before);
}

#[test]
fn a_run_whose_files_are_damaged_says_which() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    for (file, line) in [
        ("config.json", "generate run"),
        ("tokenizer.json", "generate run"),
        ("model.safetensors", "generate run"),
        ("training/ids.safetensors", "train --resume --out run --steps 20"),
        ("training/settings.toml", "train --resume --out run --steps 20"),
    ] {
        let path = format!("run/{file}");
        let good = space.bytes(&path);
        space.write(&path, &good[..good.len() / 2]);
        space.refuses(line, file);
        space.write(&path, &good);
        std::fs::remove_file(space.path(&path)).unwrap();
        space.refuses(line, file);
        space.write(&path, &good);
    }
    // The ids are those of the run, or it is another one.
    space.write("other.txt", "O gato branco corre.\n".repeat(100));
    space.works(&format!("train other.txt {SMALL} --out other"));
    let good = space.bytes("run/training/ids.safetensors");
    space.write("run/training/ids.safetensors", space.bytes("other/training/ids.safetensors"));
    let expected = "ids.safetensors is damaged: they are not the ids that the run was trained on";
    space.refuses("train --resume --out run --steps 20", expected);
    space.write("run/training/ids.safetensors", good);
    space.works("train --resume --out run --steps 20");
}

/// A stranger's run may name any file as its texts: they are not read because of that.
#[test]
fn settings_alone_lead_to_no_file() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let settings = space.read("run/training/settings.toml");
    let texts = settings.lines().find(|line| line.starts_with("texts")).unwrap();
    space.write("run/training/settings.toml", settings.replace(texts, "texts = [\"/dev/zero\"]"));
    space.works("train --resume --out run --steps 14");
    std::fs::remove_file(space.path("run/training/ids.safetensors")).unwrap();
    space.refuses("train --resume --out run --steps 16", "ids.safetensors");
}

/// A run of a stranger's, or of a larger machine's.
#[test]
fn a_run_that_memory_cannot_hold_is_not_resumed() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let settings = space.read("run/training/settings.toml");
    assert!(settings.contains("batch = 4\n"), "{settings}");
    space.write("run/training/settings.toml", settings.replace("batch = 4\n", "batch = 16777216\n"));
    space.refuses("train --resume --out run --steps 13", "MB of memory, and there are");
    space.write("run/training/settings.toml", settings);
    space.works("train --resume --out run --steps 13");
}
