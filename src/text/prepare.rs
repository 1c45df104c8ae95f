//! From documents to a tokenizer and the ids of a corpus.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::chunks::{Chunk, Chunks};
use super::split::{Section, split};
use super::tokenizer::{CharacterSet, Markers, WordCounts, check_vocab_size};
use super::{Corpus, Document, IdsStore, TextOptions, Tokenizer, Validation, encode};
use crate::host::{Error, Result, bail};

/// Which tokenizer to use, written `char`, `byte`, `bpe:N` or as a path.
///
/// ```
/// use candle_attention::text::TokenizerChoice;
///
/// let choice: TokenizerChoice = "bpe:512".parse()?;
/// assert_eq!(choice, TokenizerChoice::Bpe(512));
/// assert_eq!(choice.to_string(), "bpe:512");
/// # Ok::<(), candle_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenizerChoice {
    /// The characters of the documents.
    Characters,
    /// The 256 bytes.
    Bytes,
    /// A byte-level BPE with this many ids, trained on the training part.
    Bpe(usize),
    /// A `tokenizer.json`, or a folder that contains one.
    File(PathBuf),
}

impl FromStr for TokenizerChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match (text, text.strip_prefix("bpe:")) {
            ("char", _) => Self::Characters,
            ("byte", _) => Self::Bytes,
            (_, Some(size)) => match size.parse() {
                Ok(size) => Self::Bpe(size),
                Err(_) => bail!("tokenizer: expected a number of tokens in bpe:N, got {text}"),
            },
            ("bpe", _) => bail!("tokenizer: expected a number of tokens, as in bpe:512, got bpe"),
            ("", _) => bail!("tokenizer: expected char, byte, bpe:N or the path of a tokenizer.json, got nothing"),
            _ => Self::File(text.into()),
        })
    }
}

impl fmt::Display for TokenizerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Characters => f.write_str("char"),
            Self::Bytes => f.write_str("byte"),
            Self::Bpe(vocab_size) => write!(f, "bpe:{vocab_size}"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// How far a stage of [`prepare`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TextProgress {
    /// What is being done.
    pub stage: Stage,
    /// How much is done: bytes of text, or ids for [`Stage::Checking`].
    pub done: u64,
    /// How much there is in all.
    pub total: u64,
}

/// A pass over the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// The characters of the text are collected.
    Reading,
    /// Words are counted to train a BPE.
    Counting,
    /// The merges of a BPE are learned from the words; reported once, with their number as `total`.
    Merging,
    /// Text is encoded.
    Encoding,
    /// Ids are read to compare them with their fingerprint.
    Checking,
}

/// The chosen tokenizer, and the corpus encoded with it.
///
/// A character vocabulary comes from all the documents, as in nanoGPT; merges are learned from the training part only.
/// These tokenizers, and the byte tokenizer, get an end-of-text token if there are several documents, or if `options` make
/// `<|endoftext|>` separate them.
///
/// # Errors
/// Those of the tokenizer's constructor and of [`encode`].
pub fn prepare(
    documents: &[Document],
    validation: &Validation,
    choice: &TokenizerChoice,
    options: TextOptions,
    store: IdsStore,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<(Tokenizer, Corpus)> {
    let held_out: &[Document] = if let Validation::Documents(held_out) = validation { held_out } else { &[] };
    let end_of_text = options.split_at_end_of_text || documents.len() > 1 || held_out.len() > 1;
    let markers = if end_of_text { Markers::end_of_text()? } else { Markers::default() };
    let tokenizer = match choice {
        TokenizerChoice::Characters => {
            let mut characters = CharacterSet::default();
            let whole = |document| Section { document, range: 0..Document::len(document) };
            let sections: Vec<Section> = documents.iter().chain(held_out).map(whole).collect();
            let take = &mut |texts: &[&str]| characters.add(texts, &markers);
            for_each_chunk(&sections, &markers, Stage::Reading, progress, take)?;
            Tokenizer::of_characters(&characters, end_of_text)?
        }
        TokenizerChoice::Bytes => Tokenizer::bytes(end_of_text)?,
        TokenizerChoice::Bpe(vocab_size) => {
            check_vocab_size(*vocab_size, end_of_text)?;
            let [train, _] = split(documents, validation, &markers)?;
            let mut counts = WordCounts::default();
            let take = &mut |texts: &[&str]| counts.add(texts, &markers);
            for_each_chunk(&train, &markers, Stage::Counting, progress, take)?;
            let merges = *vocab_size as u64 - 256;
            progress(TextProgress { stage: Stage::Merging, done: 0, total: merges });
            Tokenizer::learn_bpe(counts, *vocab_size, end_of_text)?
        }
        TokenizerChoice::File(path) if !path.exists() => {
            bail!("tokenizer: expected char, byte, bpe:N or the path of a tokenizer.json, got {}", path.display())
        }
        TokenizerChoice::File(path) => Tokenizer::open(path)?,
    };
    let corpus = encode(&tokenizer, documents, validation, options, store, progress)?;
    Ok((tokenizer, corpus))
}

/// Hands the chunks of all sections to `take`, in groups.
fn for_each_chunk(
    sections: &[Section],
    markers: &Markers,
    stage: Stage,
    progress: &mut dyn FnMut(TextProgress),
    take: &mut dyn FnMut(&[&str]),
) -> Result<()> {
    let (mut done, total) = (0, sections.iter().map(Section::len).sum());
    for section in sections {
        let mut chunks = Chunks::text(section.document, section.range.clone())?.around(markers);
        loop {
            let group = chunks.next_group()?;
            if group.is_empty() {
                break;
            }
            let texts: Vec<&str> = group.iter().map(Chunk::text).collect();
            take(&texts);
            done += texts.iter().map(|text| text.len() as u64).sum::<u64>();
            progress(TextProgress { stage, done, total });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_as_it_is_written() {
        for (text, choice) in [
            ("char", TokenizerChoice::Characters),
            ("byte", TokenizerChoice::Bytes),
            ("bpe:300", TokenizerChoice::Bpe(300)),
            ("bpe.json", TokenizerChoice::File("bpe.json".into())),
            ("runs/a/tokenizer.json", TokenizerChoice::File("runs/a/tokenizer.json".into())),
        ] {
            assert_eq!(text.parse::<TokenizerChoice>().unwrap(), choice);
            assert_eq!(choice.to_string(), text);
        }
        for wrong in ["", "bpe", "bpe:", "bpe:many", "bpe:-3"] {
            let error = wrong.parse::<TokenizerChoice>().unwrap_err().to_string();
            assert!(error.starts_with("tokenizer: expected"), "{error}");
        }
    }

    fn documents() -> Vec<Document> {
        let text = |text: &str, name: &str| Document::new(name, text);
        vec![text(&"the cat sat on the mat. ".repeat(30), "cats"), text(&"zzzz ".repeat(11), "sleep")]
    }

    /// Prepares with all progress.
    fn prepared(
        documents: &[Document],
        validation: Validation,
        choice: &str,
    ) -> Result<(Tokenizer, Corpus, Vec<TextProgress>)> {
        let mut reports = vec![];
        let progress = &mut |report| reports.push(report);
        let (tokenizer, corpus) =
            prepare(documents, &validation, &choice.parse()?, TextOptions::default(), IdsStore::Temporary, progress)?;
        Ok((tokenizer, corpus, reports))
    }

    #[test]
    fn merges_are_learned_from_the_training_part_alone() {
        let (tokenizer, corpus, _) = prepared(&documents(), Validation::Fraction(0.1), "bpe:267").unwrap();
        assert_eq!(tokenizer.vocab_size(), 267);
        assert_eq!(tokenizer.encode("zzzz").unwrap().len(), 4);
        assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
        let end = tokenizer.end_of_text_id().unwrap();
        assert_eq!(end, 266);
        let held_out = corpus.validation.to_vec().unwrap();
        assert_eq!(held_out.last(), Some(&end));
        assert_eq!(held_out.iter().filter(|&&id| id == end).count(), 2);
    }

    #[test]
    fn characters_are_those_of_all_documents() {
        let validation = Validation::Documents(vec![Document::new("v", "çççç")]);
        let (tokenizer, corpus, _) = prepared(&documents()[..1], validation, "char").unwrap();
        assert_eq!(tokenizer.decode(&corpus.validation.to_vec().unwrap()).unwrap(), "çççç");
        assert_eq!(tokenizer.end_of_text_id(), None);
    }

    #[test]
    fn progress_of_each_stage_grows_to_the_whole_text() {
        let documents = [Document::new("a", "two words ".repeat(600_000)), Document::new("b", "more")];
        let [whole, learned] = [6_000_004, 5_400_003];
        let merging = TextProgress { stage: Stage::Merging, done: 0, total: 4 };
        for (choice, stages) in [
            ("char", vec![(Stage::Reading, whole), (Stage::Encoding, whole)]),
            ("byte", vec![(Stage::Encoding, whole)]),
            ("bpe:260", vec![(Stage::Counting, learned), (Stage::Merging, 4), (Stage::Encoding, whole)]),
        ] {
            let (_, _, mut reports) = prepared(&documents, Validation::Fraction(0.1), choice).unwrap();
            let mut last = vec![];
            for group in reports.chunk_by(|a, b| a.stage == b.stage) {
                assert!(
                    group.is_sorted_by_key(|report| report.done) && group.iter().all(|one| one.total == group[0].total)
                );
                assert!(group.len() > 1 || group == [merging], "{choice}: {group:?}");
                last.push((group[0].stage, group[0].total));
                assert!(group[group.len() - 1].done == group[0].total || group == [merging], "{choice}");
            }
            assert_eq!(last, stages, "{choice}");
            reports.clear();
        }
    }

    #[test]
    fn what_is_impossible_is_refused_before_a_text_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "text").unwrap();
        let documents = [Document::open(&path).unwrap()];
        std::fs::remove_file(&path).unwrap();
        let error = |choice| prepared(&documents, Validation::Fraction(0.1), choice).unwrap_err().to_string();
        assert!(error("bpe:255").contains("expected a bpe of 256 (256 bytes)"), "{}", error("bpe:255"));
        assert!(
            error("chars").contains("expected char, byte, bpe:N or the path of a tokenizer.json, got chars"),
            "{}",
            error("chars")
        );
        assert!(error("char").contains("cannot read"), "{}", error("char"));
    }
}
