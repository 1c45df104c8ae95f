//! Reading a text step by step.

use candle_core::{DType, Tensor};

use super::CausalLm;
use super::causal_lm::Scratch;
use crate::host::{Result, bail, memory};
use crate::nn::KvCache;

/// A model with the keys and values of a text it has read, or of several side by side: the next token costs one
/// position instead of the whole text again.
///
/// As long as the text fits the context, the logits are those of [`CausalLm::next_token_logits`] for all ids so far.
/// Beyond `context_len`, it depends on the model's positions:
///
/// - **Rotary positions** go on counting. Each position sees the last `context_len`, itself included: the logits are
///   those of the whole text with [`Band::Window`](crate::ops::Band::Window) in each layer, however the text is cut
///   into pieces. A layer still sees what the layers below it have taken from further back.
/// - **Learned positions** end with the context. Each time it is full, the decoder forgets all but its last half
///   (`context_len / 2` rounded up, the new ids included) and reads that again from position 0. So there is always at
///   least half a context to look back on, and a token costs two positions on average. If the first piece is longer
///   than the context, only its last `context_len` ids are read.
///
/// The memory for keys and values grows with the text, up to the context.
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
/// # Ok::<(), candle_attention::Error>(())
/// ```
#[derive(Debug)]
pub struct Decoder<'a> {
    model: &'a CausalLm,
    caches: Vec<KvCache>,
    /// The number of texts it reads, once it has started.
    sequences: Option<usize>,
    /// For learned positions, the ids that the caches hold: some of them will have to be read again.
    read: Vec<Tensor>,
    scratch: Scratch,
}

impl CausalLm {
    /// A decoder that has read nothing.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { model: self, caches: caches(self), sequences: None, read: Vec::new(), scratch: Scratch::default() }
    }
}

/// An empty cache for each layer.
fn caches(model: &CausalLm) -> Vec<KvCache> {
    let config = model.config();
    let cache = if config.architecture.is_rotary() { KvCache::sliding } else { KvCache::new };
    (0..config.num_layers)
        .map(|i| cache(config.window(i).map_or(config.context_len, |n| n.min(config.context_len))))
        .collect()
}

impl Decoder<'_> {
    /// The number of positions it looks back on.
    pub fn remembered(&self) -> usize {
        self.caches.iter().map(KvCache::len).max().unwrap_or(0).min(self.model.config().context_len)
    }

    /// Forgets the text, to start a new one.
    pub fn reset(&mut self) {
        self.caches.iter_mut().for_each(KvCache::reset);
        self.sequences = None;
        self.read.clear();
    }

    /// The logits (B, V) of the token after `ids` (B, T), which continue those of the call before; without a graph.
    ///
    /// # Errors
    /// If there are no ids, an id is V or more, the number of sequences has changed, or memory cannot hold their keys
    /// and values. The text is then forgotten.
    pub fn next_token_logits(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (b, _) = ids.dims2()?;
        if let Some(expected) = self.sequences.filter(|&expected| expected != b) {
            self.reset();
            bail!("decoder: expected ids of {expected} sequences as before, got {b}");
        }
        if self.caches.first().and_then(KvCache::sequences).is_some_and(|sequences| sequences != b) {
            // Buffers for another number of sequences: of no more use.
            self.caches = caches(self.model);
        }
        let is_rotary = self.model.config().architecture.is_rotary();
        let logits = if is_rotary { self.step_in_pieces(ids) } else { self.step_or_reread(ids) };
        match &logits {
            Ok(_) => self.sequences = Some(b),
            // Some blocks have read the ids, others have not.
            Err(_) => self.reset(),
        }
        logits
    }

    /// Refuses a text that will need more memory for keys and values than there is: `b` sequences of `positions` each,
    /// the first `first` of them read at once.
    pub(crate) fn check_room(&self, b: usize, first: usize, positions: usize) -> Result<()> {
        self.check_growth(b, |cache| cache.allocated_for(first, positions))
    }

    /// Refuses buffers with room for as many positions as each cache needs, beside those there are, that memory cannot hold.
    fn check_growth(&self, b: usize, needed: impl Fn(&KvCache) -> usize) -> Result<()> {
        let config = self.model.config();
        let (mut rows, mut copied) = (Some(0usize), 0);
        for cache in &self.caches {
            let (positions, before) = (needed(cache), cache.allocated());
            if positions > before {
                rows = rows.and_then(|rows| rows.checked_add(positions - before));
                // One layer at a time is copied, so only one has its old and its new buffers at once.
                copied = before.max(copied);
            }
        }
        let row = memory::tensor_bytes(&[2, b, config.kv_heads(), config.head_channels()], size_of::<f32>());
        let rows = rows.and_then(|rows| rows.checked_add(copied));
        memory::check("decoder: keys and values", row.zip(rows).and_then(|(row, rows)| row.checked_mul(rows)))
    }

    /// Reads on, at most one context at a time: the activations of more would need memory for all of it.
    fn step_in_pieces(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (t, context_len) = (ids.dim(1)?, self.model.config().context_len);
        let last = t.saturating_sub(1) / context_len * context_len;
        for start in (0..last).step_by(context_len) {
            self.step(&ids.narrow(1, start, context_len)?)?;
        }
        self.step(&ids.narrow(1, last, t - last)?)
    }

    /// Reads on, or, where there are no more positions, rereads the last ids from position 0.
    fn step_or_reread(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (t, context_len, remembered) = (ids.dim(1)?, self.model.config().context_len, self.remembered());
        self.read.push(ids.clone());
        if remembered + t <= context_len {
            return self.step(ids);
        }
        let all = Tensor::cat(&self.read, 1)?; // (B, all so far)
        let kept = if remembered == 0 { context_len } else { context_len.div_ceil(2).max(t.min(context_len)) };
        let last = all.narrow(1, remembered + t - kept, kept)?;
        self.caches.iter_mut().for_each(KvCache::reset);
        self.read = vec![last.clone()];
        self.step(&last)
    }

    fn step(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        self.check_growth(b, |cache| cache.allocated_after(t))?;
        if t == 1 && ids.dtype() == DType::U32 {
            let read: Vec<u32> = ids.flatten_all()?.to_vec1()?;
            if let Some(logits) = self.model.decode(&read, &mut self.caches, &mut self.scratch)? {
                return Ok(logits);
            }
        }
        Ok(self.model.next_token_logits_cached(ids, &mut self.caches)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use crate::model::{Activation, ModelConfig, SlidingWindow};
    use crate::nn::{LoraConfig, Parameters, RotaryScaling};
    use candle_core::Device;

    /// Every option that changes what a block computes.
    fn configs() -> Vec<ModelConfig> {
        let tiny = |of: ModelConfig| ModelConfig {
            context_len: 7,
            embed_dim: 12,
            num_heads: 3,
            num_layers: 2,
            hidden_dim: 13,
            ..of
        };
        let [gpt2, llama, qwen3] = [ModelConfig::gpt2(11), ModelConfig::llama(11), ModelConfig::qwen3(11)].map(tiny);
        let activations = [Activation::GeluTanh, Activation::QuickGelu, Activation::Relu, Activation::GeluErf];
        let [erf, silu] =
            [&gpt2, &llama].map(|of| activations.map(|activation| ModelConfig { activation, ..of.clone() }));
        let others = [
            ModelConfig { bias: true, tie_embeddings: false, ..gpt2.clone() },
            ModelConfig { scale_attn_weights: false, scale_attn_by_inverse_layer_idx: true, ..gpt2.clone() },
            ModelConfig { num_kv_heads: Some(1), bias: true, mlp_bias: true, tie_embeddings: false, ..llama.clone() },
            ModelConfig { rope_theta: 5e5, rope_scaling: RotaryScaling::Linear { factor: 2.0 }, ..llama.clone() },
            ModelConfig { num_kv_heads: Some(1), head_dim: Some(6), bias: true, ..qwen3.clone() },
            ModelConfig { sliding_window: Some(SlidingWindow::new(3, vec![true, false])), ..qwen3.clone() },
        ];
        [gpt2, llama, qwen3].into_iter().chain(erf).chain(silu).chain(others).collect()
    }

    /// A model with weights that are tracked, and, on request, adapters.
    fn random_model(config: &ModelConfig, has_adapters: bool) -> CausalLm {
        let parameters = Parameters::new(3);
        let vb = parameters.var_builder(DType::F32, &Device::Cpu);
        let model = CausalLm::new(config, vb.clone()).unwrap();
        let model = if has_adapters { model.with_lora(&LoraConfig::new(2), vb.pp("adapters")).unwrap() } else { model };
        for (i, (_, var)) in parameters.vars().iter().enumerate() {
            var.set(&(randn(i as u64, var.dims()) * 0.3).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
        }
        model
    }

    /// Position by position, past the context where positions are rotary, after a first piece of several.
    #[test]
    fn the_next_position_on_slices_has_the_bits_of_that_on_tensors() {
        for (config, has_adapters) in configs().iter().flat_map(|config| [(config, false), (config, true)]) {
            let model = random_model(config, has_adapters);
            for b in [1, 3] {
                let [mut on_slices, mut on_tensors] = [caches(&model), caches(&model)];
                let first = Tensor::from_vec((0..2 * b as u32).collect(), (b, 2), &Device::Cpu).unwrap();
                for caches in [&mut on_slices, &mut on_tensors] {
                    model.next_token_logits_cached(&first, caches).unwrap();
                }
                let mut scratch = Scratch::default();
                let positions = if config.architecture.is_rotary() { 300 } else { 5 };
                for i in 0..positions {
                    let ids: Vec<u32> = (0..b as u32).map(|row| (i * i + 3 * row) % 11).collect();
                    let got = model.decode(&ids, &mut on_slices, &mut scratch).unwrap().expect("kernels");
                    let ids = Tensor::from_vec(ids, (b, 1), &Device::Cpu).unwrap();
                    let expected = model.next_token_logits_cached(&ids, &mut on_tensors).unwrap();
                    assert!(!got.track_op() && !expected.track_op());
                    let [got, expected] = [got, expected].map(|logits| logits.to_vec2::<f32>().unwrap());
                    assert!(got == expected, "{config:?}, adapters {has_adapters}, {b} sequences, position {i}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_kernel_is_left_to_tensors() {
        let config = &configs()[0];
        let model = random_model(config, false);
        let decode = |ids: &[u32]| model.decode(ids, &mut caches(&model), &mut Scratch::default()).unwrap();
        assert!(decode(&[1]).is_some());
        assert!(decode(&[11]).is_none());
        let in_f64 = CausalLm::new(config, Parameters::new(3).var_builder(DType::F64, &Device::Cpu)).unwrap();
        assert!(in_f64.decode(&[1], &mut caches(&in_f64), &mut Scratch::default()).unwrap().is_none());
    }
}
