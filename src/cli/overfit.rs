//! `attn train --overfit-one-batch`.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use candle_attention::model::DropoutRates;
use candle_attention::train::{Event, OverfitReport, TrainOptions, overfit_one_batch};

use super::document::spill_for_now;
use super::options::Options;
use super::prepared::Prepared;
use super::progress::Progress;
use super::terminal::note;
use super::{Failure, counted, plan};

/// The default number of steps: several times what a sound model needs.
const STEPS: u64 = 500;

/// Overfits one batch and prints the result. Nothing is saved; the ids of a large text are in a temporary file
/// meanwhile.
pub fn run(mut options: Options, out: &mut dyn Write) -> Result<()> {
    options.steps = options.steps.or(Some(STEPS));
    let mut prepared = Prepared::new(&options, spill_for_now())?;
    prepared.config.dropout = DropoutRates::default();
    let train_options = prepared.options.train_options().for_overfitting();
    plan::check_memory(&prepared.config, &prepared.corpus, &train_options)?;
    note(&prepared.description());
    let mut trainer = prepared.trainer(&train_options)?;
    let mut progress = Progress::new(&train_options, prepared.config.context_len, 0, false, Instant::now());
    let report = overfit_one_batch(&mut trainer, &mut |step| {
        progress.show(&Event::Step(step));
        ControlFlow::Continue(())
    });
    progress.finish();
    let report = report.map_err(|error| Failure(error.to_string().lines().next().unwrap_or_default().to_string()))?;
    print(&report, &train_options, out)
}

fn print(report: &OverfitReport, options: &TrainOptions, out: &mut dyn Write) -> Result<()> {
    let &OverfitReport { steps, first_loss, last_loss, lowest_possible } = report;
    let found = format!(
        "one batch of {}: loss {first_loss:.4} before, {last_loss:.4} after {steps} steps (lowest possible: {lowest_possible:.4})",
        counted(options.batch_size, "sequence"),
    );
    if report.succeeded() {
        writeln!(out, "{found}\nmemorised: data, model and optimizer work together")?;
        return Ok(());
    }
    let rate = options.learning_rate;
    let advice = if last_loss >= first_loss {
        format!("the loss did not fall: try a lower --lr than {rate}, and look at the text and the tokenizer")
    } else {
        format!(
            "the loss falls, but not far enough: try more --steps, another --lr ({:.1e}, {:.1e}), fewer sequences (--batch), \
             then a larger --dim or --layers",
            rate * 3.0,
            rate / 3.0
        )
    };
    Err(Failure(format!("{found}: not memorised; {advice}")).into())
}
