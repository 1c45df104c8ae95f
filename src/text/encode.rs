//! Encodes a part of a document piece by piece.

use candle_core::Result;

use super::Tokenizer;
use super::parts::Part;
use super::pieces::{BytePieces, TextPieces};
use super::tokenizer::Encoder;
use super::verified_cuts::{Limits, encode_between_verified_cuts};

/// Encodes a part; `take` receives the ids in order, each time with the number of bytes they encode.
pub(super) fn encode(
    tokenizer: &Tokenizer,
    part: &Part,
    take: &mut dyn FnMut(u64, &[u32]) -> Result<()>,
) -> Result<()> {
    let document = part.document;
    if tokenizer.takes_any_bytes() {
        let mut pieces = BytePieces::new(document, part.range.clone())?;
        while let Some(bytes) = pieces.next()? {
            take(bytes.len() as u64, &bytes.iter().copied().map(u32::from).collect::<Vec<_>>())?;
        }
        return Ok(());
    }
    let Some(mut encoder) = Encoder::new(tokenizer) else {
        return encode_between_verified_cuts(tokenizer, part, Limits::USUAL, take);
    };
    let mut pieces = match encoder.merges_words() {
        true => TextPieces::words(document, part.range.clone())?,
        false => TextPieces::characters(document, part.range.clone())?,
    };
    loop {
        let group = pieces.next_group()?;
        if group.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = group.iter().map(|piece| &*piece.text).collect();
        let encoded =
            encoder.encode(&texts).map_err(|(number, error)| error.in_document(document, group[number].offset))?;
        for (piece, ids) in group.iter().zip(encoded) {
            take(piece.text.len() as u64, &ids)?;
        }
    }
}
