//! Cross-entropy of rows of logits, and its gradient, on slices.

use std::borrow::Cow;

use crate::cpu::parallel::{CHUNK, for_each_chunk, for_each_chunk_pair};
use crate::cpu::simd::{dispatch, exp, max_of, sum_of, tanh};
use crate::cpu::sums;

/// The target of each row (`None` for rows that do not count), and what the sum of losses is divided by.
pub(super) struct Targets {
    pub(super) ids: Vec<Option<u32>>,
    pub(super) normalizer: f64,
    pub(super) terms: Terms,
}

/// The share of a target's probability spread over the vocabulary (`s`), the factor on the squared log-sum-exp (`z`), and
/// the soft cap of the logits.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) smoothing: f64,
    pub(super) z_loss: f64,
    pub(super) softcap: Option<f64>,
}

impl Terms {
    /// `cap tanh(logits / cap)`, or the logits as they are.
    fn capped(self, logits: &[f32]) -> Cow<'_, [f32]> {
        let Some(cap) = self.softcap else { return logits.into() };
        let mut capped = logits.to_vec();
        let cap = cap as f32;
        dispatch(
            #[inline(always)]
            || capped.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)),
        );
        capped.into()
    }

    /// The gradient of the logits from that of the capped ones, in its place: `d (1 - tanh(logits / cap)^2)`. As
    /// `1 - tanh(u)^2 = 4 e^-2|u| / (1 + e^-2|u|)^2`, which does not cancel.
    fn through_cap(self, dlogits: &mut [f32], logits: &[f32]) {
        let Some(cap) = self.softcap else { return };
        let cap = cap as f32;
        dispatch(
            #[inline(always)]
            || {
                for (d, x) in dlogits.iter_mut().zip(logits) {
                    let e = exp(-2.0 * (x / cap).abs());
                    *d *= 4.0 * e / ((1.0 + e) * (1.0 + e));
                }
            },
        );
    }
}

impl Targets {
    /// The indices of the rows that count, and their targets.
    pub(super) fn counting(&self) -> (Vec<u32>, Vec<u32>) {
        (0..).zip(&self.ids).filter_map(|(row, id)| id.map(|id| (row, id))).unzip()
    }
}

/// For one row: the highest logit, and the sum of the exponentials relative to it.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    max: f32,
    sum: f32,
}

impl Row {
    /// `lse - target_term + z lse^2`, with `target_term = (1 - s) logits[target] + s mean over v of logits[v]`.
    fn loss(self, of_target: f32, smoothing: &Smoothing, z_loss: f64) -> f64 {
        let below = f64::from(self.max - of_target);
        let &Smoothing { part, mean_below } = smoothing;
        let below = if part == 0.0 { below } else { (1.0 - part) * below + part * mean_below };
        let loss = f64::from(self.sum).ln() + below;
        if z_loss == 0.0 { loss } else { loss + z_loss * self.log_sum().powi(2) }
    }

    fn log_sum(self) -> f64 {
        f64::from(self.max) + f64::from(self.sum).ln()
    }

    /// The factor on the softmax in the gradient: `1 + 2 z lse`.
    fn slope(self, z_loss: f64) -> f64 {
        if z_loss == 0.0 { 1.0 } else { 1.0 + 2.0 * z_loss * self.log_sum() }
    }
}

/// The label smoothing (`s`), and, if it is not 0, the distance of a row's mean logit from its highest.
struct Smoothing {
    part: f64,
    mean_below: f64,
}

impl Smoothing {
    fn of(logits: &[f32], part: f64) -> Self {
        if part == 0.0 {
            return Self { part, mean_below: 0.0 };
        }
        let sum = dispatch(
            #[inline(always)]
            || {
                let max = max_of(logits);
                sum_of(logits, logits, |x, _| max - x)
            },
        );
        Self { part, mean_below: f64::from(sum) / logits.len() as f64 }
    }

    /// Subtracts the target's distribution, `share` in total, from the gradient.
    fn subtract_target(&self, dlogits: &mut [f32], target: usize, share: f64) {
        let &Self { part, .. } = self;
        if part > 0.0 {
            let of_each = (part * share / dlogits.len() as f64) as f32;
            dlogits.iter_mut().for_each(|d| *d -= of_each);
        }
        dlogits[target] -= ((1.0 - part) * share) as f32;
    }
}

/// Rows per chunk, of `v` logits each.
pub(super) fn rows_together(v: usize) -> usize {
    (CHUNK / v).max(1)
}

/// The loss, and what backward needs of each row.
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
            let Terms { smoothing, z_loss, .. } = targets.terms;
            let logits = &*targets.terms.capped(logits);
            *row = sum_up(logits);
            *loss = row.loss(logits[*id as usize], &Smoothing::of(logits, smoothing), z_loss);
        }
    });
    ((sums::sum(&losses) / targets.normalizer) as f32, rows)
}

/// `dlogits = dloss ((1 + 2 z lse) softmax - s / V - (1 - s at the target)) / normalizer`, through the soft cap; zeros
/// for rows that do not count.
pub(super) fn backward(dlogits: &mut [f32], logits: &[f32], rows: &[Row], targets: &Targets, dloss: f64) {
    let v = logits.len() / rows.len();
    let together = rows_together(v);
    let share = dloss / targets.normalizer;
    for_each_chunk(dlogits, together * v, |piece, dlogits| {
        let first = piece * together;
        let inputs = logits[first * v..].chunks_exact(v).zip(&rows[first..]).zip(&targets.ids[first..]);
        for (dlogits, ((logits, row), id)) in dlogits.chunks_exact_mut(v).zip(inputs) {
            let Some(id) = id else { continue };
            let capped = targets.terms.capped(logits);
            let factor = (share * row.slope(targets.terms.z_loss) / f64::from(row.sum)) as f32;
            dispatch(
                #[inline(always)]
                || {
                    for (d, x) in dlogits.iter_mut().zip(&*capped) {
                        *d = factor * exp(*x - row.max);
                    }
                },
            );
            let smoothing = Smoothing { part: targets.terms.smoothing, mean_below: 0.0 };
            smoothing.subtract_target(dlogits, *id as usize, share);
            targets.terms.through_cap(dlogits, logits);
        }
    });
}

/// The loss of one row. If the normalizer of the gradients is given, the gradients replace the logits.
pub(super) fn loss_in_place(logits: &mut [f32], target: usize, terms: Terms, normalizer: Option<f64>) -> f64 {
    let Terms { smoothing, z_loss, softcap } = terms;
    let uncapped = softcap.map(|_| logits.to_vec());
    if let Some(uncapped) = &uncapped {
        logits.copy_from_slice(&terms.capped(uncapped));
    }
    let (of_target, smoothing) = (logits[target], Smoothing::of(logits, smoothing));
    let Some(normalizer) = normalizer else { return sum_up(logits).loss(of_target, &smoothing, z_loss) };
    let row = exponentiate(logits);
    let factor = (row.slope(z_loss) / (f64::from(row.sum) * normalizer)) as f32;
    logits.iter_mut().for_each(|x| *x *= factor);
    smoothing.subtract_target(logits, target, 1.0 / normalizer);
    if let Some(uncapped) = &uncapped {
        terms.through_cap(logits, uncapped);
    }
    row.loss(of_target, &smoothing, z_loss)
}

fn sum_up(logits: &[f32]) -> Row {
    dispatch(
        #[inline(always)]
        || {
            let max = max_of(logits);
            Row { max, sum: sum_of(logits, logits, |x, _| exp(x - max)) }
        },
    )
}

/// As [`sum_up`], but replaces the logits by the exponentials.
fn exponentiate(logits: &mut [f32]) -> Row {
    dispatch(
        #[inline(always)]
        || {
            let max = max_of(logits);
            for x in logits.iter_mut() {
                *x = exp(*x - max);
            }
            Row { max, sum: sum_of(logits, logits, |x, _| x) }
        },
    )
}
