//! What the floors of the language model need of the machine: errors, files of unknown origin, files that survive a
//! crash, memory.

pub(crate) mod disk;
mod error;
#[cfg(test)]
pub(crate) mod faults;
pub(crate) mod file_names;
pub(crate) mod gguf;
pub(crate) mod gguf_writer;
mod guard;
pub(crate) mod input;
pub(crate) mod memory;
mod model_path;

pub use disk::replace_with as replace_file;
pub use error::{Error, Result};
pub(crate) use error::{bail, bail_option, listed};
pub(crate) use guard::caught;
pub use guard::hide_caught_panics;
pub use memory::Memory;
pub(crate) use model_path::{ModelPath, adapter_base, folder_of};
