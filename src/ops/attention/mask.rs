//! Which keys a query may see.

use candle_core::{DType, Device, Result, Tensor, bail};

/// The set of allowed (query, key) positions.
///
/// Where there are more keys (S) than queries (T), the queries are the last T positions: the position of query `t` is
/// `t + S - T`. That is what decoding over cached keys needs.
#[derive(Clone, Debug, Default)]
pub enum Mask {
    /// A query sees the keys up to its own position.
    #[default]
    Causal,
    /// Every query sees every key.
    Full,
    /// `Window(n)`: a query sees the last n keys up to its own position, itself included.
    Window(usize),
    /// `Prefix(n)`: a query sees the keys up to its own position, and always the first n.
    Prefix(usize),
    /// Several documents packed into one sequence; a (B, S) tensor of `u32` has the document's number at each position.
    /// A query sees the keys of its own document up to its own position.
    Documents(Tensor),
    /// Every query sees the keys where a (B, S) tensor of `u8` is not 0, for instance to hide padding.
    Keys(Tensor),
    /// Query `t` sees key `s` where a (T, S) tensor of `u8` is not 0.
    Allowed(Tensor),
    /// A (T, S), (B, 1, T, S) or (B, H, T, S) tensor is added to the scores: minus infinity hides a key, anything else
    /// is a bias. A tracked bias gets a gradient, at the price of memory for all scores.
    Additive(Tensor),
}

impl Mask {
    /// Refuses a mask that does not fit `b` sequences of `h` heads, `t` queries and `s` keys.
    pub(super) fn check(&self, [b, h, t, s]: [usize; 4], dtype: DType) -> Result<()> {
        let is_causal = !matches!(self, Mask::Full | Mask::Keys(_) | Mask::Allowed(_) | Mask::Additive(_));
        if is_causal && t > s {
            bail!("attention: a causal mask expects at least as many keys as queries, got {s} keys for {t} queries");
        }
        let (tensor, shape, expected) = match self {
            Mask::Window(0) => bail!("attention: expected a window of at least 1, got 0"),
            Mask::Documents(numbers) => (numbers, vec![b, s], DType::U32),
            Mask::Keys(keys) => (keys, vec![b, s], DType::U8),
            Mask::Allowed(allowed) => (allowed, vec![t, s], DType::U8),
            Mask::Additive(bias) if bias.rank() == 2 => (bias, vec![t, s], dtype),
            Mask::Additive(bias) if bias.rank() == 4 && bias.dim(1)? == 1 => (bias, vec![b, 1, t, s], dtype),
            Mask::Additive(bias) => (bias, vec![b, h, t, s], dtype),
            _ => return Ok(()),
        };
        if tensor.dims() != shape || tensor.dtype() != expected {
            let (dims, dtype) = (tensor.dims(), tensor.dtype());
            bail!("attention: expected a mask of shape {shape:?} and dtype {expected:?}, got {dims:?} and {dtype:?}");
        }
        Ok(())
    }

    /// The mask as a term to add to the scores, of a shape that broadcasts to (B, H, T, S): 0 where allowed and minus
    /// infinity elsewhere; `None` if everything is allowed.
    pub(super) fn additive(&self, [b, t, s]: [usize; 3], dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        if let Mask::Additive(bias) = self {
            return Ok(Some(bias.to_dtype(dtype)?));
        }
        let Some(seen) = Seen::new(self, t, s)? else { return Ok(None) };
        let sequences = if matches!(self, Mask::Documents(_) | Mask::Keys(_)) { b } else { 1 };
        let mut terms = vec![f32::NEG_INFINITY; sequences * t * s];
        for (i, term) in terms.iter_mut().enumerate() {
            if seen.sees(i / (t * s), i / s % t, i % s) {
                *term = 0.0;
            }
        }
        Ok(Some(Tensor::from_vec(terms, (sequences, 1, t, s), device)?.to_dtype(dtype)?))
    }
}

/// A mask that hides something, with its tensors as plain values. `sees(sequence, query, key)` is the definition that
/// the reference uses and the kernel's masks are tested against.
pub(super) enum Seen {
    Causal {
        before: usize,
    },
    Window {
        before: usize,
        len: usize,
    },
    Prefix {
        before: usize,
        len: usize,
    },
    Documents {
        before: usize,
        s: usize,
        numbers: Vec<u32>,
    },
    Keys {
        s: usize,
        keys: Vec<u8>,
    },
    Allowed {
        s: usize,
        allowed: Vec<u8>,
    },
    /// Terms added to the scores, which may hide too.
    Additive {
        bias: Vec<f32>,
        dims: [usize; 4],
    },
}

impl Seen {
    /// `None` for a mask that hides nothing.
    pub(super) fn new(mask: &Mask, t: usize, s: usize) -> Result<Option<Self>> {
        let before = s.saturating_sub(t);
        Ok(Some(match mask {
            Mask::Full => return Ok(None),
            Mask::Causal => Self::Causal { before },
            // Capped at all keys, because a huge window would overflow.
            Mask::Window(len) => Self::Window { before, len: (*len).min(s) },
            Mask::Prefix(len) => Self::Prefix { before, len: *len },
            Mask::Documents(numbers) => Self::Documents { before, s, numbers: numbers.flatten_all()?.to_vec1()? },
            Mask::Keys(keys) => Self::Keys { s, keys: keys.flatten_all()?.to_vec1()? },
            Mask::Allowed(allowed) => Self::Allowed { s, allowed: allowed.flatten_all()?.to_vec1()? },
            Mask::Additive(bias) => {
                let dims = if bias.rank() == 4 { bias.dims4()?.into() } else { [1, 1, t, s] };
                Self::Additive { bias: bias.flatten_all()?.to_vec1()?, dims }
            }
        }))
    }

    pub(super) fn sees(&self, sequence: usize, query: usize, key: usize) -> bool {
        match self {
            Self::Causal { before } => key <= query + before,
            Self::Window { before, len } => key <= query + before && query + before < key + len,
            Self::Prefix { before, len } => key <= query + before || key < *len,
            Self::Documents { before, s, numbers } => {
                let numbers = &numbers[sequence * s..(sequence + 1) * s];
                key <= query + before && numbers[query + before] == numbers[key]
            }
            Self::Keys { s, keys } => keys[sequence * s + key] != 0,
            Self::Allowed { s, allowed } => allowed[query * s + key] != 0,
            // The terms decide what is hidden.
            Self::Additive { .. } => true,
        }
    }
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
