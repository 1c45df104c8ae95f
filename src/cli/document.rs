//! The texts given to a command.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use candle_attention::text::{Corpus, Document, Files, Separator, Spill};

use super::counted;
use super::terminal::{note, one_line};

/// The built-in corpus, made by `examples/make_corpus`.
const TRAINING: &str = include_str!("../../data/train.txt");
const VALIDATION: &str = include_str!("../../data/validation.txt");

/// Bytes of text above which its ids are kept in a file.
const LARGE_TEXT_BYTES: u64 = 16 << 20;

/// The most documents that a note names.
const MOST_NAMED: usize = 3;

/// Opens files and folders in order, with a note on what is skipped in folders.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    let Files { documents, skipped } = Files::open(paths)?;
    if !skipped.is_empty() {
        note(&format!("{}; left out: {skipped}", counted(documents.len(), "text")));
    }
    Ok(documents)
}

/// Opens the texts to train on without the files to validate on, with a note if there are any among them.
pub fn open_to_train_on(texts: &[PathBuf], validation: &[PathBuf]) -> Result<Vec<Document>> {
    let (documents, skipped) = (open_all(texts)?, Default::default());
    if validation.is_empty() {
        return Ok(documents);
    }
    let mut files = Files { documents, skipped };
    let removed = files.remove_files_of(validation)?;
    if files.documents.is_empty() {
        bail!("expected texts to train on besides those of --validation, got none");
    }
    if !removed.is_empty() {
        note(&format!("not trained on, as --validation has them: {}", named(&removed)));
    }
    Ok(files.documents)
}

fn named(documents: &[Document]) -> String {
    let names: Vec<String> = documents.iter().take(MOST_NAMED).map(|document| one_line(document.name())).collect();
    match documents.len() - names.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// A note if several documents are joined because the tokenizer has no token to separate them with.
pub fn note_missing_separator(corpus: &Corpus) {
    if corpus.separator == Separator::Missing {
        note("the tokenizer has no end-of-text token: the texts follow one another with nothing in between");
    }
}

/// The built-in corpus: the document to train on and the one to validate on.
pub fn built_in() -> (Document, Document) {
    (Document::new("data/train.txt", TRAINING), Document::new("data/validation.txt", VALIDATION))
}

/// Where the ids of a large text go that will be part of the run `root`: the nearest folder above it that exists.
pub fn spill_beside(root: &Path) -> Spill {
    let folder = root.ancestors().skip(1).find(|folder| folder.is_dir());
    Spill { folder: folder.unwrap_or(Path::new(".")).to_path_buf(), above: LARGE_TEXT_BYTES }
}

/// Where the ids of a large text go that are not kept: the system's folder for temporary files.
pub fn spill_for_now() -> Spill {
    Spill { folder: std::env::temp_dir(), above: LARGE_TEXT_BYTES }
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

    #[test]
    fn texts_to_validate_on_are_not_trained_on() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.txt", "val.txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let (folder, validation) = (dir.path().to_path_buf(), dir.path().join("val.txt"));
        let documents = open_to_train_on(&[folder], std::slice::from_ref(&validation)).unwrap();
        let names: Vec<&str> = documents.iter().map(|document| document.name().rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a.txt", "b.txt"]);
        let error = open_to_train_on(std::slice::from_ref(&validation), std::slice::from_ref(&validation)).unwrap_err();
        assert!(error.to_string().contains("besides those of --validation, got none"), "{error}");
        let five: Vec<Document> = (1..=5).map(|n| Document::new(n.to_string(), "x")).collect();
        assert_eq!([named(&five), named(&five[..2])], ["1, 2, 3 and 2 more", "1, 2"]);
    }
}
