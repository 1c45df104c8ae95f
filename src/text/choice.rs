//! The choice of a tokenizer, and making it and the corpus.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Error, Result, bail};

use super::parts::{Part, byte_count, divide};
use super::pieces::TextPieces;
use super::tokenizer::{CharacterSet, WordCounts, check_vocab_size};
use super::{Corpus, CorpusOptions, Document, TextProgress, Tokenizer, Validation};
use crate::errors::bare;

/// Which tokenizer to use, written `char`, `byte`, `bpe:N` or as a path.
///
/// ```
/// use candle_attention::text::TokenizerChoice;
///
/// # fn main() -> candle_core::Result<()> {
/// let choice: TokenizerChoice = "bpe:512".parse()?;
/// assert_eq!(choice, TokenizerChoice::Bpe(512));
/// assert_eq!(choice.to_string(), "bpe:512");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
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
        match text {
            "" => bail!("expected char, byte, bpe:N or the path of a tokenizer.json, got nothing"),
            "char" => Ok(Self::Characters),
            "byte" => Ok(Self::Bytes),
            _ => match text.strip_prefix("bpe").map(|size| size.strip_prefix(':').map(str::parse)) {
                Some(Some(Ok(size))) => Ok(Self::Bpe(size)),
                Some(Some(Err(_))) => bail!("expected a number of tokens in bpe:N, got {text}"),
                Some(None) if text == "bpe" => {
                    bail!("expected a number of tokens in bpe:N, as bpe:512, got {text}")
                }
                _ => Ok(Self::File(text.into())),
            },
        }
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

/// The chosen tokenizer, and the corpus encoded with it.
///
/// A character vocabulary comes from all the documents, as in nanoGPT; merges are learned from the training part only.
/// These tokenizers, and the byte tokenizer, get an end-of-text token if there are several documents to train on or to
/// validate on.
///
/// No document is ever in memory as a whole; see [`Corpus::new`] for a third-party `tokenizer.json`. How often the text
/// is read, besides one pass to encode it: for characters, once for the vocabulary; for a BPE, once for the words of
/// the training part. With [`Validation::Fraction`], every tokenizer but the byte tokenizer also needs the length of
/// each document in characters (one pass, for characters the same as for the vocabulary), and reads the document that
/// is cut once more up to the cut.
///
/// # Errors
/// Those of the tokenizer's constructor and of [`Corpus::new`].
pub fn prepare(
    documents: &[Document],
    validation: &Validation,
    choice: &TokenizerChoice,
    options: &CorpusOptions,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<(Tokenizer, Corpus)> {
    let held_out: &[Document] = match validation {
        Validation::Documents(held_out) => held_out,
        Validation::Fraction(_) => &[],
    };
    let several = documents.len() > 1 || held_out.len() > 1;
    let (tokenizer, parts) = match choice {
        TokenizerChoice::Characters => {
            let mut characters = CharacterSet::default();
            let lens = survey([documents, held_out], &mut characters, progress)?;
            let tokenizer = Tokenizer::of_characters(&characters, several)?;
            (tokenizer, divide(documents, validation, false, Some(lens), progress)?)
        }
        TokenizerChoice::Bytes => (Tokenizer::bytes(several)?, divide(documents, validation, true, None, progress)?),
        TokenizerChoice::Bpe(vocab_size) => {
            check_vocab_size(*vocab_size, several)?;
            let parts = divide(documents, validation, false, None, progress)?;
            let counts = count_words(&parts.train, progress)?;
            (Tokenizer::learn_bpe(counts, *vocab_size, several, progress)?, parts)
        }
        TokenizerChoice::File(path) => {
            let tokenizer = Tokenizer::from_file(path).map_err(|error| {
                Error::Msg(format!("tokenizer {}; expected char, byte, bpe:N or a tokenizer.json", bare(&error)))
            })?;
            let parts = divide(documents, validation, tokenizer.takes_any_bytes(), None, progress)?;
            (tokenizer, parts)
        }
    };
    let corpus = Corpus::from_parts(&tokenizer, &parts, options, progress)?;
    Ok((tokenizer, corpus))
}

/// Collects the characters of all documents; returns the lengths in characters of the first group of documents.
fn survey(
    documents: [&[Document]; 2],
    characters: &mut CharacterSet,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Vec<u64>> {
    let (mut lens, mut done) = (vec![], 0);
    let total = documents.iter().copied().flatten().map(Document::len).sum();
    for document in documents.into_iter().flatten() {
        let (mut pieces, mut len) = (TextPieces::characters(document, 0..document.len())?, 0);
        while let Some(piece) = pieces.next()? {
            len += characters.add(&piece.text);
            done += piece.text.len() as u64;
            progress(TextProgress::Reading { done, total });
        }
        lens.push(len);
    }
    lens.truncate(documents[0].len());
    Ok(lens)
}

fn count_words(parts: &[Part], progress: &mut dyn FnMut(TextProgress)) -> Result<WordCounts> {
    let (mut counts, mut done, total) = (WordCounts::default(), 0, byte_count(parts));
    for part in parts {
        let mut pieces = TextPieces::words(part.document, part.range.clone())?;
        loop {
            let group = pieces.next_group()?;
            if group.is_empty() {
                break;
            }
            let texts: Vec<&str> = group.iter().map(|piece| &*piece.text).collect();
            counts.add(&texts).map_err(|(number, fault)| part.document.fault(group[number].offset, &fault))?;
            done += texts.iter().map(|text| text.len() as u64).sum::<u64>();
            progress(TextProgress::Counting { done, total });
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_is_written() {
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
            assert!(wrong.parse::<TokenizerChoice>().unwrap_err().to_string().starts_with("expected"), "{wrong}");
        }
    }

    fn documents() -> Vec<Document> {
        let text = |text: &str, name: &str| Document::new(name, text);
        vec![text(&"the cat sat on the mat. ".repeat(30), "cats"), text(&"zzzz ".repeat(11), "sleep")]
    }

    #[test]
    fn merges_are_learned_from_the_training_part_alone() {
        let (documents, mut reports) = (documents(), vec![]);
        let choice = TokenizerChoice::Bpe(267);
        let validation = Validation::Fraction(0.1);
        let (tokenizer, corpus) =
            prepare(&documents, &validation, &choice, &CorpusOptions::in_memory(5), &mut |report| reports.push(report))
                .unwrap();
        assert_eq!(tokenizer.vocab_size(), 267);
        assert_eq!(tokenizer.encode("zzzz").unwrap().len(), 4);
        assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
        let end = tokenizer.end_of_text_id().unwrap();
        assert_eq!(end, 266);
        let held_out = corpus.validation.to_vec().unwrap();
        assert_eq!(held_out.last(), Some(&end));
        assert_eq!(held_out.iter().filter(|&&id| id == end).count(), 2);
        reports.dedup_by_key(|report| std::mem::discriminant(report));
        let total = 720 + 55;
        assert!(
            matches!(
                reports[..],
                [
                    TextProgress::Reading { .. },
                    TextProgress::Counting { .. },
                    TextProgress::Merging { merges: 10, seconds: 0 },
                    TextProgress::Encoding { total: encoded, .. },
                    TextProgress::Checking { .. }
                ] if encoded == total
            ),
            "{reports:?}"
        );
    }

    #[test]
    fn characters_are_those_of_all_documents() {
        let documents = documents();
        let validation = Validation::Documents(vec![Document::new("v", "çççç")]);
        let (tokenizer, corpus) = prepare(
            &documents[..1],
            &validation,
            &TokenizerChoice::Characters,
            &CorpusOptions::in_memory(3),
            &mut |_| {},
        )
        .unwrap();
        assert_eq!(tokenizer.decode(&corpus.validation.to_vec().unwrap()).unwrap(), "çççç");
        assert_eq!(tokenizer.end_of_text_id(), None);
    }

    #[test]
    fn a_tokenizer_that_is_not_there_is_named() {
        let choice: TokenizerChoice = "chars".parse().unwrap();
        let error =
            prepare(&documents(), &Validation::Fraction(0.1), &choice, &CorpusOptions::in_memory(3), &mut |_| {})
                .unwrap_err()
                .to_string();
        assert!(error.contains("tokenizer chars: ") && error.contains("expected char, byte"), "{error}");
    }
}
