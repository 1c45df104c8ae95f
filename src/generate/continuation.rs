//! From a text to its continuations.

use std::ops::ControlFlow;

use candle_core::{Error, Result, bail};

use super::{Sampler, SamplingOptions, generate_side_by_side};
use crate::errors::bare;
use crate::run::Run;
use crate::text::{TextStream, Tokenizer};

/// In what form a continuation is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Text in UTF-8: a character that is still unfinished waits, and bytes that are none are replaced.
    #[default]
    Text,
    /// The bytes as they are, which a model of bytes makes and which need not be text. From elsewhere there are tokenizers that
    /// know texts alone, where an id means another one at the beginning: these give [`Form::Text`].
    Bytes,
}

/// What is new of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The number of the sample, from 0 on.
    pub sample: usize,
    /// What follows the pieces before: text, or any bytes in [`Form::Bytes`]. In the last it may be empty.
    pub text: &'a [u8],
    /// Whether the sample ends with it.
    pub is_last: bool,
}

/// How to continue a text. The same seed gives the same samples again, each from random numbers of its own, and so it does
/// for another number of samples, but for the last bits of the logits, which depend on how many sequences are read at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// The most tokens to write.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: SamplingOptions,
    /// The seed of all choices; each sample has random numbers of its own.
    pub seed: u64,
    /// Continuations to write, side by side.
    pub samples: usize,
    /// Where one of these texts would follow, a continuation ends.
    pub stop: Vec<String>,
    /// In what form it is given.
    pub form: Form,
}

impl Default for Continuation {
    fn default() -> Self {
        let sampling = SamplingOptions::default();
        Self { max_tokens: 500, sampling, seed: 1, samples: 1, stop: Vec::new(), form: Form::Text }
    }
}

impl Continuation {
    /// Continues `prompt`, telling each piece to `on_piece`, which may end its sample. Stop texts are not told, nor what follows them.
    ///
    /// Without a prompt the model starts behind an end of text, else behind a line break, else behind its first token.
    ///
    /// # Errors
    /// If an option chooses nothing, the tokenizer cannot encode the prompt, or a stop text is empty.
    pub fn write(&self, run: &Run, prompt: &str, on_piece: &mut dyn FnMut(Piece) -> ControlFlow<()>) -> Result<()> {
        if self.stop.iter().any(String::is_empty) {
            bail!("generate: expected stop texts of at least one character, got an empty one");
        }
        let Run { model, tokenizer } = run;
        let prompt = prompt_ids(run, prompt)?;
        let sampler = |stream| Sampler::new(self.sampling, self.seed, stream);
        let mut samplers = (0..self.samples as u64).map(sampler).collect::<Result<Vec<_>>>()?;
        let mut writers: Vec<_> = (0..self.samples).map(|_| Some(Writer::new(self, tokenizer))).collect();
        let mut tell = |sample: usize, id: Option<u32>| {
            let Some(mut writer) = writers[sample].take() else { return Ok(ControlFlow::Break(())) };
            let (text, is_last) = match id {
                Some(id) => writer.push(id)?,
                None => (writer.rest()?, true),
            };
            let is_silent = text.is_empty() && !is_last;
            let is_refused = !is_silent && on_piece(Piece { sample, text: &text, is_last }).is_break();
            if is_last || is_refused {
                return Ok(ControlFlow::Break(()));
            }
            writers[sample] = Some(writer);
            Ok(ControlFlow::Continue(()))
        };
        generate_side_by_side(model, &prompt, self.max_tokens, &mut samplers, &mut tell)?;
        (0..self.samples).try_for_each(|sample| tell(sample, None).map(drop))
    }
}

/// The ids to start from.
fn prompt_ids(Run { model, tokenizer }: &Run, prompt: &str) -> Result<Vec<u32>> {
    if !prompt.is_empty() {
        let ids = tokenizer.encode(prompt).map_err(|error| Error::Msg(format!("the prompt: {}", bare(&error))))?;
        if ids.is_empty() {
            bail!("the prompt: the tokenizer makes nothing of it");
        }
        return Ok(ids);
    }
    let line_break = || tokenizer.encode("\n").ok().filter(|ids| !ids.is_empty());
    Ok(model.config().end_of_text_id.map(|id| vec![id]).or_else(line_break).unwrap_or_else(|| vec![0]))
}

/// From the ids of one sample to what can be told of it.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream<'a>,
    form: Form,
    stop: &'a [String],
    /// What may be the beginning of a stop text.
    held: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(continuation: &'a Continuation, tokenizer: &'a Tokenizer) -> Self {
        let form = if tokenizer.knows_bytes() { continuation.form } else { Form::Text };
        let stop = &continuation.stop[..];
        Self { tokenizer, stream: tokenizer.stream(), form, stop, held: Vec::new() }
    }

    /// What is certain with one more id, and whether a stop text follows it.
    fn push(&mut self, id: u32) -> Result<(Vec<u8>, bool)> {
        let new = match self.form {
            Form::Text => self.stream.push(id)?.into_bytes(),
            Form::Bytes => self.tokenizer.decode_bytes(&[id])?,
        };
        self.held.extend_from_slice(&new);
        Ok(until_stop(&mut self.held, self.stop))
    }

    /// What is left when no more ids come.
    fn rest(&mut self) -> Result<Vec<u8>> {
        if self.form == Form::Text {
            let stream = std::mem::replace(&mut self.stream, self.tokenizer.stream());
            self.held.extend_from_slice(stream.finish()?.as_bytes());
        }
        Ok(before_stop(std::mem::take(&mut self.held), self.stop))
    }
}

/// What comes before the first whole stop text.
fn before_stop(mut text: Vec<u8>, stop: &[String]) -> Vec<u8> {
    let is_stop_at = |at: &usize| stop.iter().any(|stop| text[*at..].starts_with(stop.as_bytes()));
    let end = (0..text.len()).find(is_stop_at).unwrap_or(text.len());
    text.truncate(end);
    text
}

/// Takes off the front what no stop text can begin in, and says whether one begins there.
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
    use super::{Continuation, Form, Writer, before_stop, until_stop};
    use crate::text::Tokenizer;

    /// The text told when `pieces` come one by one, and whether it was stopped.
    fn told(pieces: &[&str], stop: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|stop| stop.to_string()).collect();
        let (mut held, mut told) = (Vec::new(), Vec::new());
        for piece in pieces {
            held.extend_from_slice(piece.as_bytes());
            let (certain, is_stopped) = until_stop(&mut held, &stop);
            told.extend(certain);
            if is_stopped {
                return (String::from_utf8(told).unwrap(), true);
            }
        }
        told.extend(before_stop(held, &stop));
        (String::from_utf8(told).unwrap(), false)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_text_however_it_comes() {
        let text = "one two\n\nthree\n\n";
        for size in 1..=text.len() {
            let pieces: Vec<&str> =
                text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
            assert_eq!(told(&pieces, &["\n\n"]), ("one two".into(), true), "pieces of {size}");
            assert_eq!(told(&pieces, &["threes", "two"]), ("one ".into(), true));
            assert_eq!(told(&pieces, &["threes", "\n\n\n"]), (text.into(), false));
            assert_eq!(told(&pieces, &[]), (text.into(), false));
        }
        // At the end a beginning is none, and what lies inside it may be whole.
        assert_eq!(told(&["ab", "c"], &["abcd", "bc"]), ("a".into(), false));
        // What looked like a beginning was none, but the real one lies inside it.
        assert_eq!(told(&["a", "a", "a", "b"], &["aab"]), ("a".into(), true));
    }

    /// A decoder that leaves out the space in front of a text would leave it out in front of each id.
    #[test]
    fn bytes_of_a_tokenizer_that_knows_texts_alone_are_those_of_the_text() {
        let metaspace = r#"{ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }"#;
        let model = r#"{ "type": "BPE", "vocab": { "a": 0, "b": 1, "▁a": 2 }, "merges": [] }"#;
        let json = format!(r#"{{ "model": {model}, "pre_tokenizer": {metaspace}, "decoder": {metaspace} }}"#);
        let tokenizer = Tokenizer::from_json(json.as_bytes()).unwrap();
        for form in [Form::Text, Form::Bytes] {
            let continuation = Continuation { form, ..Default::default() };
            let mut writer = Writer::new(&continuation, &tokenizer);
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
