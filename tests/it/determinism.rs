//! `docs/determinism.md`: that its tests exist, and those that are its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// All Rust files in a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The tests in the files of `folder`, by the names that `cargo test` knows them by.
fn tests_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in sources(folder) {
        let module = path.strip_prefix(folder).unwrap().with_extension("");
        let mut module: Vec<_> = module.iter().map(|part| part.to_str().unwrap()).collect();
        module.pop_if(|last| *last == "mod");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut inner = None;
        let mut is_test = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
                inner = Some(name);
            }
            is_test |= line.trim() == "#[test]";
            if let Some(function) = line.trim().strip_prefix("fn ").filter(|_| std::mem::take(&mut is_test)) {
                let inner = inner.filter(|_| line.starts_with(' '));
                let name = function.split('(').next();
                found.insert(module.iter().copied().chain(inner).chain(name).collect::<Vec<_>>().join("::"));
            }
        }
    }
    found
}

/// The sentences of the page that claim something, each with the tests it names.
fn claims(page: &str) -> Vec<(String, Vec<String>)> {
    let sentences = page.split("\n\n").filter(|paragraph| !paragraph.starts_with('#')).skip(1);
    let sentences = sentences.flat_map(|paragraph| paragraph.split("\n- ")).map(|sentence| sentence.replace('\n', " "));
    sentences
        .filter(|sentence| !sentence.ends_with(':'))
        .map(|sentence| {
            let quoted = sentence.split('`').skip(1).step_by(2);
            let names = quoted.filter(|name| name.contains("::")).map(String::from).collect();
            (sentence, names)
        })
        .collect()
}

#[test]
fn every_sentence_of_the_page_names_a_test_that_exists() {
    let page = std::fs::read_to_string(Path::new(ROOT).join("docs/determinism.md")).unwrap();
    let mut tests = tests_in(&Path::new(ROOT).join("src"));
    tests.extend(tests_in(&Path::new(ROOT).join("tests/it")));
    let claims = claims(&page);
    assert!(claims.len() > 10, "{} sentences", claims.len());
    for (sentence, names) in claims {
        assert!(!names.is_empty(), "no test stands behind {sentence:?}");
        for name in names {
            assert!(tests.contains(&name), "there is no test {name}, named in {sentence:?}");
        }
    }
}

#[cfg(feature = "cli")]
mod command {
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
        for name in
            ["/model.safetensors", "/training/step-00000012/optimizer.safetensors", "/training/loss.svg", "printed"]
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
}
