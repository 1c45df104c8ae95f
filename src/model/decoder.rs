//! Reading a text step by step.

use candle_core::{Result, Tensor, bail};

use super::CausalLm;
use crate::memory;
use crate::nn::KvCache;
use crate::ops;

/// A model with what it remembers of a text, or of several side by side: the next token costs one position instead of the
/// whole text again.
///
/// The logits are those of [`CausalLm::next_token_logits`] for all ids so far, as long as they are no more than
/// `context_len`. A model with learned positions has none for a longer text: each time the context is full, the decoder
/// forgets all but the last half of it (`context_len / 2` rounded up, the new ids included), and reads this again from the first
/// position on. So there is always at least half a context to look back on, and a token costs two positions on average.
///
/// ```
/// use candle_attention::{model::{CausalLm, ModelConfig}, nn::Parameters};
/// use candle_core::{DType, Device, Tensor};
///
/// let config = ModelConfig { context_len: 4, embed_dim: 8, num_heads: 2, ..ModelConfig::gpt2(11) };
/// let model = CausalLm::new(&config, Parameters::new(0).frozen(DType::F32, &Device::Cpu))?;
/// let mut decoder = model.decoder();
/// for ids in [&[1u32, 2][..], &[3], &[4], &[5]] {
///     let logits = decoder.next_token_logits(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)?;
///     assert_eq!(logits.dims(), [1, 11]);
/// }
/// assert_eq!(decoder.remembered(), 2); // 4 and 5
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a CausalLm,
    caches: Vec<KvCache>,
    /// The ids that the caches hold, as they came.
    read: Vec<Tensor>,
    /// Multiplications of a position and a layer.
    weights_per_layer: usize,
}

impl CausalLm {
    /// A decoder that has read nothing.
    pub fn decoder(&self) -> Decoder<'_> {
        let config = self.config();
        Decoder {
            model: self,
            caches: (0..config.num_layers).map(|_| KvCache::new(config.context_len)).collect(),
            read: Vec::new(),
            weights_per_layer: config.parameter_count() / config.num_layers,
        }
    }
}

impl Decoder<'_> {
    /// Positions it looks back on.
    pub fn remembered(&self) -> usize {
        self.caches.first().map_or(0, KvCache::len)
    }

    /// Forgets the text, and starts a new one.
    pub fn reset(&mut self) {
        self.caches.iter_mut().for_each(KvCache::reset);
        self.read.clear();
    }

    /// The logits (B, V) of the token after `ids` (B, T), which go on where those of the call before ended; without a
    /// graph. A first text longer than the context is read from the last `context_len` ids on.
    ///
    /// # Errors
    /// If there are no ids, one is V or more, or there are not as many sequences as before, or memory cannot hold their keys and values. The text is then forgotten.
    pub fn next_token_logits(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        if let Some(before) = self.read.first()
            && before.dim(0)? != b
        {
            let expected = before.dim(0)?;
            self.reset();
            bail!("decoder: expected ids of {expected} sequences as before, got {b}");
        }
        if self.read.is_empty() {
            self.check_memory(b)?;
        }
        let (context_len, remembered) = (self.model.config().context_len, self.remembered());
        if remembered + t <= context_len {
            return self.step(ids.clone());
        }
        let all = Tensor::cat(&[&self.read[..], std::slice::from_ref(ids)].concat(), 1)?; // (B, all so far)
        let kept = if remembered == 0 { context_len } else { context_len.div_ceil(2).max(t.min(context_len)) };
        self.reset();
        self.step(all.narrow(1, remembered + t - kept, kept)?)
    }

    /// Refuses keys and values of more positions, in all layers, than memory holds.
    fn check_memory(&self, b: usize) -> Result<()> {
        let config = self.model.config();
        let shape = [2, config.num_layers, b, config.context_len, config.kv_heads(), config.head_channels()];
        memory::check("decoder: keys and values", memory::tensor_bytes(&shape, size_of::<f32>()))
    }

    fn step(&mut self, ids: Tensor) -> Result<Tensor> {
        // Some positions of a small model take less time than to wake other threads for a part of each operation. To read
        // the weights takes as long as to multiply so many positions by them.
        const READING: usize = 16;
        const WORTH_SPLITTING: usize = 1 << 24;
        let is_small = (ids.elem_count() + READING) * self.weights_per_layer < WORTH_SPLITTING;
        let mut run = || self.model.next_token_logits_cached(&ids, &mut self.caches);
        let logits = if is_small { ops::sequential(run) } else { run() };
        match &logits {
            Ok(_) => self.read.push(ids),
            // Some blocks have read the ids, others not.
            Err(_) => self.reset(),
        }
        logits
    }
}
