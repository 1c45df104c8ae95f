//! The built-in corpus is what its grammar generates, and has the properties that `data/README.md` claims; these are
//! found in the text of the two files.

use std::collections::BTreeSet;

use grammar::FIRST;
use lexicon::{ADJECTIVES, Class, ENDINGS, Form, ROWS};
use reading::{Agreement, Reader};
use statistics::{Accuracy, MODELS, WORD_BIGRAM, agreements, character_bigram, counted, pairs};

#[path = "../../examples/make_corpus/grammar.rs"]
mod grammar;
#[path = "../../examples/make_corpus/lexicon/mod.rs"]
pub mod lexicon;
#[path = "../../examples/make_corpus/reading.rs"]
pub mod reading;
#[path = "../../examples/make_corpus/statistics.rs"]
mod statistics;

pub const TRAIN: &str = include_str!("../../data/train.txt");
pub const VALIDATION: &str = include_str!("../../data/validation.txt");

fn both() -> (Vec<Agreement<'static>>, Vec<Agreement<'static>>) {
    let reader = Reader::new();
    (agreements(&reader, TRAIN), agreements(&reader, VALIDATION))
}

#[test]
fn the_grammar_makes_the_files_byte_for_byte() {
    let made = grammar::corpus();
    for (name, made, stored) in [("train", made.train, TRAIN), ("validation", made.validation, VALIDATION)] {
        let differs = made.lines().zip(stored.lines()).position(|(made, stored)| made != stored);
        assert_eq!(differs, None, "{name}: first line that differs, counted from 0");
        assert!(made == stored, "{name}: {} bytes made, {} stored", made.len(), stored.len());
    }
}

#[test]
fn sentences_are_many_and_none_comes_twice() {
    let lines: Vec<&str> = TRAIN.lines().chain(VALIDATION.lines()).collect();
    let different: BTreeSet<&str> = lines.iter().copied().collect();
    assert!(TRAIN.lines().count() >= 20_000, "{} training sentences", TRAIN.lines().count());
    assert!(VALIDATION.lines().count() >= 2_000, "{} validation sentences", VALIDATION.lines().count());
    assert_eq!(different.len(), lines.len(), "different sentences, sentences");
    assert!(TRAIN.len() + VALIDATION.len() <= 1_300_000, "{} bytes", TRAIN.len() + VALIDATION.len());
    assert_eq!(TRAIN.lines().next(), Some(FIRST));
    assert_eq!(FIRST, "O gato preto correu rapidamente.");
}

#[test]
fn a_line_is_one_sentence() {
    for line in TRAIN.lines().chain(VALIDATION.lines()) {
        assert!(line.starts_with(char::is_uppercase), "{line}");
        assert_eq!(line.find('.'), Some(line.len() - 1), "{line}");
        assert!(!line.contains("  ") && !line.contains(" ,") && !line.contains('\r'), "{line}");
        assert_eq!(line.matches(char::is_uppercase).count(), 1, "{line}");
    }
    assert!(TRAIN.ends_with('\n') && VALIDATION.ends_with('\n'));
}

#[test]
fn every_noun_adjective_determiner_and_verb_agrees() {
    let reader = Reader::new();
    for line in TRAIN.lines().chain(VALIDATION.lines()) {
        assert_eq!(reader.fault(line), None);
    }
}

#[test]
fn the_reader_sees_what_is_wrong() {
    let reader = Reader::new();

    for right in ["A gata dos vizinhos estava muito cansada.", "Ana achou o mapa que as moças viram bem antigo."] {
        assert_eq!(reader.fault(right), None);
    }
    for wrong in [
        "A gata dos vizinhos estava muito cansados.",
        "A gata dos vizinhos estavam muito cansada.",
        "O gata dos vizinhos estava muito cansada.",
        "A gata das vizinhos estava muito cansada.",
        "Ana achou o mapa que as moças viu bem antigo.",
        "Cada pontes estavam bem limpas.",
        "A gata dos vizinhos dormiu na varanda.",
    ] {
        assert!(reader.fault(wrong).is_some(), "{wrong}");
    }
}

#[test]
fn training_never_shows_a_pair_of_validation() {
    let (train, validation) = both();
    let (shown, held_out) = (pairs(&train), pairs(&validation));
    let common: Vec<_> = held_out.intersection(&shown).collect();
    assert!(common.is_empty(), "{common:?}");
    let possible: usize = ADJECTIVES.iter().map(|adjective| ROWS * adjective.classes.len()).sum();
    let share = held_out.len() as f64 / possible as f64;
    assert!((0.10..=0.15).contains(&share), "{} of {possible} pairs held out", held_out.len());
}

#[test]
fn training_shows_every_form_of_every_noun_and_adjective() {
    let (train, _) = both();
    let nouns: BTreeSet<_> = train.iter().map(|found| (found.noun.class, found.noun.row, found.form)).collect();
    assert_eq!(nouns.len(), Class::ALL.iter().map(|class| 4 * class.nouns().len()).sum::<usize>());
    let adjectives: BTreeSet<_> = train.iter().map(|found| (found.adjective, found.form)).collect();
    assert_eq!(adjectives.len(), 4 * ADJECTIVES.len());
}

#[test]
fn validation_asks_at_a_distance_and_for_every_form_alike() {
    let (_, validation) = both();
    assert_eq!(validation.len(), VALIDATION.lines().count());
    assert!(validation.iter().all(|found| !found.adjacent));
    for form in Form::ALL {
        let share = validation.iter().filter(|found| found.form == form).count() as f64 / validation.len() as f64;
        assert!((0.22..=0.28).contains(&share), "{share} are {form:?}");
    }
}

#[test]
fn bigrams_are_at_chance_and_the_noun_is_enough() {
    let (train, validation) = both();
    let at_chance = |name: &str, accuracy: Accuracy| {
        assert!((0.22..=0.28).contains(&accuracy.overall), "{name}: {}", accuracy.overall);
    };
    at_chance("character bigram", character_bigram(TRAIN, &validation));
    at_chance("word bigram", counted(&train, &validation, WORD_BIGRAM));
    at_chance("pooled word bigram", counted(&train, &validation, MODELS[1].1));
    let (name, noun) = MODELS[MODELS.len() - 1];
    assert_eq!(counted(&train, &validation, noun).by_form, [1.0; 4], "{name}");
}

#[test]
fn characters_are_few_and_training_shows_them_all() {
    let (train, validation): (BTreeSet<char>, BTreeSet<char>) = (TRAIN.chars().collect(), VALIDATION.chars().collect());
    assert!(train.len() < 70, "{} characters", train.len());
    assert!(validation.is_subset(&train), "{:?}", validation.difference(&train));
}

#[test]
fn no_two_words_of_the_tables_are_spelled_alike() {
    let nouns = Class::ALL.iter().flat_map(|class| class.nouns()).flatten().map(|noun| noun.to_string());
    let stems = ADJECTIVES.iter().flat_map(|adjective| ENDINGS.map(|ending| format!("{}{ending}", adjective.stem)));
    let words: Vec<String> = nouns.chain(stems).collect();
    assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
}
