//! Trainable causal self-attention for [candle](candle_core), whose gradients reach every weight, and what a language model
//! needs around it.
//!
//! ```
//! use candle_attention::optim::{AdamW, ParamsAdamW};
//! use candle_attention::{Parameters, causal_self_attention};
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::Optimizer;
//!
//! # fn main() -> candle_core::Result<()> {
//! let parameters = Parameters::new(42); // initial values from a seed; any candle `VarBuilder` will do
//! let attention = causal_self_attention(64, 4, parameters.var_builder(DType::F32, &Device::Cpu))?; // 64 channels, 4 heads
//! let mut optimizer = AdamW::new(parameters.all_vars(), ParamsAdamW::default())?;
//! let xs = Tensor::ones((2, 16, 64), DType::F32, &Device::Cpu)?; // (B, T, C)
//! let loss = || attention.forward(&xs)?.sqr()?.mean_all();
//! let before = loss()?;
//! optimizer.backward_step(&before)?;
//! assert!(loss()?.to_scalar::<f32>()? < before.to_scalar::<f32>()?);
//! # Ok(())
//! # }
//! ```
//!
//! [`CausalSelfAttention`] is the textbook layer. [`MultiHeadAttention`] has everything else: grouped and cross-attention, a
//! [`Mask`] composed of parts, [rotary positions](RotaryEmbedding), sinks, dropout, a [`KvCache`].
//!
//! # What is here
//!
//! | module | |
//! |---|---|
//! | [`nn`] | layers, those of candle-nn among them under its names; [weights of other libraries](nn::mapping) |
//! | [`ops`] | the differentiable functions they are made of, each with its formula |
//! | [`optim`] | AdamW and Muon, as [`candle_nn::Optimizer`] and as single steps; schedules, clipping |
//! | [`processes`] | gradients of several processes, with the same bits on any number |
#![cfg_attr(
    feature = "lm",
    doc = "| [`model`] | with `lm`: the decoder (gpt2, llama, qwen3), its Hugging Face and GGUF files |"
)]
#![cfg_attr(feature = "lm", doc = "| [`text`] | with `lm`: documents, tokenizers, ids, batches |")]
#![cfg_attr(feature = "lm", doc = "| [`generate`] | with `lm`: sampling, continuations, chat |")]
#![cfg_attr(feature = "lm", doc = "| [`inspect`] | with `lm`: attention maps, the logit lens, reports on weights |")]
#![cfg_attr(feature = "lm", doc = "| [`train`] | with `lm`: the trainer, checkpoints, metrics |")]
//!
//! `nn` and `ops` share four names: a layer is made by `nn::linear`, `nn::layer_norm`, `nn::rms_norm` or `nn::embedding`, and
//! computed by the function of the same name in `ops`, as in candle-nn and its `ops`. Import the modules, or of these four
//! names the layers':
//!
//! ```
//! # #![deny(ambiguous_glob_imports)]
//! use candle_attention::nn::{self, *};
//! use candle_attention::ops::{self, *};
//!
//! use candle_attention::nn::{embedding, layer_norm, linear, rms_norm}; // comes before what `*` imports
//!
//! # use candle_core::{DType, Device, Module, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! let vb = Parameters::new(42).var_builder(DType::F32, &Device::Cpu);
//! let layer = linear(3, 4, vb)?;
//! let xs = Tensor::ones((2, 3), DType::F32, &Device::Cpu)?;
//! let ys = relu(&ops::linear(&xs, layer.weight(), layer.bias())?)?;
//! # assert_eq!(ys.to_vec2::<f32>()?, layer.forward(&xs)?.relu()?.to_vec2::<f32>()?);
//! # let _ = (embedding, layer_norm::<f64>, rms_norm, nn::linear, Mask::causal());
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! | feature | |
//! |---|---|
//! | none | the layers, `ops` and `optim` |
//! | `lm` | language models: `model`, `text`, `generate`, `inspect`, `train` |
//! | `mpi` | processes that MPI starts; needs an MPI and libclang to build |
//! | `accelerate`, `cuda`, `cudnn`, `metal`, `mkl` | candle's own of these names |
//!
//! # Devices
//!
//! In `f32` on the CPU, operations are fused, forward and backward, with AVX2 or AVX-512 where the processor has them. For all
//! other dtypes and devices the same functions are composed of candle's differentiable operations.
//!
//! | device | |
//! |---|---|
//! | CPU, x86-64 Linux | every test |
//! | CPU, other systems | never run |
//! | CUDA | operations, layers, models, training, adapters, resume (`tests/it/on_gpu`), on an H200 |
//! | Metal | never run; the library is type-checked for it |
//!
//! # Versions
//!
//! candle 0.11 is part of this interface: each minor version of candle makes a new major one here (before 1.0, a minor one).
//! [`candle_core`] and [`candle_nn`] are re-exported in the version that fits. It needs Rust 1.95; a later one is required only
//! with a minor version.
//!
//! Structs of options have public fields and grow with minor versions. End their literals with `..Default::default()`, or with
//! `..` and a constructor:
//!
//! ```
//! use candle_attention::{MultiHeadAttentionConfig, ops::AttentionOptions};
//!
//! let options = AttentionOptions { softcap: Some(50.0), ..Default::default() };
//! let config = MultiHeadAttentionConfig { num_kv_heads: Some(2), ..MultiHeadAttentionConfig::new(64, 8) };
//! # let _ = (options, config);
//! ```
//!
//! Enums, and structs that the library only returns, are `#[non_exhaustive]`. Random numbers, and so initial values and what
//! dropout drops, are the same for a seed within a version, not across versions.

mod cpu;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod processes;

#[cfg(feature = "lm")]
pub mod generate;
#[cfg(feature = "lm")]
mod host;
#[cfg(feature = "lm")]
pub mod inspect;
#[cfg(feature = "lm")]
pub mod model;
#[cfg(feature = "lm")]
pub mod text;
#[cfg(feature = "lm")]
pub mod train;

pub use candle_core;
pub use candle_nn;
#[cfg(feature = "lm")]
pub use host::{Error, Memory, Result, replace_file};
pub use nn::{
    CausalSelfAttention, CausalSelfAttentionConfig, KvCache, MultiHeadAttention, MultiHeadAttentionConfig, Parameters,
    RotaryEmbedding, RotaryEmbeddingConfig, causal_self_attention,
};
pub use ops::{KeyPadding, Mask, Scale};

/// The built-in corpus of Portuguese sentences, made by `examples/make_corpus`: a text to train on and one to validate on.
#[cfg(feature = "lm")]
pub const BUILT_IN_CORPUS: [&str; 2] = [include_str!("../data/train.txt"), include_str!("../data/validation.txt")];

/// The Rust in the README and in the book, compiled and run as tests; that of `docs/mappings.md` is [`nn::mapping`]'s.
#[cfg(doctest)]
mod pages {
    macro_rules! pages {
        ($($name:ident: $path:literal,)*) => { $(#[doc = include_str!($path)] mod $name {})* };
    }
    pages! {
        readme: "../README.md",
        adding: "../docs/adding.md",
        layer: "../docs/layer.md",
        mechanism: "../docs/mechanism.md",
        mecanismo: "../docs/pt/mecanismo.md",
        optimizers: "../docs/optimizers.md",
    }
}
