//! One update of an exponential moving average.
//!
//! ```text
//! average = average + (1 - decay) (values - average)
//! ```
//!
//! as `torch.lerp` computes it. The form `decay average + (1 - decay) values` is biased: in `f32` the two factors do
//! not add up to 1, which at a decay of 0.99999 makes the average wrong by a thousandth.

use candle_core::{Result, Tensor, Var, bail};

use crate::cpu::elementwise::zip_update;
use crate::cpu::storage::{change, has_kernel};

/// Moves `average` towards `values`, of the same shape; a `decay` of 0 makes it a copy. In `f32` on the CPU it is
/// changed in place.
///
/// # Errors
/// If the shapes differ, or `decay` is not from 0 to below 1.
pub fn moving_average(average: &Var, values: &Tensor, decay: f64) -> Result<()> {
    if average.shape() != values.shape() {
        bail!("moving-average: expected values of shape {:?}, got {:?}", average.dims(), values.dims());
    }
    if !(0.0..1.0).contains(&decay) {
        bail!("moving-average: expected a decay from 0 to below 1, got {decay}");
    }
    if has_kernel(&[average, values]) {
        let values = values.contiguous()?;
        return change(average, [&values, &values], |average, [values, _]| {
            kernel(average, values, decay);
            Ok(())
        });
    }
    let (old, values) = (average.as_detached_tensor(), values.detach());
    let difference = (&values - &old)?;
    average.set(&match decay < 0.5 {
        true => (values - (difference * decay)?)?,
        false => (old + (difference * (1.0 - decay))?)?,
    })
}

fn kernel(average: &mut [f32], values: &[f32], decay: f64) {
    // From the nearer end: then a decay of 0 gives `values` to the last bit.
    if decay < 0.5 {
        let decay = decay as f32;
        zip_update(average, values, |average, x| x - decay * (x - average));
    } else {
        let weight = (1.0 - decay) as f32;
        zip_update(average, values, |average, x| average + weight * (x - average));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use candle_core::{DType, Device};

    /// Many updates of a high decay, against the same in `f64`.
    #[test]
    fn many_updates_leave_no_bias() {
        const DECAY: f64 = 0.9999;
        let updates = 60_000;
        let noise = randn(1, &[updates, 3]).to_vec2::<f64>().unwrap();
        let mut exact = [0.0; 3];
        let average = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        for noise in noise {
            let values: Vec<f32> = noise.iter().map(|x| 1.0 + *x as f32).collect();
            for (exact, x) in exact.iter_mut().zip(&values) {
                *exact = DECAY * *exact + (1.0 - DECAY) * f64::from(*x);
            }
            moving_average(&average, &Tensor::new(values, &Device::Cpu).unwrap(), DECAY).unwrap();
        }
        // Each update rounds by at most half of f32's epsilon, and the last 1 / (1 - decay) of them count. Rounding
        // errors add up as a random walk: four times its deviation.
        let tolerance = 4.0 * f64::from(f32::EPSILON / 2.0) * (1.0 / (1.0 - DECAY)).sqrt();
        for (got, exact) in average.to_vec1::<f32>().unwrap().into_iter().zip(exact) {
            let error = (f64::from(got) - exact).abs();
            assert!(error <= tolerance, "got {got}, expected {exact} ± {tolerance:.1e}, off by {error:.1e}");
        }
    }

    #[test]
    fn the_kernel_is_the_composition_and_a_decay_of_zero_a_copy() {
        for decay in [0.0, 0.3, 0.5, 0.9, 0.999] {
            let run = |dtype: DType| {
                let [old, values] = [1, 2].map(|seed| randn(seed, &[67, 31]).to_dtype(dtype).unwrap());
                let average = Var::from_tensor(&old).unwrap();
                moving_average(&average, &values, decay).unwrap();
                [average.as_tensor(), &values].map(|x| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap())
            };
            let ([got, values], [expected, _]) = (run(DType::F32), run(DType::F64));
            let [got, values, expected] = [got, values, expected].map(|x| x.to_vec1::<f64>().unwrap());
            assert!(decay != 0.0 || got == values);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-6, "decay {decay}: {got}, expected {expected}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let average = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
        let error = |values: &Tensor, decay| moving_average(&average, values, decay).unwrap_err().to_string();
        assert!(error(&randn(1, &[2]), 0.5).contains("expected values of shape [3], got [2]"));
        assert!(error(&randn(1, &[3]), 1.0).contains("a decay from 0 to below 1, got 1"));
    }
}
