//! From a text to its continuations.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Pipeline, Sampler, SamplingOptions, generate_side_by_side};
use crate::host::{Result, bail_option};
use crate::text::{TextStream, Tokenizer};

/// The form in which a continuation is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputForm {
    /// UTF-8 text: an unfinished character is held back until it is whole, and invalid bytes are replaced.
    #[default]
    Text,
    /// The raw bytes, which for a model of bytes need not be text. Some third-party tokenizers can decode only whole
    /// texts (an id means something else at the beginning); these deliver [`OutputForm::Text`].
    Bytes,
}

/// The next part of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece<'a> {
    /// The index of the sample, from 0.
    pub sample: usize,
    /// What follows the earlier pieces: text, or any bytes with [`OutputForm::Bytes`]. Only the last may be empty.
    pub text: &'a [u8],
    /// Whether the sample ends here.
    pub is_last: bool,
}

/// How to continue a text. The same seed gives the same samples. Each draws its own random numbers, so a sample does
/// not depend on how many others there are, except that the last bits of the logits depend on how many sequences are
/// read at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// The maximum number of tokens.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingOptions,
    /// The seed of all choices.
    pub seed: u64,
    /// The number of continuations, written side by side.
    pub samples: usize,
    /// A continuation ends before the first of these texts. Of several that overlap, the one that begins first counts,
    /// even if a later one is complete sooner: with `abcd` and `bc`, `abcd` ends as an empty text and `abce` as `a`.
    /// The text of a special token, which gives no text, ends it at that token.
    pub stop: Vec<String>,
    /// Whether characters of the prompt that the tokenizer has no token for are accepted, and become its unknown token or
    /// nothing.
    pub accept_unknown: bool,
    /// The form in which it is delivered.
    pub form: OutputForm,
}

impl Default for Continuation {
    fn default() -> Self {
        let sampling = SamplingOptions::default();
        Self {
            max_tokens: 500,
            sampling,
            seed: 1,
            samples: 1,
            stop: Vec::new(),
            accept_unknown: false,
            form: OutputForm::Text,
        }
    }
}

impl Continuation {
    /// Continues `prompt`, a text or, for a model of bytes, any bytes, passing each piece to `on_piece`, which may end its
    /// sample. Stop texts are not delivered, nor what follows them. The pieces are what the text of prompt and continuation
    /// has after that of the prompt.
    ///
    /// The prompt is read as [`Pipeline::prompt_ids`] says. Ids for which the tokenizer has no token, as where a model pads
    /// its vocabulary, are never chosen, unless they end the text.
    ///
    /// # Errors
    /// If an option is out of its range, the tokenizer cannot encode the prompt, a stop text is empty, or memory cannot
    /// hold the text.
    pub fn write(
        &self,
        pipeline: &Pipeline,
        prompt: impl AsRef<[u8]>,
        on_piece: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<()> {
        self.write_after(pipeline, &pipeline.prompt_ids(prompt.as_ref(), self.accept_unknown)?, on_piece).map(drop)
    }

    /// Continues the ids `prompt` as [`write`](Self::write) does; gives the new ids of each sample.
    pub(super) fn write_after(
        &self,
        pipeline: &Pipeline,
        prompt: &[u32],
        on_piece: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>> {
        if self.stop.iter().any(String::is_empty) {
            bail_option!("stop", "expected texts of at least one character, got an empty one");
        }
        let Pipeline { model, tokenizer } = pipeline;
        let excluded = ids_without_token(pipeline);
        let sampler = |stream| Ok(Sampler::new(self.sampling, self.seed, stream)?.excluding(excluded.clone()));
        let mut samplers = (0..self.samples as u64).map(sampler).collect::<Result<Vec<_>>>()?;
        let mut writers: Vec<_> =
            (0..self.samples).map(|_| Writer::new(self, tokenizer, prompt).map(Some)).collect::<Result<_>>()?;
        let mut deliver = |sample: usize, id: Option<u32>| {
            let Some(mut writer) = writers[sample].take() else { return Ok(ControlFlow::Break(())) };
            let (text, is_last) = match id {
                Some(id) => writer.push(id)?,
                None => (writer.rest()?, true),
            };
            let is_silent = text.is_empty() && !is_last;
            let is_stopped = !is_silent && on_piece(Piece { sample, text: &text, is_last }).is_break();
            if is_last || is_stopped {
                return Ok(ControlFlow::Break(()));
            }
            writers[sample] = Some(writer);
            Ok(ControlFlow::Continue(()))
        };
        let samples = generate_side_by_side(model, prompt, self.max_tokens, &mut samplers, &mut deliver)?;
        (0..self.samples).try_for_each(|sample| deliver(sample, None).map(drop))?;
        Ok(samples)
    }
}

/// The model's ids that stand for nothing: no token of the tokenizer, and no end of a text.
fn ids_without_token(Pipeline { model, tokenizer }: &Pipeline) -> Arc<[u32]> {
    let config = model.config();
    let ends: HashSet<u32> = config.end_ids().collect();
    (0..config.vocab_size as u32).filter(|id| !tokenizer.has_token(*id) && !ends.contains(id)).collect()
}

/// Turns the ids of one sample into the text that can be delivered.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    /// The decoder, until it is used up.
    stream: Option<TextStream<'a>>,
    form: OutputForm,
    stop: &'a [String],
    /// The special tokens among the stop texts.
    stop_ids: Vec<u32>,
    /// What may be the beginning of a stop text, and what follows it.
    held: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(continuation: &'a Continuation, tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self> {
        let form = if tokenizer.knows_bytes() { continuation.form } else { OutputForm::Text };
        let stop = &continuation.stop[..];
        let stop_ids = stop.iter().filter_map(|stop| tokenizer.special_id(stop)).collect();
        Ok(Self { tokenizer, stream: Some(tokenizer.stream_after(prompt)?), form, stop, stop_ids, held: Vec::new() })
    }

    /// The text that is certain after one more id, and whether a stop text follows it.
    fn push(&mut self, id: u32) -> Result<(Vec<u8>, bool)> {
        if self.stop_ids.contains(&id) {
            return Ok((self.rest()?, true));
        }
        let new = match (self.form, &mut self.stream) {
            (OutputForm::Text, Some(stream)) => stream.push(id)?.into_bytes(),
            _ => self.tokenizer.decode_bytes(&[id])?,
        };
        self.held.extend_from_slice(&new);
        Ok(until_stop(&mut self.held, self.stop))
    }

    /// The rest of the text, when no more ids come.
    fn rest(&mut self) -> Result<Vec<u8>> {
        if let Some(stream) = self.stream.take().filter(|_| self.form == OutputForm::Text) {
            self.held.extend_from_slice(stream.finish()?.as_bytes());
        }
        Ok(before_stop(std::mem::take(&mut self.held), self.stop))
    }
}

/// The text before the first complete stop text.
fn before_stop(mut text: Vec<u8>, stop: &[String]) -> Vec<u8> {
    let is_stop_at = |at: &usize| stop.iter().any(|stop| text[*at..].starts_with(stop.as_bytes()));
    let end = (0..text.len()).find(is_stop_at).unwrap_or(text.len());
    text.truncate(end);
    text
}

/// Removes from the front, and returns, the text that no stop text can begin in, and whether a stop text follows.
fn until_stop(held: &mut Vec<u8>, stop: &[String]) -> (Vec<u8>, bool) {
    for at in 0..held.len() {
        let rest = &held[at..];
        if stop.iter().any(|stop| rest.starts_with(stop.as_bytes())) {
            return (held.drain(..at).collect(), true);
        }
        if stop.iter().any(|stop| stop.as_bytes().starts_with(rest)) {
            return (held.drain(..at).collect(), false);
        }
    }
    (std::mem::take(held), false)
}

#[cfg(test)]
mod tests {
    use super::{Continuation, OutputForm, Writer, before_stop, until_stop};
    use crate::text::Tokenizer;

    /// The text delivered when `pieces` come one by one, and whether it was stopped.
    fn delivered(pieces: &[&str], stop: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|stop| stop.to_string()).collect();
        let (mut held, mut text) = (Vec::new(), Vec::new());
        for piece in pieces {
            held.extend_from_slice(piece.as_bytes());
            let (certain, is_stopped) = until_stop(&mut held, &stop);
            text.extend(certain);
            if is_stopped {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        text.extend(before_stop(held, &stop));
        (String::from_utf8(text).unwrap(), false)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_text_however_it_comes() {
        let text = "one two\n\nthree\n\n";
        for size in 1..=text.len() {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            assert_eq!(delivered(&pieces, &["\n\n"]), ("one two".into(), true), "pieces of {size}");
            assert_eq!(delivered(&pieces, &["threes", "two"]), ("one ".into(), true));
            assert_eq!(delivered(&pieces, &["threes", "\n\n\n"]), (text.into(), false));
            assert_eq!(delivered(&pieces, &[]), (text.into(), false));
        }
        // Of two that overlap, the one that begins first counts; if it never completes, the other.
        assert_eq!(delivered(&["ab", "c", "d"], &["abcd", "bc"]), ("".into(), true));
        assert_eq!(delivered(&["ab", "c", "e"], &["abcd", "bc"]), ("a".into(), true));
        assert_eq!(delivered(&["ab", "c"], &["abcd", "bc"]), ("a".into(), false));
        // What looked like the beginning was not, but the real one lies inside it.
        assert_eq!(delivered(&["a", "a", "a", "b"], &["aab"]), ("a".into(), true));
    }

    /// A decoder that drops the space at the start of a text would drop it before each id.
    #[test]
    fn a_tokenizer_that_decodes_only_whole_texts_delivers_text() {
        let metaspace = r#"{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }"#;
        let model = r#"{ "type": "BPE", "vocab": { "a": 0, "b": 1, "▁a": 2 }, "merges": [] }"#;
        let json = format!(r#"{{ "model": {model}, "pre_tokenizer": {metaspace}, "decoder": {metaspace} }}"#);
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        for form in [OutputForm::Text, OutputForm::Bytes] {
            let continuation = Continuation { form, ..Default::default() };
            let mut writer = Writer::new(&continuation, &tokenizer, &[]).unwrap();
            let mut text: Vec<u8> = [2, 1, 2, 2].into_iter().flat_map(|id| writer.push(id).unwrap().0).collect();
            text.extend(writer.rest().unwrap());
            assert_eq!(String::from_utf8(text).unwrap(), "ab a a", "{form:?}");
        }
    }

    #[test]
    fn only_what_may_be_the_beginning_of_a_stop_text_is_held_back() {
        let mut held = b"some text EN".to_vec();
        assert_eq!(until_stop(&mut held, &["END".into()]), (b"some text ".to_vec(), false));
        assert_eq!(held, b"EN");
    }
}
