//! One step of Muon on one matrix (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>): momentum whose singular
//! values are made equal, so that every direction of the matrix learns at the same rate.
//!
//! ```text
//! m = momentum m + (1 - momentum) g
//! u = momentum m + (1 - momentum) g                                                  (Nesterov)
//! w = w - lr weight_decay w - lr sqrt(max(1, rows / cols)) orthogonal(u)
//! ```
//!
//! `orthogonal` takes X = u / |u| and does five times
//!
//! ```text
//! G = X X^T                       (of the shorter side)
//! X = (a + b G + c G G) X         a = 3.4445, b = -4.7750, c = 2.0315
//! ```
//!
//! which brings the singular values near 1: between 0.68 and 1.13 those that are not tiny.

mod kernel;
mod reference;

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, bail};

use super::storage::{has_kernel, slice, slice_mut};

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct MuonStep {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay of the running mean of the gradient.
    pub momentum: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
    /// What the gradient is multiplied by first, as to clip it.
    pub gradient_scale: f64,
}

/// Times that the singular values are brought nearer to 1.
const ITERATIONS: usize = 5;

/// Of the polynomial `a x + b x^3 + c x^5` that does so: of those that fix no singular value but raise small ones fastest.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// The least norm that a matrix is divided by.
const LEAST_NORM: f64 = 1e-7;

/// Moves the matrix `var` and the running mean of its gradients, `mean`, one step along `gradient`. All three have the
/// same shape, (rows, cols). In `f32` on the CPU the first two are changed in place.
///
/// # Errors
/// If `var` is no matrix, the shapes do not agree, or the momentum is not from 0 to below 1.
pub fn muon(var: &Var, gradient: &Tensor, mean: &mut Tensor, step: &MuonStep) -> Result<()> {
    if var.rank() != 2 {
        bail!("muon: expected a matrix, got a variable of shape {:?}", var.dims());
    }
    for (name, tensor) in [("gradient", gradient), ("running mean", &*mean)] {
        if tensor.shape() != var.shape() {
            bail!("muon: expected a {name} of shape {:?}, got {:?}", var.dims(), tensor.dims());
        }
    }
    if !(0.0..1.0).contains(&step.momentum) {
        bail!("muon: expected a momentum from 0 to below 1, got {}", step.momentum);
    }
    if !has_kernel(&[var, gradient, mean]) {
        return reference::muon(var, gradient, mean, step);
    }
    let gradient = gradient.contiguous()?;
    mean.inplace_op2(&gradient, &Mean(*step))?;
    var.inplace_op3(mean, &gradient, &Update { step: *step, shape: var.dims2()? })
}

/// What the orthogonal update of a matrix is multiplied by: the learning rate, and more for matrices that are taller than
/// wide, whose update would otherwise change their output less.
fn rate(step: &MuonStep, (rows, cols): (usize, usize)) -> f64 {
    step.learning_rate * (rows as f64 / cols as f64).max(1.0).sqrt()
}

/// The first line of the formula.
struct Mean(MuonStep);

impl InplaceOp2 for Mean {
    fn name(&self) -> &'static str {
        "muon-mean"
    }

    fn cpu_fwd(
        &self,
        mean: &mut CpuStorage,
        mean_l: &Layout,
        gradient: &CpuStorage,
        gradient_l: &Layout,
    ) -> Result<()> {
        let (mean, gradient) = (slice_mut(mean, mean_l)?, slice(gradient, gradient_l)?);
        let MuonStep { momentum, gradient_scale, .. } = self.0;
        kernel::average(mean, gradient, momentum as f32, ((1.0 - momentum) * gradient_scale) as f32);
        Ok(())
    }
}

/// The other lines of the formula.
struct Update {
    step: MuonStep,
    shape: (usize, usize),
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn cpu_fwd(
        &self,
        weights: &mut CpuStorage,
        weights_l: &Layout,
        mean: &CpuStorage,
        mean_l: &Layout,
        gradient: &CpuStorage,
        gradient_l: &Layout,
    ) -> Result<()> {
        let (mean, gradient) = (slice(mean, mean_l)?, slice(gradient, gradient_l)?);
        let MuonStep { momentum, gradient_scale, learning_rate, weight_decay } = self.step;
        let ahead = kernel::ahead(mean, gradient, momentum as f32, ((1.0 - momentum) * gradient_scale) as f32);
        let update = kernel::orthogonal(ahead, self.shape);
        let keep = (1.0 - learning_rate * weight_decay) as f32;
        kernel::update(slice_mut(weights, weights_l)?, &update, keep, rate(&self.step, self.shape) as f32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::randn;
    use candle_core::{DType, Device};

    const STEP: MuonStep = MuonStep { learning_rate: 0.02, momentum: 0.95, weight_decay: 0.1, gradient_scale: 0.3 };

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn worst(got: &[f64], truth: &[f64]) -> f64 {
        got.iter().zip(truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// Some steps in f32, fused and composed, and in f64; matrices that are wide, tall and square.
    #[test]
    fn the_kernel_is_the_reference() {
        type Step = fn(&Var, &Tensor, &mut Tensor, &MuonStep) -> Result<()>;
        for shape in [[17, 31], [31, 17], [23, 23], [1, 7]] {
            let run = |dtype: DType, step_with: Step| {
                let var = Var::from_tensor(&randn(1, &shape).to_dtype(dtype).unwrap()).unwrap();
                let mut mean = var.zeros_like().unwrap();
                for step in 0..5 {
                    let gradient = randn(10 + step, &shape).to_dtype(dtype).unwrap();
                    step_with(&var, &gradient, &mut mean, &STEP).unwrap();
                }
                [values(&var), values(&mean)]
            };
            let truth = run(DType::F64, reference::muon);
            let (composed, fused) = (run(DType::F32, reference::muon), run(DType::F32, muon));
            for i in 0..2 {
                let (got, yardstick) = (worst(&fused[i], &truth[i]), worst(&composed[i], &truth[i]));
                assert!(
                    got <= 2.0 * yardstick + 1e-9,
                    "{shape:?}, {i}: error {got:.2e}, the reference's {yardstick:.2e}"
                );
            }
        }
    }

    /// A product of plane rotations, (n, n), and so orthogonal.
    fn rotations(seed: u64, n: usize) -> Tensor {
        let angles = values(&randn(seed, &[n * n]));
        let mut rows: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(i == j)).collect()).collect();
        for (k, angle) in angles.iter().enumerate() {
            let (i, j) = (k % n, (k / n + k % n + 1) % n);
            if i == j {
                continue;
            }
            let (first, second) = (rows[i].clone(), rows[j].clone());
            let turned = |of_first: f64, of_second: f64| -> Vec<f64> {
                first.iter().zip(&second).map(|(x, y)| of_first * x + of_second * y).collect()
            };
            (rows[i], rows[j]) = (turned(angle.cos(), -angle.sin()), turned(angle.sin(), angle.cos()));
        }
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    /// From singular vectors and values that are known: the vectors stay, and the values take the five steps by themselves.
    #[test]
    fn singular_vectors_stay_and_values_become_nearly_equal() {
        let singular = [3.0, 1.0, 0.4, 0.1, 0.05];
        for (rows, cols) in [(5, 11), (11, 5)] {
            let (u, v) = (rotations(1, rows).narrow(1, 0, 5).unwrap(), rotations(2, cols).narrow(1, 0, 5).unwrap());
            let matrix = |values: &[f64]| {
                let scaled = u.broadcast_mul(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
                scaled.matmul(&v.t().unwrap()).unwrap() // (rows, cols)
            };
            let norm = singular.iter().map(|s| s * s).sum::<f64>().sqrt();
            let [a, b, c] = [3.4445, -4.7750, 2.0315];
            let alone = singular.map(|s| (0..5).fold(s / norm, |x, _| a * x + b * x.powi(3) + c * x.powi(5)));
            assert!(alone.iter().all(|s| (0.6..1.2).contains(s)), "{alone:?}");

            // One step from zero with no momentum and no decay is the update itself.
            let var = Var::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap();
            let step = MuonStep { learning_rate: 1.0, momentum: 0.0, weight_decay: 0.0, gradient_scale: 1.0 };
            let gradient = matrix(&singular).to_dtype(DType::F32).unwrap();
            muon(&var, &gradient, &mut var.zeros_like().unwrap(), &step).unwrap();
            let factor = if rows > cols { -(rows as f64 / cols as f64).sqrt() } else { -1.0 };
            let expected = values(&(matrix(&alone) * factor).unwrap());
            let error = worst(&values(&var), &expected);
            assert!(error < 1e-4, "{rows} x {cols}: {error:.1e}");
        }
    }

    #[test]
    fn a_gradient_of_zeros_moves_nothing_but_the_decay() {
        let var = Var::ones((3, 5), DType::F32, &Device::Cpu).unwrap();
        let zeros = var.zeros_like().unwrap();
        muon(&var, &zeros, &mut zeros.copy().unwrap(), &STEP).unwrap();
        assert!(values(&var).iter().all(|w| (w - (1.0 - 0.02 * 0.1)).abs() < 1e-6));
    }

    #[test]
    fn what_is_no_matrix_or_does_not_fit_is_refused() {
        let error = |var: &[usize], gradient: &[usize], momentum| {
            let of = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let step = MuonStep { momentum, ..STEP };
            let var = Var::from_tensor(&of(var)).unwrap();
            muon(&var, &of(gradient), &mut var.zeros_like().unwrap(), &step).unwrap_err().to_string()
        };
        assert!(error(&[3], &[3], 0.9).contains("expected a matrix, got a variable of shape [3]"));
        assert!(error(&[3, 2], &[2, 3], 0.9).contains("expected a gradient of shape [3, 2], got [2, 3]"));
        assert!(error(&[3, 2], &[3, 2], 1.0).contains("expected a momentum from 0 to below 1, got 1"));
    }
}
