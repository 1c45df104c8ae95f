//! The texts that a command is given.

use std::path::{Path, PathBuf};

use candle_attention::text::{Document, Files, Spill};
use candle_core::Result;

use super::counted;
use super::terminal::note;

/// The built-in corpus, made by `examples/make_corpus`.
const TRAINING: &str = include_str!("../../data/train.txt");
const VALIDATION: &str = include_str!("../../data/validation.txt");

/// Bytes of text above which its ids stay in a file.
const LARGE_TEXT: u64 = 16 << 20;

/// Opens files and folders in their order, and tells what of the folders is left out.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let Files { documents, skipped } = Files::open(paths)?;
    if !skipped.is_empty() {
        note(&format!("{}; left out: {skipped}", counted(documents.len(), "text")));
    }
    Ok(documents)
}

/// The built-in corpus: the document to train on and the one to validate on.
pub fn built_in() -> (Document, Document) {
    (Document::new("data/train.txt", TRAINING), Document::new("data/validation.txt", VALIDATION))
}

/// Where the ids of a large text go that will be part of the run `root`: the nearest folder around it that exists.
pub fn spill_beside(root: &Path) -> Spill {
    let folder = root.ancestors().skip(1).find(|folder| folder.is_dir());
    Spill { folder: folder.unwrap_or(Path::new(".")).to_path_buf(), above: LARGE_TEXT }
}

/// Where the ids of a large text go that are of no use later.
pub fn spill_for_now() -> Spill {
    Spill { folder: std::env::temp_dir(), above: LARGE_TEXT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_beside_the_run() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(spill_beside(&dir.path().join("run")).folder, dir.path());
        assert_eq!(spill_beside(&dir.path().join("runs/of/today/run")).folder, dir.path());
        assert_eq!(spill_beside(Path::new("missing/run")).folder, Path::new("."));
        assert_eq!(spill_beside(Path::new("/run")).folder, Path::new("/"));
    }
}
