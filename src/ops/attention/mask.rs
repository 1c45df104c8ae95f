//! Which keys a query may see.

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

/// Which keys each query may see, and a bias on their scores: every part that is given must allow a key. The default is
/// causal.
///
/// Query `t` of a sequence stands at a position among its S keys: by default `t + S - T`, so the T queries are the last
/// positions. That is what decoding over cached keys needs. With `query_positions`, it is `t + query_positions[b]`.
///
/// A query that sees nothing gives zeros. What a query does not see has no effect on it, even where it is NaN. Padding is
/// hidden as keys alone: as queries, padded positions see the keys that a band leaves them, so a loss must leave their
/// outputs out, and what is not a number there reaches the keys that they see.
///
/// ```
/// use candle_attention::ops::{KeyPadding, Mask};
///
/// // A window of 128 keys, in two sequences padded on the left, with 5 and 7 real keys.
/// let mask = Mask { key_padding: Some(KeyPadding::Left(vec![5, 7])), ..Mask::window(128) };
/// # let _ = mask;
/// ```
#[derive(Clone, Debug, Default)]
pub struct Mask {
    /// What the distance of query and key allows.
    pub band: Band,
    /// Several documents packed into each sequence: a (B, S) tensor of `u32` with the document's number at each
    /// position. A query sees the keys of its own document only.
    pub documents: Option<Tensor>,
    /// Keys that no query of a sequence sees.
    pub key_padding: Option<KeyPadding>,
    /// Query `t` sees key `s` only where this is not 0: a tensor of `u8` of any shape that broadcasts to (B, H, T, S).
    pub allowed: Option<Tensor>,
    /// A tensor to add to the scores, after the soft cap, of any shape that broadcasts to (B, H, T, S): minus infinity
    /// hides a key. Of the dtype of `q`; three dimensions are (H, T, S). A tracked bias gets its gradient, which has its
    /// shape.
    pub bias: Option<Tensor>,
    /// Attention with linear biases (Press et al. 2021, arXiv:2108.12409): `slope * |distance|` is subtracted from the
    /// scores; one slope for each of the H heads, for instance [`Mask::alibi_slopes`].
    pub alibi: Option<Vec<f64>>,
    /// The position, among the keys of each of the B sequences, of its first query. A query whose position is negative
    /// sees nothing, but for a full band, where positions do not matter.
    pub query_positions: Option<Vec<i64>>,
}

/// The keys that a query at position `p` may see because of their distance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Band {
    /// Those up to `p`.
    #[default]
    Causal,
    /// All.
    Full,
    /// `Window(n)`: the last n up to `p`, itself included.
    Window(usize),
    /// `Prefix(n)`: those up to `p`, and always the first n.
    Prefix(usize),
}

/// Keys that are padding, which no query sees.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum KeyPadding {
    /// Of sequence `b`, the last `lengths[b]` of the S keys are real.
    Left(Vec<usize>),
    /// Of sequence `b`, the first `lengths[b]` of the S keys are real.
    Right(Vec<usize>),
    /// Keys are real where a (B, S) tensor of `u8` is not 0. (torch's `key_padding_mask` has it the other way round.)
    Real(Tensor),
}

impl Band {
    /// The number of keys, from the first, that every query sees, and the number that a query sees up to its position.
    pub(super) fn bounds(self) -> (usize, usize) {
        match self {
            Band::Causal => (0, usize::MAX),
            Band::Full => (usize::MAX, usize::MAX),
            Band::Window(len) => (0, len),
            Band::Prefix(len) => (len, usize::MAX),
        }
    }

    /// The keys, of `s`, that a query at this position may see.
    pub(super) fn keys(self, position: i64, s: usize) -> Range<usize> {
        if self == Band::Full {
            return 0..s;
        }
        let Ok(position) = usize::try_from(position) else { return 0..0 };
        let ((first, window), up_to) = (self.bounds(), position.saturating_add(1));
        up_to.saturating_sub(window).min(s)..up_to.max(first).min(s)
    }
}

impl Mask {
    /// A query sees the keys up to its own position.
    pub fn causal() -> Self {
        Self::default()
    }

    /// Every query sees every key.
    pub fn full() -> Self {
        Self { band: Band::Full, ..Self::default() }
    }

    /// A query sees the last `len` keys up to its own position, itself included.
    pub fn window(len: usize) -> Self {
        Self { band: Band::Window(len), ..Self::default() }
    }

    /// A query sees the keys up to its own position, and always the first `len`.
    pub fn prefix(len: usize) -> Self {
        Self { band: Band::Prefix(len), ..Self::default() }
    }

    /// The slopes of the heads that the paper on linear biases chose: for a power of two, `2^(-8 i / num_heads)` for `i`
    /// from 1 on; for other numbers, those of the power below and then every second one of the power above.
    pub fn alibi_slopes(num_heads: usize) -> Vec<f64> {
        let of_power = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64));
        let below = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
        of_power(below).chain(of_power(2 * below).step_by(2)).take(num_heads).collect()
    }

    /// Refuses a mask that does not fit `b` sequences of `h` heads, `t` queries and `s` keys, for scores of a dtype.
    pub(super) fn check(&self, sizes: [usize; 4], dtype: DType) -> Result<()> {
        let [b, h, t, s] = sizes;
        let Self { band, documents, key_padding, allowed, bias, alibi, query_positions } = self;
        if *band == Band::Window(0) {
            bail!("attention: expected a window of at least 1, got 0");
        }
        let looks_back = *band != Band::Full || documents.is_some();
        if looks_back && query_positions.is_none() && t > s {
            bail!("attention: a causal mask expects at least as many keys as queries, got {s} keys for {t} queries");
        }
        if let Some(positions) = query_positions.as_ref().filter(|positions| positions.len() != b) {
            bail!("attention: expected the query positions of {b} sequences, got {}", positions.len());
        }
        // So far from the limits of 64 bits that no sum overflows.
        if let Some(position) = query_positions.iter().flatten().find(|position| position.unsigned_abs() > 1 << 62) {
            bail!("attention: expected query positions within 2^62, got {position}");
        }
        if let Some(documents) = documents {
            check_shape("documents", documents, [b, s], DType::U32)?;
        }
        match key_padding {
            Some(KeyPadding::Real(keys)) => check_shape("key padding", keys, [b, s], DType::U8)?,
            Some(KeyPadding::Left(lengths) | KeyPadding::Right(lengths))
                if lengths.len() != b || lengths.iter().any(|len| *len > s) =>
            {
                bail!("attention: expected {b} lengths of at most {s} keys, got {lengths:?}")
            }
            _ => {}
        }
        if let Some(allowed) = allowed {
            check_broadcasts("an allowed set", allowed, sizes, DType::U8)?;
        }
        if let Some(bias) = bias {
            check_broadcasts("a bias", bias, sizes, dtype)?;
        }
        match alibi {
            // Kernels use them in `f32`.
            Some(slopes) if slopes.len() != h || slopes.iter().any(|slope| !(*slope as f32).is_finite()) => {
                bail!("attention: expected {h} finite slopes, one a head, got {slopes:?}")
            }
            _ => Ok(()),
        }
    }
}

fn check_shape(what: &str, tensor: &Tensor, shape: [usize; 2], dtype: DType) -> Result<()> {
    if tensor.dims() != shape || tensor.dtype() != dtype {
        let (dims, got) = (tensor.dims(), tensor.dtype());
        bail!("attention: expected {what} of shape {shape:?} and dtype {dtype:?}, got {dims:?} and {got:?}");
    }
    Ok(())
}

fn check_broadcasts(what: &str, tensor: &Tensor, sizes: [usize; 4], dtype: DType) -> Result<()> {
    let dims = tensor.dims();
    let fits = dims.len() <= 4 && dims.iter().rev().zip(sizes.iter().rev()).all(|(dim, size)| dim == size || *dim == 1);
    if !fits || tensor.dtype() != dtype {
        let got = tensor.dtype();
        bail!(
            "attention: expected {what} of dtype {dtype:?} that broadcasts to (B, H, T, S) = {sizes:?}, got {dims:?} and \
             {got:?}"
        );
    }
    Ok(())
}
