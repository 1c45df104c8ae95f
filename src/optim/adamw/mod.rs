//! One step of AdamW on one variable (Loshchilov and Hutter 2017, arXiv:1711.05101).
//!
//! ```text
//! m = beta1 m + (1 - beta1) g
//! v = beta2 v + (1 - beta2) g^2
//! w = w - lr weight_decay w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//! ```
//!
//! with the gradient `g`, scaled by `gradient_scale`.

mod kernel;
mod reference;

use candle_core::{Result, Tensor, Var, bail};

use super::Cautious;
use crate::cpu::checks::{check_not_negative, check_state_dtype};
use crate::cpu::storage::{change, has_kernel, precise};

/// The hyperparameters of one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// The term in the denominator, above 0 even in `f32`.
    pub eps: f64,
    /// Weight decay; 0 for none.
    pub weight_decay: f64,
    /// A factor on the gradient, for instance to clip it.
    pub gradient_scale: f64,
    /// The number of steps so far (t), including this one.
    pub step: u64,
    /// Which parts of the step to leave out where signs disagree.
    pub cautious: Cautious,
}

impl Default for AdamWStep {
    /// torch's numbers: a learning rate of 0.001, betas 0.9 and 0.999, an eps of 1e-8 and a weight decay of 0.01; the first
    /// step.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            gradient_scale: 1.0,
            step: 1,
            cautious: Cautious::default(),
        }
    }
}

/// The moments of a variable, with its shape and dtype; for `f16` and `bf16` in `f32`, since in half precision small ones
/// vanish and large ones stop moving.
///
/// Each is alone with its storage, which a step may change in place.
#[derive(Debug)]
pub struct Moments {
    first: Tensor,
    second: Tensor,
}

impl Moments {
    /// Zero moments for `var`.
    ///
    /// # Errors
    /// If they cannot be allocated.
    pub fn zeros(var: &Var) -> Result<Self> {
        let zeros = || Tensor::zeros(var.shape(), precise(var.dtype()), var.device());
        Ok(Self { first: zeros()?, second: zeros()? })
    }

    /// Copies of saved moments.
    ///
    /// # Errors
    /// If they cannot be allocated.
    pub fn from_tensors(first: &Tensor, second: &Tensor) -> Result<Self> {
        Ok(Self { first: first.detach().copy()?, second: second.detach().copy()? })
    }

    /// The moving average of the gradient (m). The next step may change it.
    pub fn first(&self) -> &Tensor {
        &self.first
    }

    /// The moving average of the gradient's square (v). The next step may change it.
    pub fn second(&self) -> &Tensor {
        &self.second
    }
}

/// Updates `var` and its moments with `gradient`: one step. In `f32` on the CPU, all three are changed in place.
///
/// For a variable in `f16` or `bf16` the arithmetic is in `f32`, and the result is rounded.
///
/// # Errors
/// If shapes or the moments' dtypes do not fit, or a number is not finite or out of its range.
///
/// ```
/// use candle_attention::optim::{AdamWStep, Moments, adamw};
/// use candle_core::{Device, Tensor, Var};
///
/// let var = Var::new(&[1f32, -1.], &Device::Cpu)?;
/// let (gradient, mut moments) = (Tensor::new(&[0.5f32, 2.], &Device::Cpu)?, Moments::zeros(&var)?);
/// let step = AdamWStep { learning_rate: 0.25, weight_decay: 0.0, ..Default::default() };
/// adamw(&var, &gradient, &mut moments, &step)?;
/// // The first step has the size of the learning rate, whatever that of the gradient.
/// let moved: Vec<f32> = var.to_vec1()?;
/// assert!((moved[0] - 0.75).abs() < 1e-6 && (moved[1] + 1.25).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn adamw(var: &Var, gradient: &Tensor, moments: &mut Moments, step: &AdamWStep) -> Result<()> {
    // A gradient may have a graph, which the moments would keep.
    let gradient = &gradient.detach();
    for (name, tensor) in [("gradient", gradient), ("first moment", &moments.first), ("second moment", &moments.second)]
    {
        if tensor.shape() != var.shape() {
            bail!("adamw: expected a {name} of shape {:?}, got {:?}", var.dims(), tensor.dims());
        }
    }
    for (name, moment) in [("first moment", &moments.first), ("second moment", &moments.second)] {
        check_state_dtype("adamw", name, moment, var)?;
    }
    if step.step == 0 || !is_decay(step.beta1) || !is_decay(step.beta2) {
        let AdamWStep { step, beta1, beta2, .. } = step;
        bail!("adamw: expected a step of at least 1 and betas from 0 to below 1, got {step}, {beta1} and {beta2}");
    }
    let numbers = [
        ("a learning rate", step.learning_rate),
        ("a weight decay", step.weight_decay),
        ("a gradient scale", step.gradient_scale),
    ];
    check_not_negative("adamw", &numbers)?;
    // 0 where a second moment is 0 would divide 0 by 0.
    let eps = step.eps as f32;
    if !(eps > 0.0 && eps.is_finite()) {
        bail!("adamw: expected an eps above 0 in the range of f32, got {:?}", step.eps);
    }
    if !has_kernel(&[var, gradient, &moments.first, &moments.second]) {
        return reference::adamw(var, gradient, moments, step);
    }
    let gradient = gradient.contiguous()?;
    let (averages, coefficients) = (kernel::Averages::new(step), Coefficients::new(step).into());
    let gradients = [&gradient, &gradient];
    change(&moments.first, gradients, |first, [gradient, _]| {
        change(&moments.second, gradients, |second, _| {
            change(var, gradients, |weights, _| {
                let moments = [first, second];
                match step.cautious.is_on() {
                    false => kernel::step(weights, moments, gradient, averages, coefficients),
                    true => {
                        let mut update = kernel::update(moments, gradient, averages, coefficients);
                        step.cautious.apply(weights, &mut update, gradient, coefficients.keep);
                    }
                }
                Ok(())
            })
        })
    })
}

fn is_decay(beta: f64) -> bool {
    (0.0..1.0).contains(&beta)
}

/// The coefficients that all elements share: `w = keep w - rate m / (sqrt(correction v) + eps)`.
#[derive(Clone, Copy)]
struct Coefficients {
    keep: f64,
    rate: f64,
    /// Of the second moment: `1 / (1 - beta2^t)`.
    correction: f64,
    eps: f64,
}

impl Coefficients {
    fn new(step: &AdamWStep) -> Self {
        let &AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step, .. } = step;
        let steps = step as f64;
        Self {
            keep: 1.0 - learning_rate * weight_decay,
            rate: learning_rate / (1.0 - beta1.powf(steps)),
            correction: 1.0 / (1.0 - beta2.powf(steps)),
            eps,
        }
    }
}

impl From<Coefficients> for kernel::Coefficients {
    fn from(Coefficients { keep, rate, correction, eps }: Coefficients) -> Self {
        Self { keep: keep as f32, rate: rate as f32, correction: correction as f32, eps: eps as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use candle_core::{DType, Device};

    #[test]
    fn numbers_out_of_their_range_are_named() {
        let var = Var::from_tensor(&randn(1, &[3])).unwrap();
        let good = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            gradient_scale: 1.0,
            step: 1,
            cautious: Cautious::default(),
        };
        for (step, expected) in [
            (AdamWStep { learning_rate: f64::NAN, ..good }, "a learning rate of at least 0, got NaN"),
            (AdamWStep { eps: f64::INFINITY, ..good }, "an eps above 0 in the range of f32, got inf"),
            (AdamWStep { eps: 0.0, ..good }, "an eps above 0 in the range of f32, got 0.0"),
            (AdamWStep { eps: 1e-50, ..good }, "an eps above 0 in the range of f32, got 1e-50"),
            (AdamWStep { eps: f64::NAN, ..good }, "an eps above 0 in the range of f32, got NaN"),
            (AdamWStep { weight_decay: -1.0, ..good }, "a weight decay of at least 0, got -1"),
            (AdamWStep { gradient_scale: f64::NAN, ..good }, "a gradient scale of at least 0, got NaN"),
            (AdamWStep { beta1: 1.0, ..good }, "betas from 0 to below 1"),
        ] {
            let before = var.to_vec1::<f64>().unwrap();
            let error =
                adamw(&var, &randn(2, &[3]), &mut Moments::zeros(&var).unwrap(), &step).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(var.to_vec1::<f64>().unwrap(), before);
        }
    }

    /// Where `eps` is 0 and every second moment underflows in `f16`.
    #[test]
    fn a_step_in_half_precision_is_that_of_f32_rounded() {
        for dtype in [DType::F16, DType::BF16] {
            let tensor = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let var = Var::from_tensor(&tensor(&[1.0, 1.0])).unwrap();
            let mut moments = Moments::zeros(&var).unwrap();
            let step = AdamWStep { learning_rate: 0.01, weight_decay: 0.0, ..Default::default() };
            adamw(&var, &tensor(&[0.0, 1e-4]), &mut moments, &step).unwrap();
            let expected = tensor(&[1.0, 0.99]).to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(var.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap(), expected, "{dtype:?}");
        }
    }

    /// torch's formula in `f64`, with the weights rounded after each step as they are stored.
    #[test]
    fn steps_in_half_precision_follow_the_formula() {
        let step = AdamWStep { learning_rate: 0.01, weight_decay: 0.1, ..Default::default() };
        for dtype in [DType::F16, DType::BF16] {
            let stored = |x: f64| {
                let x = Tensor::new(x, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap()
            };
            let var = Var::from_tensor(&randn(1, &[97]).to_dtype(dtype).unwrap()).unwrap();
            let mut moments = Moments::zeros(&var).unwrap();
            let in_f64 = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            let mut state: Vec<[f64; 3]> = in_f64(&var).into_iter().map(|w| [w, 0.0, 0.0]).collect();
            for t in 1..=7u64 {
                // From what is small in bf16 to what underflows in f16 when squared.
                let gradient = (randn(10 + t, &[97]) * 0.1f64.powi(t as i32)).unwrap().to_dtype(dtype).unwrap();
                adamw(&var, &gradient, &mut moments, &AdamWStep { step: t, ..step }).unwrap();
                for ([w, m, v], g) in state.iter_mut().zip(in_f64(&gradient)) {
                    *m = step.beta1 * *m + (1.0 - step.beta1) * g;
                    *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                    let corrected = (*v / (1.0 - step.beta2.powi(t as i32))).sqrt() + step.eps;
                    let update = step.learning_rate * (*m / (1.0 - step.beta1.powi(t as i32))) / corrected;
                    *w = *w * (1.0 - step.learning_rate * step.weight_decay) - update;
                }
                // Where the two fall on different sides of the middle, the stored numbers are neighbours.
                let half_ulp = if dtype == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
                for (got, [w, ..]) in in_f64(&var).iter().zip(&mut state) {
                    assert!(
                        (got - *w).abs() <= half_ulp * w.abs().max(1e-3),
                        "{dtype:?}, step {t}: {got}, expected {w}"
                    );
                    assert!((got - stored(*w)).abs() <= 2.0 * half_ulp * w.abs().max(1e-3));
                    *w = *got;
                }
            }
        }
    }

    #[test]
    fn moments_share_no_storage_and_are_never_in_half_precision() {
        let var = Var::from_tensor(&randn(1, &[3]).to_dtype(DType::F32).unwrap()).unwrap();
        let zeros = var.zeros_like().unwrap();
        let mut moments = Moments::from_tensors(&zeros, &zeros).unwrap();
        adamw(&var, &var.ones_like().unwrap(), &mut moments, &AdamWStep::default()).unwrap();
        let [first, second] = [moments.first(), moments.second()].map(|x| x.to_vec1::<f32>().unwrap()[0]);
        assert!((first - 0.1).abs() < 1e-7 && (second - 0.001).abs() < 1e-9, "{first}, {second}");
        assert_eq!(zeros.to_vec1::<f32>().unwrap(), [0.0; 3]);

        let half = var.to_dtype(DType::BF16).unwrap();
        let (half, mut moments) = (Var::from_tensor(&half).unwrap(), Moments::from_tensors(&half, &half).unwrap());
        let error = adamw(&half, &half, &mut moments, &AdamWStep::default()).unwrap_err().to_string();
        assert!(error.contains("adamw: expected a first moment of dtype F32 for BF16, got BF16"), "{error}");
    }

    /// A few steps in f32, fused and composed, and in f64.
    #[test]
    fn the_kernel_is_the_reference() {
        for (updates, decay) in [(false, false), (true, false), (false, true), (true, true)] {
            hold(Cautious { updates, decay });
        }
    }

    fn hold(cautious: Cautious) {
        type Step = fn(&Var, &Tensor, &mut Moments, &AdamWStep) -> Result<()>;
        let run = |dtype: DType, step_with: Step| {
            let var = Var::from_tensor(&randn(1, &[67, 31]).to_dtype(dtype).unwrap()).unwrap();
            let mut moments = Moments::zeros(&var).unwrap();
            for step in 1..=5 {
                let gradient = randn(10 + step, &[67, 31]).to_dtype(dtype).unwrap();
                let numbers = AdamWStep {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    gradient_scale: 0.3,
                    step,
                    cautious,
                };
                step_with(&var, &gradient, &mut moments, &numbers).unwrap();
            }
            let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            [values(&var), values(&moments.first), values(&moments.second)]
        };
        let error = |got: &[f64], truth: &[f64]| got.iter().zip(truth).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let truth = run(DType::F64, reference::adamw);
        let (composed, fused) = (run(DType::F32, reference::adamw), run(DType::F32, adamw));
        for i in 0..3 {
            let (got, yardstick) = (error(&fused[i], &truth[i]), error(&composed[i], &truth[i]));
            assert!(got <= 2.0 * yardstick + 1e-9, "{i}: error {got:.2e}, the reference's {yardstick:.2e}");
        }
    }
}
