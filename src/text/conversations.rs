//! Conversations as data: lines of JSON, each a conversation, become ids of which the assistant's turns are learned.
//!
//! A conversation is encoded as the whole text that the chat template writes, without anything that the tokenizer adds, as
//! transformers does: pieces encoded one by one would not always join to the same ids. The turns are found in the text,
//! and an id is learned if the part of the text that it stands for reaches into one of them.

use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

use super::chat_template::Rendered;
use super::document::MAX_LINE_BYTES;
use super::encode::{Take, in_parallel};
use super::ids::{ENDS, NOT_LEARNED};
use super::split::Section;
use super::{ChatTemplate, Document, Tokenizer};
use crate::host::{Error, Result, bail};

/// What a line holds.
#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Value>,
    /// Descriptions of tools, for the template.
    tools: Option<Value>,
}

/// How conversations become ids.
pub(super) struct Conversations<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) template: &'a ChatTemplate,
    /// Follows each conversation that does not end with it.
    pub(super) separator: Option<u32>,
}

impl Conversations<'_> {
    /// Encodes the lines of a section; gives the bytes of text that are learned.
    pub(super) fn encode(&self, section: &Section, take: Take) -> Result<u64> {
        let (mut lines, mut learned) = (Lines::new(section)?, 0);
        let words = |line: &Line| {
            let place = || format!("{}: line {}", section.document.name(), line.number);
            self.words(&line.json).map_err(|error| error.at(place()))
        };
        loop {
            let group = lines.next_group()?;
            if group.is_empty() {
                return Ok(learned);
            }
            for (line, (words, bytes)) in group.iter().zip(in_parallel(&group, words)?) {
                learned += bytes;
                take(&words, line.json.len() as u64)?;
            }
        }
    }

    /// The marked ids of a conversation, and the bytes of text that are learned. A blank line has none.
    fn words(&self, json: &[u8]) -> Result<(Vec<u32>, u64)> {
        if json.trim_ascii().is_empty() {
            return Ok((vec![], 0));
        }
        let Conversation { messages, tools } = parse(json)?;
        let Rendered { text, answers } = self.template.render_with_answers(&messages, &Value::from(tools))?;
        let (mut words, places) = self.tokenizer.encode_with_offsets(&text)?;
        let last = words.iter().zip(&places).rev().find(|(_, place)| !is_blank(&text, place));
        let ends = last.map(|(id, _)| *id) == self.separator;
        for (word, place) in words.iter_mut().zip(&places) {
            let next = answers.partition_point(|answer| answer.end <= place.start);
            let is_learned = answers.get(next).is_some_and(|answer| answer.start < place.end);
            *word |= if is_learned { 0 } else { NOT_LEARNED };
        }
        words.extend(self.separator.filter(|_| !ends).map(|id| id | NOT_LEARNED));
        if let Some(last) = words.last_mut() {
            *last |= ENDS;
        }
        Ok((words, answers.iter().map(|answer| answer.len() as u64).sum()))
    }
}

/// Whether nothing but white space is at a place, as after the token that ends the last turn.
fn is_blank(text: &str, place: &Range<usize>) -> bool {
    text.get(place.clone()).is_some_and(|part| part.trim().is_empty())
}

fn parse(json: &[u8]) -> Result<Conversation> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    let expected = |got: String| Error::Input(format!("expected a JSON object with a list of messages, got {got}"));
    let conversation: Conversation = serde_json::from_slice(json).map_err(|error| expected(error.to_string()))?;
    if conversation.messages.is_empty() {
        return Err(expected("an empty list".into()));
    }
    for (number, message) in (1..).zip(&conversation.messages) {
        let kind = |key| message.get_attr(key).map_or(ValueKind::Undefined, |value| value.kind());
        // Parts of a content, or none beside calls of tools, are the template's business.
        let is_content = matches!(kind("content"), ValueKind::String | ValueKind::Seq | ValueKind::None);
        if kind("role") != ValueKind::String || !is_content {
            bail!("expected messages with a role and a content, got message {number} with {message}");
        }
    }
    Ok(conversation)
}

/// The chat template that documents need, if there are conversations among them. There is no `tokenizer` where it is still
/// to be made of the texts.
///
/// # Errors
/// If they need one and there is none, or it is not a template.
pub fn needed_chat_template<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<ChatTemplate>> {
    for document in documents {
        if document.has_conversations()? {
            let template = tokenizer.map_or(Ok(None), Tokenizer::chat_template)?;
            let why = match tokenizer {
                Some(_) => {
                    "the tokenizer has none: expected chat_template in tokenizer_config.json, or chat_template.jinja"
                }
                None => "a new tokenizer has none: start from a model that has one, or use its folder as the tokenizer",
            };
            let Some(template) = template else {
                bail!("{}: conversations need a chat template, and {why}", document.name());
            };
            return Ok(Some(template));
        }
    }
    Ok(None)
}

struct Line {
    /// Counted from 1 in the document.
    number: u64,
    json: Vec<u8>,
}

/// The lines of a section, in order.
struct Lines<'a> {
    document: &'a Document,
    reader: BufReader<Box<dyn Read + Send + 'a>>,
    number: u64,
}

impl<'a> Lines<'a> {
    fn new(section: &Section<'a>) -> Result<Self> {
        let (document, mut number, range) = (section.document, 0, section.range.clone());
        for byte in BufReader::new(document.reader(0..range.start)?).bytes() {
            number += u64::from(byte.map_err(unreadable(document))? == b'\n');
        }
        Ok(Self { document, reader: BufReader::new(document.reader(range)?), number })
    }

    /// The next lines, to be processed together by all threads; empty at the end.
    fn next_group(&mut self) -> Result<Vec<Line>> {
        const BYTES: usize = 1 << 20;
        let (mut group, mut bytes) = (vec![], 0);
        while bytes < BYTES {
            let mut json = vec![];
            let mut reader = self.reader.by_ref().take(MAX_LINE_BYTES);
            reader.read_until(b'\n', &mut json).map_err(unreadable(self.document))?;
            if json.is_empty() {
                break;
            }
            self.number += 1;
            if json.len() as u64 == MAX_LINE_BYTES {
                let name = self.document.name();
                bail!("{name}: line {}: expected less than {MAX_LINE_BYTES} bytes, got more", self.number);
            }
            bytes += json.len();
            group.push(Line { number: self.number, json });
        }
        Ok(group)
    }
}

fn unreadable(document: &Document) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("read", Path::new(document.name()))
}

#[cfg(test)]
mod tests;
