//! What a model would predict if it ended after one of its layers.

use candle_core::{DType, Device, Tensor};

use crate::cpu::parallel::map;
use crate::cpu::storage::values;
use crate::host::Result;
use crate::model::CausalLm;

/// The next-token distribution at each depth and position, read from the residual stream with the model's last norm and
/// head. Depth 0 is the embedding, depth `l` is after layer `l`; the last depth is the model's own prediction.
///
/// Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LogitLens {
    /// The most likely next tokens, most likely first: (L + 1, T, K) of `u32`.
    pub ids: Tensor,
    /// Their probabilities: (L + 1, T, K), `f32`.
    pub probabilities: Tensor,
    /// The probability of the token that really follows: (L + 1, T), `f32`; 0 at the last position.
    pub next: Tensor,
}

/// Candidates at each depth and position (K), where the vocabulary has as many.
const CANDIDATES: usize = 8;

/// What is kept of one distribution.
struct Prediction {
    top: Vec<(u32, f32)>,
    next: f32,
}

impl LogitLens {
    /// From the residual stream of the prompt `ids`: L + 1 tensors (1, T, C).
    pub(super) fn new(model: &CausalLm, residuals: &[Tensor], ids: &[u32]) -> Result<Self> {
        /// Logits held at once.
        const MAX_LOGITS: usize = 1 << 24;
        let (t, v) = (ids.len(), model.config().vocab_size);
        let (k, step) = (CANDIDATES.min(v), (MAX_LOGITS / v).clamp(1, t));
        let mut predictions: Vec<Prediction> = vec![];
        for residual in residuals {
            for start in (0..t).step_by(step) {
                let rows = step.min(t - start);
                let logits = model.read_out(&residual.narrow(1, start, rows)?)?; // (1, rows, V)
                // Only looked at.
                let logits = logits.detach().to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?;
                let logits = values(&logits)?;
                predictions.extend(map(rows, |row| {
                    Prediction::of(&logits[row * v..][..v], k, ids.get(start + row + 1).copied())
                }));
            }
        }
        let depths = residuals.len();
        let top = || predictions.iter().flat_map(|prediction| &prediction.top);
        let next = predictions.iter().map(|prediction| prediction.next).collect();
        Ok(Self {
            ids: Tensor::from_vec(top().map(|(id, _)| *id).collect(), (depths, t, k), &Device::Cpu)?,
            probabilities: Tensor::from_vec(top().map(|(_, p)| *p).collect(), (depths, t, k), &Device::Cpu)?,
            next: Tensor::from_vec(next, (depths, t), &Device::Cpu)?,
        })
    }
}

impl Prediction {
    fn of(logits: &[f32], k: usize, next: Option<u32>) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |logit: f32| f64::from(logit - max).exp();
        let sum: f64 = logits.iter().map(|logit| exp(*logit)).sum();
        let probability = |id: u32| (exp(logits[id as usize]) / sum) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        // Ties in the order of ids, so that the same logits always give the same list.
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        ids.select_nth_unstable_by(k - 1, by_logit);
        ids.truncate(k);
        ids.sort_unstable_by(by_logit);
        Self { top: ids.into_iter().map(|id| (id, probability(id))).collect(), next: next.map_or(0.0, probability) }
    }
}
