//! The texts that a command is given.

use std::path::PathBuf;

use candle_attention::text::Document;
use candle_core::Result;

/// The built-in corpus, made by `examples/make_corpus`.
const TRAINING: &str = include_str!("../../data/train.txt");
const VALIDATION: &str = include_str!("../../data/validation.txt");

/// Reads the files in their order.
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    paths.iter().map(Document::read).collect()
}

/// The built-in corpus: the document to train on and the one to validate on.
pub fn built_in() -> (Document, Document) {
    let document = |name: &str, text: &str| Document { name: name.into(), bytes: text.into() };
    (document("data/train.txt", TRAINING), document("data/validation.txt", VALIDATION))
}
