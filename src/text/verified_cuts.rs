//! Encodes a document with a third-party `tokenizer.json`, in parts that are cut where this leaves the ids
//! unchanged.
//!
//! What such a tokenizer does at the start, at the end or across a place is unknown, so every cut is verified: it lies
//! after a line break or before a space, at the edge of a word, and the text around it has the same ids as a whole and
//! as two halves. A tokenizer that puts a space in front of every text, for example, has no such place after a line
//! break.

use std::ops::Range;

use candle_core::{Result, bail};

use super::parts::Part;
use super::pieces::TextPieces;
use super::{Document, Tokenizer};
use crate::memory;

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Text up to this length is encoded as a whole; parts are at least this long.
    pub(super) part: usize,
    /// How far apart two attempts to cut are.
    pub(super) attempt_every: usize,
    /// Text on each side of a cut by which it is verified.
    pub(super) window: usize,
    /// The longest part, if no cut before that can be verified.
    pub(super) longest_part: usize,
}

/// Memory that the library takes for each byte of text, about.
const BYTES_PER_BYTE: usize = 50;

impl Limits {
    /// 50 MB of memory for a usual part, 3 GB for the longest.
    pub(super) const USUAL: Self =
        Self { part: 1 << 20, attempt_every: 1 << 16, window: 1 << 12, longest_part: 64 << 20 };
}

/// Encodes a part of a document; `take` receives the ids in order, each time with the number of bytes they encode.
///
/// # Errors
/// What the tokenizer can't encode, with document and place; and text longer than the longest part without a verified
/// cut.
pub(super) fn encode_between_verified_cuts(
    tokenizer: &Tokenizer,
    part: &Part,
    limits: Limits,
    take: &mut dyn FnMut(u64, &[u32]) -> Result<()>,
) -> Result<()> {
    let document = part.document;
    let pieces = TextPieces::characters(document, part.range.clone())?;
    let (text, offset) = (String::new(), part.range.start);
    let mut pending = Pending { tokenizer, document, pieces, limits, text, offset, is_at_end: false };
    loop {
        let len = pending.next_len()?;
        if len == 0 {
            return Ok(());
        }
        memory::check(document.name(), len.checked_mul(BYTES_PER_BYTE))?;
        let ids = tokenizer.encode_foreign(&pending.text[..len]);
        let ids = ids.map_err(|error| error.in_document(document, pending.offset))?;
        take(len as u64, &ids)?;
        pending.text.drain(..len);
        pending.offset += len as u64;
    }
}

/// Text that has been read but not encoded.
struct Pending<'a> {
    tokenizer: &'a Tokenizer,
    document: &'a Document,
    pieces: TextPieces<'a>,
    limits: Limits,
    text: String,
    /// Where `text` begins in the document.
    offset: u64,
    is_at_end: bool,
}

impl Pending<'_> {
    /// Reads until there are `len` bytes of text, or all that are left.
    fn fill(&mut self, len: usize) -> Result<()> {
        while self.text.len() < len && !self.is_at_end {
            match self.pieces.next()? {
                Some(piece) => self.text.push_str(&piece.text),
                None => self.is_at_end = true,
            }
        }
        Ok(())
    }

    /// The length of the next part; 0 at the end.
    fn next_len(&mut self) -> Result<usize> {
        let Limits { part, attempt_every, window, longest_part } = self.limits;
        let mut from = part;
        loop {
            let to = from + attempt_every;
            self.fill(to + window)?;
            if self.text.len() <= from {
                return Ok(self.text.len());
            }
            for place in [line_start(&self.text, from..to), word_end(&self.text, from..to)] {
                if let Some(cut) = place.filter(|&cut| self.is_verified(cut)) {
                    return Ok(cut);
                }
            }
            if to > longest_part && self.text.len() > longest_part {
                // If the tokenizer cannot encode the text anyway, that is the error to report.
                let ids = self.tokenizer.encode_foreign(&self.text[..self.text.floor_char_boundary(part)]);
                ids.map_err(|error| error.in_document(self.document, self.offset))?;
                bail!(
                    "{}: expected a place in every {longest_part} bytes where a third-party tokenizer.json can be shown to \
                     encode both sides as it encodes the whole, got none after byte {}; divide it into several files",
                    self.document.name(),
                    self.offset
                );
            }
            from = to;
        }
    }

    /// Whether the text around `cut` has the same ids as a whole and as two halves.
    fn is_verified(&self, cut: usize) -> bool {
        let (text, window) = (&self.text, self.limits.window);
        // Where the window ends inside a word, the tokenizer might not know what is left of it: if there is white space
        // in the outer half of a side, it ends there.
        let boundary = |at: usize| text.floor_char_boundary(at.min(text.len()));
        let (start, near_start) = (boundary(cut.saturating_sub(window)), boundary(cut.saturating_sub(window / 2)));
        let start = text[start..near_start].find(char::is_whitespace).map_or(start, |space| start + space);
        let (near_end, end) = (boundary(cut + window / 2), boundary(cut + window));
        let end = match text[near_end..end].rfind(char::is_whitespace) {
            Some(space) if end < text.len() => near_end + space,
            _ => end,
        };
        let ids = |range: Range<usize>| self.tokenizer.encode_foreign(&text[range]).ok();
        match (ids(start..end), ids(start..cut), ids(cut..end)) {
            (Some(whole), Some(head), Some(tail)) => whole == [head, tail].concat(),
            _ => false,
        }
    }
}

/// The first place in `range` after a line break and before anything but white space.
fn line_start(text: &str, range: Range<usize>) -> Option<usize> {
    let range = range.start..range.end.min(text.len());
    let breaks = text.as_bytes()[range.clone()].iter().enumerate().filter(|&(_, &byte)| byte == b'\n');
    breaks.map(|(at, _)| range.start + at + 1).find(|&at| text[at..].chars().next().is_some_and(|c| !c.is_whitespace()))
}

/// The last place in `range` after a word and before a space and another word.
fn word_end(text: &str, range: Range<usize>) -> Option<usize> {
    let bytes = &text.as_bytes()[..range.end.min(text.len())];
    let is_end = |&at: &usize| {
        bytes[at] == b' ' && !bytes[at - 1].is_ascii_whitespace() && !text[at + 1..].starts_with(char::is_whitespace)
    };
    (range.start.max(1)..bytes.len()).rev().find(is_end)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const LIMITS: Limits = Limits { part: 300, attempt_every: 50, window: 64, longest_part: 100_000 };

    fn tokenizer(vocab: Value, added: &[(u32, &str)], pre_tokenizer: Value) -> Tokenizer {
        let added: Vec<Value> = added
            .iter()
            .map(|(id, content)| {
                json!({
                    "id": id, "content": content, "special": false, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false
                })
            })
            .collect();
        let mut merges = vec![["a", "b"], ["b", "\n"]];
        merges.extend(vocab.get("\nb").map(|_| ["\n", "b"]));
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "vocab": vocab, "merges": merges }
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn vocab() -> Value {
        json!({ "a": 0, "b": 1, "\n": 2, " ": 3, "ab": 4, "b\n": 5, "▁": 6, "é": 7 })
    }

    /// The ids, and the lengths of the parts.
    fn in_parts(tokenizer: &Tokenizer, text: &str, limits: Limits) -> Result<(Vec<u32>, Vec<u64>)> {
        let document = Document::new("text", text);
        let (mut ids, mut lens) = (vec![], vec![]);
        let part = Part { document: &document, range: 0..document.len(), ends: true };
        encode_between_verified_cuts(tokenizer, &part, limits, &mut |len, new| {
            ids.extend_from_slice(new);
            lens.push(len);
            Ok(())
        })?;
        Ok((ids, lens))
    }

    fn text() -> String {
        (0..150).map(|i| format!("{}é\n{}", "ab a".repeat(1 + i % 5), if i % 7 == 0 { "\n " } else { "" })).collect()
    }

    #[test]
    fn ids_are_those_of_the_whole_text() {
        let text = text();
        assert!(text.len() > 5 * LIMITS.part);
        let plain = tokenizer(vocab(), &[], Value::Null);
        let (ids, lens) = in_parts(&plain, &text, LIMITS).unwrap();
        assert!(ids == plain.encode(&text).unwrap());
        assert!(lens.len() > 4 && lens.iter().sum::<u64>() == text.len() as u64, "{lens:?}");
        assert!(lens.iter().all(|&len| len < 400), "{lens:?}");
        assert_eq!(in_parts(&plain, &text[..300], LIMITS).unwrap().1, [300]);
    }

    #[test]
    fn a_cut_that_would_change_ids_is_not_made() {
        // A token that spans the break of many lines.
        let text = text();
        let spanning = tokenizer(vocab(), &[(8, "é\nab aab")], Value::Null);
        let (ids, lens) = in_parts(&spanning, &text, LIMITS).unwrap();
        assert!(ids.contains(&8) && ids == spanning.encode(&text).unwrap());
        assert!(lens.len() > 1, "{lens:?}");

        // The same where the line before is longer than the window.
        let long = format!("{}é\nab aab", "ab".repeat(100)).repeat(20);
        let (ids, _) = in_parts(&spanning, &long, LIMITS).unwrap();
        assert!(ids.contains(&8) && ids == spanning.encode(&long).unwrap());

        // A merge across every line break leaves no place.
        let across = "aa\nb".repeat(400);
        let merging = tokenizer(json!({ "a": 0, "b": 1, "\n": 2, "ab": 4, "b\n": 5, "\nb": 6 }), &[], Value::Null);
        let (ids, lens) = in_parts(&merging, &across, LIMITS).unwrap();
        assert!(lens.len() == 1 && ids == merging.encode(&across).unwrap());
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false });
        let prepending = tokenizer(vocab(), &[], metaspace);
        // A space in front of every text leaves the places in front of a space, if there are any.
        let (ids, lens) = in_parts(&prepending, &text, LIMITS).unwrap();
        assert!(lens.len() > 1 && ids == prepending.encode(&text).unwrap());
        let limits = Limits { longest_part: 800, ..LIMITS };
        let lines = "ab\n".repeat(400);
        let refused = in_parts(&prepending, &lines, limits).unwrap_err().to_string();
        assert!(refused.contains("text: expected a place in every 800 bytes"), "{refused}");
        // What is not longer than that is encoded as a whole.
        assert_eq!(in_parts(&prepending, &lines[..780], limits).unwrap().1, [780]);
    }

    #[test]
    fn a_text_of_a_single_line_is_cut_between_words() {
        let text = "ab aab b ".repeat(300);
        let plain = tokenizer(vocab(), &[], Value::Null);
        let (ids, lens) = in_parts(&plain, &text, LIMITS).unwrap();
        assert!(lens.len() > 4 && ids == plain.encode(&text).unwrap(), "{lens:?}");
        // A token that spans the end of a word is not cut.
        let spanning = tokenizer(vocab(), &[(8, "ab aab b ab")], Value::Null);
        assert!(in_parts(&spanning, &text, LIMITS).unwrap().0 == spanning.encode(&text).unwrap());
    }

    #[test]
    fn a_fault_is_placed_in_the_document() {
        let text = text();
        let wrong = format!("{text}ab x");
        let error = in_parts(&tokenizer(vocab(), &[], Value::Null), &wrong, LIMITS).unwrap_err().to_string();
        let line = 1 + text.matches('\n').count();
        assert!(error.contains(&format!("text: unknown character 'x' (U+0078) at line {line}, column 4")), "{error}");
    }
}
