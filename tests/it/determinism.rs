//! What `docs/determinism.md` claims of the command.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What a run of the command leaves: its files, and what it prints, without what a clock says.
type Run = BTreeMap<String, Vec<u8>>;

/// Trains in a folder of its own.
fn train(options: &str, simd: &str) -> Run {
    let space = tempfile::tempdir().unwrap();
    let text = "O gato preto correu rapidamente.\nA gata preta correu rapidamente.\n".repeat(60);
    std::fs::write(space.path().join("text.txt"), text).unwrap();
    let line = format!(
        "train text.txt --layers 2 --heads 2 --dim 32 --context 24 --batch 7 --steps 12 --eval-every 5 --out run {options}"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(line.split_whitespace()).current_dir(space.path()).env("CANDLE_ATTENTION_SIMD", simd);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let mut run = Run::new();
    collect(&space.path().join("run"), "", &mut run);
    run.insert("printed".into(), output.stdout);
    run
}

fn collect(folder: &Path, name: &str, run: &mut Run) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), &name, run),
            false => drop(run.insert(name, std::fs::read(entry.path()).unwrap())),
        }
    }
}

/// The files without event file, settings (which hold the folder's path) and times.
fn without_clocks(run: Run) -> BTreeMap<String, String> {
    let no_seconds = |line: &str| line.split("\"seconds\"").next().unwrap_or_default().to_string();
    let is_same = |name: &str| !name.contains("/tensorboard/") && !name.ends_with("settings.toml");
    run.into_iter()
        .filter(|(name, _)| is_same(name))
        .map(|(name, bytes)| {
            if name.ends_with(".safetensors") {
                return (name, format!("{bytes:?}"));
            }
            let text = String::from_utf8(bytes).unwrap();
            // The offset into the metrics counts the digits of their times too, and the seal is of all.
            let clocks = [" steps in ", " s since the start: ", "\"metrics_bytes\"", "\"seal\""];
            let is_clock = |line: &str| clocks.iter().any(|what| line.contains(what));
            let lines = text.lines().filter(|line| !is_clock(line));
            (name, lines.map(no_seconds).collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

fn assert_same(label: &str, run: Run, expected: &BTreeMap<String, String>) {
    let run = without_clocks(run);
    assert!(run.keys().eq(expected.keys()), "{label}: {:?}, expected {:?}", run.keys(), expected.keys());
    for (name, content) in &run {
        assert!(content == &expected[name], "{label}: {name} differs");
    }
}

fn losses(run: &Run) -> Vec<f64> {
    let metrics = String::from_utf8(run["/training/metrics.jsonl"].clone()).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_files() {
    let one = without_clocks(train("--shards 3 --threads 1", ""));
    for name in ["/model.safetensors", "/training/step-00000012/optimizer.safetensors", "/training/loss.svg", "printed"]
    {
        assert!(one.contains_key(name), "{name} is missing of {:?}", one.keys());
    }
    for threads in [2, 5] {
        assert_same(&format!("{threads} threads"), train(&format!("--shards 3 --threads {threads}"), ""), &one);
    }
}

#[test]
fn only_clocks_differ_between_two_runs() {
    let (first, second) = (train("--shards 2", ""), train("--shards 2", ""));
    let metrics = "/training/metrics.jsonl";
    assert_ne!(first[metrics], second[metrics], "not even the times differ");
    assert_same("the second run", second, &without_clocks(first));
}

#[test]
fn other_vector_instructions_are_close_and_repeat_themselves() {
    let best = losses(&train("--shards 2", ""));
    for simd in ["scalar", "avx2", "avx512"] {
        let run = train("--shards 2", simd);
        for (loss, expected) in losses(&run).iter().zip(&best) {
            assert!((loss - expected).abs() < 1e-4, "{simd}: {loss}, expected {expected}");
        }
        assert_same(simd, train("--shards 2", simd), &without_clocks(run));
    }
}
