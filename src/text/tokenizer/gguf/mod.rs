//! The tokenizer in the metadata of a GGUF file, as llama.cpp understands it, and back.
//!
//! | `tokenizer.ggml.model` | what it is | as a `tokenizer.json` |
//! |---|---|---|
//! | `gpt2` | BPE over bytes in GPT-2's alphabet, with `merges`; `tokenizer.ggml.pre` names how words are found | BPE, with [`splits`](pre::splits) |
//! | `llama` | SentencePiece: pieces join in the order of their `scores`; U+2581 stands for a space | BPE with the merges that follow from the scores |
//! | `llama` where each token is a character | a tokenizer of characters | the one of this crate |

mod pre;
mod read;
mod scores;
mod write;

pub(super) use read::open;
pub use write::GgufTokens;

/// What stands for a space in SentencePiece's tokens.
const SPACE: &str = "\u{2581}";

/// `tokenizer.ggml.token_type` of each token.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}
