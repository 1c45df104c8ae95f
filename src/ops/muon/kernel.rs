//! Muon's lines, on slices.

use super::{COEFFICIENTS, ITERATIONS, LEAST_NORM};
use crate::ops::elementwise::zip_map;
use crate::ops::matmul::{Matrix, MatrixMut, Output, matmul, product};
use crate::ops::simd::dispatch;
use crate::ops::sums::norm_of;

/// `mean = decay * mean + weight * g`.
pub(super) fn average(mean: &mut [f32], gradient: &[f32], decay: f32, weight: f32) {
    dispatch(
        #[inline(always)]
        || mean.iter_mut().zip(gradient).for_each(|(mean, g)| *mean = decay * *mean + weight * g),
    );
}

/// The mean as it will be if the gradient stays: `decay * mean + weight * g`.
pub(super) fn ahead(mean: &[f32], gradient: &[f32], decay: f32, weight: f32) -> Vec<f32> {
    zip_map(mean, gradient, |mean, g| decay * mean + weight * g)
}

/// The matrix with its singular vectors, and singular values near 1.
pub(super) fn orthogonal(mut xs: Vec<f32>, (rows, cols): (usize, usize)) -> Vec<f32> {
    let [a, b, c] = COEFFICIENTS.map(|coefficient| coefficient as f32);
    let scale = (1.0 / norm_of(&xs).max(LEAST_NORM)) as f32;
    xs.iter_mut().for_each(|x| *x *= scale);
    let side = rows.min(cols);
    for _ in 0..ITERATIONS {
        let matrix = Matrix::new(&xs, rows, cols, cols);
        let gram = if rows <= cols { product(matrix, matrix.t()) } else { product(matrix.t(), matrix) };
        let mut polynomial: Vec<f32> = gram.iter().map(|g| b * g).collect();
        let gram = Matrix::new(&gram, side, side, side);
        matmul(MatrixMut::new(&mut polynomial, side, side, side), Output::Add, c, gram, gram);
        polynomial.iter_mut().step_by(side + 1).for_each(|diagonal| *diagonal += a);
        let polynomial = Matrix::new(&polynomial, side, side, side);
        xs = if rows <= cols { product(polynomial, matrix) } else { product(matrix, polynomial) };
    }
    xs
}

/// `w = keep w - rate u`.
pub(super) fn update(weights: &mut [f32], update: &[f32], keep: f32, rate: f32) {
    dispatch(
        #[inline(always)]
        || weights.iter_mut().zip(update).for_each(|(weight, u)| *weight = keep * *weight - rate * u),
    );
}
