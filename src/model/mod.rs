//! The language model: a decoder of N blocks, and its form on disk, a Hugging Face model folder.

mod block;
mod causal_lm;
mod config;
mod context;
mod decoder;
mod gpt2_json;
mod tensor_file;
mod weights;

pub use causal_lm::CausalLm;
pub use config::{Activation, DropoutRates, ModelConfig};
pub use context::{DropoutSource, ForwardContext};
pub use decoder::Decoder;
pub(crate) use tensor_file::read_safetensors;
pub(crate) use weights::write_safetensors;
pub use weights::{load_weights, save_weights};
