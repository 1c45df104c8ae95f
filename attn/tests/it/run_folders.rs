//! The folder of a new run: which one it is, and which one it must not be.

use std::collections::BTreeSet;
use std::fs::File;

use crate::support::{SMALL, Space, files};

#[test]
fn an_empty_folder_is_a_new_one_and_any_other_is_refused() {
    let space = Space::new();
    let train = |out: &str| format!("train text.txt {SMALL} --out {out}");
    std::fs::create_dir(space.path("empty")).unwrap();
    space.works(&train("empty"));
    space.works(&train("a/new/one"));
    space.write("full/notes.txt", "mine");
    space.write("texts/training/notes.txt", "mine");
    for (out, expected) in [
        ("full", "full exists and is not empty; give another --out"),
        ("texts", "texts exists and is not empty; give another --out"),
        ("empty", "empty exists and is not empty; give another --out, or --resume to continue a run"),
        ("text.txt", "text.txt"),
        ("text.txt/run", "text.txt/run"),
        (".", ". exists and is not empty"),
    ] {
        let before = files(&space.path("."));
        space.refuses(&train(out), expected);
        assert!(files(&space.path(".")) == before, "{out}");
    }
    for (out, expected) in [("full", "full is not a run"), ("missing", "missing is not a run")] {
        let message = space.refuses(&format!("train --resume --out {out}"), expected);
        assert_eq!(message.matches(out).count(), 1, "{message}");
    }
}

/// What a killed process leaves of a run that it was creating is named, and is not taken over.
#[test]
fn an_unfinished_run_is_named() {
    let space = Space::new();
    space.write("run/training/lock", "");
    space.write("run/training/ids.safetensors", "cut sho");
    let before = files(&space.path("run"));
    let expected = "run holds a run that was never completed; remove that folder";
    space.refuses(&format!("train text.txt {SMALL} --out run"), expected);
    space.refuses("train --resume --out run", expected);
    assert!(files(&space.path("run")) == before);
    // By itself it takes another name.
    std::fs::create_dir(space.path("runs")).unwrap();
    std::fs::rename(space.path("run"), space.path("runs/text-1")).unwrap();
    space.works(&format!("train text.txt {SMALL}"));
    assert_eq!(space.entries("runs"), ["text-1", "text-2"]);
    assert!(files(&space.path("runs/text-1")) == before);
}

#[test]
fn a_folder_that_is_being_trained_in_is_refused() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let lock = File::open(space.path("run/training/lock")).unwrap();
    lock.lock().unwrap();
    let before = files(&space.path("run"));
    let expected = "another process is training in run";
    space.refuses("train --resume --out run --steps 20", expected);
    space.refuses(&format!("train text.txt {SMALL} --out run"), expected);
    assert!(files(&space.path("run")) == before);
    // The model in it can be used meanwhile.
    space.works("generate run --max-tokens 3");
    drop(lock);
    space.works("train --resume --out run --steps 20");
}

/// A run of an earlier version, whose checkpoints were folders.
#[test]
fn a_run_of_an_earlier_version_is_said_to_be_one() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    for step in space.checkpoints("run") {
        std::fs::remove_file(space.path(&format!("run/training/step-{step:08}.safetensors"))).unwrap();
    }
    space.write("run/training/current", "step-00000012\n");
    space.write(
        "run/training/settings.toml",
        "texts = [\"/texts/text.txt\"]\nlayers = 1\nmin-lr = 0.0001\nz-loss = 0.0\n",
    );
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        space.write(&format!("run/training/step-00000012/{name}"), "old");
    }
    let before = files(&space.path("run"));
    let message = space.refuses("train --resume --out run --steps 20", "earlier version");
    assert!(message.starts_with("attn: run "), "{message}");
    // It is never said to be unfinished, which would be advice to remove it.
    let expected = "run exists and is not empty; give another --out";
    space.refuses(&format!("train text.txt {SMALL} --out run"), expected);
    space.refuses("train --config run/training/settings.toml", "settings.toml: there is no option z-loss");
    assert!(files(&space.path("run")) == before);
    // Its model is one like any other.
    space.works("generate run --max-tokens 3");
    space.works("train text.txt --init run --steps 2 --out next");
}

#[test]
fn runs_that_start_at_once_have_folders_of_their_own() {
    const RUNS: usize = 8;
    let space = Space::new();
    // The same weights take as long in every process, so that all of them create their folders together.
    let line = format!("train text.txt {SMALL} --threads 1 --steps 2");
    let children: Vec<_> = (0..RUNS).map(|_| space.command(&line).spawn().unwrap()).collect();
    let mut roots = BTreeSet::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (_, root) = printed.split_once("more text: attn generate ").unwrap();
        roots.insert(root.trim().to_string());
    }
    let expected: BTreeSet<String> = (1..=RUNS).map(|n| format!("runs/text-{n}")).collect();
    assert_eq!(roots, expected);
    assert_eq!(space.entries("runs").len(), RUNS);
    for root in roots {
        assert!(space.result(&root) == space.result("runs/text-1"), "{root}");
    }
}

/// Of processes that are told the same folder, one trains in it.
#[test]
fn one_of_many_processes_has_a_folder() {
    const RUNS: usize = 6;
    let space = Space::new();
    let line = format!("train text.txt {SMALL} --threads 1 --out run");
    let children: Vec<_> = (0..RUNS).map(|_| space.command(&line).spawn().unwrap()).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let told = || outputs.iter().map(|output| String::from_utf8_lossy(&output.stderr)).collect::<Vec<_>>();
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "{:?}", told());
    assert_eq!(outputs.iter().filter(|output| output.status.code() == Some(2)).count(), RUNS - 1, "{:?}", told());
    space.works(&format!("train text.txt {SMALL} --out again"));
    assert!(space.bytes("run/model.safetensors") == space.bytes("again/model.safetensors"));
}
