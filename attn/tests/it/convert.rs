//! A run in the forms in which other programs take it.

use crate::support::{SMALL, Space};

#[test]
fn a_run_becomes_a_gguf_file_and_a_plain_folder() {
    let space = Space::new();
    space.works(&format!("train text.txt --out run --preset llama --tokenizer byte {SMALL}"));
    let (printed, told) = space.told("convert run --gguf out/run.gguf --type f32");
    assert_eq!(printed, "");
    assert!(told.contains("it will stop at the byte 0") && told.ends_with("wrote out/run.gguf\n"), "{told}");
    space.works("convert run --merge plain");
    assert_eq!(space.entries("out"), ["run.gguf"]);
    let files =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(space.entries("plain"), files);

    let loss = space.works("eval run text.txt");
    let generated = |model: &str| space.attn(&format!("generate {model} --prompt gato --max-tokens 9")).stdout;
    let text = generated("run");
    assert!(text.starts_with(b"gato") && text.len() > 9, "{text:?}");
    for other in ["out/run.gguf", "plain"] {
        assert_eq!(space.works(&format!("eval {other} text.txt")), loss, "{other}");
        assert_eq!(generated(other), text, "{other}");
    }
    // From a file as from a folder.
    space.works("convert out/run.gguf --gguf small.gguf --type q8_0");
    space.works("convert small.gguf --merge again");
    space.works("train text.txt --init small.gguf --out tuned --steps 2");
    assert!(space.bytes("small.gguf").len() < space.bytes("out/run.gguf").len());
    assert!(space.works("eval tuned text.txt").contains("loss"));

    space.refuses("convert run --gguf out/run.gguf", "out/run.gguf exists: choose another name, or remove it first");
    space.refuses("convert run --merge plain", "plain exists and is not empty");
    space.refuses("convert none --merge other", "none: expected the folder of a model or a .gguf file, got nothing");
    assert_eq!(space.entries("out"), ["run.gguf"]);
    for wrong in ["convert run", "convert run --gguf a.gguf --merge b", "convert run --gguf a.gguf --type q4_0"] {
        assert_eq!(space.attn(wrong).status.code(), Some(2), "{wrong}");
    }
}
