//! Measuring how long a run will take.

use std::time::Duration;

use candle_attention::text::{CorpusOptions, Document, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Forecast, Trainer};
use candle_core::Device;

use crate::training::{config, options, trainer};

#[test]
fn steps_and_validations_are_measured() {
    let forecast = Forecast::measure(trainer(&options(10)).1).unwrap();
    let Forecast { first_step, step, validation, total } = forecast;
    assert!([first_step, step, validation].iter().all(|part| *part > Duration::ZERO), "{forecast:?}");
    // Validations after steps 4, 8 and 10.
    let expected = first_step + 9 * step + 3 * validation;
    assert!(total.abs_diff(expected) < Duration::from_micros(1), "{forecast:?}");
    // A single step is not measured twice.
    let single = Forecast::measure(trainer(&options(1)).1).unwrap();
    assert_eq!(single.step, single.first_step);
}

#[test]
fn without_a_validation_text_no_validation_is_counted() {
    let documents = [Document::new("letters", "a b c d e f g h. ".repeat(20))];
    let in_memory = CorpusOptions::in_memory(13);
    let choice = TokenizerChoice::Characters;
    let (tokenizer, corpus) =
        prepare(&documents, &Validation::Fraction(0.0), &choice, &in_memory, &mut |_| {}).unwrap();
    let trainer = Trainer::new(&config(&tokenizer), &options(5), corpus, &Device::Cpu).unwrap();
    assert_eq!(Forecast::measure(trainer).unwrap().validation, Duration::ZERO);
}
