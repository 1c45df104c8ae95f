//! Decoding ids one at a time.

use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, tokenizer::DecodeStream,
};

use super::decode::outside_vocabulary;
use super::guard::guarded;
use super::{Tokenizer, clean_up};
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
    /// Any other.
    Library(LibraryState<'a>),
}

pub(super) struct LibraryState<'a> {
    /// All ids, with those before the stream.
    pub(super) ids: Vec<u32>,
    /// The bytes of their text that were returned, or belong before the stream.
    pub(super) given: usize,
    /// The library's own stream, until that fails.
    pub(super) stream: Option<LibraryStream<'a>>,
    /// Text that what follows may still change, if spaces are cleaned up, and the bytes of text before it.
    pub(super) held: String,
    pub(super) settled: usize,
}

impl Tokenizer {
    /// A decoder for ids that come one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        let state = match self.kind.token_bytes() {
            Some(_) => State::Bytes(Vec::new()),
            None => State::Library(LibraryState {
                ids: Vec::new(),
                given: 0,
                stream: Some(self.inner.decode_stream(true)),
                held: String::new(),
                settled: 0,
            }),
        };
        TextStream { tokenizer: self, state }
    }

    /// A decoder for the ids that follow others: its text is what the text of all ids has after the text of `before`. Many
    /// third-party tokenizers decode an id differently at the beginning of a text, for example without a space.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn stream_after(&self, before: &[u32]) -> Result<TextStream<'_>> {
        let mut stream = self.stream();
        if let State::Library(_) = stream.state {
            for &id in before {
                stream.push(id)?;
            }
            let len = self.decode(before)?.len();
            if let State::Library(state) = &mut stream.state {
                state.given = len;
            }
        }
        Ok(stream)
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
            State::Library(state) => {
                if self.tokenizer.inner.id_to_token(id).is_none() {
                    return Err(outside_vocabulary(id, self.tokenizer.vocab_size));
                }
                state.push(id);
                Ok(state.take(self.tokenizer.cleans_up))
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
            State::Library(LibraryState { ids, given, .. }) => {
                let all = self.tokenizer.decode(&ids)?;
                Ok(all[all.floor_char_boundary(given)..].to_string())
            }
        }
    }
}

impl LibraryState<'_> {
    /// Decodes one more id. The library's stream fails if the decoder changes text it has written: then the rest comes at
    /// the end.
    fn push(&mut self, id: u32) {
        self.ids.push(id);
        match self.stream.as_mut().map(|stream| guarded(|| stream.step(id))) {
            Some(Ok(Ok(text))) => self.held.push_str(&text.unwrap_or_default()),
            _ => self.stream = None,
        }
    }

    /// The text that no further id can change, after what was given.
    fn take(&mut self, cleans_up: bool) -> String {
        if self.stream.is_none() {
            return String::new();
        }
        let end = if cleans_up { clean_up::last_cut(&self.held) } else { self.held.len() };
        let rest = self.held.split_off(end);
        let held = std::mem::replace(&mut self.held, rest);
        let text = if cleans_up { clean_up::cleaned(&held) } else { held };
        let new = text[text.floor_char_boundary(self.given.saturating_sub(self.settled))..].to_string();
        self.settled += text.len();
        self.given = self.given.max(self.settled);
        new
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
