//! Texts that a model writes, and where they end.

use std::collections::HashSet;
use std::ops::ControlFlow;

use candle_attention::Error;
use candle_attention::generate::{
    Continuation, OutputForm, Piece, Pipeline, Sampler, SamplingOptions, generate, generate_side_by_side,
};
use candle_attention::model::ModelConfig;
use candle_attention::text::Tokenizer;
use candle_core::DType;

use crate::model::{random_model, tiny};

/// A model of bytes whose texts are long and random, and sometimes end.
fn pipeline_of_bytes(end_of_text: bool) -> Pipeline {
    let tokenizer = Tokenizer::bytes(end_of_text).unwrap();
    let config =
        ModelConfig { end_of_text_id: tokenizer.end_of_text_id(), vocab_size: tokenizer.vocab_size(), ..tiny() };
    Pipeline::new(random_model(&config, DType::F32).0, tokenizer)
}

/// The samples as they are delivered.
fn delivered(pipeline: &Pipeline, continuation: &Continuation) -> Vec<Vec<u8>> {
    let mut texts = vec![Vec::new(); continuation.samples];
    let mut is_ended = vec![false; continuation.samples];
    continuation
        .write(pipeline, "ab", &mut |piece| {
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
    let pipeline = pipeline_of_bytes(true);
    let mut lens = vec![];
    for (seed, samples) in [(1, 1), (1, 2), (5, 7)] {
        let continuation =
            Continuation { max_tokens: 150, seed, samples, form: OutputForm::Bytes, ..Default::default() };
        for (stream, text) in delivered(&pipeline, &continuation).into_iter().enumerate() {
            let mut sampler = Sampler::new(continuation.sampling, seed, stream as u64).unwrap();
            let alone = generate(&pipeline.model, &[97, 98], 150, &mut sampler, &mut |_| ControlFlow::Continue(()));
            assert_eq!(text, pipeline.tokenizer.decode_bytes(&alone.unwrap()).unwrap(), "sample {stream} of {samples}");
            lens.push(text.len());
        }
    }
    assert!(lens.iter().any(|len| *len < 150) && lens.contains(&150), "some end, some do not: {lens:?}");
}

/// Each id of a text ends it where it first occurs, once the model's configuration lists it as a further end.
#[test]
fn a_sample_ends_at_any_of_several_ends() {
    let Pipeline { model, .. } = pipeline_of_bytes(false);
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
    let pipeline = pipeline_of_bytes(false);
    for form in [OutputForm::Bytes, OutputForm::Text] {
        let whole = Continuation { max_tokens: 150, samples: 3, form, ..Default::default() };
        let texts = delivered(&pipeline, &whole);
        let place = |text: &[u8], stop: &str| text.windows(stop.len()).position(|part| part == stop.as_bytes());
        let mut cuts = 0;
        for stop in ["a", "k", "7", "\u{1}", "\u{fffd}\u{fffd}", "never to be found"].map(String::from) {
            let stopped =
                delivered(&pipeline, &Continuation { stop: vec!["\0\0\0".into(), stop.clone()], ..whole.clone() });
            for (text, stopped) in texts.iter().zip(stopped) {
                let end = place(text, &stop);
                assert_eq!(stopped, text[..end.unwrap_or(text.len())], "{form:?}, stop {stop:?}");
                cuts += usize::from(end.is_some());
            }
        }
        assert!(cuts > 2, "{cuts} samples cut");
    }
    let empty = Continuation { stop: vec![String::new()], ..Default::default() };
    let error = empty.write(&pipeline, "", &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("stop: expected texts of at least one character"), "{error}");
}

#[test]
fn a_sample_that_was_stopped_delivers_nothing_more() {
    let pipeline = pipeline_of_bytes(false);
    let continuation = Continuation { max_tokens: 40, samples: 3, form: OutputForm::Bytes, ..Default::default() };
    let mut heard = [0; 3];
    continuation
        .write(&pipeline, "ab", &mut |piece| {
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
        let pipeline = Pipeline::new(random_model(&config, DType::F32).0, tokenizer);
        let with = |sampler: Sampler| {
            let mut ids = HashSet::new();
            for seed in 0..3 {
                let mut sampler = sampler.clone();
                let new = generate(&pipeline.model, &[seed], 500, &mut sampler, &mut |_| ControlFlow::Continue(()));
                ids.extend(new.unwrap());
            }
            ids
        };
        let sampler = Sampler::new(SamplingOptions::default(), 1, 0).unwrap();
        assert!(
            with(sampler.clone()).iter().any(|id| !pipeline.tokenizer.has_token(*id)),
            "the model draws such ids by itself"
        );
        let without: Vec<u32> = (0..vocab_size as u32).filter(|id| !pipeline.tokenizer.has_token(*id)).collect();
        assert!(with(sampler.excluding(without)).iter().all(|id| pipeline.tokenizer.has_token(*id)));

        let continuation = Continuation { max_tokens: 500, samples: 3, form: OutputForm::Bytes, ..Default::default() };
        let (mut texts, mut pieces) = (vec![0; 3], HashSet::new());
        let mut collect = |piece: Piece| {
            texts[piece.sample] += piece.text.len();
            pieces.insert(piece.text.to_vec());
            ControlFlow::Continue(())
        };
        continuation.write(&pipeline, "a", &mut collect).unwrap();
        assert!(texts.iter().all(|len| *len >= 500) && pieces.len() >= drawn, "{texts:?}, {} kinds", pieces.len());
    }
}

/// An id that ends a text may be drawn even if the tokenizer lacks it: it is never decoded.
#[test]
fn an_end_of_text_that_the_tokenizer_lacks_still_ends_a_sample() {
    let tokenizer = Tokenizer::bytes(false).unwrap();
    let config = ModelConfig { vocab_size: 300, end_of_text_id: Some(280), ..tiny() };
    let pipeline = Pipeline::new(random_model(&config, DType::F32).0, tokenizer);
    let continuation = Continuation { max_tokens: 5000, form: OutputForm::Bytes, ..Default::default() };
    assert!(delivered(&pipeline, &continuation)[0].len() < 5000);
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
        let pipeline = Pipeline::new(random_model(&config, DType::F32).0, tokenizer);
        // Several texts: in one, the start may not show.
        let start = |id: u32| {
            let text = |seed: u64| {
                let mut sampler = Sampler::new(SamplingOptions::default(), seed, 0).unwrap();
                let new =
                    generate(&pipeline.model, &[id], 40, &mut sampler, &mut |_| ControlFlow::Continue(())).unwrap();
                pipeline.tokenizer.decode(&new).unwrap()
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
            continuation.write(&pipeline, "", &mut collect).unwrap();
        }
        assert_eq!(String::from_utf8(text).unwrap(), start(expected), "{begin:?}, {end:?}");
        let others = (0..4).filter(|id| *id != expected);
        assert!(others.map(start).all(|other| other != start(expected)), "the start shows in the text");
    }
}

#[test]
fn an_error_ends_all_samples() {
    let pipeline = pipeline_of_bytes(false);
    let mut samplers = vec![Sampler::new(SamplingOptions::default(), 1, 0).unwrap(); 2];
    let mut heard = 0;
    let error = generate_side_by_side(&pipeline.model, &[1], 40, &mut samplers, &mut |_, _| {
        heard += 1;
        if heard == 5 {
            return Err(Error::Input("enough".into()));
        }
        Ok(ControlFlow::Continue(()))
    });
    assert_eq!(error.unwrap_err().to_string(), "enough");
    assert_eq!(heard, 5);
}

#[test]
fn a_tokenizer_may_have_more_tokens_than_its_model_as_long_as_no_text_needs_them() {
    let space = tempfile::tempdir().unwrap();
    Tokenizer::bytes(true).unwrap().save(space.path(), 7).unwrap();
    for (vocab_size, knows_z, end) in
        [(100, false, None), (256, true, None), (257, true, Some(256)), (300, true, Some(256))]
    {
        let config = ModelConfig { vocab_size, ..tiny() };
        std::fs::write(space.path().join("config.json"), config.to_json().unwrap()).unwrap();
        let (config, tokenizer) = Pipeline::open_config(space.path()).unwrap();
        assert_eq!(config.end_of_text_id, end, "{vocab_size}");
        assert_eq!(tokenizer.encode("abc").unwrap(), [97, 98, 99]);
        let z = tokenizer.encode("az");
        assert_eq!(z.is_ok(), knows_z, "{vocab_size}");
        if let Err(error) = z {
            assert!(error.to_string().contains("tokens of the model, which has 100, got \"z\""), "{error}");
        }
    }
}
