//! Singular values of products of two thin matrices.

use nalgebra::{DMatrix, SVD};

use crate::host::{Result, bail};

/// The singular values of a matrix, and the norms that follow from them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Spectrum {
    /// The singular values, the largest first; those that are 0 for any weights, as the rank is at most D, are left out.
    pub singular_values: Vec<f64>,
}

impl Spectrum {
    /// The Frobenius norm, `sqrt(s_1^2 + s_2^2 + ..)`.
    pub fn frobenius_norm(&self) -> f64 {
        // Relative to the largest, so that no square is rounded to zero.
        let largest = self.spectral_norm();
        if largest == 0.0 { 0.0 } else { largest * self.stable_rank().sqrt() }
    }

    /// The spectral norm, `s_1`: the most by which a vector is stretched.
    pub fn spectral_norm(&self) -> f64 {
        self.singular_values.first().copied().unwrap_or(0.0)
    }

    /// The stable rank, `|.|_F^2 / s_1^2`: from 1, where one direction is all there is, to D, where all count alike; 0 for a
    /// matrix of zeros.
    pub fn stable_rank(&self) -> f64 {
        let largest = self.spectral_norm();
        if largest == 0.0 {
            return 0.0;
        }
        self.singular_values.iter().map(|value| (value / largest).powi(2)).sum()
    }

    /// That of `factor A B^T`, from the triangles R of `A = Q R` and of B, as [`triangle`] gives them: Q changes no singular
    /// value, so that a matrix of at most (D, D) is all that is decomposed.
    pub(super) fn of_product(a: &DMatrix<f64>, b: &DMatrix<f64>, factor: f64) -> Result<Self> {
        /// Far more than any matrix has been seen to take, of which each value takes two or three.
        const MAX_ITERATIONS_EACH: usize = 100;
        let product = a * b.transpose() * factor;
        let max_iterations = MAX_ITERATIONS_EACH * product.nrows().max(1);
        match SVD::try_new(product, false, false, f64::EPSILON, max_iterations) {
            Some(svd) => Ok(Self { singular_values: svd.singular_values.as_slice().to_vec() }),
            None => bail!("the singular values of a head were not found in {max_iterations} iterations"),
        }
    }
}

/// R of the decomposition `A = Q R` of A (C, D), whose columns follow one another: (min(C, D), D).
pub(super) fn triangle(columns: Vec<f64>, c: usize, d: usize) -> DMatrix<f64> {
    DMatrix::from_vec(c, d, columns).qr().unpack_r()
}
