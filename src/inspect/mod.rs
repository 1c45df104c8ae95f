//! What a model has learned, as data: which token attends to which, what each layer would predict, and what its weights
//! look like.
//!
//! An [`AttentionMap`] is what one forward pass over a prompt shows; [`HeadScores`] describe each head by a few numbers;
//! [`Words`] leads from tokens to words. A [`WeightReport`] describes the weights without a text.
//!
//! ```
//! use candle_attention::{inspect::AttentionMap, model::{CausalLm, ModelConfig}, nn::Parameters};
//! use candle_core::{DType, Device};
//!
//! let config = ModelConfig { context_len: 8, embed_dim: 12, num_heads: 3, num_layers: 2, ..ModelConfig::gpt2(11) };
//! let model = CausalLm::new(&config, Parameters::new(0).frozen(DType::F32, &Device::Cpu))?;
//! let map = AttentionMap::new(&model, &[1, 2, 3, 2])?;
//! assert_eq!(map.weights.dims(), [2, 3, 4, 4]); // (L, H, T, T)
//! assert_eq!(map.lens.ids.dims(), [3, 4, 8]); // (L + 1, T, K)
//! let scores = &map.scores()?[1][2]; // layer 2, head 3
//! assert!((0.0..=1.0).contains(&scores.previous));
//! # Ok::<(), candle_attention::Error>(())
//! ```

mod attention_map;
mod head_scores;
mod logit_lens;
mod spectrum;
mod weight_report;
mod words;

pub use attention_map::AttentionMap;
pub use head_scores::HeadScores;
pub use logit_lens::LogitLens;
pub use spectrum::Spectrum;
pub use weight_report::{HeadSpectra, TensorReport, WeightReport};
pub use words::Words;
