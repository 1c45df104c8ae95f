//! A linear layer and cross-entropy in one, on slices, with the logits of only some rows at a time.

use super::kernel::{self, Terms};
use crate::cpu::matmul::{Matrix, MatrixMut, Output, matmul, product};
use crate::cpu::parallel::for_each_chunk_pair;
use crate::cpu::sums;

/// The inputs: rows `xs` (N, C), `weight` (V, C), `bias` (V) or none, and the target of each row. The sum of losses is
/// divided by `normalizer`.
pub(super) struct Problem<'a> {
    pub(super) xs: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) targets: &'a [u32],
    pub(super) normalizer: f64,
    pub(super) terms: Terms,
    pub(super) channels: usize,
    pub(super) vocab_size: usize,
}

/// The gradients of `xs`, `weight` and `bias`, if wanted; initially zeros, and that of the weight empty.
pub(super) struct Gradients {
    pub(super) dxs: Option<Vec<f32>>,
    pub(super) dweight: Option<Vec<f32>>,
    pub(super) dbias: Option<Vec<f64>>,
}

/// Rows whose logits are held at once.
fn rows_at_once(vocab_size: usize) -> usize {
    /// Logits that stay in the L2 cache.
    const LOGITS: usize = 128 * 1024;
    // Each chunk reads and writes the whole gradient of the weight, which would dominate for fewer rows.
    (LOGITS / vocab_size).clamp(256, 1024)
}

/// Returns the loss; its gradients are written to `gradients`.
pub(super) fn forward(problem: &Problem, gradients: &mut Gradients) -> f32 {
    let &Problem { xs, weight, bias, targets, normalizer, terms, channels: c, vocab_size: v } = problem;
    let wants_gradients = gradients.dxs.is_some() || gradients.dweight.is_some() || gradients.dbias.is_some();
    let rows_at_once = rows_at_once(v);
    let weight = Matrix::new(weight, v, c, c);
    let mut logits = vec![0.0; rows_at_once.min(targets.len()) * v];
    let mut losses = vec![0.0; targets.len()];
    let pieces = targets.chunks(rows_at_once).zip(losses.chunks_mut(rows_at_once));
    for (piece, (targets, losses)) in pieces.enumerate() {
        let (first, rows) = (piece * rows_at_once * c, targets.len());
        let xs = Matrix::new(&xs[first..], rows, c, c);
        let output = if bias.is_empty() { Output::Overwrite } else { Output::Add };
        if output == Output::Add {
            logits.chunks_exact_mut(v).take(rows).for_each(|logits| logits.copy_from_slice(bias));
        }
        matmul(MatrixMut::new(&mut logits, rows, v, v), output, 1.0, xs, weight.t());

        let together = kernel::rows_together(v);
        let logits = &mut logits[..rows * v];
        for_each_chunk_pair((logits, together * v), (losses, together), |part, logits, losses| {
            let rows = logits.chunks_exact_mut(v).zip(&targets[part * together..]);
            for ((logits, target), loss) in rows.zip(losses) {
                let normalizer = wants_gradients.then_some(normalizer);
                *loss = kernel::loss_in_place(logits, *target as usize, terms, normalizer);
            }
        });

        // logits = xs W^T + bias: dxs = dlogits W, dW = dlogits^T xs, dbias = sum over rows of dlogits.
        if let Some(dbias) = &mut gradients.dbias {
            let of_piece = sums::sum_rows(
                rows,
                v,
                #[inline(always)]
                |row, sums| sums.iter_mut().zip(&logits[row * v..]).for_each(|(sum, d)| *sum += d),
            );
            dbias.iter_mut().zip(of_piece).for_each(|(sum, d)| *sum += f64::from(d));
        }
        let dlogits = Matrix::new(logits, rows, v, v);
        if let Some(dxs) = &mut gradients.dxs {
            matmul(MatrixMut::new(&mut dxs[first..], rows, c, c), Output::Overwrite, 1.0, dlogits, weight);
        }
        match &mut gradients.dweight {
            Some(dweight) if dweight.is_empty() => *dweight = product(dlogits.t(), xs),
            Some(dweight) => matmul(MatrixMut::new(dweight, v, c, c), Output::Add, 1.0, dlogits.t(), xs),
            None => {}
        }
    }
    if let Some(dweight) = gradients.dweight.as_mut().filter(|_| targets.is_empty()) {
        dweight.resize(v * c, 0.0);
    }
    (sums::sum(&losses) / normalizer) as f32
}
