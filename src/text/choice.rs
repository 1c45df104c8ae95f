//! Which tokenizer to use, and the corpus that follows from it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use candle_core::{Error, Result, bail};

use super::corpus::divide;
use super::{BpeProgress, Corpus, Document, Tokenizer, Validation};
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

/// The tokenizer that was chosen, and the corpus in its ids for windows of `context_len` tokens.
///
/// Characters are those of all the documents, as in nanoGPT; merges are learned from the training part alone. Both get
/// an end-of-text token, as do bytes, where the documents to train on or those to validate on are several.
///
/// # Errors
/// Those of the tokenizer's constructor and of [`Corpus::new`].
pub fn prepare(
    documents: &[Document],
    validation: &Validation,
    choice: &TokenizerChoice,
    context_len: usize,
    progress: &mut dyn FnMut(BpeProgress),
) -> Result<(Tokenizer, Corpus)> {
    let held_out: &[Document] = match validation {
        Validation::Documents(held_out) => held_out,
        Validation::Fraction(_) => &[],
    };
    let several = documents.len() > 1 || held_out.len() > 1;
    let tokenizer = match choice {
        TokenizerChoice::Characters => {
            let texts = documents.iter().chain(held_out).map(Document::text).collect::<Result<Vec<_>>>()?;
            Tokenizer::characters(&texts, several)
        }
        TokenizerChoice::Bytes => Tokenizer::bytes(several),
        TokenizerChoice::Bpe(vocab_size) => {
            let texts = training_texts(documents, validation)?;
            Tokenizer::train_bpe(&texts, *vocab_size, several, progress)
        }
        TokenizerChoice::File(path) => Tokenizer::from_file(path).map_err(|error| {
            Error::Msg(format!("tokenizer {}; expected char, byte, bpe:N or a tokenizer.json", bare(&error)))
        }),
    }?;
    let corpus = Corpus::new(&tokenizer, documents, validation, context_len)?;
    Ok((tokenizer, corpus))
}

fn training_texts<'a>(documents: &'a [Document], validation: &'a Validation) -> Result<Vec<&'a str>> {
    let (train, _) = divide(documents, validation, false)?;
    train
        .into_iter()
        .map(|part| {
            let text = part.document.text()?;
            Ok(&text[..part.bytes.len()]) // A part to train on begins where its document does.
        })
        .collect()
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
        let text = |text: &str, name: &str| Document { name: name.into(), bytes: text.into() };
        vec![text(&"the cat sat on the mat. ".repeat(30), "cats"), text(&"zzzz ".repeat(11), "sleep")]
    }

    #[test]
    fn merges_are_learned_from_the_training_part_alone() {
        let (documents, mut reports) = (documents(), vec![]);
        let choice = TokenizerChoice::Bpe(267);
        let validation = Validation::Fraction(0.1);
        let (tokenizer, corpus) =
            prepare(&documents, &validation, &choice, 5, &mut |report| reports.push(report)).unwrap();
        assert_eq!(tokenizer.vocab_size(), 267);
        assert_eq!(tokenizer.encode("zzzz").unwrap().len(), 4);
        assert_eq!(tokenizer.encode(" the").unwrap().len(), 1);
        let end = tokenizer.end_of_text_id().unwrap();
        assert_eq!(end, 266);
        assert_eq!(corpus.validation.last(), Some(&end));
        assert_eq!(corpus.validation.iter().filter(|&&id| id == end).count(), 2);
        assert!(matches!(reports[..], [BpeProgress::Counting { .. }, .., BpeProgress::Merging { merges: 10 }]));
    }

    #[test]
    fn characters_are_those_of_all_documents() {
        let documents = documents();
        let validation = Validation::Documents(vec![Document { name: "v".into(), bytes: "çççç".into() }]);
        let (tokenizer, corpus) =
            prepare(&documents[..1], &validation, &TokenizerChoice::Characters, 3, &mut |_| {}).unwrap();
        assert_eq!(tokenizer.decode(&corpus.validation).unwrap(), "çççç");
        assert_eq!(tokenizer.end_of_text_id(), None);
    }

    #[test]
    fn a_tokenizer_that_is_not_there_is_named() {
        let choice: TokenizerChoice = "chars".parse().unwrap();
        let error = prepare(&documents(), &Validation::Fraction(0.1), &choice, 3, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("tokenizer chars: ") && error.contains("expected char, byte"), "{error}");
    }
}
