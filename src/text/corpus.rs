//! The ids to train on and those to validate on.

use super::Ids;
use crate::host::{Result, bail};

/// The ids to train on and those to validate on, made by [`prepare`](super::prepare) and [`encode`](super::encode).
///
/// [`Validation::Fraction`](super::Validation) cuts a single text in two, and each part is encoded on its own.
///
/// Each document has in front of it and behind it what the tokenizer puts there ([`Tokenizer::encode`](super::Tokenizer::encode)). If there
/// are several documents and the tokenizer has an end-of-text token, that follows each document, unless it is there
/// already. A document that is cut in two has the first at its beginning only, and the others at its end.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Corpus {
    /// The ids to train on.
    pub train: Ids,
    /// The ids to validate on.
    pub validation: Ids,
    /// Bytes of text in [`train`](Self::train), excluding end-of-text tokens: the denominator of bits per byte.
    pub train_bytes: usize,
    /// Bytes of text in [`validation`](Self::validation).
    pub validation_bytes: usize,
    /// The id written after each document, if there are several.
    pub separator: Option<u32>,
    /// What was met in the texts while they were encoded; nothing for a corpus that was opened from its file.
    pub remarks: Remarks,
    /// SHA-256 of the ids and of the other fields, in hexadecimal: equal corpora have equal fingerprints.
    pub fingerprint: String,
}

/// What somebody who trains on texts may want to know of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remarks {
    /// The number of places for which the tokenizer has no token, and the first of them:
    /// [`TextOptions::accept_unknown`](super::TextOptions::accept_unknown).
    pub unknown: usize,
    /// Where the first of them is.
    pub first_unknown: Option<String>,
    /// The number of times that `<|endoftext|>` was read as ordinary text, as the tokenizer has no such token.
    pub unread_ends: usize,
    /// The number of sections of 4096 bytes into which words longer than that were cut: there other programs give other
    /// ids.
    pub cut_words: usize,
}

impl Corpus {
    /// Checks that both parts hold a window of `context_len` tokens and its last target.
    ///
    /// # Errors
    /// A part that is shorter; the validation part may be empty.
    pub fn check_context(&self, context_len: usize) -> Result<()> {
        let parts = [("training", &self.train), ("validation", &self.validation)];
        let given = parts.into_iter().filter(|(name, ids)| *name == "training" || !ids.is_empty());
        for (name, ids) in given {
            if ids.len() <= context_len {
                let needed = context_len.saturating_add(1);
                bail!(
                    "expected a {name} text of at least {needed} tokens (context length {context_len} and one more), got {}",
                    ids.len()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Error;

    fn corpus(train: usize, validation: usize) -> Corpus {
        let (train_bytes, validation_bytes) = (train, validation);
        let [train, validation] = [train, validation].map(|len| vec![3; len].into());
        Corpus {
            train,
            validation,
            train_bytes,
            validation_bytes,
            separator: None,
            remarks: Remarks::default(),
            fingerprint: String::new(),
        }
    }

    #[test]
    fn a_part_too_short_for_a_window_is_an_error() {
        let error = |train, validation, context_len| {
            let error = corpus(train, validation).check_context(context_len).unwrap_err();
            assert!(matches!(error, Error::Input(_)));
            error.to_string()
        };
        let expected = "expected a training text of at least 11 tokens (context length 10 and one more), got 10";
        assert_eq!(error(10, 11, 10), expected);
        assert!(error(20, 7, 7).starts_with("expected a validation text of at least 8 tokens"));
        assert!(error(20, 20, usize::MAX).contains(&format!("at least {} tokens", usize::MAX)));
        corpus(11, 11).check_context(10).unwrap();
        // Nothing to validate on is no fault.
        corpus(11, 0).check_context(10).unwrap();
    }
}
