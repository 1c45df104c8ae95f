//! A part of a document as ids, piece by piece.

use candle_core::{Error, Result, bail};

use super::parts::Part;
use super::pieces::Pieces;
use super::tokenizer::{Encoder, PieceError};
use super::{Document, Tokenizer};

/// Encodes a part, and gives its ids in order, with the bytes of text they are of.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    part: &Part,
    take: &mut dyn FnMut(u64, &[u32]) -> Result<()>,
) -> Result<()> {
    let document = part.document;
    if tokenizer.takes_any_bytes() {
        let mut pieces = Pieces::bytes(document, part.range.clone())?;
        while let Some((_, bytes)) = pieces.next_bytes()? {
            take(bytes.len() as u64, &bytes.iter().copied().map(u32::from).collect::<Vec<_>>())?;
        }
        return Ok(());
    }
    let Some(mut encoder) = Encoder::new(tokenizer) else {
        check_whole(part)?;
        let ids = tokenizer.encode_bytes(&document.read(part.range.clone())?);
        let ids = ids.map_err(|error| in_document(tokenizer, document, error))?;
        return take(part.range.end - part.range.start, &ids);
    };
    let mut pieces = match encoder.merges_words() {
        true => Pieces::words(document, part.range.clone())?,
        false => Pieces::characters(document, part.range.clone())?,
    };
    loop {
        let group = pieces.next_group()?;
        if group.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = group.iter().map(|piece| &*piece.text).collect();
        let encoded = encoder.encode(&texts).map_err(|(number, error)| match error {
            PieceError::Fault(fault) => document.fault(group[number].offset, &fault),
            PieceError::Other(error) => document.named(&error),
        })?;
        for (piece, ids) in group.iter().zip(encoded) {
            take(piece.text.len() as u64, &ids)?;
        }
    }
}

/// Refuses what a tokenizer.json from elsewhere would need enormous memory for.
fn check_whole(part: &Part) -> Result<()> {
    /// The library takes some fifty bytes for each byte of text.
    const MOST: u64 = 64 << 20;
    let len = part.range.end - part.range.start;
    if len > MOST {
        bail!(
            "{}: expected documents of at most {MOST} bytes for a tokenizer.json from elsewhere, which takes each in one \
             piece, got {len}; divide it into several files",
            part.document.name()
        );
    }
    Ok(())
}

/// The same error, with its place counted from the start of the document.
fn in_document(tokenizer: &Tokenizer, document: &Document, error: Error) -> Error {
    let whole = document.read(0..document.len()).and_then(|bytes| tokenizer.encode_bytes(&bytes));
    document.named(&whole.err().unwrap_or(error))
}
