//! The chapter's claim about attention, measured: does a head point from an adjective or participle back to its noun?

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_attention::Result;
use candle_attention::inspect::Words;
use candle_attention::model::{Architecture, CausalLm, ModelConfig, ResidualInit};
use candle_attention::optim::Schedule;
use candle_attention::text::{Document, IdsStore, TextOptions, Tokenizer, TokenizerChoice, Validation, prepare};
use candle_attention::train::{OptimizerKind, TrainOptions, Trainer, train};
use candle_core::{D, Device, IndexOp, Tensor};
use candle_nn::ops::softmax;

use super::lexicon::{ADJECTIVES, ENDINGS, Form, Kind, UNMARKED};
use super::reading::{Noun, Reader};

/// Training sentences on which a head is chosen.
pub const CHOSEN_ON: usize = 2000;

/// Steps of the model that is measured.
pub const STEPS: u64 = 1000;

/// A sentence up to where the four endings of its adjective part: what comes next depends on the noun.
pub struct Question {
    ids: Vec<u32>,
    /// The word of each token, which are those of `inspect`.
    words: Vec<usize>,
    /// The tokens that complete the adjective in each form.
    endings: [Vec<u32>; 4],
    form: Form,
    /// The word that is the adjective's noun.
    pub noun: usize,
    /// The last noun before the adjective.
    pub nearest: usize,
    /// Whether the word before its noun shows the gender.
    pub shows_gender: bool,
    /// Whether it is the participle of a passive.
    pub is_participle: bool,
}

impl Question {
    /// The visible word of most tokens, the last if there are several.
    pub fn longest(&self) -> usize {
        let tokens = |word: &usize| self.words.iter().filter(|&other| other == word).count();
        (0..self.visible()).max_by_key(tokens).unwrap_or(0)
    }

    /// The words that the position sees, its own included.
    pub fn visible(&self) -> usize {
        self.words.last().map_or(0, |last| last + 1)
    }
}

/// The questions of a text, one for each line.
pub fn questions<'t>(lines: impl Iterator<Item = &'t str>, tokenizer: &Tokenizer) -> Result<Vec<Question>> {
    let reader = Reader::new();
    let mut questions = vec![];
    for line in lines {
        for found in reader.agreements(line) {
            let spelled: Vec<&str> = line.split(' ').map(|word| word.trim_end_matches([',', '.'])).collect();
            let place = |word: &str| spelled.iter().position(|spelled| *spelled == word).unwrap_or(0);
            let place_of = |noun: Noun| place(noun.form.of(noun.class.nouns()[noun.row]));
            let adjective = &ADJECTIVES[found.adjective];
            let at = place(&format!("{}{}", adjective.stem, found.form.of(ENDINGS)));
            let before: usize = line.split(' ').take(at).map(|word| word.len() + 1).sum();
            let mut endings = [const { vec![] }; 4];
            for (tokens, ending) in endings.iter_mut().zip(ENDINGS) {
                *tokens = tokenizer.encode(&format!("{}{}{ending}", &line[..before], adjective.stem))?;
            }
            let in_all = |i: usize| endings.iter().all(|tokens| tokens.get(i) == endings[0].get(i));
            let common = (0..endings[0].len()).take_while(|&i| in_all(i)).count();
            let ids = endings[0][..common].to_vec();
            questions.push(Question {
                words: Words::new(tokenizer, &ids)?.of_token,
                ids,
                endings: endings.map(|tokens| tokens[common..].to_vec()),
                form: found.form,
                noun: place_of(found.noun),
                nearest: place_of(found.nearest),
                shows_gender: !UNMARKED.iter().any(|table| table.contains(&found.determiner.to_lowercase().as_str())),
                is_participle: adjective.kind == Kind::Passive,
            });
        }
    }
    Ok(questions)
}

/// What a model does at a question.
pub struct Answer {
    /// For each head, layer after layer, the weight of each visible word: the sum over its tokens.
    weights: Vec<Vec<f32>>,
    /// Whether the right one of the four endings is the most likely.
    pub is_right: bool,
}

impl Answer {
    /// The word with the largest weight.
    pub fn points_to(&self, head: usize) -> usize {
        let weights = &self.weights[head];
        (0..weights.len()).max_by(|&a, &b| weights[a].total_cmp(&weights[b])).unwrap_or(0)
    }

    pub fn weight(&self, head: usize, word: usize) -> f64 {
        self.weights[head][word].into()
    }

    pub fn heads(&self) -> usize {
        self.weights.len()
    }
}

/// The answers to the questions, in their order.
pub fn answers(model: &CausalLm, tokenizer: &Tokenizer, questions: &[Question]) -> Result<Vec<Answer>> {
    /// Sequences that go through the model together.
    const BATCH: usize = 64;
    let ids: Vec<u32> = (0..model.config().vocab_size as u32).collect();
    // What a word may be followed by.
    let ends: Vec<bool> = (ids.iter())
        .map(|&id| Ok(tokenizer.token_texts(&[id])?.concat().starts_with(|c: char| !c.is_alphabetic())))
        .collect::<Result<_>>()?;
    let mut probabilities = vec![[1.0f64; 4]; questions.len()];
    // Sequences of one length need no padding.
    let mut by_len = BTreeMap::<usize, Vec<(usize, usize)>>::new();
    for (i, question) in questions.iter().enumerate() {
        for (form, ending) in question.endings.iter().enumerate() {
            by_len.entry(question.ids.len() + ending.len()).or_default().push((i, form));
        }
    }
    let mut answers: Vec<Vec<Vec<f32>>> = questions.iter().map(|_| vec![]).collect();
    for (t, all) in by_len {
        for batch in all.chunks(BATCH) {
            let whole =
                |&(i, form): &(usize, usize)| questions[i].ids.iter().chain(&questions[i].endings[form]).copied();
            let ids = Tensor::from_vec(batch.iter().flat_map(whole).collect(), (batch.len(), t), &Device::Cpu)?;
            let next = softmax(&model.forward(&ids)?.detach(), D::Minus1)?; // (B, T, V)
            let trace = if batch.iter().any(|&(_, form)| form == 0) { Some(model.trace(&ids)?) } else { None };
            for (row, &(i, form)) in batch.iter().enumerate() {
                let Question { ids, words, endings, .. } = &questions[i];
                let next: Vec<Vec<f32>> = next.i((row, ids.len() - 1..))?.to_vec2()?;
                let ending = endings[form].iter().zip(&next).map(|(&id, next)| f64::from(next[id as usize]));
                let end = ends.iter().zip(&next[endings[form].len()]).filter(|(is_end, _)| **is_end);
                probabilities[i][form] = ending.product::<f64>() * end.map(|(_, p)| f64::from(*p)).sum::<f64>();
                if let (0, Some(trace)) = (form, &trace) {
                    answers[i] = by_word(&trace.weights, row, words)?;
                }
            }
        }
    }
    let best = |p: [f64; 4]| (0..4).max_by(|&a, &b| p[a].total_cmp(&p[b])).unwrap_or(0);
    let answer = |(i, weights): (usize, Vec<Vec<f32>>)| Answer {
        weights,
        is_right: best(probabilities[i]) == questions[i].form.index(),
    };
    Ok(answers.into_iter().enumerate().map(answer).collect())
}

/// For each head, the weights of the last of the positions that have `words`, added up by word.
fn by_word(layers: &[Tensor], row: usize, words: &[usize]) -> Result<Vec<Vec<f32>>> {
    let mut heads = vec![];
    for layer in layers {
        let rows: Vec<Vec<f32>> = layer.i((row, .., words.len() - 1))?.to_vec2()?; // (H, T)
        for weights in rows {
            let mut sums = vec![0.0; words[words.len() - 1] + 1];
            weights.iter().zip(words).for_each(|(weight, &word)| sums[word] += weight);
            heads.push(sums);
        }
    }
    Ok(heads)
}

/// What held-out sentences show of heads that were chosen on training sentences.
#[derive(Clone, Debug)]
pub struct Report {
    /// The head of adjectives and that of participles, counted through all layers from 0.
    pub heads: [usize; 2],
    /// The share in which it points to the noun: of adjectives, and of participles.
    pub kinds: [f64; 2],
    /// Of both together.
    pub noun: f64,
    /// Of those with another noun between.
    pub noun_between: f64,
    /// Of those whose noun is not the second word.
    pub elsewhere: f64,
    /// Of those where the word before the noun does not show the gender.
    pub gender_hidden: f64,
    /// The share in which it points to the word before the noun.
    pub determiner: f64,
    /// The mean weight on the noun.
    pub weight: f64,
    /// The share in which the right ending is the most likely.
    pub endings: f64,
}

/// Chooses on `seen`, judges on `held_out`.
pub fn report(model: &CausalLm, tokenizer: &Tokenizer, seen: &[Question], held_out: &[Question]) -> Result<Report> {
    let (before, after) = (answers(model, tokenizer, seen)?, answers(model, tokenizer, held_out)?);
    let count = before.first().map_or(0, Answer::heads);
    let heads = [false, true].map(|is_participle| {
        let hits = |head: usize| {
            let of_kind = seen.iter().zip(&before).filter(|(question, _)| question.is_participle == is_participle);
            of_kind.filter(|(question, answer)| answer.points_to(head) == question.noun).count()
        };
        (0..count).max_by_key(|&head| hits(head)).unwrap_or(0)
    });
    let share = |of: &dyn Fn(&Question) -> bool, value: &dyn Fn(&Question, &Answer, usize) -> f64| {
        let of = held_out.iter().zip(&after).filter(|(question, _)| of(question));
        mean(of.map(|(question, answer)| value(question, answer, heads[usize::from(question.is_participle)])))
    };
    let points = |question: &Question, answer: &Answer, head| flag(answer.points_to(head) == question.noun);
    Ok(Report {
        heads,
        kinds: [false, true].map(|is_participle| share(&|question| question.is_participle == is_participle, &points)),
        noun: share(&|_| true, &points),
        noun_between: share(&|question| question.nearest != question.noun, &points),
        elsewhere: share(&|question| question.noun != 1, &points),
        gender_hidden: share(&|question| !question.shows_gender, &points),
        determiner: share(&|_| true, &|question, answer, head| flag(answer.points_to(head) + 1 == question.noun)),
        weight: share(&|_| true, &|question, answer, head| answer.weight(head, question.noun)),
        endings: share(&|_| true, &|_, answer, _| flag(answer.is_right)),
    })
}

pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

pub fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}

/// A trainer of the model that is measured, with the built-in corpus in the folder `data`. This is
/// `attn train --preset quick --tokenizer bpe:1024 --layers 2 --steps STEPS`.
pub fn trainer(data: &Path, steps: u64, seed: u64) -> Result<(Tokenizer, Trainer)> {
    let document = |name: &str| Document::open(data.join(name));
    let (tokenizer, corpus) = prepare(
        &[document("train.txt")?],
        &Validation::Documents(vec![document("validation.txt")?]),
        &TokenizerChoice::Bpe(1024),
        TextOptions::default(),
        IdsStore::Temporary,
        &mut |_| {},
    )?;
    let config = ModelConfig {
        context_len: 64,
        embed_dim: 64,
        num_layers: 2,
        num_heads: 2,
        hidden_dim: Architecture::Qwen3.usual_hidden_dim(64),
        tie_embeddings: false,
        residual_init: ResidualInit::Zero,
        ..ModelConfig::qwen3(tokenizer.vocab_size())
    };
    let options = TrainOptions {
        steps,
        seed,
        optimizer: OptimizerKind::Muon,
        lr: 0.01,
        matrix_lr: 2.0,
        embedding_lr: 2.0,
        min_lr: 0.0,
        momentum: 0.85,
        weight_decay: 0.0,
        matrix_weight_decay: 0.0,
        schedule: Schedule::WarmupStableDecay,
        warmup: 0.0333,
        decay: 0.8,
        eval_every: Some(steps),
        ..Default::default()
    };
    Ok((tokenizer, Trainer::new(&config, &options, corpus, &Device::Cpu)?))
}

/// Trains to the end.
pub fn finish(trainer: &mut Trainer) -> Result<()> {
    train(trainer, None, &mut |_| ControlFlow::Continue(())).map(|_| ())
}
