//! Runs that start from a model, and what the folder of a run says to others.

use crate::support::{SMALL, Space};

/// A model to start from, with files and keys of other makers.
fn base(architecture: &str) -> Space {
    let space = Space::new();
    space.works(&format!("train text.txt --architecture {architecture} {SMALL} --out base"));
    let mut config: serde_json::Value = serde_json::from_str(&space.read("base/config.json")).unwrap();
    for (name, value) in [("id2label", "{\"0\": \"A\"}"), ("my_key", "3"), ("torch_dtype", "\"bfloat16\"")] {
        config[name] = serde_json::from_str(value).unwrap();
    }
    space.write("base/config.json", config.to_string());
    space.write("base/special_tokens_map.json", "{ }");
    space.write("base/chat_template.jinja", "{{ messages }}");
    space.write("base/generation_config.json", r#"{ "do_sample": true, "temperature": 0.25, "top_k": 0 }"#);
    space
}

#[test]
fn what_a_base_has_beside_the_model_is_kept() {
    let space = base("llama");
    space.write("base/notes.txt", "mine");
    space.works("train text.txt --init base --steps 2 --out run");
    for name in ["tokenizer.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json"] {
        assert_eq!(space.read(&format!("run/{name}")), space.read(&format!("base/{name}")), "{name}");
    }
    assert!(!space.path("run/notes.txt").exists());
    let config: serde_json::Value = serde_json::from_str(&space.read("run/config.json")).unwrap();
    assert_eq!((&config["id2label"]["0"], &config["my_key"]), (&"A".into(), &3.into()));
    assert!(config.get("torch_dtype").is_none_or(|dtype| dtype == "float32"), "{config}");
    // It opens, resumes and is a base as any other.
    space.works("train --resume --out run --steps 3");
    space.works("train text.txt --init run --steps 2 --out next");
    assert_eq!(space.read("next/config.json"), space.read("run/config.json"));
}

#[test]
fn a_run_can_have_sequences_shorter_than_its_models_context() {
    for architecture in ["gpt2", "qwen3"] {
        let space = base(architecture);
        let train = "train text.txt --init base --batch 3 --steps 6 --eval-every 3";
        let (_, told) = space.told(&format!("{train} --context 5 --out run"));
        assert!(told.contains("context 16, trained on sequences of 5\n"), "{told}");
        assert!(told.contains("90 tokens"), "{told}");
        // The model keeps its own.
        let length = if architecture == "gpt2" { "n_positions" } else { "max_position_embeddings" };
        let config: serde_json::Value = serde_json::from_str(&space.read("run/config.json")).unwrap();
        assert_eq!(config[length], 16);
        assert_eq!(space.settings("run")["context"], 5.into());
        // As long as the model's, it is as if nothing were said.
        space.works(&format!("{train} --context 16 --out same"));
        space.works(&format!("{train} --out unsaid"));
        assert_eq!(space.bytes("same/model.safetensors"), space.bytes("unsaid/model.safetensors"));
        assert_ne!(space.bytes("same/model.safetensors"), space.bytes("run/model.safetensors"));
        // It is resumed as it was, and repeated.
        space.works("train text.txt --init base --batch 3 --steps 3 --eval-every 3 --lr 0.001 --context 5 --schedule constant --out short");
        space.works("train --resume --out short --steps 6");
        space.works(&format!("{train} --context 5 --schedule constant --out long"));
        assert_eq!(space.bytes("short/model.safetensors"), space.bytes("long/model.safetensors"));
        space.works("train --config run/training/settings.toml --out again");
        assert_eq!(space.bytes("again/model.safetensors"), space.bytes("run/model.safetensors"));
        // A short text has what fits.
        space.write("short.txt", "O gato preto");
        let (_, told) = space.told("train short.txt --init base --steps 2 --out few");
        assert!(told.contains("sequences of 6 tokens instead of 16 (--context)\n"), "{told}");
        assert_eq!(space.settings("few")["context"], 6.into());
        space.refuses("train short.txt --init base --context 12", "--context: expected at most 11");
        space.refuses("train text.txt --init base --context 1", "--context: expected at least 2");
    }
}

#[test]
fn every_run_has_a_model_card() {
    let space = base("qwen3");
    let card = space.read("base/README.md");
    let front = "---\n# Written by attn during training, again and again. Delete this line to keep changes of your own.\n\
                 library_name: transformers\npipeline_tag: text-generation\ntags:\n- candle-attention\n- qwen3\n---\n";
    assert!(card.starts_with(front), "{card}");
    for expected in ["| training | `text.txt` |", "| steps | 12 |", "Trained for 12 of 12 steps", "bits per byte"] {
        assert!(card.contains(expected), "{expected}: {card}");
    }
    space.works("train text.txt --init base --validation-fraction 0 --steps 2 --out run");
    let card = space.read("run/README.md");
    for expected in ["base_model: \"base\"\n", "starting from `base`", "There was no text to validate on."] {
        assert!(card.contains(expected), "{expected}: {card}");
    }
    // One that somebody has made their own stays.
    let own = card.replace("# Written by attn", "# Rewritten by me");
    space.works("train --resume --out run --steps 3");
    assert!(space.read("run/README.md").contains("Trained for 3 of 3 steps"));
    space.write("run/README.md", &own);
    space.works("train --resume --out run --steps 4");
    assert_eq!(space.read("run/README.md"), own);
}
