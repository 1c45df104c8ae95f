//! Decoding ids one at a time.

use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, tokenizer::DecodeStream,
};

use super::guard::guarded;
use super::{Tokenizer, hugging_face, outside_vocabulary};
use crate::host::Result;

/// Decodes ids one at a time: the texts it returns, concatenated, are [`Tokenizer::decode`] of all ids, and an id costs
/// the same no matter how many came before.
///
/// ```
/// use candle_attention::text::Tokenizer;
///
/// let tokenizer = Tokenizer::bytes(false)?;
/// let mut stream = tokenizer.stream();
/// // The two bytes of "ß" become text once both are there.
/// let texts = [b'a', 0xc3, 0x9f].map(|byte| stream.push(byte.into()).unwrap_or_default());
/// assert_eq!(texts, ["a", "", "ß"]);
/// assert_eq!(stream.finish()?, "");
/// # Ok::<(), candle_attention::Error>(())
/// ```
pub struct TextStream<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) state: State<'a>,
}

type LibraryStream<'a> =
    DecodeStream<'a, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

pub(super) enum State<'a> {
    /// A tokenizer of this crate: the bytes of a character that is incomplete so far.
    Bytes(Vec<u8>),
    /// Any other: all ids, the number of bytes of text returned so far, and the library's own stream until that fails.
    Library { ids: Vec<u32>, given: usize, stream: Option<LibraryStream<'a>> },
}

impl Tokenizer {
    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        let state = match self.kind.token_bytes() {
            Some(_) => State::Bytes(Vec::new()),
            None => State::Library { ids: Vec::new(), given: 0, stream: Some(self.inner.decode_stream(true)) },
        };
        TextStream { tokenizer: self, state }
    }
}

impl TextStream<'_> {
    /// The text completed by `id`; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the id is outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<String> {
        match &mut self.state {
            State::Bytes(bytes) => {
                bytes.extend_from_slice(&self.tokenizer.decode_bytes(&[id])?);
                Ok(take_finished(bytes))
            }
            State::Library { ids, given, stream } => {
                if self.tokenizer.inner.id_to_token(id).is_none() {
                    return Err(outside_vocabulary(id, self.tokenizer.vocab_size));
                }
                ids.push(id);
                // The library's stream fails if the decoder changes text it has written: then the rest comes at the
                // end.
                let text = match stream.as_mut().map(|stream| guarded(|| stream.step(id))) {
                    Some(Ok(Ok(text))) => text.unwrap_or_default(),
                    _ => {
                        *stream = None;
                        String::new()
                    }
                };
                *given += text.len();
                Ok(text)
            }
        }
    }

    /// The rest of the text; bytes that are not a character become U+FFFD.
    ///
    /// If a third-party decoder has changed text that was already returned, the rest is the final text after that
    /// many bytes, starting at a character boundary.
    ///
    /// # Errors
    /// If the ids cannot be decoded.
    pub fn finish(self) -> Result<String> {
        match self.state {
            State::Bytes(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            State::Library { ids, given, .. } => {
                let all = hugging_face::decode(&self.tokenizer.inner, &ids, self.tokenizer.vocab_size)?;
                Ok(all[all.floor_char_boundary(given)..].to_string())
            }
        }
    }
}

/// Removes and returns all complete characters, with U+FFFD for bytes that cannot become one.
fn take_finished(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        done += chunk.valid().len();
        let is_unfinished = |rest: &[u8]| std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
        if !chunk.invalid().is_empty() && !is_unfinished(&bytes[done..]) {
            text.push(char::REPLACEMENT_CHARACTER);
            done += chunk.invalid().len();
        }
    }
    bytes.drain(..done);
    text
}
