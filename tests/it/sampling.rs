//! Choosing tokens: probabilities compared with transformers', draws with probabilities; texts and where they end.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::generate::{
    Continuation, OutputForm, Piece, Sampler, SamplingOptions, generate, generate_side_by_side,
};
use candle_attention::model::ModelConfig;
use candle_attention::run::Run;
use candle_attention::text::Tokenizer;
use candle_core::DType;
use serde::Deserialize;

use crate::model::{random_model, tiny};

#[derive(Deserialize)]
struct Fixture {
    text: Vec<u32>,
    logits: Vec<Vec<f32>>,
    cases: Vec<Case>,
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
fn fixture() -> (Fixture, Vec<(SamplingOptions, Expected)>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling.json");
    let mut fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let cases = fixture.cases.drain(..).map(|case| (case.options.into(), case.probabilities)).collect();
    (fixture, cases)
}

#[test]
fn probabilities_are_those_of_transformers() {
    let (Fixture { text, logits, .. }, cases) = fixture();
    assert_eq!((logits.len(), cases.len()), (4, 15));
    for (options, expected) in cases {
        for (logits, expected) in logits.iter().zip(expected) {
            let got = options.probabilities(logits, &text).unwrap();
            assert_eq!(got.len(), expected.len());
            for (id, (got, expected)) in got.iter().zip(expected).enumerate() {
                // A few rounding errors of f64 in an exponential.
                assert!((got - expected).abs() < 1e-14, "{options:?}, token {id}: {got}, expected {expected}");
                assert_eq!(*got == 0.0, expected == 0.0, "{options:?}, token {id}");
            }
        }
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
        (with(|options| options.temperature = -0.1), "expected a temperature of at least 0, got -0.1"),
        (with(|options| options.temperature = f64::INFINITY), "temperature"),
        (with(|options| options.top_k = Some(0)), "expected top_k of at least 1, got 0"),
        (with(|options| options.top_p = Some(0.0)), "expected top_p above 0 and up to 1, got 0"),
        (with(|options| options.min_p = Some(1.5)), "expected min_p above 0 and up to 1, got 1.5"),
        (with(|options| options.repetition_penalty = 0.0), "expected a repetition penalty above 0, got 0"),
        (with(|options| options.repetition_penalty = f64::NAN), "repetition penalty"),
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

/// A model of bytes whose texts are long and random, and sometimes end.
fn run_of_bytes(end_of_text: bool) -> Run {
    let tokenizer = Tokenizer::bytes(end_of_text).unwrap();
    let config =
        ModelConfig { end_of_text_id: tokenizer.end_of_text_id(), vocab_size: tokenizer.vocab_size(), ..tiny() };
    Run { model: random_model(&config, DType::F32).0, tokenizer }
}

/// The samples as they are delivered.
fn delivered(run: &Run, continuation: &Continuation) -> Vec<Vec<u8>> {
    let mut texts = vec![Vec::new(); continuation.samples];
    let mut is_ended = vec![false; continuation.samples];
    continuation
        .write(run, "ab", &mut |piece| {
            assert!(!is_ended[piece.sample], "a piece after the last one");
            assert!(piece.is_last || !piece.text.is_empty());
            texts[piece.sample].extend_from_slice(piece.text);
            is_ended[piece.sample] = piece.is_last;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(!is_ended.contains(&false), "a sample without an end");
    texts
}

#[test]
fn samples_are_those_that_their_samplers_write_alone() {
    let run = run_of_bytes(true);
    let mut lens = vec![];
    for (seed, samples) in [(1, 1), (1, 2), (5, 7)] {
        let continuation =
            Continuation { max_tokens: 150, seed, samples, form: OutputForm::Bytes, ..Default::default() };
        for (stream, text) in delivered(&run, &continuation).into_iter().enumerate() {
            let mut sampler = Sampler::new(continuation.sampling, seed, stream as u64).unwrap();
            let alone = generate(&run.model, &[97, 98], 150, &mut sampler, &mut |_| ControlFlow::Continue(()));
            assert_eq!(text, run.tokenizer.decode_bytes(&alone.unwrap()).unwrap(), "sample {stream} of {samples}");
            lens.push(text.len());
        }
    }
    assert!(lens.iter().any(|len| *len < 150) && lens.contains(&150), "some end, some do not: {lens:?}");
}

/// Each id of a text ends it where it first occurs, once the model's configuration lists it as a further end.
#[test]
fn a_sample_ends_at_any_of_several_ends() {
    let Run { model, .. } = run_of_bytes(false);
    let text = |others: &[u32]| {
        let other_end_ids = others.to_vec();
        let config = ModelConfig { end_of_text_id: Some(255), other_end_ids, ..model.config().clone() };
        let model = random_model(&config, DType::F32).0;
        let mut sampler = Sampler::new(SamplingOptions::default(), 1, 0).unwrap();
        generate(&model, &[97, 98], 60, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let whole = text(&[]);
    assert!(whole.len() > 20);
    let absent = (0..255).find(|id| !whole.contains(id)).unwrap();
    for id in &whole[5..] {
        let first = whole.iter().position(|other| other == id).unwrap();
        assert_eq!(text(&[absent, *id]), whole[..first]);
    }
}

#[test]
fn a_sample_ends_before_a_stop_text_and_the_others_go_on() {
    let run = run_of_bytes(false);
    for form in [OutputForm::Bytes, OutputForm::Text] {
        let whole = Continuation { max_tokens: 150, samples: 3, form, ..Default::default() };
        let texts = delivered(&run, &whole);
        let place = |text: &[u8], stop: &str| text.windows(stop.len()).position(|part| part == stop.as_bytes());
        let mut cuts = 0;
        for stop in ["a", "k", "7", "\u{1}", "\u{fffd}\u{fffd}", "never to be found"].map(String::from) {
            let stopped = delivered(&run, &Continuation { stop: vec!["\0\0\0".into(), stop.clone()], ..whole.clone() });
            for (text, stopped) in texts.iter().zip(stopped) {
                let end = place(text, &stop);
                assert_eq!(stopped, text[..end.unwrap_or(text.len())], "{form:?}, stop {stop:?}");
                cuts += usize::from(end.is_some());
            }
        }
        assert!(cuts > 2, "{cuts} samples cut");
    }
    let empty = Continuation { stop: vec![String::new()], ..Default::default() };
    let error = empty.write(&run, "", &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("expected stop texts of at least one character"), "{error}");
}

#[test]
fn a_sample_that_was_stopped_delivers_nothing_more() {
    let run = run_of_bytes(false);
    let continuation = Continuation { max_tokens: 40, samples: 3, form: OutputForm::Bytes, ..Default::default() };
    let mut heard = [0; 3];
    continuation
        .write(&run, "ab", &mut |piece| {
            heard[piece.sample] += piece.text.len();
            if heard[piece.sample] == [40, 7, 1][piece.sample] {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!(heard, [40, 7, 1]);
}

/// With a padded vocabulary, or a tokenizer with gaps, only ids with a token are drawn.
#[test]
fn ids_without_a_token_are_never_drawn() {
    let gaps = r#"{ "model": { "type": "BPE", "vocab": { "a": 0, "b": 3, "c": 8 }, "merges": [] }, "decoder": { "type": "Fuse" } }"#;
    for (tokenizer, vocab_size, drawn) in
        [(Tokenizer::bytes(false).unwrap(), 300, 200), (Tokenizer::from_json(gaps.as_bytes()).unwrap(), 11, 3)]
    {
        let config = ModelConfig { vocab_size, ..tiny() };
        let run = Run { model: random_model(&config, DType::F32).0, tokenizer };
        let with = |sampler: Sampler| {
            let mut ids = HashSet::new();
            for seed in 0..3 {
                let mut sampler = sampler.clone();
                let new = generate(&run.model, &[seed], 500, &mut sampler, &mut |_| ControlFlow::Continue(()));
                ids.extend(new.unwrap());
            }
            ids
        };
        let sampler = Sampler::new(SamplingOptions::default(), 1, 0).unwrap();
        assert!(
            with(sampler.clone()).iter().any(|id| !run.tokenizer.has_token(*id)),
            "the model draws such ids by itself"
        );
        let without: Vec<u32> = (0..vocab_size as u32).filter(|id| !run.tokenizer.has_token(*id)).collect();
        assert!(with(sampler.excluding(without)).iter().all(|id| run.tokenizer.has_token(*id)));

        let continuation = Continuation { max_tokens: 500, samples: 3, form: OutputForm::Bytes, ..Default::default() };
        let (mut texts, mut pieces) = (vec![0; 3], HashSet::new());
        let mut collect = |piece: Piece| {
            texts[piece.sample] += piece.text.len();
            pieces.insert(piece.text.to_vec());
            ControlFlow::Continue(())
        };
        continuation.write(&run, "a", &mut collect).unwrap();
        assert!(texts.iter().all(|len| *len >= 500) && pieces.len() >= drawn, "{texts:?}, {} kinds", pieces.len());
    }
}

/// An id that ends a text may be drawn even if the tokenizer lacks it: it is never decoded.
#[test]
fn an_end_of_text_that_the_tokenizer_lacks_still_ends_a_sample() {
    let tokenizer = Tokenizer::bytes(false).unwrap();
    let config = ModelConfig { vocab_size: 300, end_of_text_id: Some(280), ..tiny() };
    let run = Run { model: random_model(&config, DType::F32).0, tokenizer };
    let continuation = Continuation { max_tokens: 5000, form: OutputForm::Bytes, ..Default::default() };
    assert!(delivered(&run, &continuation)[0].len() < 5000);
}

/// Without a prompt: from the beginning-of-text token, else the end-of-text token, else a line break, else id 0.
#[test]
fn an_empty_prompt_starts_where_a_text_begins() {
    let characters = |text: &str| Tokenizer::characters(&[text], false).unwrap();
    for (tokenizer, begin, end, expected) in [
        (characters("ab\nc"), Some(3), Some(2), 3),
        (characters("ab\nc"), None, Some(2), 2),
        (characters("ab\nc"), None, None, 0),
        (characters("\tab\n"), None, None, 1),
        (characters("abcd"), None, None, 0),
    ] {
        let config = ModelConfig { vocab_size: 4, begin_of_text_id: begin, end_of_text_id: end, ..tiny() };
        let run = Run { model: random_model(&config, DType::F32).0, tokenizer };
        // Several texts: in one, the start may not show.
        let start = |id: u32| {
            let text = |seed: u64| {
                let mut sampler = Sampler::new(SamplingOptions::default(), seed, 0).unwrap();
                let new = generate(&run.model, &[id], 40, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap();
                run.tokenizer.decode(&new).unwrap()
            };
            (0..20).map(text).collect::<String>()
        };
        let mut text = Vec::new();
        for seed in 0..20 {
            let continuation = Continuation { max_tokens: 40, seed, ..Default::default() };
            let mut collect = |piece: Piece| {
                text.extend_from_slice(piece.text);
                ControlFlow::Continue(())
            };
            continuation.write(&run, "", &mut collect).unwrap();
        }
        assert_eq!(String::from_utf8(text).unwrap(), start(expected), "{begin:?}, {end:?}");
        let others = (0..4).filter(|id| *id != expected);
        assert!(others.map(start).all(|other| other != start(expected)), "the start shows in the text");
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

#[test]
fn an_error_ends_all_samples() {
    let run = run_of_bytes(false);
    let mut samplers = vec![Sampler::new(SamplingOptions::default(), 1, 0).unwrap(); 2];
    let mut heard = 0;
    let error = generate_side_by_side(&run.model, &[1], 40, &mut samplers, &mut |_, _| {
        heard += 1;
        if heard == 5 {
            candle_core::bail!("enough")
        }
        Ok(ControlFlow::Continue(()))
    });
    assert!(error.unwrap_err().to_string().starts_with("enough"));
    assert_eq!(heard, 5);
}
