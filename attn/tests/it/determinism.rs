//! What `docs/determinism.md` claims of the command.

use std::collections::BTreeMap;

use crate::support::{Space, assert_same};

/// A run, and what it has printed.
fn train(options: &str, simd: &str) -> (Space, String) {
    let space = Space::new();
    let line = format!(
        "train text.txt --layers 2 --heads 2 --dim 32 --context 24 --batch 7 --steps 12 --eval-every 5 --out run {options}"
    );
    let output = space.command(&line).env("CANDLE_ATTENTION_SIMD", simd).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    (space, String::from_utf8(output.stdout).unwrap())
}

/// Everything that a run leaves and prints, without what a clock says, and without the settings, which name the folder.
fn result((space, printed): &(Space, String)) -> BTreeMap<String, Vec<u8>> {
    let mut result = space.result("run");
    result.remove("training/settings.toml").unwrap();
    let is_clock = |line: &&str| line.contains(" steps in ") || line.contains(" s since the start: ");
    let printed: Vec<&str> = printed.lines().filter(|line| !is_clock(line)).collect();
    result.insert("printed".into(), printed.join("\n").into_bytes());
    result
}

fn losses((space, _): &(Space, String)) -> Vec<f64> {
    space.metrics("run").iter().filter_map(|line| line.get("loss")?.as_f64()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_files() {
    let one = result(&train("--shards 3 --threads 1", ""));
    for name in ["model.safetensors", "training/step-00000012.safetensors", "training/loss.svg", "printed"] {
        assert!(one.contains_key(name), "{name} is missing of {:?}", one.keys());
    }
    for threads in [2, 5] {
        let run = train(&format!("--shards 3 --threads {threads}"), "");
        assert_same(&format!("{threads} threads"), &result(&run), &one);
    }
}

#[test]
fn only_clocks_differ_between_two_runs() {
    let (first, second) = (train("", ""), train("", ""));
    let metrics = "run/training/metrics.jsonl";
    assert_ne!(first.0.read(metrics), second.0.read(metrics), "not even the times differ");
    assert_same("the second run", &result(&second), &result(&first));
}

#[test]
fn other_vector_instructions_are_close_and_repeat_themselves() {
    let best = losses(&train("", ""));
    assert_eq!(best.len(), 12);
    for simd in ["scalar", "avx2", "avx512"] {
        let run = train("", simd);
        for (loss, expected) in losses(&run).iter().zip(&best) {
            assert!((loss - expected).abs() < 1e-4, "{simd}: {loss}, expected {expected}");
        }
        assert_same(simd, &result(&train("", simd)), &result(&run));
    }
}
