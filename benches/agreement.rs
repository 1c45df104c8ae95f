//! The chapter's claim, measured on the held-out sentences of the built-in corpus: does an attention head point from an
//! adjective or participle back to the noun that it agrees with?
//!
//!     cargo bench -p candle-attention --features lm --bench agreement             # trains five seeds
//!     cargo bench -p candle-attention --features lm --bench agreement -- RUN...   # measures runs of `attn train`
//!
//! A run must have been trained on the built-in corpus.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use candle_attention::generate::Pipeline;
use candle_attention::text::Tokenizer;
use candle_core::Device;

#[path = "../attn/src/allocator.rs"]
mod allocator;

#[path = "support/agreement.rs"]
mod agreement;
#[allow(dead_code, unused_imports)]
#[path = "../examples/make_corpus/lexicon/mod.rs"]
mod lexicon;
#[allow(dead_code)]
#[path = "../examples/make_corpus/reading.rs"]
mod reading;
mod support {
    pub mod args;
}
use agreement::{CHOSEN_ON, Question, Report, STEPS, flag, mean, questions};
use support::args;

const SEEDS: u64 = 5;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (is_bench, runs) = args::read();
    let text = Text::read(is_bench)?;
    for (i, run) in runs.iter().enumerate() {
        let Pipeline { model, tokenizer, .. } = Pipeline::open(run.as_ref(), &Device::Cpu)?;
        let (seen, held_out) = text.questions(&tokenizer)?;
        if i == 0 {
            print_baselines(&held_out);
        }
        print_row(run, &agreement::report(&model, &tokenizer, &seen, &held_out)?, model.config().num_heads);
    }
    if !runs.is_empty() {
        return Ok(());
    }
    for seed in 1..=if is_bench { SEEDS } else { 1 } {
        let (tokenizer, mut trainer) = agreement::trainer(&data(), if is_bench { STEPS } else { 2 }, seed)?;
        let (seen, held_out) = text.questions(&tokenizer)?;
        if seed == 1 {
            print_baselines(&held_out);
        }
        let heads = trainer.config().num_heads;
        let untrained = agreement::report(trainer.model(), &tokenizer, &seen, &held_out)?;
        print_row(&format!("seed {seed}, untrained"), &untrained, heads);
        let begun = Instant::now();
        agreement::finish(&mut trainer)?;
        let seconds = begun.elapsed().as_secs_f64();
        let trained = agreement::report(trainer.model(), &tokenizer, &seen, &held_out)?;
        print_row(&format!("seed {seed}, after {seconds:.1} s"), &trained, heads);
    }
    Ok(())
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// The built-in corpus.
struct Text {
    is_bench: bool,
    train: String,
    validation: String,
}

impl Text {
    fn read(is_bench: bool) -> Result<Self> {
        let [train, validation] =
            ["train.txt", "validation.txt"].map(|name| std::fs::read_to_string(data().join(name)));
        Ok(Self { is_bench, train: train?, validation: validation? })
    }

    /// Those to choose heads on, and those to judge them on.
    fn questions(&self, tokenizer: &Tokenizer) -> Result<(Vec<Question>, Vec<Question>)> {
        let (train, validation) = (self.train.lines(), self.validation.lines());
        let (seen, held_out) = if self.is_bench { (CHOSEN_ON, usize::MAX) } else { (20, 40) };
        Ok((questions(train.take(seen), tokenizer)?, questions(validation.take(held_out), tokenizer)?))
    }
}

/// What would point to the noun without a model, then the head of the table.
fn print_baselines(held_out: &[Question]) {
    let share = |value: &dyn Fn(&Question) -> f64| percent(mean(held_out.iter().map(value)));
    println!(
        "{} held-out sentences. One over the visible words: {}; always the first word: {}, the second: {}, the nearest \
         noun: {}, the word of most tokens: {}\n",
        held_out.len(),
        share(&|question| 1.0 / question.visible() as f64),
        share(&|question| flag(question.noun == 0)),
        share(&|question| flag(question.noun == 1)),
        share(&|question| flag(question.noun == question.nearest)),
        share(&|question| flag(question.noun == question.longest())),
    );
    println!(
        "| | endings right | heads | adjectives | participles | both | a noun between | not the second word | gender hidden | to the word before \
         the noun | weight on the noun |\n|{}",
        "---|".repeat(11)
    );
}

fn print_row(name: &str, report: &Report, heads: usize) {
    let Report { kinds, noun, noun_between, elsewhere, gender_hidden, determiner, weight, endings, .. } = *report;
    let places = report.heads.map(|head| format!("{}.{}", head / heads + 1, head % heads + 1));
    let shares = [kinds[0], kinds[1], noun, noun_between, elsewhere, gender_hidden, determiner, weight].map(percent);
    println!("| {name} | {} | {} | {} |", percent(endings), places.join(", "), shares.join(" | "));
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
