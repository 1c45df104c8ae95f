//! Which parts of which documents are for training and which for validation.

use std::ops::Range;

use candle_core::{Result, bail};

use super::{Document, TextProgress, Validation};

/// A document or a section of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub(super) document: &'a Document,
    /// Its bytes in the document.
    pub(super) range: Range<u64>,
    /// Whether it reaches the end of the document.
    pub(super) ends: bool,
}

impl<'a> Part<'a> {
    fn whole(document: &'a Document) -> Self {
        Self { document, range: 0..document.len(), ends: true }
    }
}

/// The parts to train on and those to validate on.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) train: Vec<Part<'a>>,
    pub(super) validation: Vec<Part<'a>>,
    /// Nothing was to be held out.
    pub(super) is_undivided: bool,
}

/// Divides documents. `lens` are their lengths in characters, or in bytes, if already known; otherwise characters are
/// counted here, which reads every document once. The document that is cut is read once more, up to the cut.
pub(super) fn divide<'a>(
    documents: &'a [Document],
    validation: &'a Validation,
    in_bytes: bool,
    lens: Option<Vec<u64>>,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Parts<'a>> {
    let wholes = |documents: &'a [Document]| documents.iter().map(Part::whole).collect();
    let fraction = match validation {
        Validation::Documents(held_out) => {
            return Ok(Parts { train: wholes(documents), validation: wholes(held_out), is_undivided: false });
        }
        Validation::Fraction(fraction) => *fraction,
    };
    if !(0.0..1.0).contains(&fraction) {
        bail!("expected a validation fraction of at least 0 and less than 1, got {fraction}");
    }
    if fraction == 0.0 {
        return Ok(Parts { train: wholes(documents), validation: vec![], is_undivided: true });
    }
    let lens = match lens {
        Some(lens) => lens,
        None if in_bytes => documents.iter().map(Document::len).collect(),
        None => count_characters(documents, progress)?,
    };
    let mut left = ((1.0 - fraction) * lens.iter().sum::<u64>() as f64) as u64;
    let mut parts = Parts::default();
    for (document, len) in documents.iter().zip(lens) {
        let end = document.len();
        let cut = if left < len { cut(document, left, in_bytes)? } else { end };
        if cut > 0 {
            parts.train.push(Part { document, range: 0..cut, ends: cut == end });
        }
        if cut < end {
            parts.validation.push(Part { document, range: cut..end, ends: true });
        }
        left = left.saturating_sub(len);
    }
    Ok(parts)
}

fn count_characters(documents: &[Document], progress: &mut dyn FnMut(TextProgress)) -> Result<Vec<u64>> {
    let (mut done, total) = (0, documents.iter().map(Document::len).sum());
    let count = |document: &Document| {
        document.count_characters(&mut |bytes| {
            done += bytes;
            progress(TextProgress::Reading { done, total });
        })
    };
    documents.iter().map(count).collect()
}

/// The byte offset after `units` characters or bytes; bytes are rounded down to a character boundary.
fn cut(document: &Document, units: u64, in_bytes: bool) -> Result<u64> {
    if !in_bytes {
        return document.character_offset(units);
    }
    // A character has at most three bytes after its first; more continuation bytes than that are not text.
    let first = units.saturating_sub(3);
    let bytes = document.read(first..document.len().min(units + 1))?;
    let continues = |at: u64| bytes.get((at - first) as usize).is_some_and(|byte| byte & 0xc0 == 0x80);
    Ok((first..=units).rev().find(|&at| !continues(at)).unwrap_or(units))
}

pub(super) fn byte_count(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.range.end - part.range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_where_the_documents_together_end_their_first_part() {
        let documents = [Document::new("a", "aé"), Document::new("b", "🦀🦀🦀🦀")];
        let of = |fraction, in_bytes| {
            let validation = Validation::Fraction(fraction);
            let parts = divide(&documents, &validation, in_bytes, None, &mut |_| {}).unwrap();
            let ranges = |parts: &[Part]| parts.iter().map(|part| (part.range.clone(), part.ends)).collect::<Vec<_>>();
            (ranges(&parts.train), ranges(&parts.validation))
        };
        assert_eq!(of(0.5, false), (vec![(0..3, true), (0..4, false)], vec![(4..16, true)])); // int(0.5 * 6) characters
        assert_eq!(of(0.5, true), (vec![(0..3, true), (0..4, false)], vec![(4..16, true)])); // int(0.5 * 19) = 3 + 6 is inside a crab
        assert_eq!(of(0.7, false), (vec![(0..1, false)], vec![(1..3, true), (0..16, true)]));
        assert_eq!(of(0.0, false), (vec![(0..3, true), (0..16, true)], vec![]));
    }
}
