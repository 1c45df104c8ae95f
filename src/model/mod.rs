//! The language model, a decoder, and its form on disk, a Hugging Face model folder.

mod adapter;
mod architecture;
pub(crate) mod base_files;
mod block;
mod causal_lm;
mod config;
mod config_file;
mod context;
mod decoder;
mod gguf;
mod json;
mod tensor_file;
mod tensor_files;
mod tensors;
mod validate;
mod weights;

pub(crate) use adapter::{adapter_json, own_adapter, save_adapter};
pub use architecture::Architecture;
pub use causal_lm::{CausalLm, Trace};
pub use config::{Activation, DropoutRates, ModelConfig, ResidualInit, SlidingWindow};
pub use context::{DropoutSource, ForwardContext};
pub use decoder::Decoder;
pub use gguf::{GgufType, save_gguf};
pub(crate) use tensor_file::{TensorFile, write_tensors};
pub(crate) use weights::save_weights_with;
pub use weights::{load_weights, save_weights};
