//! Which parts of which documents are for training and which for validation.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use super::Document;
use super::tokenizer::Markers;
use crate::host::{Error, Result, bail};

/// What to validate on.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Validation {
    /// The end of the documents, taken as one text: this fraction of their bytes, at least 0 and less than 1, cut between
    /// two characters and not inside a token such as `<|endoftext|>`, or between two conversations. With 0 there is no validation part.
    Fraction(f64),
    /// Separate documents; all others are for training.
    Documents(Vec<Document>),
}

/// A document, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section<'a> {
    pub(super) document: &'a Document,
    /// Its bytes in the document.
    pub(super) range: Range<u64>,
}

impl Section<'_> {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether it begins where the document does.
    pub(super) fn starts(&self) -> bool {
        self.range.start == 0
    }

    /// Whether it reaches the end of the document.
    pub(super) fn ends(&self) -> bool {
        self.range.end == self.document.len()
    }
}

/// The sections to train on, and those to validate on.
pub(super) fn split<'a>(
    documents: &'a [Document],
    validation: &'a Validation,
    markers: &Markers,
) -> Result<[Vec<Section<'a>>; 2]> {
    let whole = |document: &'a Document| Section { document, range: 0..document.len() };
    let fraction = match validation {
        Validation::Documents(held_out) => {
            return Ok([documents, held_out].map(|documents| documents.iter().map(whole).collect()));
        }
        Validation::Fraction(fraction) => *fraction,
    };
    if !(0.0..1.0).contains(&fraction) {
        bail!("expected a validation fraction of at least 0 and less than 1, got {fraction}");
    }
    let total: u64 = documents.iter().map(Document::len).sum();
    let mut left = ((1.0 - fraction) * total as f64) as u64;
    let mut parts = [vec![], vec![]];
    for document in documents {
        let len = document.len();
        let cut = match document.has_conversations()? {
            _ if left >= len => len,
            true => line_start(document, left)?,
            false => cut_at(document, left, markers)?,
        };
        for (part, range) in parts.iter_mut().zip([0..cut, cut..len]) {
            if !range.is_empty() {
                part.push(Section { document, range });
            }
        }
        left = left.saturating_sub(len);
    }
    Ok(parts)
}

/// The start of the line that has byte `at`; the end of the first line if it has it, so that one is left to train on.
fn line_start(document: &Document, at: u64) -> Result<u64> {
    let mut lines = BufReader::new(document.reader(0..document.len())?);
    let mut start = 0;
    loop {
        let read = lines.skip_until(b'\n').map_err(Error::io("read", Path::new(document.name())))?;
        let end = start + read as u64;
        if end > at || read == 0 {
            return Ok(if start == 0 { end } else { start });
        }
        start = end;
    }
}

/// A place to cut at, at byte `at` or just before it: the start of a marker or of a character.
fn cut_at(document: &Document, at: u64, markers: &Markers) -> Result<u64> {
    let at = character_start(document, at)?;
    let reach = markers.reach() as u64;
    let first = at.saturating_sub(reach);
    let around = document.read(first..document.len().min(at + reach))?;
    Ok(markers.across(&around, (at - first) as usize).map_or(at, |marker| first + marker.start as u64))
}

/// The start of the character at byte `at`. More than three continuation bytes are not text.
fn character_start(document: &Document, at: u64) -> Result<u64> {
    let first = at.saturating_sub(3);
    let bytes = document.read(first..document.len().min(at + 1))?;
    let continues = |at: u64| bytes.get((at - first) as usize).is_some_and(|byte| byte & 0xc0 == 0x80);
    Ok((first..=at).rev().find(|&at| !continues(at)).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_wherever_the_fraction_falls() {
        let text = "aé漢🦀".repeat(7);
        for percent in 0..100 {
            let documents = [Document::new("one", "x"), Document::new("two", text.clone())];
            let validation = Validation::Fraction(f64::from(percent) / 100.0);
            let [train, held_out] = split(&documents, &validation, &Markers::default()).unwrap();
            let bytes = |sections: &[Section]| sections.iter().map(Section::len).sum::<u64>();
            assert_eq!(bytes(&train) + bytes(&held_out), 1 + text.len() as u64);
            let wanted = percent as f64 / 100.0 * (1 + text.len()) as f64;
            assert!((bytes(&held_out) as f64 - wanted).abs() <= 4.0, "{percent} %");
            for section in train.iter().chain(&held_out) {
                String::from_utf8(section.document.read(section.range.clone()).unwrap()).unwrap();
            }
        }
        for wrong in [-0.1, 1.0, f64::NAN] {
            assert!(split(&[], &Validation::Fraction(wrong), &Markers::default()).is_err());
        }
    }

    #[test]
    fn a_text_is_not_cut_inside_a_marker() {
        let text = "ab<|endoftext|>é<|endoftext|>".repeat(3);
        let (documents, markers) = ([Document::new("one", text.clone())], Markers::end_of_text().unwrap());
        for at in 0..text.len() {
            let cut = cut_at(&documents[0], at as u64, &markers).unwrap() as usize;
            assert!(cut <= at && at - cut < "<|endoftext|>".len(), "{at}: {cut}");
            let whole = |part: &str| part.matches("<|endoftext|>").count();
            assert_eq!(whole(&text[..cut]) + whole(&text[cut..]), 6, "{at}: {cut}");
        }
    }
}
