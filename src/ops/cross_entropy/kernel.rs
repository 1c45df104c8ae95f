//! Linear and cross-entropy in one, on slices: the logits of some rows at a time.

use crate::ops::matmul::{Matrix, MatrixMut, Output, matmul};
use crate::ops::simd::{dispatch, exp, max_of, sum_of};

/// Logits that are held at once: they stay in the second cache.
const LOGITS: usize = 128 * 1024;

/// What is asked: rows `xs` (N, C), `weight` (V, C), the target of each row, and what the sum is divided by.
pub(super) struct Problem<'a> {
    pub(super) xs: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) targets: &'a [u32],
    pub(super) channels: usize,
    pub(super) vocab_size: usize,
    pub(super) divisor: f64,
}

/// The gradients of `xs` and `weight`.
pub(super) struct Gradients {
    pub(super) dxs: Vec<f32>,
    pub(super) dweight: Vec<f32>,
}

impl Problem<'_> {
    pub(super) fn zero_gradients(&self) -> Gradients {
        Gradients { dxs: vec![0.0; self.xs.len()], dweight: vec![0.0; self.weight.len()] }
    }
}

/// The loss, and where they are wanted its gradients.
pub(super) fn forward(problem: &Problem, mut gradients: Option<&mut Gradients>) -> f32 {
    let &Problem { xs, weight, targets, channels: c, vocab_size: v, divisor } = problem;
    let rows_at_once = (LOGITS / v).clamp(16, 1024);
    let weight = Matrix::new(weight, v, c, c);
    let mut logits = vec![0.0; rows_at_once.min(targets.len()) * v];
    let mut total = 0.0;
    for (piece, targets) in targets.chunks(rows_at_once).enumerate() {
        let (first, rows) = (piece * rows_at_once * c, targets.len());
        let xs = Matrix::new(&xs[first..], rows, c, c);
        matmul(MatrixMut::new(&mut logits, rows, v, v), Output::Overwrite, 1.0, xs, weight.t());
        for (logits, &target) in logits.chunks_exact_mut(v).zip(targets) {
            let of_target = logits[target as usize];
            let (highest, sum) = exponentiate(logits);
            total += f64::from(sum).ln() + f64::from(highest - of_target);
            if gradients.is_some() {
                // dlogits = (softmax - one at the target) / divisor.
                let factor = (1.0 / (f64::from(sum) * divisor)) as f32;
                logits.iter_mut().for_each(|x| *x *= factor);
                logits[target as usize] -= (1.0 / divisor) as f32;
            }
        }
        if let Some(Gradients { dxs, dweight }) = &mut gradients {
            // logits = xs W^T: dxs = dlogits W, dW = dlogits^T xs.
            let dlogits = Matrix::new(&logits, rows, v, v);
            matmul(MatrixMut::new(&mut dxs[first..], rows, c, c), Output::Overwrite, 1.0, dlogits, weight);
            let output = if piece == 0 { Output::Overwrite } else { Output::Add };
            matmul(MatrixMut::new(dweight, v, c, c), output, 1.0, dlogits.t(), xs);
        }
    }
    (total / divisor) as f32
}

/// Turns a row into exponentials relative to its highest element; gives that and the sum.
fn exponentiate(row: &mut [f32]) -> (f32, f32) {
    dispatch(
        #[inline(always)]
        || {
            let highest = max_of(row);
            for x in row.iter_mut() {
                *x = exp(*x - highest);
            }
            (highest, sum_of(row, row, |x, _| x))
        },
    )
}
