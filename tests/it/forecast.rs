//! How long a run will take, held against what it is made of.

use std::time::Duration;

use candle_attention::text::{CorpusOptions, Document, TokenizerChoice, Validation, prepare};
use candle_attention::train::{Forecast, TrainOptions, Trainer};
use candle_core::Device;

use crate::training::{config, options, trainer};

fn seconds(forecast: &Forecast, steps: f64, validations: f64) -> f64 {
    let [first, step, validation] =
        [forecast.first_step, forecast.step, forecast.validation].map(|part| part.as_secs_f64());
    first + steps * step + validations * validation
}

#[test]
fn the_total_is_that_of_steps_and_validations() {
    // Validations after steps 4, 8, and at the end.
    let forecast = Forecast::measure(trainer(&options(10)).1).unwrap();
    assert!((forecast.total.as_secs_f64() - seconds(&forecast, 9.0, 3.0)).abs() < 1e-6, "{forecast:?}");
    assert!(forecast.step > Duration::ZERO && forecast.validation > Duration::ZERO, "{forecast:?}");
    let one = Forecast::measure(trainer(&options(4)).1).unwrap();
    assert!((one.total.as_secs_f64() - seconds(&one, 3.0, 1.0)).abs() < 1e-6, "{one:?}");
}

#[test]
fn steps_of_a_ramp_count_as_the_part_they_are() {
    let half = TrainOptions { batch_size: 6, batch_ramp: "3:10".parse().ok(), ..options(10) };
    let forecast = Forecast::measure(trainer(&half).1).unwrap();
    assert!((forecast.total.as_secs_f64() - seconds(&forecast, 4.5, 3.0)).abs() < 1e-3, "{forecast:?}");
}

#[test]
fn without_a_validation_part_none_is_counted() {
    let documents = [Document::new("letters", "a b c d e f g h. ".repeat(20))];
    let in_memory = CorpusOptions::in_memory(13);
    let choice = TokenizerChoice::Characters;
    let (tokenizer, corpus) =
        prepare(&documents, &Validation::Fraction(0.0), &choice, &in_memory, &mut |_| {}).unwrap();
    let trainer = Trainer::new(&config(&tokenizer), &options(5), corpus, &Device::Cpu).unwrap();
    assert_eq!(Forecast::measure(trainer).unwrap().validation, Duration::ZERO);
}
