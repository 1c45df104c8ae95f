//! The language model, a decoder, and its form on disk, a Hugging Face model folder.

mod architecture;
mod block;
mod causal_lm;
mod config;
mod context;
mod decoder;
mod json;
mod tensor_file;
mod tensors;
mod validate;
mod weights;

pub use architecture::Architecture;
pub use causal_lm::CausalLm;
pub use config::{Activation, DropoutRates, ModelConfig, ResidualInit};
pub use context::{DropoutSource, ForwardContext};
pub use decoder::Decoder;
pub(crate) use tensor_file::safetensors_from_bytes;
pub use weights::{load_weights, save_weights};
pub(crate) use weights::{safetensors_to_bytes, weights_from_bytes, weights_to_bytes};
