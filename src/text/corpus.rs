//! Documents as two sequences of token ids, one to train on and one to validate on.

use std::path::PathBuf;

use candle_core::{Result, bail};

use super::encode::encode;
use super::fingerprint::fingerprint;
use super::ids::Width;
use super::ids_file::{self, HEADER_BYTES};
use super::ids_writer::IdsWriter;
use super::parts::{Parts, byte_count, divide};
use super::{Document, Ids, TextProgress, Tokenizer};
use crate::files;

/// What to validate on.
#[derive(Clone, Debug, PartialEq)]
pub enum Validation {
    /// The end of the documents, taken as one text: this fraction of their characters (of their bytes for the byte
    /// tokenizer), at least 0 and less than 1. With 0 there is no validation part.
    Fraction(f64),
    /// Separate documents; all others are for training.
    Documents(Vec<Document>),
}

/// How a corpus is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorpusOptions {
    /// Tokens in a window: both parts must hold at least one window and its last target. With 0 the length is not
    /// checked.
    pub context_len: usize,
    /// Where the ids go when there are too many to keep in memory; `None` keeps them in memory.
    pub spill: Option<Spill>,
}

impl CorpusOptions {
    /// For windows of `context_len` tokens, with all ids in memory.
    pub fn in_memory(context_len: usize) -> Self {
        Self { context_len, spill: None }
    }
}

/// Where the ids of a large text go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// The folder of the temporary file, on the file system of the run that will keep it.
    pub folder: PathBuf,
    /// Bytes of text above which the ids are written to a file.
    pub above: u64,
}

/// What separates the documents of a [`Corpus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Separator {
    /// Nothing: no part has more than one document.
    #[default]
    Unneeded,
    /// This id, written after each document.
    Token(u32),
    /// Nothing, although a part has several documents: the tokenizer has no end-of-text token.
    Missing,
}

impl Separator {
    /// The id written between documents, if any.
    pub fn token(self) -> Option<u32> {
        match self {
            Self::Token(id) => Some(id),
            Self::Unneeded | Self::Missing => None,
        }
    }
}

/// Two sequences of token ids.
///
/// [`Validation::Fraction`] cuts a single text as nanoGPT does: of `n` characters (or bytes), `text[..int((1 -
/// fraction) * n)]` is for training and the rest for validation, each part encoded on its own.
///
/// If a part has several documents and the tokenizer has an end-of-text token, each document is followed by that token;
/// a document that is cut in two is followed by it only at its end. If the tokenizer has none, the documents follow one
/// another with nothing in between, and [`separator`](Self::separator) says so.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The ids to train on.
    pub train: Ids,
    /// The ids to validate on.
    pub validation: Ids,
    /// Bytes of text in [`train`](Self::train), excluding end-of-text tokens: the denominator of bits per byte.
    pub train_bytes: usize,
    /// Bytes of text in [`validation`](Self::validation).
    pub validation_bytes: usize,
    /// What stands between documents.
    pub separator: Separator,
    /// SHA-256 of the ids and the position of the cut, in hexadecimal: equal corpora have equal fingerprints.
    pub fingerprint: String,
}

impl Corpus {
    /// Encodes and divides documents, reading them piece by piece. A third-party `tokenizer.json` takes pieces of
    /// about 1 MiB, and up to 64 MiB where it is not certain that cutting leaves the ids unchanged; the library needs
    /// some fifty times a piece's size in memory.
    ///
    /// # Errors
    /// Text the tokenizer can't encode, with the document and the place; a part shorter than one window and its last
    /// target (`context_len + 1` tokens); and a file that can't be read or written.
    pub fn new(
        tokenizer: &Tokenizer,
        documents: &[Document],
        validation: &Validation,
        options: &CorpusOptions,
        progress: &mut dyn FnMut(TextProgress),
    ) -> Result<Self> {
        let parts = divide(documents, validation, tokenizer.takes_any_bytes(), None, progress)?;
        Self::from_parts(tokenizer, &parts, options, progress)
    }

    /// Checks that both parts hold a window of `context_len` tokens.
    ///
    /// # Errors
    /// A part shorter than one window and its last target (`context_len + 1` tokens); the validation part may be empty.
    pub fn check_context(&self, context_len: usize) -> Result<()> {
        check_lens(&self.train, &self.validation, self.validation.is_empty(), context_len)
    }

    /// Encodes documents that are already divided.
    pub(super) fn from_parts(
        tokenizer: &Tokenizer,
        parts: &Parts,
        options: &CorpusOptions,
        progress: &mut dyn FnMut(TextProgress),
    ) -> Result<Self> {
        let is_undivided = parts.is_undivided;
        let parts = [&parts.train[..], &parts.validation[..]];
        let separator = match tokenizer.end_of_text_id() {
            _ if parts.iter().all(|part| part.len() <= 1) => Separator::Unneeded,
            Some(id) => Separator::Token(id),
            None => Separator::Missing,
        };
        let [train_bytes, validation_bytes] = parts.map(byte_count);
        let total = train_bytes + validation_bytes;
        let width = Width::of(tokenizer.vocab_size());
        let spill = options.spill.as_ref().filter(|spill| total > spill.above);
        let mut sink = match spill {
            Some(spill) => Sink::in_file(spill, tokenizer, width, total, parts.iter().map(|part| part.len()).sum())?,
            None => Sink::Memory([vec![], vec![]]),
        };
        let mut done = 0;
        for (number, parts) in parts.into_iter().enumerate() {
            for part in parts {
                encode(tokenizer, part, &mut |bytes, ids| {
                    done += bytes;
                    progress(TextProgress::Encoding { done, total });
                    sink.extend(number, ids)
                })?;
                sink.extend(number, separator.token().filter(|_| part.ends).as_slice())?;
            }
        }
        let [train, validation] = sink.finish()?;
        if options.context_len > 0 {
            check_lens(&train, &validation, is_undivided, options.context_len)?;
        }
        let fingerprint = fingerprint(&train, &validation, progress)?;
        let [train_bytes, validation_bytes] = [train_bytes, validation_bytes].map(|bytes| bytes as usize);
        let corpus = Self { train, validation, train_bytes, validation_bytes, separator, fingerprint };
        if let Some(file) = corpus.train.file() {
            ids_file::write_header(&corpus, file, width)?;
        }
        Ok(corpus)
    }
}

/// Where encoded ids are collected: the training ids first, then the validation ids.
enum Sink {
    Memory([Vec<u32>; 2]),
    File(Box<IdsWriter>),
}

impl Sink {
    /// A temporary file for the ids of `bytes` of text in `parts` parts.
    fn in_file(spill: &Spill, tokenizer: &Tokenizer, width: Width, bytes: u64, parts: usize) -> Result<Self> {
        // No tokenizer of this crate makes more ids than there are bytes, and the byte tokenizer makes exactly as many.
        let most = HEADER_BYTES as u64 + (bytes + parts as u64) * width.bytes() as u64;
        if tokenizer.takes_any_bytes() {
            files::check_space(&spill.folder, "the ids of the text", most)?;
        }
        Ok(Self::File(Box::new(IdsWriter::temporary(&spill.folder, width, most)?)))
    }

    fn extend(&mut self, part: usize, ids: &[u32]) -> Result<()> {
        match self {
            Self::Memory(parts) => parts[part].extend_from_slice(ids),
            Self::File(writer) => writer.extend(part, ids)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<[Ids; 2]> {
        match self {
            Self::Memory(parts) => Ok(parts.map(Ids::from)),
            Self::File(writer) => writer.finish(),
        }
    }
}

fn check_lens(train: &Ids, validation: &Ids, is_undivided: bool, context_len: usize) -> Result<()> {
    let check = |name: &str, ids: &Ids| {
        if ids.len() <= context_len {
            bail!(
                "expected a {name}text of at least {} tokens (context length {context_len} and one more), got {}",
                context_len.saturating_add(1),
                ids.len()
            );
        }
        Ok(())
    };
    if is_undivided {
        return check("", train);
    }
    check("training ", train)?;
    check("validation ", validation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(
        tokenizer: &Tokenizer,
        documents: &[Document],
        validation: &Validation,
        context_len: usize,
    ) -> Result<Corpus> {
        Corpus::new(tokenizer, documents, validation, &CorpusOptions::in_memory(context_len), &mut |_| {})
    }

    fn document(name: &str, text: &str) -> Document {
        Document::new(name, text)
    }

    #[test]
    fn cuts_a_text_of_characters_as_nanogpt_does() {
        let text: String = "não é só ça 🦀\r\n".chars().cycle().take(997).collect();
        let tokenizer = Tokenizer::characters(&[&text], false).unwrap();
        let documents = [document("a", &text)];
        let made = corpus(&tokenizer, &documents, &Validation::Fraction(0.1), 7).unwrap();
        let all = tokenizer.encode(&text).unwrap();
        let (train, validation) = (made.train.to_vec().unwrap(), made.validation.to_vec().unwrap());
        assert_eq!((&train[..], &validation[..]), all.split_at(897)); // int(0.9 * 997)
        assert_eq!(made.train_bytes + made.validation_bytes, text.len());
        assert_eq!(made.train_bytes, tokenizer.decode(&train).unwrap().len());
    }

    #[test]
    fn cuts_bytes_at_a_character() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let part = |bytes: &[u8], fraction| {
            let documents = [Document::new("a", bytes)];
            corpus(&tokenizer, &documents, &Validation::Fraction(fraction), 1).unwrap().train.len()
        };
        assert_eq!(part("abcdé".as_bytes(), 0.5), 3);
        assert_eq!(part("ab🦀cd".as_bytes(), 0.4), 2); // int(0.6 * 8) = 4 is inside the crab
        assert_eq!(part(&[0x80; 11], 0.3), 7);
    }

    #[test]
    fn each_of_several_documents_is_followed_by_an_end_of_text() {
        let tokenizer = Tokenizer::bytes(true).unwrap();
        let documents = [document("a", "aa"), document("b", "bbbb"), document("c", "ccccc")];
        let letters = |ids: &Ids| -> String {
            ids.to_vec().unwrap().iter().map(|&id| if id == 256 { '.' } else { char::from(id as u8) }).collect()
        };
        let of = |validation| {
            let made = corpus(&tokenizer, &documents, &validation, 1).unwrap();
            (letters(&made.train), letters(&made.validation), made.train_bytes, made.validation_bytes)
        };
        assert_eq!(of(Validation::Fraction(0.6)), ("aa.bb".into(), "bb.ccccc.".into(), 4, 7));
        assert_eq!(of(Validation::Fraction(0.45)), ("aa.bbbb.".into(), "ccccc.".into(), 6, 5));
        assert_eq!(of(Validation::Fraction(0.0)), ("aa.bbbb.ccccc.".into(), "".into(), 11, 0));
        let held_out = Validation::Documents(vec![document("d", "ddd")]);
        assert_eq!(of(held_out.clone()), ("aa.bbbb.ccccc.".into(), "ddd.".into(), 11, 3));
        let one = corpus(&tokenizer, &documents[..1], &held_out, 1).unwrap();
        assert_eq!((letters(&one.train), letters(&one.validation)), ("aa".into(), "ddd".into()));
        assert_eq!(one.separator, Separator::Unneeded);
        assert_eq!(corpus(&tokenizer, &documents, &held_out, 1).unwrap().separator, Separator::Token(256));
        let without_end = corpus(&Tokenizer::bytes(false).unwrap(), &documents, &held_out, 1).unwrap();
        assert_eq!((letters(&without_end.train), without_end.separator), ("aabbbbccccc".into(), Separator::Missing));
        // Two documents, but each part has one.
        let cut_between = corpus(&Tokenizer::bytes(false).unwrap(), &documents[..2], &Validation::Fraction(0.6), 1);
        assert_eq!(cut_between.unwrap().separator, Separator::Unneeded);
    }

    #[test]
    fn a_part_too_short_for_a_window_is_an_error() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let documents = [document("a", &"x".repeat(20))];
        let error = |fraction, context_len| {
            corpus(&tokenizer, &documents, &Validation::Fraction(fraction), context_len).unwrap_err().to_string()
        };
        assert!(
            error(0.5, 10).contains("training text of at least 11 tokens (context length 10 and one more), got 10")
        );
        assert!(error(0.1, 7).contains("validation text of at least 8 tokens"), "{}", error(0.1, 7));
        assert!(error(1.0, 7).contains("got 1"));
        assert!(error(f64::NAN, 7).contains("got NaN"));
        assert!(corpus(&tokenizer, &documents, &Validation::Fraction(0.5), 9).is_ok());
        assert!(error(0.5, usize::MAX).contains("at least 18446744073709551615 tokens"));
        assert!(corpus(&tokenizer, &[], &Validation::Fraction(0.1), 3).is_err());
    }

    #[test]
    fn an_unknown_character_is_located_in_its_document_even_after_the_cut() {
        let tokenizer = Tokenizer::characters(&["abc\n"], false).unwrap();
        let documents = [document("good", "abc"), document("bad", "abc\nabc\nabcz")];
        let error = corpus(&tokenizer, &documents, &Validation::Fraction(0.2), 1).unwrap_err().to_string();
        assert!(error.contains("bad: unknown character 'z' (U+007A) at line 3, column 4 (byte 11)"), "{error}");
    }

    #[test]
    fn the_fingerprint_notices_a_changed_text_and_a_moved_cut() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let of = |text: &str, fraction| {
            let documents = [document("a", text)];
            corpus(&tokenizer, &documents, &Validation::Fraction(fraction), 1).unwrap().fingerprint
        };
        assert_eq!(of("abcdefghij", 0.3), of("abcdefghij", 0.3));
        assert_eq!(of("abcdefghij", 0.3).len(), 64);
        assert_ne!(of("abcdefghij", 0.3), of("abcdefghiJ", 0.3));
        assert_ne!(of("abcdefghij", 0.3), of("abcdefghij", 0.4));
    }
}
