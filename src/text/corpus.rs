//! Documents as two sequences of token ids, one to train on and one to validate on.

use candle_core::{Error, Result, bail};
use sha2::{Digest, Sha256};

use super::{Document, Tokenizer};

/// What to validate on.
#[derive(Clone, Debug, PartialEq)]
pub enum Validation {
    /// The last part of the documents, as one text: this fraction of its characters (of its bytes for the byte
    /// tokenizer), at least 0 and less than 1. With 0 the validation part is empty.
    Fraction(f64),
    /// Documents of their own; all the others are for training.
    Documents(Vec<Document>),
}

/// Two sequences of token ids.
///
/// The cut of a single text by [`Validation::Fraction`] is nanoGPT's: `n` characters (or bytes) give
/// `text[..int((1 - fraction) * n)]` for training and the rest for validation, each part encoded on its own.
///
/// Where a part has several documents, and the tokenizer an end-of-text token, each document is followed by it; the
/// one that is cut in two is followed by it only at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The ids to train on.
    pub train: Vec<u32>,
    /// The ids to validate on.
    pub validation: Vec<u32>,
    /// Bytes of text in [`train`](Self::train), end-of-text tokens not counted: what a loss in bits per byte divides by.
    pub train_bytes: usize,
    /// Bytes of text in [`validation`](Self::validation).
    pub validation_bytes: usize,
    /// SHA-256 of the ids and of where they are cut, in hexadecimal: the same corpus has the same fingerprint.
    pub fingerprint: String,
}

impl Corpus {
    /// Encodes and divides some documents, for windows of `context_len` tokens.
    ///
    /// # Errors
    /// What the tokenizer can't encode, with the document and the place; and a part that doesn't fill one window and
    /// its last target, `context_len + 1` tokens.
    pub fn new(
        tokenizer: &Tokenizer,
        documents: &[Document],
        validation: &Validation,
        context_len: usize,
    ) -> Result<Self> {
        let (train, held_out) = divide(documents, validation, tokenizer.takes_any_bytes())?;
        let several = train.len() > 1 || held_out.len() > 1;
        let end = tokenizer.end_of_text_id().filter(|_| several);
        let (train_bytes, validation_bytes) = (byte_count(&train), byte_count(&held_out));
        let train = encode(tokenizer, &train, end)?;
        let validation_ids = encode(tokenizer, &held_out, end)?;
        if *validation == Validation::Fraction(0.0) {
            check_len("", &train, context_len)?;
        } else {
            check_len("training ", &train, context_len)?;
            check_len("validation ", &validation_ids, context_len)?;
        }
        let fingerprint = fingerprint(&train, &validation_ids);
        Ok(Self { train, validation: validation_ids, train_bytes, validation_bytes, fingerprint })
    }
}

/// A document or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) document: &'a Document,
    pub(super) bytes: &'a [u8],
    /// The document ends here.
    ends: bool,
}

impl<'a> Part<'a> {
    fn whole(document: &'a Document) -> Self {
        Self { document, bytes: &document.bytes, ends: true }
    }
}

/// The parts to train on and those to validate on.
pub(super) fn divide<'a>(
    documents: &'a [Document],
    validation: &'a Validation,
    in_bytes: bool,
) -> Result<(Vec<Part<'a>>, Vec<Part<'a>>)> {
    let fraction = match validation {
        Validation::Documents(held_out) => {
            return Ok((documents.iter().map(Part::whole).collect(), held_out.iter().map(Part::whole).collect()));
        }
        Validation::Fraction(fraction) => *fraction,
    };
    if !(0.0..1.0).contains(&fraction) {
        bail!("expected a validation fraction of at least 0 and less than 1, got {fraction}");
    }
    let lens = documents.iter().map(|document| len(document, in_bytes)).collect::<Result<Vec<_>>>()?;
    let mut left = ((1.0 - fraction) * lens.iter().sum::<usize>() as f64) as usize;
    let (mut train, mut held_out) = (vec![], vec![]);
    for (document, len) in documents.iter().zip(lens) {
        let cut = cut(document, left.min(len), in_bytes)?;
        let (head, tail) = document.bytes.split_at(cut);
        if !head.is_empty() {
            train.push(Part { document, bytes: head, ends: tail.is_empty() });
        }
        if !tail.is_empty() {
            held_out.push(Part { document, bytes: tail, ends: true });
        }
        left -= left.min(len);
    }
    Ok((train, held_out))
}

fn len(document: &Document, in_bytes: bool) -> Result<usize> {
    if in_bytes { Ok(document.bytes.len()) } else { Ok(document.text()?.chars().count()) }
}

/// The byte at which `units` characters end, or `units` bytes, less what of a character would be cut off.
fn cut(document: &Document, units: usize, in_bytes: bool) -> Result<usize> {
    let bytes = &document.bytes;
    if !in_bytes {
        let text = document.text()?;
        return Ok(text.char_indices().nth(units).map_or(bytes.len(), |(offset, _)| offset));
    }
    let continues = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    // A character has at most three bytes after its first; where there are more, this is no text.
    Ok((units.saturating_sub(3)..=units).rev().find(|&at| !continues(at)).unwrap_or(units))
}

fn byte_count(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes.len()).sum()
}

fn encode(tokenizer: &Tokenizer, parts: &[Part], end: Option<u32>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for part in parts {
        ids.extend(tokenizer.encode_bytes(part.bytes).map_err(|error| in_document(tokenizer, part, error))?);
        ids.extend(end.filter(|_| part.ends));
    }
    Ok(ids)
}

/// The same error, with its place counted from the start of the document.
fn in_document(tokenizer: &Tokenizer, part: &Part, error: Error) -> Error {
    let error = tokenizer.encode_bytes(&part.document.bytes).err().unwrap_or(error);
    part.document.named(&error)
}

fn check_len(name: &str, ids: &[u32], context_len: usize) -> Result<()> {
    if ids.len() <= context_len {
        bail!(
            "expected a {name}text of at least {} tokens (context length {context_len} and one more), got {}",
            context_len + 1,
            ids.len()
        );
    }
    Ok(())
}

fn fingerprint(train: &[u32], validation: &[u32]) -> String {
    let mut hash = Sha256::new();
    hash.update((train.len() as u64).to_le_bytes());
    for id in train.iter().chain(validation) {
        hash.update(id.to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(name: &str, text: &str) -> Document {
        Document { name: name.into(), bytes: text.into() }
    }

    #[test]
    fn cuts_a_text_of_characters_as_nanogpt_does() {
        let text: String = "não é só ça 🦀\r\n".chars().cycle().take(997).collect();
        let tokenizer = Tokenizer::characters(&[&text], false).unwrap();
        let documents = [document("a", &text)];
        let corpus = Corpus::new(&tokenizer, &documents, &Validation::Fraction(0.1), 7).unwrap();
        let all = tokenizer.encode(&text).unwrap();
        assert_eq!((&corpus.train[..], &corpus.validation[..]), all.split_at(897)); // int(0.9 * 997)
        assert_eq!(corpus.train_bytes + corpus.validation_bytes, text.len());
        assert_eq!(corpus.train_bytes, tokenizer.decode(&corpus.train).unwrap().len());
    }

    #[test]
    fn cuts_bytes_at_a_character() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let part = |bytes: &[u8], fraction| {
            let documents = [Document { name: "a".into(), bytes: bytes.to_vec() }];
            Corpus::new(&tokenizer, &documents, &Validation::Fraction(fraction), 1).unwrap().train.len()
        };
        assert_eq!(part("abcdé".as_bytes(), 0.5), 3);
        assert_eq!(part("ab🦀cd".as_bytes(), 0.4), 2); // int(0.6 * 8) = 4 is inside the crab
        assert_eq!(part(&[0x80; 11], 0.3), 7);
    }

    #[test]
    fn an_end_stands_after_each_of_several_documents() {
        let tokenizer = Tokenizer::bytes(true).unwrap();
        let documents = [document("a", "aa"), document("b", "bbbb"), document("c", "ccccc")];
        let letters = |ids: &[u32]| -> String {
            ids.iter().map(|&id| if id == 256 { '.' } else { char::from(id as u8) }).collect()
        };
        let of = |validation| {
            let corpus = Corpus::new(&tokenizer, &documents, &validation, 1).unwrap();
            (letters(&corpus.train), letters(&corpus.validation), corpus.train_bytes, corpus.validation_bytes)
        };
        assert_eq!(of(Validation::Fraction(0.6)), ("aa.bb".into(), "bb.ccccc.".into(), 4, 7));
        assert_eq!(of(Validation::Fraction(0.45)), ("aa.bbbb.".into(), "ccccc.".into(), 6, 5));
        assert_eq!(of(Validation::Fraction(0.0)), ("aa.bbbb.ccccc.".into(), "".into(), 11, 0));
        let held_out = Validation::Documents(vec![document("d", "ddd")]);
        assert_eq!(of(held_out.clone()), ("aa.bbbb.ccccc.".into(), "ddd.".into(), 11, 3));
        let one = Corpus::new(&tokenizer, &documents[..1], &held_out, 1).unwrap();
        assert_eq!((letters(&one.train), letters(&one.validation)), ("aa".into(), "ddd".into()));
    }

    #[test]
    fn a_part_too_short_for_a_window_is_an_error() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let documents = [document("a", &"x".repeat(20))];
        let error = |fraction, context_len| {
            Corpus::new(&tokenizer, &documents, &Validation::Fraction(fraction), context_len).unwrap_err().to_string()
        };
        assert!(
            error(0.5, 10).contains("training text of at least 11 tokens (context length 10 and one more), got 10")
        );
        assert!(error(0.1, 7).contains("validation text of at least 8 tokens"), "{}", error(0.1, 7));
        assert!(error(1.0, 7).contains("got 1"));
        assert!(error(f64::NAN, 7).contains("got NaN"));
        assert!(Corpus::new(&tokenizer, &documents, &Validation::Fraction(0.5), 9).is_ok());
        assert!(Corpus::new(&tokenizer, &[], &Validation::Fraction(0.1), 3).is_err());
    }

    #[test]
    fn an_unknown_character_is_placed_in_its_document_even_behind_the_cut() {
        let tokenizer = Tokenizer::characters(&["abc\n"], false).unwrap();
        let documents = [document("good", "abc"), document("bad", "abc\nabc\nabcz")];
        let error = Corpus::new(&tokenizer, &documents, &Validation::Fraction(0.2), 1).unwrap_err().to_string();
        assert!(error.contains("bad: unknown character 'z' (U+007A) at line 3, column 4 (byte 11)"), "{error}");
    }

    #[test]
    fn the_fingerprint_notices_a_changed_text_and_a_moved_cut() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let of = |text: &str, fraction| {
            let documents = [document("a", text)];
            Corpus::new(&tokenizer, &documents, &Validation::Fraction(fraction), 1).unwrap().fingerprint
        };
        assert_eq!(of("abcdefghij", 0.3), of("abcdefghij", 0.3));
        assert_eq!(of("abcdefghij", 0.3).len(), 64);
        assert_ne!(of("abcdefghij", 0.3), of("abcdefghiJ", 0.3));
        assert_ne!(of("abcdefghij", 0.3), of("abcdefghij", 0.4));
    }
}
