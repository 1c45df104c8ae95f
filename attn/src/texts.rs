//! The texts given to a command.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::BUILT_IN_CORPUS;
use candle_attention::text::{Document, Files, Validation};
use indicatif::HumanCount;

use super::settings::Settings;
use super::terminal::{note, one_line};

/// Opens files and folders in order, with a note on what is left out.
fn open(paths: &[PathBuf]) -> Result<Files> {
    let files = Files::open(paths)?;
    if !files.skipped.is_empty() {
        note(&format!("{} texts; left out: {}", HumanCount(files.documents.len() as u64), files.left_out()));
    }
    Ok(files)
}

/// Opens files and folders to evaluate or validate on.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    Ok(open(paths)?.documents)
}

/// The documents to train on, and what to validate on.
pub fn of(settings: &Settings) -> Result<(Vec<Document>, Validation)> {
    let [texts, held_out] = settings.texts();
    let documents = match texts.is_empty() {
        true => vec![Document::new("data/train.txt", BUILT_IN_CORPUS[0])],
        false => open_to_train_on(&texts, &held_out)?,
    };
    let validation = match settings.validation_fraction() {
        _ if !held_out.is_empty() => Validation::Documents(open_all(&held_out).context("validation")?),
        Some(fraction) => Validation::Fraction(fraction),
        None if texts.is_empty() => {
            Validation::Documents(vec![Document::new("data/validation.txt", BUILT_IN_CORPUS[1])])
        }
        None => Validation::Fraction(held_out_fraction(documents.iter().map(Document::len).sum())),
    };
    Ok((documents, validation))
}

/// The fraction of a text that is held out: a tenth, but no more than 256 KiB, enough to compare losses.
fn held_out_fraction(bytes: u64) -> f64 {
    const MAX_BYTES: f64 = 262_144.0;
    (MAX_BYTES / bytes as f64).min(0.1)
}

/// Opens the texts to train on without the files to validate on, with a note if there are any among them.
fn open_to_train_on(texts: &[PathBuf], validation: &[PathBuf]) -> Result<Vec<Document>> {
    let mut files = open(texts)?;
    let removed = files.remove_files_of(validation).context("validation")?;
    if files.documents.is_empty() {
        bail!("expected texts to train on besides those of --validation, got none");
    }
    if let [first, rest @ ..] = &removed[..] {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        note(&format!("not trained on, as --validation has them: {}{more}", one_line(first.name())));
    }
    Ok(files.documents)
}

/// The name of a text in that of its run: that of a file without its extension, or of a folder.
pub fn stem(text: Option<&Path>) -> String {
    let Some(text) = text else { return "sentences".into() };
    // A path such as `.` has no name of its own.
    let whole = text.canonicalize().ok();
    let name = text.file_stem().or(whole.as_deref().and_then(Path::file_name));
    name.map_or("text".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_text() {
        let here = std::env::current_dir().unwrap();
        let here = here.file_name().unwrap().to_str().unwrap();
        for (text, expected) in [("novel.txt", "novel"), ("a/novels/", "novels"), (".", here), ("/", "text")] {
            assert_eq!(stem(Some(Path::new(text))), expected);
        }
        assert_eq!(stem(None), "sentences");
    }

    #[test]
    fn a_tenth_of_a_text_is_held_out_and_no_more_than_a_quarter_of_a_megabyte() {
        let held_out = |bytes: u64| held_out_fraction(bytes) * bytes as f64;
        assert_eq!((held_out(1_000), held_out(2_000_000)), (100.0, 200_000.0));
        for bytes in [2_621_440, 10_000_000, 1 << 40] {
            assert!((held_out(bytes) - 262_144.0).abs() < 1e-3, "{bytes}");
        }
    }
}
