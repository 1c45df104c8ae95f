//! Linear and cross-entropy in one, on slices: the logits of some rows at a time.

use super::kernel::{self, Targets};
use crate::ops::matmul::{Matrix, MatrixMut, Output, matmul};
use crate::ops::parallel::for_each_chunk_pair;

/// What is asked: of rows `xs` (N, C) and `weight` (V, C) the loss for the targets of the rows.
pub(super) struct Problem<'a> {
    pub(super) xs: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) targets: &'a Targets,
    pub(super) channels: usize,
    pub(super) vocab_size: usize,
}

/// The gradients of `xs` and `weight`, where they are wanted: zeros, before they are known.
pub(super) struct Gradients {
    pub(super) dxs: Option<Vec<f32>>,
    pub(super) dweight: Option<Vec<f32>>,
}

/// Rows whose logits are held at once.
fn rows_at_once(vocab_size: usize) -> usize {
    /// Logits that stay in the second cache.
    const LOGITS: usize = 128 * 1024;
    let least = std::env::var("LEAST").ok().and_then(|x| x.parse().ok()).unwrap_or(16);
    // The gradient of the weight is read and written once for each piece: with few rows that would be most of the work.
    (LOGITS / vocab_size).clamp(least, 1024)
}

/// The loss; its gradients are added to `gradients`.
pub(super) fn forward(problem: &Problem, gradients: &mut Gradients) -> f32 {
    let &Problem { xs, weight, targets, channels: c, vocab_size: v } = problem;
    let wants_gradients = gradients.dxs.is_some() || gradients.dweight.is_some();
    let rows_at_once = rows_at_once(v);
    let weight = Matrix::new(weight, v, c, c);
    let mut logits = vec![0.0; rows_at_once.min(targets.ids.len()) * v];
    let mut losses = vec![0.0; targets.ids.len()];
    let pieces = targets.ids.chunks(rows_at_once).zip(losses.chunks_mut(rows_at_once));
    for (piece, (ids, losses)) in pieces.enumerate() {
        let (first, rows) = (piece * rows_at_once * c, ids.len());
        if ids.iter().all(Option::is_none) {
            continue;
        }
        let xs = Matrix::new(&xs[first..], rows, c, c);
        matmul(MatrixMut::new(&mut logits, rows, v, v), Output::Overwrite, 1.0, xs, weight.t());

        let together = kernel::rows_together(v);
        let logits = &mut logits[..rows * v];
        for_each_chunk_pair((logits, together * v), (losses, together), |part, logits, losses| {
            let rows = logits.chunks_exact_mut(v).zip(&ids[part * together..]);
            for ((logits, id), loss) in rows.zip(losses) {
                *loss = kernel::loss_in_place(logits, *id, wants_gradients.then_some(targets.divisor));
            }
        });

        // logits = xs W^T: dxs = dlogits W, dW = dlogits^T xs.
        let dlogits = Matrix::new(logits, rows, v, v);
        if let Some(dxs) = &mut gradients.dxs {
            matmul(MatrixMut::new(&mut dxs[first..], rows, c, c), Output::Overwrite, 1.0, dlogits, weight);
        }
        if let Some(dweight) = &mut gradients.dweight {
            matmul(MatrixMut::new(dweight, v, c, c), Output::Add, 1.0, dlogits.t(), xs);
        }
    }
    (losses.iter().sum::<f64>() / targets.divisor) as f32
}
