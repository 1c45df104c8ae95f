//! `attn train --overfit-one-batch`: whether a model can memorise a batch.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Result;
use candle_attention::Error;
use candle_attention::text::IdsStore;
use candle_attention::train::{Event, OverfitReport, overfit_one_batch};

use super::option_layers::{OptionLayers, Prepared};
use super::progress::Progress;
use super::terminal::note;
use super::{RunFailed, plan};

/// Overfits one batch and prints the result. Nothing is saved.
pub fn run(mut layers: OptionLayers, out: &mut dyn Write) -> Result<ExitCode> {
    /// Several times what a sound model needs.
    const STEPS: i64 = 500;
    layers.unset("minutes");
    layers.set_default("steps", STEPS.into());
    let Prepared { trainer, tokenizer, .. } = layers.prepare(layers.source()?, IdsStore::Temporary)?;
    note(&plan::description(&trainer, &tokenizer));
    let mut trainer = trainer.for_overfitting()?;
    let (batch, lr) = (trainer.options().batch, trainer.options().lr);
    let mut progress = Progress::new(&trainer);
    let report = overfit_one_batch(&mut trainer, &mut |step| {
        progress.show(&Event::Step(step));
        ControlFlow::Continue(())
    });
    drop(progress);
    let report = report.map_err(|error| match error {
        Error::Input(_) | Error::Option { .. } => error.into(),
        error => anyhow::Error::from(RunFailed(error.to_string())),
    })?;
    print(&report, batch, lr, out)?;
    Ok(ExitCode::SUCCESS)
}

fn print(report: &OverfitReport, sequences: usize, lr: f64, out: &mut dyn Write) -> Result<()> {
    let &OverfitReport { steps, first_loss, last_loss, .. } = report;
    let found =
        format!("one batch of {sequences} sequences: loss {first_loss:.4} before, {last_loss:.4} after {steps} steps");
    if report.succeeded() {
        writeln!(out, "{found}\nmemorised: data, model and optimizer work together")?;
        return Ok(());
    }
    let advice = if last_loss >= first_loss {
        format!("the loss did not fall: try a lower --lr than {lr}, and look at the text and the tokenizer")
    } else {
        format!(
            "the loss falls, but not far enough: try more --steps, another --lr ({:.1e}, {:.1e}), fewer sequences (--batch), \
             then a larger --dim or --layers",
            lr * 3.0,
            lr / 3.0
        )
    };
    Err(RunFailed(format!("{found}: not memorised; {advice}")).into())
}
