//! One step of Muon on one matrix (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>): momentum whose
//! singular values are brought close to 1, so that every direction of the matrix learns at the same rate.
//!
//! ```text
//! m = momentum m + (1 - momentum) g
//! u = momentum m + (1 - momentum) g                                                  (Nesterov)
//! w = w - lr weight_decay w - lr sqrt(max(1, rows / cols)) orthogonal(u)
//! ```
//!
//! with the gradient `g`, scaled by `gradient_scale`. `orthogonal` starts from X = u / (1.01 |u|) and iterates four
//! times
//!
//! ```text
//! G = X X^T                       (of the shorter side)
//! X = (a + b G + c G G) X
//! ```
//!
//! with the polynomials `a x + b x^3 + c x^5` of the Polar Express (Amsel et al. 2025, arXiv:2505.16932): each is the
//! closest to 1 on the interval to which its predecessor maps the singular values, starting from those of at least
//! 0.004 times the norm. The four bring these to between 0.87 and 1.13; Jordan et al., with five equal ones, to between
//! 0.68 and 1.20. Smaller singular values grow 252-fold.

mod kernel;
mod orthogonal;
mod reference;

use candle_core::{Result, Tensor, Var, bail};

use super::Cautious;
use crate::cpu::checks::{check_not_negative, check_state_dtype};
use crate::cpu::storage::{change, has_kernel};

/// The hyperparameters of one step.
#[derive(Clone, Copy, Debug)]
pub struct MuonStep {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay of the moving average of the gradient.
    pub momentum: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
    /// A factor on the gradient, for instance to clip it.
    pub gradient_scale: f64,
    /// Which parts of the step to leave out where signs disagree.
    pub cautious: Cautious,
}

impl Default for MuonStep {
    /// A learning rate of 0.02 and a momentum of 0.95, without decay.
    fn default() -> Self {
        Self {
            learning_rate: 0.02,
            momentum: 0.95,
            weight_decay: 0.0,
            gradient_scale: 1.0,
            cautious: Cautious::default(),
        }
    }
}

/// The polynomials `a x + b x^3 + c x^5`, one per iteration, by Remez's algorithm: on [0.004, 1], then on the image of
/// each.
const COEFFICIENTS: [[f64; 3]; 4] = [
    [8.340981, -24.597368, 18.223025],
    [3.977994, -2.965434, 0.564272],
    [3.327479, -2.495237, 0.510813],
    [2.308565, -1.675994, 0.419574],
];

/// A factor on the norm by which a matrix is divided: above 1, the first polynomial rises steeply.
const MARGIN: f64 = 1.01;

/// The smallest norm by which a matrix is divided.
const LEAST_NORM: f64 = 1e-7;

/// Updates the matrix `var` and `momentum_buffer`, the moving average of its gradients, with `gradient`: one step. All three
/// have the same shape, (rows, cols). In `f32` on the CPU, the first two are changed in place. For `f16` and `bf16`,
/// `momentum_buffer` is in `f32`, as is the arithmetic.
///
/// # Errors
/// If `var` is not a matrix, shapes or dtypes do not fit, or a number is not finite or out of its range.
///
/// ```
/// use candle_attention::optim::{MuonStep, muon};
/// use candle_core::{DType, Device, Tensor, Var};
///
/// let var = Var::zeros((2, 2), DType::F32, &Device::Cpu)?;
/// let gradient = Tensor::new(&[[3f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let mut momentum_buffer = var.zeros_like()?.detach();
/// let step = MuonStep { learning_rate: 0.1, ..Default::default() };
/// muon(&var, &gradient, &mut momentum_buffer, &step)?;
/// // Both directions move by about the learning rate, though the gradient of one is three times that of the other.
/// let moved = var.to_vec2::<f32>()?;
/// assert!((0.087..0.113).contains(&-moved[0][0]) && (0.087..0.113).contains(&-moved[1][1]));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn muon(var: &Var, gradient: &Tensor, momentum_buffer: &mut Tensor, step: &MuonStep) -> Result<()> {
    // A gradient may have a graph, which the momentum buffer would keep.
    let gradient = &gradient.detach();
    if var.rank() != 2 {
        bail!("muon: expected a matrix, got a variable of shape {:?}", var.dims());
    }
    for (name, tensor) in [("gradient", gradient), ("momentum buffer", &*momentum_buffer)] {
        if tensor.shape() != var.shape() {
            bail!("muon: expected a {name} of shape {:?}, got {:?}", var.dims(), tensor.dims());
        }
    }
    check_state_dtype("muon", "momentum buffer", momentum_buffer, var)?;
    if !(0.0..1.0).contains(&step.momentum) {
        bail!("muon: expected a momentum from 0 to below 1, got {}", step.momentum);
    }
    let numbers = [
        ("a learning rate", step.learning_rate),
        ("a weight decay", step.weight_decay),
        ("a gradient scale", step.gradient_scale),
    ];
    check_not_negative("muon", &numbers)?;
    if var.elem_count() == 0 {
        return Ok(());
    }
    if !has_kernel(&[var, gradient, momentum_buffer]) {
        return reference::muon(var, gradient, momentum_buffer, step);
    }
    let gradient = gradient.contiguous()?;
    change(momentum_buffer, [&gradient, &gradient], |buffer, [gradient, _]| {
        kernel::move_buffer(buffer, gradient, step);
        Ok(())
    })?;
    let shape = var.dims2()?;
    change(var, [momentum_buffer, &gradient], |weights, [buffer, gradient]| {
        kernel::update(weights, buffer, gradient, step, shape);
        Ok(())
    })
}

/// The factor on the orthogonal update of a matrix: the learning rate, raised for matrices that are taller than wide,
/// whose output would otherwise change less.
fn rate(step: &MuonStep, (rows, cols): (usize, usize)) -> f64 {
    step.learning_rate * (rows as f64 / cols as f64).max(1.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use candle_core::{DType, Device};

    const STEP: MuonStep = MuonStep {
        learning_rate: 0.02,
        momentum: 0.95,
        weight_decay: 0.1,
        gradient_scale: 0.3,
        cautious: Cautious { updates: false, decay: false },
    };
    /// One such step from zero gives the orthogonal matrix itself, negated.
    const ALONE: MuonStep =
        MuonStep { learning_rate: 1.0, momentum: 0.0, weight_decay: 0.0, gradient_scale: 1.0, ..STEP };

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn worst(got: &[f64], truth: &[f64]) -> f64 {
        got.iter().zip(truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// A few steps in f32, fused and composed, and in f64; wide and tall matrices, smaller and larger than a block.
    #[test]
    fn the_kernel_is_the_reference() {
        for shape in [[17, 31], [31, 17], [1, 7], [9, 1], [97, 40], [40, 97]] {
            for cautious in [false, true] {
                hold(&shape, &MuonStep { cautious: Cautious { updates: cautious, decay: cautious }, ..STEP });
            }
        }
    }

    fn hold(shape: &[usize], numbers: &MuonStep) {
        type Step = fn(&Var, &Tensor, &mut Tensor, &MuonStep) -> Result<()>;
        let run = |dtype: DType, step_with: Step| {
            let var = Var::from_tensor(&randn(1, shape).to_dtype(dtype).unwrap()).unwrap();
            let mut momentum_buffer = var.zeros_like().unwrap();
            for step in 0..5 {
                let gradient = randn(10 + step, shape).to_dtype(dtype).unwrap();
                step_with(&var, &gradient, &mut momentum_buffer, numbers).unwrap();
            }
            [values(&var), values(&momentum_buffer)]
        };
        let truth = run(DType::F64, reference::muon);
        let (composed, fused) = (run(DType::F32, reference::muon), run(DType::F32, muon));
        for i in 0..2 {
            let (got, yardstick) = (worst(&fused[i], &truth[i]), worst(&composed[i], &truth[i]));
            // Weights of up to 4 have rounding errors of 2e-7.
            assert!(got <= 2.0 * yardstick + 3e-7, "{shape:?}, {i}: error {got:.2e}, the reference's {yardstick:.2e}");
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

    /// The image of a singular value of a matrix of norm 1 under the polynomials.
    fn alone(singular: f64) -> f64 {
        COEFFICIENTS.iter().fold(singular / 1.01, |x, [a, b, c]| a * x + b * x.powi(3) + c * x.powi(5))
    }

    /// The update of a single step.
    fn orthogonal(matrix: &Tensor) -> Tensor {
        let (rows, cols) = matrix.dims2().unwrap();
        let var = Var::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap();
        let gradient = matrix.to_dtype(DType::F32).unwrap();
        muon(&var, &gradient, &mut var.zeros_like().unwrap(), &ALONE).unwrap();
        let factor = -(rows as f64 / cols as f64).max(1.0).sqrt();
        (var.as_detached_tensor().to_dtype(DType::F64).unwrap() / factor).unwrap()
    }

    #[test]
    fn the_polynomials_bring_singular_values_near_one() {
        let ends = (0..=100_000).map(|i| alone(0.00404 + (1.0 - 0.00404) * f64::from(i) / 1e5));
        let (least, most) = ends.fold((f64::MAX, 0.0f64), |(least, most), x| (least.min(x), most.max(x)));
        assert!(least > 0.873 && most < 1.127, "{least} to {most}");
        assert!((alone(1e-9) / 1e-9 - 252.4).abs() < 0.1, "{}", alone(1e-9));
    }

    /// From known singular vectors and values: the vectors stay, and the polynomials apply to the values.
    #[test]
    fn singular_vectors_stay_and_values_become_nearly_equal() {
        for (rows, cols, least) in [(5, 11, 0.05), (67, 29, 0.02), (31, 31, 0.02), (31, 31, 1e-6)] {
            let side = rows.min(cols);
            let (u, v) =
                (rotations(1, rows).narrow(1, 0, side).unwrap(), rotations(2, cols).narrow(1, 0, side).unwrap());
            let matrix = |values: &[f64]| {
                let scaled = u.broadcast_mul(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
                scaled.matmul(&v.t().unwrap()).unwrap() // (rows, cols)
            };
            let singular: Vec<f64> = (0..side).map(|i| f64::powf(least, i as f64 / (side - 1) as f64)).collect();
            let norm = singular.iter().map(|s| s * s).sum::<f64>().sqrt();
            let expected: Vec<f64> = singular.iter().map(|s| alone(s / norm)).collect();
            let error = worst(&values(&orthogonal(&matrix(&singular))), &values(&matrix(&expected)));
            // Rounding in the Gram matrix, whose largest eigenvalue is below 1, shifts the values that the polynomials
            // see.
            let rounding = 8.0 * f64::from(f32::EPSILON);
            let rounded = |s: &f64| {
                let (exact, shifted) = (s / norm, ((s / norm).powi(2) + rounding).sqrt());
                (alone(exact) - alone(shifted) * exact / shifted).abs()
            };
            let tolerance = singular.iter().map(rounded).fold(1e-5, f64::max);
            assert!(error < tolerance, "{rows} x {cols}, {least}: {error:.1e}, expected below {tolerance:.1e}");
        }
    }

    /// The eigenvalues of a symmetric matrix, by Jacobi's rotations.
    fn eigenvalues(matrix: &Tensor) -> Vec<f64> {
        let mut a: Vec<Vec<f64>> = matrix.to_vec2().unwrap();
        let n = a.len();
        for _ in 0..12 {
            for (p, q) in (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q))) {
                let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
                let (sin, cos) = angle.sin_cos();
                let turn = |x: f64, y: f64| (cos * x - sin * y, sin * x + cos * y);
                for row in &mut a {
                    (row[p], row[q]) = turn(row[p], row[q]);
                }
                let (first, second) = (a[p].clone(), a[q].clone());
                (a[p], a[q]) = first.into_iter().zip(second).map(|(x, y)| turn(x, y)).unzip();
            }
        }
        (0..n).map(|i| a[i][i]).collect()
    }

    #[test]
    fn random_matrices_come_out_with_singular_values_near_one() {
        for (seed, shape) in [(1, [96, 48]), (2, [40, 100]), (3, [33, 48])] {
            let out = orthogonal(&randn(seed, &shape));
            let gram = match shape[0] > shape[1] {
                true => out.t().unwrap().matmul(&out),
                false => out.matmul(&out.t().unwrap()),
            };
            for value in eigenvalues(&gram.unwrap()) {
                assert!((0.873..1.127).contains(&value.sqrt()), "{shape:?}: a singular value of {}", value.sqrt());
            }
        }
    }

    /// By hand: after the gradients diag(1, 1) and diag(1, -0.3), the average of the second element is still positive,
    /// (1 - 1/2) (1/2 - 0.3), but with the newest gradient once more it is -0.1, next to 0.875.
    #[test]
    fn the_newest_gradient_counts_once_more() {
        let step = MuonStep { momentum: 0.5, ..ALONE };
        for dtype in [DType::F32, DType::F64] {
            let diagonal =
                |x: f64| Tensor::new(&[[1.0, 0.0], [0.0, x]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let var = Var::zeros((2, 2), dtype, &Device::Cpu).unwrap();
            let mut momentum_buffer = var.zeros_like().unwrap().detach();
            muon(&var, &diagonal(1.0), &mut momentum_buffer, &step).unwrap();
            let before = values(&var);
            muon(&var, &diagonal(-0.3), &mut momentum_buffer, &step).unwrap();
            assert!(worst(&values(&momentum_buffer), &[0.75, 0.0, 0.0, 0.1]) < 1e-6);
            let moved: Vec<f64> = values(&var).iter().zip(before).map(|(now, before)| now - before).collect();
            let norm = (0.875f64 * 0.875 + 0.1 * 0.1).sqrt();
            let expected = [-alone(0.875 / norm), 0.0, 0.0, alone(0.1 / norm)];
            assert!(worst(&moved, &expected) < 1e-5, "{dtype:?}: {moved:?}, expected {expected:?}");
        }
    }

    /// Weights and gradients that bf16 holds: after each step, those of f32, rounded.
    #[test]
    fn steps_in_half_precision_are_those_of_f32_rounded() {
        for dtype in [DType::F16, DType::BF16] {
            let cast = |x: &Tensor, dtype: DType| x.to_dtype(dtype).unwrap();
            let half = Var::from_tensor(&cast(&randn(1, &[9, 5]), dtype)).unwrap();
            let single = Var::from_tensor(&cast(&half, DType::F32)).unwrap();
            let mut means = [(); 2].map(|()| single.zeros_like().unwrap().detach());
            for seed in 2..6 {
                let gradient = cast(&(randn(seed, &[9, 5]) * 1e-4).unwrap(), dtype);
                muon(&half, &gradient, &mut means[0], &STEP).unwrap();
                muon(&single, &cast(&gradient, DType::F32), &mut means[1], &STEP).unwrap();
                let rounding = if dtype == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
                let (got, expected) = (values(&half), values(&single));
                assert!(got.iter().zip(&expected).all(|(got, w)| (got - w).abs() <= rounding * w.abs() + 1e-6));
                single.set(&cast(&half, DType::F32)).unwrap();
            }
            let error = muon(&half, &half, &mut half.zeros_like().unwrap(), &STEP).unwrap_err().to_string();
            assert!(error.contains(&format!("expected a momentum buffer of dtype F32 for {dtype:?}, got")), "{error}");
        }
    }

    #[test]
    fn a_zero_gradient_only_decays_the_weights() {
        let var = Var::ones((3, 5), DType::F32, &Device::Cpu).unwrap();
        let zeros = var.zeros_like().unwrap();
        muon(&var, &zeros, &mut zeros.copy().unwrap(), &STEP).unwrap();
        assert!(values(&var).iter().all(|w| (w - (1.0 - 0.02 * 0.1)).abs() < 1e-6));
    }

    #[test]
    fn anything_but_matrices_of_one_shape_is_refused() {
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

    #[test]
    fn numbers_out_of_their_range_are_refused() {
        for (step, expected) in [
            (MuonStep { learning_rate: f64::NAN, ..STEP }, "expected a learning rate of at least 0, got NaN"),
            (MuonStep { weight_decay: f64::INFINITY, ..STEP }, "expected a weight decay of at least 0, got inf"),
            (MuonStep { gradient_scale: -1.0, ..STEP }, "expected a gradient scale of at least 0, got -1"),
        ] {
            let var = Var::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
            let mut momentum_buffer = var.zeros_like().unwrap().detach();
            let error = muon(&var, &var.as_detached_tensor().copy().unwrap(), &mut momentum_buffer, &step).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(values(&var) == [1.0; 6] && values(&momentum_buffer) == [0.0; 6]);
        }
    }

    #[test]
    fn an_empty_matrix_is_left_alone() {
        for (shape, dtype) in [((3, 0), DType::F32), ((0, 3), DType::F32), ((0, 0), DType::F64)] {
            let var = Var::zeros(shape, dtype, &Device::Cpu).unwrap();
            let gradient = var.as_detached_tensor().copy().unwrap();
            for cautious in [Cautious::default(), Cautious { updates: true, decay: true }] {
                muon(&var, &gradient, &mut gradient.copy().unwrap(), &MuonStep { cautious, ..STEP }).unwrap();
            }
        }
    }
}
