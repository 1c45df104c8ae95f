//! `attn train --lora`: adapters on a model that stays as it is.

use crate::support::{SMALL, Space, assert_same};

const LORA: &str = "train text.txt --init base --lora 2 --steps 12 --batch 4 --eval-every 6";

#[test]
fn adapters_are_trained_resumed_and_opened() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out base"));
    let before = space.bytes("base/model.safetensors");
    let (_, told) = space.told(&format!("{LORA} --out whole"));
    assert!(told.contains("adapters: rank 2, alpha 4: "), "{told}");
    assert_eq!(
        space.entries("whole"),
        [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "training"
        ]
    );
    assert!(space.works("eval whole text.txt").contains("loss"));
    assert!(!space.works("generate whole --max-tokens 9").is_empty());
    assert!(space.bytes("base/model.safetensors") == before);

    // The saved settings repeat the run.
    space.works("train --config whole/training/settings.toml --out again");
    assert_same("again", &space.result("again"), &space.result("whole"));
    // More steps of it, and of a model that starts as the merged one.
    space.works("train --resume --out again --steps 14");
    assert_eq!(space.checkpoints("again"), [12, 14]);
    space.works("train text.txt --init whole --steps 3 --batch 4 --out merged");
    assert!(space.entries("merged").contains(&"model.safetensors".to_string()));
    assert!(space.works("train text.txt --init base --lora 2 --dry-run --batch 4").contains("\nlora = 2\n"));
    // A model this small may be too little to memorise with.
    let output = space.attn("train text.txt --init base --lora 16 --overfit-one-batch --batch 1 --lr 0.02");
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("one batch of 1 sequences: loss") && !told.contains("did not fall"), "{told}");
}

#[test]
fn what_does_not_go_with_adapters_is_refused() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out base"));
    space.works(&format!("{LORA} --out adapter"));
    for (line, expected) in [
        ("train text.txt --lora 2", "--lora: expected --init with the model that gets adapters, got none"),
        ("train text.txt --init base --lora-alpha 2", "--lora-alpha needs --lora"),
        ("train text.txt --init base --lora 2 --lora-alpha 0", "--lora-alpha: expected a number above 0, got 0.0"),
        ("train text.txt --init base --lora 2 --optimizer muon", "--lora: expected --optimizer adamw, got muon"),
        ("train text.txt --init base --lora 2 --embedding-lr 2", "--embedding-lr has no effect with --lora"),
        ("train text.txt --init adapter --lora 2", "adapters (LoRA) cannot be trained on top of an adapter"),
        ("train --resume --out adapter --lora 3", "lora: cannot be changed when resuming"),
    ] {
        space.refuses(line, expected);
    }
    space.remove("base");
    for line in ["eval adapter text.txt", "generate adapter", "train --resume --out adapter --steps 20"] {
        space.refuses(line, "of the adapter (LoRA) is not here: download it");
    }
}
