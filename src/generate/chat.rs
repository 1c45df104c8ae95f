//! Conversations with a model.

use std::ops::ControlFlow;

use super::{Continuation, OutputForm, Pipeline};
use crate::host::{Result, bail};
use crate::text::{ChatTemplate, Message};

/// A conversation with a model that has a chat template. The whole of it is read again for each answer.
#[derive(Debug)]
pub struct Chat<'a> {
    pipeline: &'a Pipeline,
    template: ChatTemplate,
    messages: Vec<Message>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerEnd {
    /// With a token that ends a turn or the text, before a stop text, or because the listener broke off.
    Turn,
    /// After the maximum number of tokens.
    MaxTokens,
    /// Where the context was full.
    Context,
}

impl<'a> Chat<'a> {
    /// A conversation that begins, after the text `system` if there is one.
    ///
    /// # Errors
    /// If the model's tokenizer has no chat template, or it is not one.
    pub fn new(pipeline: &'a Pipeline, system: Option<&str>) -> Result<Self> {
        let Some(template) = pipeline.tokenizer.chat_template()? else {
            bail!(
                "chat: the model has no chat template: expected chat_template in tokenizer_config.json, or \
                 chat_template.jinja beside it"
            );
        };
        let messages = system.map(|system| Message::new("system", system)).into_iter().collect();
        Ok(Self { pipeline, template, messages })
    }

    /// What has been said so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Says `message` as the user and passes the model's answer to `on_text` as it comes, at most the continuation's tokens
    /// and to the end of the context. Of its samples and its form nothing is used: there is one answer, a text. Question
    /// and answer then belong to the conversation.
    ///
    /// # Errors
    /// If the template refuses the conversation, it fills the context, and those of [`Continuation::write`]. The
    /// conversation is then as it was before.
    pub fn answer(
        &mut self,
        message: &str,
        continuation: &Continuation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<AnswerEnd> {
        let before = self.messages.len();
        self.messages.push(Message::new("user", message));
        let answer = self.next(continuation, on_text);
        match answer {
            Ok((text, end)) => {
                self.messages.push(Message::new("assistant", text));
                Ok(end)
            }
            Err(error) => {
                self.messages.truncate(before);
                Err(error)
            }
        }
    }

    /// The answer to the last message.
    fn next(
        &self,
        continuation: &Continuation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(String, AnswerEnd)> {
        let Pipeline { model, tokenizer } = self.pipeline;
        let prompt = tokenizer.encode_plain(&self.template.render(&self.messages, true)?)?;
        let context_len = model.config().context_len;
        let Some(room) = context_len.checked_sub(prompt.len()).filter(|room| *room > 0) else {
            bail!(
                "chat: the context is full: the conversation has {} tokens, and the model reads {context_len}; start a new one",
                prompt.len()
            );
        };
        let max_tokens = continuation.max_tokens.min(room);
        // Each answer draws other numbers.
        let seed = continuation.seed.wrapping_add(self.messages.len() as u64);
        let form = OutputForm::Text;
        // The model may know only the end of a whole text, and the tokenizer that of a turn.
        let end_of_turn =
            self.template.special_token("eos_token").filter(|token| tokenizer.special_id(token).is_some());
        let stop = continuation.stop.iter().cloned().chain(end_of_turn.map(String::from)).collect();
        let continuation = Continuation { max_tokens, seed, samples: 1, stop, form, ..continuation.clone() };
        let mut text = String::new();
        let samples = continuation.write_after(self.pipeline, &prompt, &mut |piece| {
            let piece = String::from_utf8_lossy(piece.text);
            text.push_str(&piece);
            on_text(&piece)
        })?;
        let ids = samples.first().map_or(&[][..], |ids| &ids[..]);
        let end = match ids {
            [.., last] if end_of_turn.and_then(|token| tokenizer.special_id(token)) == Some(*last) => AnswerEnd::Turn,
            ids if ids.len() < max_tokens => AnswerEnd::Turn,
            _ if max_tokens == room => AnswerEnd::Context,
            _ => AnswerEnd::MaxTokens,
        };
        Ok((text, end))
    }
}
