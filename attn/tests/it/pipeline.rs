//! From a text to a model that writes: training, generating, evaluating.

use candle_attention::generate::{Continuation, Piece, Pipeline, SamplingOptions};

use crate::support::{SMALL, Space};

/// Each option alone gives what the library writes with it, which is not `text`, written without any.
fn each_sampling_option_is_the_librarys(space: &Space, text: &str) {
    let pipeline = Pipeline::open(&space.path("runs/text-1"), &candle_core::Device::Cpu).unwrap();
    // The command's default.
    let base = SamplingOptions { temperature: 0.8, ..Default::default() };
    for (option, sampling) in [
        ("--temperature 0", SamplingOptions { temperature: 0.0, ..base }),
        ("--temperature 3", SamplingOptions { temperature: 3.0, ..base }),
        ("--top-k 3", SamplingOptions { top_k: Some(3), ..base }),
        ("--top-p 0.2", SamplingOptions { top_p: Some(0.2), ..base }),
        ("--min-p 0.8", SamplingOptions { min_p: Some(0.8), ..base }),
        ("--repetition-penalty 9", SamplingOptions { repetition_penalty: 9.0, ..base }),
    ] {
        let continuation = Continuation { max_tokens: 30, seed: 5, sampling, ..Default::default() };
        let mut expected = b"gato".to_vec();
        let mut collect = |piece: Piece| {
            expected.extend_from_slice(piece.text);
            std::ops::ControlFlow::Continue(())
        };
        continuation.write(&pipeline, "gato", &mut collect).unwrap();
        let written = space.works(&format!("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5 {option}"));
        assert_eq!(written, String::from_utf8(expected).unwrap() + "\n", "{option}");
        assert_ne!(written, text, "{option}");
    }
}

#[test]
fn from_a_text_to_a_sample() {
    let space = Space::new();
    let printed = space.works(&format!("train text.txt {SMALL}"));
    for expected in ["training loss", "a sample, at temperature", "lowest validation loss", "attn generate runs/text-1"]
    {
        assert!(printed.contains(expected), "{printed}");
    }
    let model =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(space.entries("runs/text-1"), [&["README.md"], &model[..], &["training"]].concat());
    assert_eq!(space.entries("runs"), ["text-1"]);
    let training = space.entries("runs/text-1/training");
    for name in
        ["settings.toml", "ids.safetensors", "metrics.jsonl", "loss.svg", "tensorboard", "step-00000012.safetensors"]
    {
        assert!(training.iter().any(|entry| entry == name), "{name} is not among {training:?}");
    }
    assert!(training.iter().all(|name| !name.ends_with(".tmp")), "{training:?}");

    let text = space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5");
    assert!(text.starts_with("gato") && text.trim_end_matches('\n').chars().count() >= 30, "{text}");
    assert_eq!(text, space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 5"));
    assert_ne!(text, space.works("generate runs/text-1 --prompt gato --max-tokens 30 --seed 6"));
    each_sampling_option_is_the_librarys(&space, &text);

    let printed = space.works("eval runs/text-1 text.txt");
    for expected in ["loss", "perplexity", "bits per byte"] {
        assert!(printed.contains(expected), "{printed}");
    }

    // The same command again takes the next folder, and gives the same weights.
    space.works(&format!("train text.txt {SMALL}"));
    assert_eq!(space.entries("runs"), ["text-1", "text-2"]);
    assert!(space.bytes("runs/text-1/model.safetensors") == space.bytes("runs/text-2/model.safetensors"));
}

#[test]
fn several_samples_are_shown_one_after_the_other() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let generate = "generate run --prompt gato --max-tokens 30 --seed 5";
    let text = space.works(generate);
    let three = space.works(&format!("{generate} --samples 3"));
    let texts: Vec<&str> = three.split("---------------\n").collect();
    assert!(texts.len() == 3 && texts[0] == text && texts.iter().all(|text| text.starts_with("gato")), "{three}");
    assert!(texts[1] != text && texts[2] != text && texts[1] != texts[2], "{three}");
    // Each ends where the text would follow, and the next begins.
    let stop = &text[9..11];
    let stopped = space.works(&format!("{generate} --samples 3 --stop={stop}"));
    let cut = |text: &&str| match text[4..].find(stop) {
        Some(end) => text[..4 + end].to_string() + "\n",
        None => text.to_string(),
    };
    let expected: Vec<String> = texts.iter().map(cut).collect();
    assert_eq!(stopped, expected.join("---------------\n"), "stop {stop:?}");
}

#[test]
fn every_tokenizer_trains() {
    let space = Space::new();
    for tokenizer in ["char", "byte", "bpe:300", "runs/char/tokenizer.json"] {
        let out = format!("runs/{}", tokenizer.split(['/', ':']).next().unwrap());
        space.works(&format!("train text.txt {SMALL} --tokenizer {tokenizer} --out {out}"));
        // Bytes may be no text.
        let output = space.attn(&format!("generate {out} --max-tokens 5 --prompt gato"));
        assert!(output.status.success() && output.stdout.starts_with(b"gato"), "{tokenizer}: {output:?}");
        space.works(&format!("eval {out} text.txt"));
    }
    space.write("noise.bin", (0..=255).cycle().take(2000).collect::<Vec<u8>>());
    space.works(&format!("train noise.bin {SMALL} --tokenizer byte"));
    space.refuses(&format!("train noise.bin {SMALL}"), "--tokenizer byte takes any bytes");
}

/// Trains, goes on, starts from, evaluates and generates, past the context too.
#[test]
fn every_preset_goes_all_the_way() {
    let space = Space::new();
    for (preset, more, expected) in [
        ("gpt2", "--zero-residual", "\"n_inner\": 64"),
        ("llama", "--no-tie --bias --dropout 0.1", "\"mlp_bias\": true"),
        ("qwen3", "--kv-heads 1 --head-dim 6 --rope-theta 500 --zero-residual", "\"rope_theta\": 500.0"),
    ] {
        space.works(&format!("train text.txt {SMALL} --preset {preset} {more} --out {preset}"));
        let config = space.read(&format!("{preset}/config.json"));
        assert!(config.contains(&format!("\"model_type\": \"{preset}\"")) && config.contains(expected), "{config}");
        space.works(&format!("train --resume --out {preset} --steps 15"));
        space.works(&format!("train text.txt --init {preset} --steps 2 --out next/{preset}"));
        assert!(space.works(&format!("eval next/{preset} text.txt")).contains("bits per byte"));
        let text = space.works(&format!("generate next/{preset} --prompt gato --max-tokens 40"));
        assert!(text.trim_end_matches('\n').chars().count() >= 40, "{text}");
    }
    // One step says nothing about what lies behind zeros; the second does.
    let one = SMALL.replace("--steps 12", "--steps 1");
    space.works(&format!("train text.txt {one} --zero-residual --out short"));
    space.works("train --resume --out short --steps 2");
}

#[test]
fn training_stops_early_and_says_so() {
    let space = Space::new();
    let wild = "--steps 200 --eval-every 2 --lr 0.5 --min-lr 1 --warmup 0 --clip 0 --patience 2";
    let line =
        format!("train text.txt --preset gpt2 {} {wild} --out run", SMALL.replace("--steps 12 --eval-every 6", ""));
    let printed = space.works(&line);
    for expected in ["stopped early at step", "2 validations without a lower loss", "lowest validation loss"] {
        assert!(printed.contains(expected), "{printed}");
    }
    assert!(space.works("train --resume --out run").contains("stopped early at step"));
}

#[test]
fn one_batch_is_learned_by_heart_and_nothing_is_saved() {
    let space = Space::new();
    let small = "--layers 1 --heads 2 --dim 32 --context 16 --batch 2 --lr 0.01 --overfit-one-batch";
    let printed = space.works(&format!("train text.txt {small} --dropout 0.5"));
    assert!(printed.contains("memorised: data, model and optimizer work together"), "{printed}");
    for (steps, code, expected) in [
        ("3", 1, "not memorised; the loss falls, but not far enough: try more --steps"),
        ("1", 2, "steps: expected at least 2, to overfit one batch, got 1"),
    ] {
        let output = space.attn(&format!("train text.txt {small} --steps {steps}"));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(expected), "{told}");
        assert_eq!(output.status.code(), Some(code), "{told}");
    }
    // What of a batch can be learned depends on the documents that a window may look back into.
    space.write("other.txt", "um dois três quatro\n".repeat(4));
    space.works(&format!("train text.txt other.txt {small} --isolate-documents"));
    assert_eq!(space.entries("."), ["other.txt", "text.txt"]);
}

#[test]
fn the_example_and_the_version() {
    let space = Space::new();
    let example = space.works("example");
    for number in ["0.5646", "0.6271", "0.3491", "0.5355", "0.47", "1.40"] {
        assert!(example.contains(number), "{number} is missing: {example}");
    }
    assert!(space.works("--version").starts_with("attn "));
}
