//! What a model attends to: on the terminal, as page, picture and numbers; and what a run watched.

use safetensors::SafeTensors;

use crate::support::{SMALL, Space, assert_same};

const PROMPT: &str = "gato preto";

/// A run of a moment, and a file with a prompt of two words.
fn trained(options: &str) -> Space {
    let space = Space::new();
    space.works(&format!("train text.txt --out run --preset qwen3 {SMALL} {options}"));
    space.write("prompt.txt", PROMPT);
    space
}

fn floats(tensors: &SafeTensors, name: &str) -> (Vec<usize>, Vec<f32>) {
    let view = tensors.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

#[test]
fn the_terminal_shows_heads_by_word_or_token_and_the_next_token() {
    let space = trained("--layers 2");
    let shown = space.works("inspect run --prompt-file prompt.txt");
    assert!(shown.starts_with("10 tokens in 2 words; 2 layers of 2 heads\n"), "{shown}");
    assert_eq!(shown.matches("\nlayer ").count(), 3, "{shown}");
    for part in ["  gato |█", "| gato 100\n", "entropy ", "next token, with its probability:", "       gato preto -> "]
    {
        assert!(shown.contains(part), "{part} is missing: {shown}");
    }
    let one = space.works("inspect run --prompt-file prompt.txt --tokens --layer 2 --head 1");
    assert!(one.starts_with("10 tokens; 2 layers of 2 heads\n") && one.contains("  ␣ |"), "{one}");
    assert_eq!(one.matches("\nlayer ").count(), 1, "{one}");
    assert!(one.contains("\nlayer 2, head 1: "), "{one}");
}

#[test]
fn page_picture_and_numbers_are_one_map() {
    let space = trained("--layers 2");
    space.works("inspect run --prompt-file prompt.txt --out map.safetensors");
    let bytes = space.bytes("map.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (shape, weights) = floats(&tensors, "attention");
    assert_eq!(shape, [2, 2, 10, 10]);
    for (i, row) in weights.chunks_exact(10).enumerate() {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "row {i}: {row:?}");
        assert!(row[i % 10 + 1..].iter().all(|weight| *weight == 0.0), "row {i}: {row:?}");
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().as_ref().unwrap();
    assert_eq!(metadata["tokens"], r#"["g","a","t","o"," ","p","r","e","t","o"]"#);
    assert_eq!(metadata["head_scores"], "entropy, distance, previous, first, same, telling");

    space.works("inspect run --prompt-file prompt.txt --out map.html --layer 2 --head 1");
    let data = space.page_data("map.html");
    assert_eq!(data["model"]["name"], "run");
    assert_eq!(data["words"], serde_json::json!([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]));
    assert_eq!(data["word_texts"], serde_json::json!(["gato ", "preto"]));
    assert_eq!(data["start"], serde_json::json!({ "layer": 2, "head": 1, "units": null }));
    for (token, index) in data["tokens"].as_array().unwrap().iter().zip(data["vocabulary_indices"].as_array().unwrap())
    {
        assert_eq!(*token, data["vocabulary_texts"][index.as_u64().unwrap() as usize]);
    }
    // The checkpoints that the run has kept, of which the last is its best model.
    let labels: Vec<&str> =
        data["frames"].as_array().unwrap().iter().map(|frame| frame["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["step 6", "step 12, the best model"]);
    let (_, scores) = floats(&tensors, "head_scores");
    for (head, expected) in scores.chunks_exact(6).enumerate() {
        let shown = &data["frames"][1]["scores"][head / 2][head % 2];
        let names = metadata["head_scores"].split(", ");
        for (name, expected) in names.zip(expected) {
            assert!((shown[name].as_f64().unwrap() - f64::from(*expected)).abs() < 1e-6, "{name}: {shown}");
        }
    }

    space.works("inspect run --prompt-file prompt.txt --out map.svg --layer 1 --head 2");
    let svg = space.read("map.svg");
    assert!(svg.starts_with("<svg ") && svg.contains(">gato</text>") && svg.contains(">100</text>"), "{svg}");
    space.works("inspect run --prompt-file prompt.txt --out all.svg");
    assert_eq!(space.read("all.svg").matches(">layer ").count(), 4);
}

#[test]
fn a_picture_in_pixels_is_one_of_the_same_size_and_is_not_blank() {
    let space = trained("");
    let output = space.attn("inspect run --prompt-file prompt.txt --out all.png");
    if !output.status.success() {
        // The one thing that a machine may lack.
        assert!(String::from_utf8_lossy(&output.stderr).contains("this system has none; a .svg needs none"));
        return;
    }
    let png = space.bytes("all.png");
    assert_eq!(png[1..4], *b"PNG");
    assert!(png.len() > 3000, "{} bytes", png.len());
}

#[test]
fn adapters_are_shown_with_the_model_below_them() {
    let space = trained("");
    space.works("train text.txt --init run --lora 2 --out tuned --steps 4 --eval-every 2 --lr 0.01");
    space.works("inspect tuned --prompt gato --out map.html");
    let data = space.page_data("map.html");
    let frames = data["frames"].as_array().unwrap();
    assert_eq!((frames.len(), &frames[0]["step"], &frames[1]["step"]), (2, &2.into(), &4.into()));
    assert_ne!(frames[0]["attention"], frames[1]["attention"]);
}

#[test]
fn what_cannot_be_shown_is_refused_in_a_line() {
    let space = trained("");
    for (line, expected) in [
        ("run", "expected --prompt TEXT or --prompt-file FILE"),
        ("run --prompt gato --layer 2", "--layer: expected a number from 1 to 1, got 2"),
        ("run --prompt gato --layer 1 --head 3", "--head: expected a number from 1 to 2, got 3"),
        (
            "run --prompt gato --out map.pdf",
            "--out: expected a file whose name ends in .html, .svg, .png, .safetensors, got map.pdf",
        ),
        ("run --prompt gato --out run/model.safetensors", "run/model.safetensors exists"),
        ("run --prompt gato --layer 1 --out map.safetensors", "--layer has no effect on a .safetensors file"),
        ("run --prompt gato --out none/map.html", "none"),
        ("run --prompt gatos_ou_gatas", "the prompt: the text: unknown character"),
        ("run --prompt gatogatogatogatog", "expected a prompt of 1 to 16 tokens, the model's context, got 17"),
        ("none --prompt gato", "none"),
    ] {
        space.refuses(&format!("inspect {line}"), expected);
    }
}

#[test]
fn a_run_that_watches_learns_the_same_and_keeps_maps_that_a_page_plays() {
    let space = trained("--keep 1");
    let watching = |name: &str, more: &str| {
        let mut command = space.command(&format!("train text.txt --out {name} --preset qwen3 {SMALL} --keep 1 {more}"));
        assert!(command.args(["--watch", "gato preto"]).status().unwrap().success());
        space.result(name)
    };
    let (plain, mut watched) = (space.result("run"), watching("watched", ""));
    let maps: Vec<String> = watched.keys().filter(|name| name.contains("/watch/")).cloned().collect();
    assert_eq!(maps.len(), 13, "{maps:?}"); // every step of 12, and the start
    watched.retain(|name, _| !name.contains("/watch/"));
    let settings = |space: &Space, run: &str| {
        let mut settings = space.settings(run);
        settings.remove("watch").unwrap();
        settings
    };
    assert_eq!(settings(&space, "run"), settings(&space, "watched"));
    for results in [&watched, &plain] {
        assert!(results.contains_key("training/settings.toml") && results.contains_key("README.md"));
    }
    let without_names = |mut results: std::collections::BTreeMap<String, Vec<u8>>| {
        results.retain(|name, _| name != "training/settings.toml" && name != "README.md");
        results
    };
    assert_same("watched", &without_names(watched), &without_names(plain));

    // The page of the watched text needs no prompt; of another, it shows what was kept of the run.
    space.works("inspect watched --out map.html");
    let frames = |page: &str| space.page_data(page)["frames"].as_array().unwrap().clone();
    let played = frames("map.html");
    assert_eq!((played.len(), &played[0]["step"], &played[12]["step"]), (13, &0.into(), &12.into()));
    assert_ne!(played[0]["attention"], played[12]["attention"]);
    space.works("inspect watched --prompt gata --out other.html");
    assert_eq!(frames("other.html").len(), 1);

    // What is not a map of this prompt and model is left out.
    let map = |step: u64| format!("watched/training/watch/step-{step:08}.safetensors");
    space.write(&map(3), "not a map");
    space.works("inspect run --prompt gata --out other.safetensors");
    space.write(&map(5), space.bytes("other.safetensors"));
    let (_, told) = space.told("inspect watched --out map.html");
    assert!(told.contains("step 3 is left out: ") && told.contains("step 5 is left out: it is of another"), "{told}");
    assert_eq!(frames("map.html").len(), 11);
}

#[test]
fn a_watched_run_that_goes_on_has_the_same_maps_or_those_of_another_text() {
    let space = Space::new();
    let train = |run: &str| {
        let mut command = space.command(&format!("train text.txt --out {run} --preset qwen3 {SMALL}"));
        assert!(command.args(["--watch", "gato preto"]).status().unwrap().success());
    };
    train("whole");
    train("parts");
    // As if it had been lost before the checkpoint of step 12, and once had made more steps.
    std::fs::remove_file(space.path("parts/training/step-00000012.safetensors")).unwrap();
    let last = space.bytes("whole/training/watch/step-00000012.safetensors");
    space.write("parts/training/watch/step-00000099.safetensors", last);
    std::fs::remove_file(space.path("parts/training/watch/step-00000009.safetensors")).unwrap();
    space.works("train --resume --out parts");
    assert_same("parts", &space.result("parts"), &space.result("whole"));

    // A text that is refused changes nothing: the run can still be resumed.
    for (text, expected) in [
        ("x_", "--watch: the text: unknown character 'x'"),
        ("gatogatogatogatog", "--watch: expected a text of at most 16 tokens, the model's context, got 17"),
    ] {
        for line in [format!("train text.txt --out none {SMALL}"), "train --resume --out parts --steps 14".into()] {
            space.refuses(&format!("{line} --watch {text}"), expected);
        }
        space.refuses(&format!("train text.txt --dry-run {SMALL} --watch {text}"), expected);
        assert!(!space.path("none").exists());
    }
    space.works("train --resume --out parts --steps 14");
    let (_, told) = space.told("train --resume --out parts --steps 15 --watch gata");
    assert!(told.contains("changed: watch; maps of another text are gone"), "{told}");
    let maps = space.entries("parts/training/watch");
    assert_eq!(maps, ["step-00000014.safetensors", "step-00000015.safetensors"]);
}

#[test]
fn pictures_of_long_prompts_stay_small() {
    let space = Space::new();
    space.works("train text.txt --out run --layers 1 --heads 2 --dim 8 --context 390 --batch 1 --steps 1");
    space.write("prompt.txt", "O gato preto correu rapidamente.\n".repeat(11));
    for (line, max) in [("", 3_000_000), ("--tokens --layer 1 --head 1", 9_000_000)] {
        space.works(&format!("inspect run --prompt-file prompt.txt {line} --out map.svg"));
        let len = space.bytes("map.svg").len();
        assert!(len < max, "{line}: {len} bytes");
    }
}
