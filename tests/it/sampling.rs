//! Choosing tokens: probabilities compared with transformers', and draws with probabilities.

use std::path::Path;

use candle_attention::generate::{GenerationDefaults, Sampler, SamplingOptions};
use serde::Deserialize;

/// Logits after a text, and what transformers makes of them in each case.
#[derive(Deserialize)]
struct Fixture<T> {
    text: Vec<u32>,
    logits: Vec<Vec<f32>>,
    cases: Vec<T>,
}

#[derive(Deserialize)]
struct Case {
    options: CaseOptions,
    probabilities: Expected,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseOptions {
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

impl From<CaseOptions> for SamplingOptions {
    fn from(options: CaseOptions) -> Self {
        let CaseOptions { temperature, top_k, top_p, min_p, repetition_penalty } = options;
        let (temperature, repetition_penalty) = (temperature.unwrap_or(1.0), repetition_penalty.unwrap_or(1.0));
        Self { temperature, top_k, top_p, min_p, repetition_penalty }
    }
}

/// The probabilities that transformers chooses by, for each of the logits.
type Expected = Vec<Vec<f64>>;

/// `tests/fixtures/sampling.py` puts the same logits through transformers' own processors, in f64.
fn fixture() -> (Fixture<Case>, Vec<(SamplingOptions, Expected)>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling.json");
    let mut fixture: Fixture<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = fixture.cases.drain(..).map(|case| (case.options.into(), case.probabilities)).collect();
    (fixture, cases)
}

#[test]
fn probabilities_are_those_of_transformers() {
    let (Fixture { text, logits, .. }, cases) = fixture();
    assert_eq!((logits.len(), cases.len()), (4, 15));
    for (options, expected) in cases {
        hold(&format!("{options:?}"), &options, (&text, &logits), expected);
    }
}

/// Compares the probabilities after a text, for each of the logits.
fn hold(label: &str, options: &SamplingOptions, (text, logits): (&[u32], &[Vec<f32>]), expected: Expected) {
    for (logits, expected) in logits.iter().zip(expected) {
        let got = options.probabilities(logits, text).unwrap();
        assert_eq!(got.len(), expected.len());
        for (id, (got, expected)) in got.iter().zip(expected).enumerate() {
            // A few rounding errors of f64 in an exponential.
            assert!((got - expected).abs() < 1e-14, "{label}, token {id}: {got}, expected {expected}");
            assert_eq!(*got == 0.0, expected == 0.0, "{label}, token {id}");
        }
    }
}

/// `tests/fixtures/generation_config.py` has transformers read the same files.
#[test]
fn a_generation_config_is_applied_as_by_transformers() {
    #[derive(Deserialize)]
    struct Case {
        json: serde_json::Value,
        probabilities: Expected,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generation_config.json");
    let Fixture { text, logits, cases } = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((logits.len(), cases.len()), (3, 10));
    for Case { json, probabilities } in cases {
        let defaults = GenerationDefaults::from_json(json.to_string().as_bytes()).unwrap();
        let temperature = if defaults.do_sample { defaults.sampling.temperature } else { 0.0 };
        let options = SamplingOptions { temperature, ..defaults.sampling };
        hold(&json.to_string(), &options, (&text, &logits), probabilities);
    }
}

#[test]
fn tokens_come_as_often_as_their_probabilities_say() {
    const DRAWS: usize = 20_000;
    let (Fixture { text, logits, .. }, cases) = fixture();
    for (options, expected) in cases {
        let mut sampler = Sampler::new(options, 7, 3).unwrap();
        let mut counts = vec![0; logits[0].len()];
        for _ in 0..DRAWS {
            counts[sampler.sample(&logits[0], &text).unwrap() as usize] += 1;
        }
        for (id, (count, p)) in counts.into_iter().zip(&expected[0]).enumerate() {
            // Five standard deviations of a binomial count, exceeded once in two million.
            let (mean, deviation) = (DRAWS as f64 * p, (DRAWS as f64 * p * (1.0 - p)).sqrt());
            let difference = (count as f64 - mean).abs();
            assert!(
                difference <= 5.0 * deviation + 1e-6,
                "{options:?}: token {id} came {count} times, expected {mean}"
            );
        }
    }
}

/// The first of the highest logits, after the penalty.
#[test]
fn without_temperature_the_likeliest_comes() {
    let greedy = |penalty| SamplingOptions { temperature: 0.0, repetition_penalty: penalty, ..Default::default() };
    let logits = [1.0, 2.0, f32::NEG_INFINITY, 2.0];
    for (penalty, text, expected) in [(1.0, &[][..], 1), (1.5, &[1], 3), (1.5, &[1, 3], 1), (3.0, &[1, 3, 9], 0)] {
        assert_eq!(Sampler::new(greedy(penalty), 1, 0).unwrap().sample(&logits, text).unwrap(), expected);
        let mut certain = [0.0; 4];
        certain[expected as usize] = 1.0;
        assert_eq!(greedy(penalty).probabilities(&logits, text).unwrap(), certain);
    }
}

#[test]
fn options_out_of_their_range_are_refused() {
    let with = |change: fn(&mut SamplingOptions)| {
        let mut options = SamplingOptions::default();
        change(&mut options);
        Sampler::new(options, 1, 0).unwrap_err().to_string()
    };
    for (error, expected) in [
        (with(|options| options.temperature = -0.1), "temperature: expected a number of at least 0, got -0.1"),
        (with(|options| options.temperature = f64::INFINITY), "temperature"),
        (with(|options| options.top_p = Some(0.0)), "top-p: expected a number above 0 and up to 1, got 0"),
        (with(|options| options.min_p = Some(1.5)), "min-p: expected a number from 0 to 1, got 1.5"),
        (with(|options| options.repetition_penalty = 0.0), "repetition-penalty: expected a number above 0, got 0"),
        (with(|options| options.repetition_penalty = f64::NAN), "repetition-penalty"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    let options = SamplingOptions { repetition_penalty: 1e-300, ..Default::default() };
    let error = Sampler::new(options, 1, 0).unwrap().sample(&[], &[]).unwrap_err().to_string();
    assert!(error.contains("sampler: expected the logits of at least one token, got none"), "{error}");
    for logits in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
        let error = Sampler::new(options, 1, 0).unwrap().sample(logits, &[]).unwrap_err().to_string();
        assert!(error.contains("expected finite logits"), "{error}");
    }
    // A penalty beyond the range of f32 still counts.
    assert_eq!(options.probabilities(&[f32::MAX, 1.0], &[0]).unwrap(), [1.0, 0.0]);
    // One that takes all logits to the lowest number makes them equal.
    let options = SamplingOptions { repetition_penalty: 1e308, ..Default::default() };
    let logits = [-20.0, -30.0, f32::NEG_INFINITY];
    assert_eq!(options.probabilities(&logits, &[0, 1, 2]).unwrap(), [0.5, 0.5, 0.0]);
    assert_eq!(options.probabilities(&logits, &[0]).unwrap(), [0.0, 1.0, 0.0]);
}

#[test]
fn what_keeps_all_tokens_is_off() {
    let all = SamplingOptions::default().probabilities(&[1.0, 3.0, -40.0, 2.0], &[]).unwrap();
    for options in [
        SamplingOptions { top_k: Some(0), ..Default::default() },
        SamplingOptions { min_p: Some(0.0), ..Default::default() },
        SamplingOptions { top_p: Some(1.0), ..Default::default() },
    ] {
        assert_eq!(options.probabilities(&[1.0, 3.0, -40.0, 2.0], &[]).unwrap(), all, "{options:?}");
    }
}

/// Equal logits have weights of 1, so the sums are exact: a `p` of 1/2 takes two of four tokens, not three.
#[test]
fn top_p_at_an_exact_boundary_takes_the_tokens_up_to_it() {
    for (p, expected) in
        [(0.25, 1), (0.5, 2), (0.75, 3), (0.25f64.next_up(), 2), (0.5f64.next_up(), 3), (0.5f64.next_down(), 2)]
    {
        let options = SamplingOptions { top_p: Some(p), ..Default::default() };
        let kept = options.probabilities(&[2.5; 4], &[]).unwrap();
        assert_eq!(kept.iter().filter(|p| **p > 0.0).count(), expected, "top_p {p}");
    }
}
