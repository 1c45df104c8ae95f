//! Bits per byte, as `attn eval` and the metrics give them: computed from the loss, the tokens and the bytes.

use std::f64::consts::LN_2;

use candle_attention::text::{Corpus, Tokenizer};

use crate::support::Space;

/// The tokens and bytes of a text.
type Lengths = [f64; 2];

fn bits(loss: f64, [tokens, bytes]: Lengths) -> f64 {
    loss / LN_2 * tokens / bytes
}

fn assert_near(got: f64, expected: f64) {
    // Both are printed with four digits, and a difference in the loss counts 1 / ln 2 times at most.
    assert!((got - expected).abs() <= 5e-5 * (1.0 + 1.0 / LN_2), "{got}, expected {expected}");
}

fn number(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn labelled(printed: &str, label: &str) -> f64 {
    let line = printed.lines().find_map(|line| line.strip_prefix(label));
    number(line.unwrap_or_else(|| panic!("{label}: {printed}")))
}

#[test]
fn bits_per_byte_follow_from_what_is_printed_with_them() {
    let space = Space::new();
    space.write("a.txt", "A ação não é só pão.\n".repeat(21));
    space.write("b.txt", "não é o gato\n".repeat(8));
    space.write("one.txt", "A");
    let small = "--layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 6 --eval-every 6";
    space.works(&format!("train a.txt b.txt --validation-fraction 0.2 {small} --tokenizer bpe:270 --out run"));
    let tokenizer = Tokenizer::open(space.path("run")).unwrap();
    let lens = ["a.txt", "b.txt"].map(|name| {
        let text = space.read(name);
        [tokenizer.encode(&text).unwrap().len() as f64, text.len() as f64]
    });

    // All tokens but the first are predicted.
    let one = space.works("eval run a.txt");
    assert!(one.contains(&format!("{} predicted, in {} bytes", lens[0][0] - 1.0, lens[0][1])), "{one}");
    let expected = bits(labelled(&one, "loss"), lens[0]);
    assert!(expected > 1.0);
    assert_near(labelled(&one, "bits per byte"), expected);

    // A text with nothing to predict is left out.
    let (printed, told) = space.told("eval run a.txt one.txt b.txt");
    assert!(told.contains("left out") && told.contains("one.txt"), "{told}");
    let row = |name: &str| -> Vec<f64> {
        let line = printed.lines().find(|line| line.ends_with(name)).unwrap();
        line.split_whitespace().take(3).map(number).collect()
    };
    let rows = [row("a.txt"), row("b.txt")];
    for (row, lens) in rows.iter().zip(lens) {
        assert_near(row[2], bits(row[0], lens));
    }
    assert!(printed.contains("all 2 texts:") && !printed.contains("one.txt"), "{printed}");
    let total: f64 = rows.iter().zip(lens).map(|(row, lens)| bits(row[0], lens) * lens[1]).sum();
    assert_near(labelled(&printed, "bits per byte"), total / (lens[0][1] + lens[1][1]));
    for nothing in ["eval run one.txt", "eval run one.txt one.txt"] {
        let output = space.attn(nothing);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{nothing}: {told}");
        assert!(told.contains("expected a text of at least 2 tokens"), "{told}");
    }

    // The metrics have all digits.
    let ids = Corpus::open(&space.path("run/training/ids.safetensors"), &mut |_| {}).unwrap();
    let held_out = [ids.validation.len() as f64, ids.validation_bytes as f64];
    assert_eq!(held_out[1], tokenizer.decode_bytes(&ids.validation.to_vec().unwrap()).unwrap().len() as f64);
    let line = space.metrics("run").into_iter().find(|line| line["validation_loss"].is_number()).unwrap();
    let (got, loss) = (line["validation_bits_per_byte"].as_f64().unwrap(), line["validation_loss"].as_f64().unwrap());
    // Four roundings of f64.
    assert!((got - bits(loss, held_out)).abs() <= 4.0 * f64::EPSILON * got, "{got}");
}
