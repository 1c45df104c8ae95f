//! The texts given to a command.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_attention::BUILT_IN_CORPUS;
use candle_attention::text::{Document, Files, Validation};
use indicatif::HumanCount;

use super::held_out::held_out_fraction;
use super::settings::Settings;
use super::terminal::{note, one_line};

/// The path of standard input.
pub const STANDARD_INPUT: &str = "-";

/// Opens files and folders in order, with notes on what is left out and what is repeated. What can be read only once is
/// read now or, with `later`, by [`complete`].
fn open(paths: &[PathBuf], later: bool) -> Result<Files> {
    if paths.iter().filter(|path| is_standard_input(path)).count() > 1 {
        bail!("expected -, standard input, once, got it more often");
    }
    if paths.iter().any(|path| path.as_os_str().is_empty()) {
        bail!("expected the path of a file or a folder, or -, got an empty one");
    }
    let mut files = Files::default();
    for path in paths {
        match is_read_once(path) {
            true if later => files.documents.push(Document::new(path.display().to_string(), [])),
            true => files.documents.push(open_one(path)?),
            false => files.add(path)?,
        }
    }
    if !files.skipped.is_empty() {
        note(&format!("{} texts; left out: {}", HumanCount(files.documents.len() as u64), files.left_out()));
    }
    if let Some(names) = first_of(&files.repeated()?) {
        note(&format!("given more than once, and counted as often: {names}"));
    }
    Ok(files)
}

/// The first of some documents by its name, and how many more there are.
fn first_of(documents: &[&Document]) -> Option<String> {
    let (first, rest) = documents.split_first()?;
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Some(format!("{}{more}", one_line(first.name())))
}

/// Opens a file, or reads what can be read only once.
pub fn open_one(path: &Path) -> Result<Document> {
    if !is_standard_input(path) {
        return Ok(Document::open(path)?);
    }
    if io::stdin().is_terminal() {
        note("reading text from the terminal, to its end (Ctrl-D)");
    }
    Ok(Document::read_from("standard input", io::stdin().lock())?)
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new(STANDARD_INPUT)
}

/// Whether this is a pipe.
fn is_read_once(path: &Path) -> bool {
    is_standard_input(path) || path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Reads the documents that were left for later.
fn read_waiting(documents: &mut [Document]) -> Result<()> {
    for document in documents.iter_mut().filter(|document| document.is_empty()) {
        *document = open_one(Path::new(document.name()))?;
    }
    Ok(())
}

/// Opens files and folders to evaluate.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Document>> {
    Ok(open(paths, false)?.documents)
}

/// The documents to train on, and those to validate on, if they are others. What can be read only once, and may take
/// long, is left to [`complete`].
pub fn of(settings: &Settings) -> Result<[Vec<Document>; 2]> {
    let built_in = |name: &str, text: &str| vec![Document::new(name, text)];
    let [texts, held_out] = settings.texts();
    if [&texts, &held_out].iter().all(|paths| paths.iter().any(|path| is_standard_input(path))) {
        bail!("--validation: expected other texts than standard input, got - for both");
    }
    let train = match texts.is_empty() {
        true => built_in("data/train.txt", BUILT_IN_CORPUS[0]),
        false => open_to_train_on(&texts, &held_out)?,
    };
    let validation = match settings.validation_fraction() {
        _ if !held_out.is_empty() => open(&held_out, true).context("--validation")?.documents,
        None if texts.is_empty() => built_in("data/validation.txt", BUILT_IN_CORPUS[1]),
        _ => vec![],
    };
    Ok([train, validation])
}

/// Reads what was left for later, and gives what to validate on; a fraction that is not given follows from the length of
/// the documents.
pub fn complete(settings: &Settings, documents: &mut [Document], mut held_out: Vec<Document>) -> Result<Validation> {
    read_waiting(documents)?;
    read_waiting(&mut held_out).context("--validation")?;
    if !held_out.is_empty() {
        return Ok(Validation::Documents(held_out));
    }
    let bytes = documents.iter().map(Document::len).sum();
    Ok(Validation::Fraction(settings.validation_fraction().unwrap_or_else(|| held_out_fraction(bytes))))
}

/// Opens the texts to train on without the files to validate on, with a note if there are any among them.
fn open_to_train_on(texts: &[PathBuf], validation: &[PathBuf]) -> Result<Vec<Document>> {
    let mut files = open(texts, true)?;
    let validation: Vec<PathBuf> = validation.iter().filter(|path| !is_read_once(path)).cloned().collect();
    let removed = files.remove_files_of(&validation).context("--validation")?;
    if files.documents.is_empty() {
        bail!("expected texts to train on besides those of --validation, got none");
    }
    if let Some(names) = first_of(&removed.iter().collect::<Vec<_>>()) {
        note(&format!("not trained on, as --validation has them: {names}"));
    }
    Ok(files.documents)
}

/// The name of a text in that of its run: that of a file without its extension, or of a folder.
pub fn stem(text: Option<&Path>) -> String {
    let Some(text) = text else { return "sentences".into() };
    if is_standard_input(text) {
        return "stdin".into();
    }
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
        for (text, expected) in
            [("novel.txt", "novel"), ("a/novels/", "novels"), (".", here), ("/", "text"), ("-", "stdin")]
        {
            assert_eq!(stem(Some(Path::new(text))), expected);
        }
        assert_eq!(stem(None), "sentences");
    }
}
