//! How a text is continued: the prompt, and settings of the model's own.

use std::io::Write;

use crate::support::{SMALL, Space};

#[test]
fn sampling_is_as_the_model_says_unless_options_do() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    // A run says what the command does by itself.
    let (ours, told) = space.told("generate run --max-tokens 30");
    assert_eq!(told, "");
    std::fs::rename(space.path("run/generation_config.json"), space.path("ours.json")).unwrap();
    assert_eq!(space.told("generate run --max-tokens 30"), (ours.clone(), String::new()));

    for (json, said, options) in [
        ("{}", "--temperature 0", "--temperature 0"),
        (r#"{ "do_sample": false, "top_k": 5 }"#, "--temperature 0", "--temperature 0"),
        (
            r#"{ "repetition_penalty": 1.5, "max_new_tokens": 40 }"#,
            "--max-tokens 40 --temperature 0 --repetition-penalty 1.5",
            "--temperature 0 --repetition-penalty 1.5 --max-tokens 40",
        ),
        (r#"{ "do_sample": true, "temperature": 0.8 }"#, "--top-k 50", "--top-k 50"),
        (
            r#"{ "do_sample": true, "temperature": 1.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1 }"#,
            "--temperature 1.5 --top-k 3 --top-p 0.5 --min-p 0.1",
            "--temperature 1.5 --top-k 3 --top-p 0.5 --min-p 0.1",
        ),
    ] {
        space.write("run/generation_config.json", json);
        let max = if json.contains("max_new_tokens") { "" } else { "--max-tokens 30" };
        let (text, told) = space.told(&format!("generate run {max}"));
        assert_eq!(told, format!("as generation_config.json says: {said}\n"), "{json}");
        std::fs::remove_file(space.path("run/generation_config.json")).unwrap();
        assert_eq!(space.works(&format!("generate run {options} {max}")), text, "{json}");
        // Every option on the command line comes before that of the file.
        space.write("run/generation_config.json", json);
        let off = "--temperature 0.8 --top-k 0 --top-p 1 --min-p 0 --repetition-penalty 1 --max-tokens 30";
        let (text, told) = space.told(&format!("generate run {off}"));
        assert_eq!((text.as_str(), told.as_str()), (ours.as_str(), ""), "{json}");
    }
    space.write(
        "run/generation_config.json",
        r#"{ "do_sample": true, "temperature": 0.8, "top_k": 0, "num_beams": 4 }"#,
    );
    let (text, told) = space.told("generate run --max-tokens 30");
    assert_eq!((text, told.as_str()), (ours, "not applied of generation_config.json: num_beams\n"));
    space.write("run/generation_config.json", r#"{ "temperature": -1 }"#);
    space.refuses("generate run", "run/generation_config.json: temperature: expected a number of at least 0, got -1");
}

#[test]
fn a_prompt_comes_from_a_file_or_standard_input() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    space.works(&format!("train text.txt {SMALL} --tokenizer byte --out bytes"));
    let through = |line: &str, input: &[u8]| {
        let mut command = space.command(line);
        let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let expected = space.works("generate run --max-tokens 9 --prompt gato");
    space.write("prompt.txt", "\u{feff}gato");
    assert_eq!(space.works("generate run --max-tokens 9 --prompt-file prompt.txt"), expected);
    assert_eq!(through("generate run --max-tokens 9 --prompt-file -", b"gato"), expected.as_bytes());
    // To its last line break.
    let printed = through("generate run --max-tokens 0 --prompt-file -", b"gato\n");
    assert_eq!(printed, b"gato\n\n");
    // A model of bytes takes any.
    let printed = through("generate bytes --max-tokens 0 --prompt-file - --samples 2", b"\xff\0a\r\n");
    assert_eq!(printed, b"\xff\0a\r\n\n---------------\n\xff\0a\r\n\n");
}
