//! The options of attention.

use candle_core::{Result, Tensor, bail};

use super::Mask;
use crate::cpu::checks::{check_alike, check_softcap};
use crate::ops::DropoutOptions;

/// The factor on the dot products of queries and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Scale {
    /// `1 / sqrt(D)`, which keeps the variance of the scores near that of a single product.
    #[default]
    InverseSqrt,
    /// 1: the plain dot product.
    One,
    /// Any other number.
    Value(f64),
}

impl Scale {
    /// Refuses a factor that kernels, which use it in `f32`, cannot have.
    pub(crate) fn check(self, op: &str) -> Result<()> {
        match self {
            Scale::Value(scale) if !(scale as f32).is_finite() => {
                bail!("{op}: expected a scale that is a finite number of f32, got {scale}")
            }
            _ => Ok(()),
        }
    }

    /// The factor for queries and keys of `head_dim` channels.
    pub fn factor(self, head_dim: usize) -> f64 {
        match self {
            Scale::InverseSqrt => 1.0 / (head_dim as f64).sqrt(),
            Scale::One => 1.0,
            Scale::Value(factor) => factor,
        }
    }
}

/// The order of the dimensions of queries, keys, values and output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkvLayout {
    /// (B, T, H, D), FlashAttention's: heads as a projection gives them.
    #[default]
    Bthd,
    /// (B, H, T, D), that of torch's `scaled_dot_product_attention`.
    Bhtd,
}

/// Options of [`attention`](super::attention()). The default is causal, scaled by `1 / sqrt(D)`.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// The factor on the dot products.
    pub scale: Scale,
    /// Which keys a query may see, and a bias on the scores.
    pub mask: Mask,
    /// A bound on the scores, before bias and mask: `score` becomes `softcap * tanh(score / softcap)` (Gemma 2,
    /// arXiv:2408.00118).
    pub softcap: Option<f64>,
    /// Attention sinks, (H), of the dtype of `q`: one more score a head, after the soft cap, for a key without a value
    /// that every query sees (gpt-oss, arXiv:2508.10925). The weights of a row then add up to less than 1.
    pub sinks: Option<Tensor>,
    /// Dropout of the weights; backward draws it again instead of keeping it. Head `h` of sequence `b` uses the random
    /// stream `(first_sequence + b) * H + h`, and query `t` and key `s` its word `t * 2^32 + s`.
    pub dropout: Option<DropoutOptions>,
    /// The order of the dimensions. Where heads and positions agree in number, a wrong one cannot be noticed.
    pub layout: QkvLayout,
}

impl AttentionOptions {
    /// Refuses options out of their range, or a mask that does not fit `b` sequences of `h` heads, `t` queries and `s`
    /// keys, which `q` is part of.
    pub(super) fn check(&self, [b, h, t, s]: [usize; 4], q: &Tensor) -> Result<()> {
        check_softcap("attention", self.softcap)?;
        self.scale.check("attention")?;
        if let Some(dropout) = &self.dropout {
            dropout.factors()?;
        }
        if let Some(sinks) = &self.sinks {
            check_alike("attention", "sinks", sinks, "q", q)?;
            if sinks.dims() != [h] {
                bail!("attention: expected sinks of shape {:?}, got {:?}", [h], sinks.dims());
            }
        }
        for tensor in [&self.mask.bias, &self.mask.allowed].into_iter().flatten() {
            if !tensor.device().same_device(q.device()) {
                let (expected, got) = (q.device().location(), tensor.device().location());
                bail!("attention: expected a mask on {expected:?} as q, got {got:?}");
            }
        }
        self.mask.check([b, h, t, s], q.dtype())
    }
}
