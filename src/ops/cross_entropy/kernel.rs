//! Cross-entropy of rows of logits and its gradient, on slices.

use crate::ops::parallel::{for_each_chunk, for_each_chunk_pair};
use crate::ops::simd::{dispatch, exp, max_of, sum_of};

/// The target of each row (`None` where the row does not count), and what the sum of the losses is divided by.
pub(super) struct Targets {
    pub(super) ids: Vec<Option<u32>>,
    pub(super) divisor: f64,
}

impl Targets {
    /// The rows that count, and their targets.
    pub(super) fn counting(&self) -> (Vec<u32>, Vec<u32>) {
        (0..).zip(&self.ids).filter_map(|(row, id)| id.map(|id| (row, id))).unzip()
    }
}

/// Of one row: the highest logit, and the sum of the exponentials relative to it.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    highest: f32,
    sum: f32,
}

impl Row {
    /// `log(sum over v of exp(logits[v])) - logits[target]`.
    fn loss(self, of_target: f32) -> f64 {
        f64::from(self.sum).ln() + f64::from(self.highest - of_target)
    }
}

/// Rows a piece of work, of `v` logits each.
pub(super) fn rows_together(v: usize) -> usize {
    /// Elements that are worth handing to a thread.
    const CHUNK: usize = 16 * 1024;
    (CHUNK / v).max(1)
}

/// The loss, with what backward has to know of each row.
pub(super) fn forward(logits: &[f32], targets: &Targets) -> (f32, Vec<Row>) {
    let n = targets.ids.len();
    let v = logits.len() / n;
    let together = rows_together(v);
    let (mut rows, mut losses) = (vec![Row::default(); n], vec![0.0; n]);
    for_each_chunk_pair((&mut rows, together), (&mut losses, together), |piece, rows, losses| {
        let (logits, ids) = (&logits[piece * together * v..], &targets.ids[piece * together..]);
        let outputs = rows.iter_mut().zip(losses);
        for ((row, loss), (logits, id)) in outputs.zip(logits.chunks_exact(v).zip(ids)) {
            let Some(id) = id else { continue };
            *row = sum_up(logits);
            *loss = row.loss(logits[*id as usize]);
        }
    });
    ((losses.iter().sum::<f64>() / targets.divisor) as f32, rows)
}

/// `dlogits = dloss (softmax - one at the target) / divisor`; zeros where the row does not count.
pub(super) fn backward(dlogits: &mut [f32], logits: &[f32], rows: &[Row], targets: &Targets, dloss: f64) {
    let v = logits.len() / rows.len();
    let together = rows_together(v);
    let share = dloss / targets.divisor;
    for_each_chunk(dlogits, together * v, |piece, dlogits| {
        let first = piece * together;
        let inputs = logits[first * v..].chunks_exact(v).zip(&rows[first..]).zip(&targets.ids[first..]);
        for (dlogits, ((logits, row), id)) in dlogits.chunks_exact_mut(v).zip(inputs) {
            let Some(id) = id else { continue };
            let factor = (share / f64::from(row.sum)) as f32;
            dispatch(
                #[inline(always)]
                || {
                    for (d, x) in dlogits.iter_mut().zip(logits) {
                        *d = factor * exp(*x - row.highest);
                    }
                },
            );
            dlogits[*id as usize] -= share as f32;
        }
    });
}

/// The loss of one row. Where the divisor of the gradients is given, they take the place of the logits.
pub(super) fn loss_in_place(logits: &mut [f32], target: usize, divisor: Option<f64>) -> f64 {
    let of_target = logits[target];
    let Some(divisor) = divisor else { return sum_up(logits).loss(of_target) };
    let row = exponentiate(logits);
    let factor = (1.0 / (f64::from(row.sum) * divisor)) as f32;
    logits.iter_mut().for_each(|x| *x *= factor);
    logits[target] -= (1.0 / divisor) as f32;
    row.loss(of_target)
}

fn sum_up(logits: &[f32]) -> Row {
    dispatch(
        #[inline(always)]
        || {
            let highest = max_of(logits);
            Row { highest, sum: sum_of(logits, logits, |x, _| exp(x - highest)) }
        },
    )
}

/// As [`sum_up`]; leaves the exponentials in place of the logits.
fn exponentiate(logits: &mut [f32]) -> Row {
    dispatch(
        #[inline(always)]
        || {
            let highest = max_of(logits);
            for x in logits.iter_mut() {
                *x = exp(*x - highest);
            }
            Row { highest, sum: sum_of(logits, logits, |x, _| x) }
        },
    )
}
