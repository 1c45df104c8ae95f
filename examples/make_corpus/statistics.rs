//! How well models that do not look at the noun guess its agreement: the baseline that a model of this corpus has to
//! beat.

use std::collections::{BTreeMap, BTreeSet};

use super::lexicon::{ADJECTIVES, Class, ENDINGS, Form};
use super::reading::{Agreement, Reader};

/// The share of validation targets whose form is guessed correctly, overall and for each form in the text.
pub struct Accuracy {
    pub overall: f64,
    pub by_form: [f64; 4],
}

/// The agreements of a text.
pub fn agreements<'t>(reader: &Reader, text: &'t str) -> Vec<Agreement<'t>> {
    text.lines().flat_map(|line| reader.agreements(line)).collect()
}

/// The pairs (class, noun row, adjective) of a text.
pub fn pairs(agreements: &[Agreement]) -> BTreeSet<(Class, usize, usize)> {
    agreements.iter().map(|found| (found.noun.class, found.noun.row, found.adjective)).collect()
}

/// What a guess may depend on.
pub type Key = fn(&Agreement) -> String;

/// The word bigram: P(form | previous word) of the four forms of this adjective.
pub const WORD_BIGRAM: Key = |found| format!("{} {}", found.previous[0], found.adjective);
/// Names and keys of the counting models; the last one looks at the noun, which is the grammar's rule.
pub const MODELS: [(&str, Key); 6] = [
    ("word bigram", WORD_BIGRAM),
    ("word bigram, adjectives pooled", |found| found.previous[0].to_string()),
    ("word trigram, adjectives pooled", |found| found.previous.join(" ")),
    ("form of the nearest noun", |found| format!("{:?}", found.nearest.form)),
    ("determiner of its noun", |found| found.determiner.to_lowercase()),
    ("its noun (the grammar)", |found| format!("{:?}", found.noun)),
];

/// Counts forms by key in training, with add-one smoothing, and guesses the most likely one in validation.
pub fn counted(train: &[Agreement], validation: &[Agreement], key: Key) -> Accuracy {
    let mut counts = BTreeMap::<String, [u32; 4]>::new();
    for found in train {
        counts.entry(key(found)).or_default()[found.form.index()] += 1;
    }
    accuracy(validation, |found| counts.get(&key(found)).copied().unwrap_or_default().map(|count| f64::from(count + 1)))
}

/// The character bigram: the letters of the ending and the character after it, each given the one before.
pub fn character_bigram(train: &str, validation: &[Agreement]) -> Accuracy {
    let mut counts = BTreeMap::<(char, char), u32>::new();
    let mut firsts = BTreeMap::<char, u32>::new();
    for (first, second) in train.chars().zip(train.chars().skip(1)) {
        *counts.entry((first, second)).or_default() += 1;
        *firsts.entry(first).or_default() += 1;
    }
    let count = |pair| counts.get(&pair).copied().unwrap_or(0);
    let total = |first| firsts.get(&first).copied().unwrap_or(0) as usize + firsts.len();
    let probability = |first, second| f64::from(count((first, second)) + 1) / total(first) as f64;
    accuracy(validation, |found| {
        Form::ALL.map(|form| {
            let written = format!("{}{}{}", ADJECTIVES[found.adjective].stem, form.of(ENDINGS), found.next);
            written.chars().zip(written.chars().skip(1)).map(|(first, second)| probability(first, second)).product()
        })
    })
}

/// The guess is the form with the best of four scores; ties share it.
fn accuracy(targets: &[Agreement], score: impl Fn(&Agreement) -> [f64; 4]) -> Accuracy {
    let (mut right, mut seen) = ([0.0; 4], [0.0; 4]);
    for found in targets {
        let scores = score(found);
        let best = scores.iter().copied().fold(f64::MIN, f64::max);
        let ties = scores.iter().filter(|&&score| score == best).count();
        let form = found.form.index();
        seen[form] += 1.0;
        if scores[form] == best {
            right[form] += 1.0 / ties as f64;
        }
    }
    let overall = right.iter().sum::<f64>() / seen.iter().sum::<f64>();
    Accuracy { overall, by_form: [0, 1, 2, 3].map(|form| right[form] / seen[form]) }
}
