//! Parts of an optimizer's step that are left out where signs disagree.
//!
//! ```text
//! u = u [u g > 0] n / |{u g > 0}|              cautious updates: Liang et al. 2024, arXiv:2411.16085
//! w = w - lr weight_decay w [u w >= 0] - u     cautious decay: Chen et al. 2025, arXiv:2510.12402
//! ```
//!
//! with the update `u`, learning rate included, of `n` elements, and its gradient `g`. As in the authors' code, the
//! factor at the end of the first line is at most 1000.

use candle_core::{Result, Tensor, Var};

use crate::cpu::elementwise::zip_update;
use crate::cpu::parallel::{CHUNK, map};
use crate::cpu::sums::total;

/// Which parts of a step to leave out; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cautious {
    /// Leave out the elements of an update that would follow the gradient uphill; the others grow in proportion.
    pub updates: bool,
    /// Leave out the weight decay of elements that the update makes larger.
    pub decay: bool,
}

/// The least share of elements to scale the others up by.
const LEAST_SHARE: f64 = 1e-3;

impl Cautious {
    /// Whether anything is left out.
    pub(super) fn is_on(self) -> bool {
        self.updates || self.decay
    }

    /// `w = keep w - u`, cautiously; `keep` is 1 minus the rate of decay.
    pub(super) fn apply(self, weights: &mut [f32], update: &mut [f32], gradient: &[f32], keep: f32) {
        if self.updates {
            mask(update, gradient);
        }
        let always = !self.decay;
        zip_update(weights, update, |weight, u| {
            let keep = if always | (u * weight >= 0.0) { keep } else { 1.0 };
            keep * weight - u
        });
    }

    /// The same, composed of candle's own operations, in the dtype of the update.
    pub(super) fn apply_composed(self, var: &Var, mut update: Tensor, gradient: &Tensor, keep: f64) -> Result<()> {
        let dtype = update.dtype();
        if self.updates {
            let agrees = (&update * gradient)?.gt(0.0)?.to_dtype(dtype)?;
            update = ((update * &agrees)? * factor(total(&agrees)?, var.elem_count()))?;
        }
        let weights = var.as_detached_tensor().to_dtype(dtype)?;
        let decayed = match self.decay {
            true => {
                let decays = (&update * &weights)?.ge(0.0)?.to_dtype(dtype)?;
                (&weights - ((&weights * decays)? * (1.0 - keep))?)?
            }
            false => (weights * keep)?,
        };
        var.set(&(decayed - update)?.to_dtype(var.dtype())?)
    }
}

fn mask(update: &mut [f32], gradient: &[f32]) {
    let chunks: Vec<_> = update.chunks(CHUNK).zip(gradient.chunks(CHUNK)).collect();
    let agreeing = map(chunks.len(), |i| chunks[i].0.iter().zip(chunks[i].1).filter(|(u, g)| *u * *g > 0.0).count());
    let factor = factor(agreeing.iter().sum::<usize>() as f64, update.len()) as f32;
    zip_update(update, gradient, |u, g| if u * g > 0.0 { factor * u } else { 0.0 });
}

/// What makes up for the elements that are left out, where `kept` of `of` remain.
fn factor(kept: f64, of: usize) -> f64 {
    1.0 / (kept / of as f64).max(LEAST_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// By hand: two of four elements agree, so they are doubled; the third weight would grow.
    #[test]
    fn only_what_agrees_is_moved_and_only_what_shrinks_decays() {
        let (weights, update, gradient) =
            ([1.0f32, -1.0, -1.0, 2.0], [0.5f32, 0.25, 0.125, -0.5], [1.0f32, -1.0, 1.0, 3.0]);
        for (cautious, expected) in [
            (Cautious { updates: true, decay: false }, [-0.5f32, -0.5, -0.75, 1.0]),
            (Cautious { updates: false, decay: true }, [0.0, -1.25, -1.125, 2.5]),
            (Cautious { updates: true, decay: true }, [-0.5, -0.5, -1.25, 1.0]),
        ] {
            let (mut moved, mut u) = (weights, update);
            cautious.apply(&mut moved, &mut u, &gradient, 0.5);
            assert_eq!(moved, expected, "{cautious:?}");
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
            let var = Var::from_tensor(&tensor(&weights)).unwrap();
            cautious.apply_composed(&var, tensor(&update), &tensor(&gradient), 0.5).unwrap();
            assert_eq!(var.to_vec1::<f32>().unwrap(), expected, "{cautious:?}, composed");
        }
    }

    #[test]
    fn an_update_that_agrees_nowhere_moves_nothing() {
        let (mut weights, mut update) = ([1.0f32, -2.0], [0.5, 0.5]);
        Cautious { updates: true, decay: false }.apply(&mut weights, &mut update, &[-1.0, 0.0], 1.0);
        assert_eq!(weights, [1.0, -2.0]);
    }
    /// By hand: one element of 4096 agrees, which would be scaled up 4096-fold without the bound.
    #[test]
    fn a_few_that_agree_grow_a_thousandfold_at_most() {
        const N: usize = 4096;
        let (update, mut gradient) = (vec![0.5f32; N], vec![-1.0f32; N]);
        gradient[7] = 1.0;
        let cautious = Cautious { updates: true, decay: false };
        let mut expected = vec![1.0f32; N];
        expected[7] = 1.0 - 500.0;
        let mut weights = vec![1.0f32; N];
        cautious.apply(&mut weights, &mut update.clone(), &gradient, 1.0);
        assert_eq!(weights, expected);
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let var = Var::from_tensor(&tensor(&[1.0; N])).unwrap();
        cautious.apply_composed(&var, tensor(&update), &tensor(&gradient), 1.0).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), expected);
    }
}
