//! Which tokenizer to use, and the corpus that follows from it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Error, Result, bail};

use super::parts::{Part, byte_count, divide};
use super::pieces::Pieces;
use super::tokenizer::{CharacterSet, WordCounts, check_vocab_size};
use super::{Corpus, CorpusOptions, Document, Progress, Tokenizer, Validation};
use crate::errors::bare;

/// Which tokenizer to use. Written `char`, `byte`, `bpe:N` or as a path.
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
    /// A byte-level BPE with this many ids, learned from the training part.
    Bpe(usize),
    /// A tokenizer.json, or a folder that holds one.
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

/// The tokenizer that was chosen, and the corpus in its ids.
///
/// Characters are those of all the documents, as in nanoGPT; merges are learned from the training part alone. Both get
/// an end-of-text token, as do bytes, where the documents to train on or those to validate on are several.
///
/// No document is ever in memory whole: each is read once or twice for its length, its characters or its words, and once more
/// for its ids; see [`Corpus::new`] for the one exception.
///
/// # Errors
/// Those of the tokenizer's constructor and of [`Corpus::new`].
pub fn prepare(
    documents: &[Document],
    validation: &Validation,
    choice: &TokenizerChoice,
    options: &CorpusOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Tokenizer, Corpus)> {
    let held_out: &[Document] = match validation {
        Validation::Documents(held_out) => held_out,
        Validation::Fraction(_) => &[],
    };
    let several = documents.len() > 1 || held_out.len() > 1;
    let mut lens = None;
    let tokenizer = match choice {
        TokenizerChoice::Characters => {
            let mut characters = CharacterSet::default();
            lens = Some(survey([documents, held_out], &mut characters, progress)?);
            Tokenizer::of_characters(&characters, several)
        }
        TokenizerChoice::Bytes => Tokenizer::bytes(several),
        TokenizerChoice::Bpe(vocab_size) => {
            check_vocab_size(*vocab_size, several)?;
            let parts = divide(documents, validation, false, None)?;
            Tokenizer::learn_bpe(count_words(&parts.train, progress)?, *vocab_size, several, progress)
        }
        TokenizerChoice::File(path) => Tokenizer::from_file(path).map_err(|error| {
            Error::Msg(format!("tokenizer {}; expected char, byte, bpe:N or a tokenizer.json", bare(&error)))
        }),
    }?;
    let parts = divide(documents, validation, tokenizer.takes_any_bytes(), lens)?;
    let corpus = Corpus::from_parts(&tokenizer, &parts, options, progress)?;
    Ok((tokenizer, corpus))
}

/// Collects the characters of all documents, and gives the lengths in characters of the first ones.
fn survey(
    documents: [&[Document]; 2],
    characters: &mut CharacterSet,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u64>> {
    let (mut lens, mut done) = (vec![], 0);
    let total = documents.iter().copied().flatten().map(Document::len).sum();
    for document in documents.into_iter().flatten() {
        let (mut pieces, mut len) = (Pieces::characters(document, 0..document.len())?, 0);
        while let Some(piece) = pieces.next()? {
            len += characters.add(&piece.text);
            done += piece.text.len() as u64;
            progress(Progress::Reading { done, total });
        }
        lens.push(len);
    }
    lens.truncate(documents[0].len());
    Ok(lens)
}

fn count_words(parts: &[Part], progress: &mut dyn FnMut(Progress)) -> Result<WordCounts> {
    let (mut counts, mut done, total) = (WordCounts::default(), 0, byte_count(parts));
    for part in parts {
        let mut pieces = Pieces::words(part.document, part.range.clone())?;
        loop {
            let group = pieces.next_group()?;
            if group.is_empty() {
                break;
            }
            let texts: Vec<&str> = group.iter().map(|piece| &*piece.text).collect();
            counts.add(&texts).map_err(|(number, fault)| part.document.fault(group[number].offset, &fault))?;
            done += texts.iter().map(|text| text.len() as u64).sum::<u64>();
            progress(Progress::Counting { done, total });
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
                    Progress::Counting { .. },
                    Progress::Merging { merges: 10 },
                    Progress::Encoding { total: encoded, .. },
                    Progress::Checking { .. }
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
