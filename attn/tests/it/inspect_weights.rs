//! `attn inspect --weights`: of runs, adapters and folders of strangers.

use crate::support::{SMALL, Space};

#[test]
fn a_run_is_shown_with_its_start_and_its_first_batch() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --zero-residual --dropout 0.1 --out run"));
    let tables = space.works("inspect run --weights");
    for expected in ["1 layer of 2 heads", "head 2", "attention.q_proj.weight", "token_embedding.weight", "inf"] {
        assert!(tables.contains(expected), "{expected} in {tables}");
    }
    assert!(tables.contains("over 64 tokens of the first training batch") && !tables.contains("not known"), "{tables}");
    let (_, told) = space.told("inspect run --weights --out weights.html");
    assert!(told.contains("wrote weights.html"), "{told}");
    let page = space.page_data("weights.html");
    assert_eq!((page["heads"].as_array().unwrap().len(), page["heads"][0].as_array().unwrap().len()), (1, 2));
    assert_eq!(page["heads"][0][1]["vo"]["values"].as_array().unwrap().len(), 8);
    // Nothing was written before training.
    let at_start = &page["heads_at_start"][0][1];
    assert_eq!(at_start["vo"]["spectral"], 0.0);
    assert!(at_start["qk"]["spectral"].as_f64().unwrap() > 0.0);
    assert!(page["start"]["is"].is_string() && page["gradients"]["is"].is_string());
    for tensor in page["tensors"].as_array().unwrap() {
        let from_zero = ["o_proj", "down_proj"].iter().any(|name| tensor["name"].as_str().unwrap().contains(name));
        assert_eq!(tensor["change"].is_null(), from_zero, "{tensor}");
        assert!(tensor["gradient"].as_f64().unwrap() > 0.0, "{tensor}");
    }
    assert_eq!(space.entries(".").len(), 3);
}

#[test]
fn gradients_are_those_of_a_prompt_if_there_is_one() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out run"));
    let tables = space.told("inspect run --weights --prompt gato").0;
    assert!(tables.contains("over 3 tokens of the prompt"), "{tables}");
    // Longer than the context of 16: whole windows.
    space.write("long.txt", "O gato preto correu rapidamente. A gata");
    assert!(space.works("inspect run --weights --prompt-file long.txt").contains("over 32 tokens of the prompt"));
    space.refuses("inspect run --weights --prompt g", "the prompt: expected at least 2 tokens");
    space.refuses("inspect run --weights --prompt @#", "the prompt: ");
    space.refuses("inspect run --weights --out picture.svg", "--out: expected a file whose name ends in .html");
    space.refuses("inspect nowhere --weights", "nowhere");
}

/// What is not known says why, and the rest is shown.
#[test]
fn what_is_not_known_says_why() {
    let space = Space::new();
    space.works(&format!("train text.txt {SMALL} --out base"));
    space.works("train text.txt --init base --steps 3 --batch 4 --out tuned");
    space.works("train text.txt --init base --lora 2 --steps 3 --batch 4 --out adapted");
    for run in ["tuned", "adapted"] {
        assert!(!space.works(&format!("inspect {run} --weights")).contains("not known"), "{run}");
    }
    space.works("convert tuned --merge stranger");
    let tables = space.works("inspect stranger --weights");
    let reason = "  not known: stranger is not a run: it has no training/lock\n";
    assert_eq!(tables.matches(reason).count(), 2, "{tables}");
    space.works("inspect stranger --weights --prompt gato --out <b>.html");
    let page = space.page_data("<b>.html");
    assert!(page["start"]["missing"].as_str().unwrap().contains("is not a run") && page["gradients"]["is"].is_string());
    space.remove("base");
    let tables = space.works("inspect tuned --weights");
    assert!(
        tables.contains("not known: ") && tables.contains("got nothing") && tables.contains("training batch"),
        "{tables}"
    );
    std::fs::remove_file(space.path("tuned/training/settings.toml")).unwrap();
    assert_eq!(space.works("inspect tuned --weights").matches("not known: cannot read").count(), 2);
}
