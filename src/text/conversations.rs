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
use super::ids::{ENDS, NOT_LEARNED};
use super::ids_file::IdsWriter;
use super::prepare::Stage;
use super::reader::in_parallel;
use super::split::Section;
use super::{ChatTemplate, Corpus, Document, IdsStore, Remarks, TextOptions, TextProgress, Tokenizer};
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
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    accept_unknown: bool,
}

/// A conversation as ids.
#[derive(Default)]
struct Written {
    words: Vec<u32>,
    /// The bytes of text that are learned.
    learned: u64,
    remarks: Remarks,
}

impl<'a> Conversations<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, template: ChatTemplate, options: TextOptions) -> Self {
        Self { tokenizer, template, accept_unknown: options.accept_unknown }
    }

    /// The corpus of the conversations in both parts.
    pub(super) fn encode(
        &self,
        parts: &[Vec<Section>; 2],
        store: IdsStore,
        progress: &mut dyn FnMut(TextProgress),
    ) -> Result<Corpus> {
        let (mut done, total) = (0, parts.iter().flatten().map(Section::len).sum());
        let mut ids = IdsWriter::new(store, self.tokenizer.vocab_size(), true)?;
        let (mut learned, mut remarks) = ([0, 0], Remarks::default());
        for (part, section) in (0..).zip(parts).flat_map(|(part, sections)| sections.iter().map(move |one| (part, one)))
        {
            let mut lines = Lines::new(section)?;
            loop {
                let group = lines.next_group()?;
                if group.is_empty() {
                    break;
                }
                for (line, written) in group.iter().zip(in_parallel(&group, |line| self.line(section.document, line))?)
                {
                    done += line.json.len() as u64;
                    progress(TextProgress { stage: Stage::Encoding, done, total });
                    learned[part] += written.learned as usize;
                    remarks.add(&written.remarks);
                    ids.extend(part, &written.words)?;
                }
            }
        }
        let corpus = ids.finish(learned, self.tokenizer.end_of_text_id())?;
        if corpus.train.learned() == 0 {
            bail!("expected a turn of the role `assistant` in the conversations to learn from, got none");
        }
        if !corpus.validation.is_empty() && corpus.validation.learned() == 0 {
            bail!("expected a turn of the role `assistant` in the conversations to validate on, got none");
        }
        Ok(Corpus { remarks, ..corpus })
    }

    /// What a line becomes; nothing if it is blank.
    fn line(&self, document: &Document, line: &Line) -> Result<Written> {
        let written = if line.json.trim_ascii().is_empty() { Ok(Written::default()) } else { self.written(&line.json) };
        written.map_err(|error| error.at(format!("{}: line {}", document.name(), line.number)))
    }

    fn written(&self, json: &[u8]) -> Result<Written> {
        let (tokenizer, separator) = (self.tokenizer, self.tokenizer.end_of_text_id());
        let Conversation { messages, tools } = parse(json)?;
        let Rendered { text, answers } = self.template.render_with_answers(&messages, &Value::from(tools))?;
        let mut remarks = Remarks::default();
        match self.accept_unknown {
            true => remarks.unknown = tokenizer.encode_with_unknown(&text)?.1,
            false => drop(tokenizer.encode_plain(&text)?),
        }
        let (mut words, places) = tokenizer.encode_with_offsets(&text)?;
        let last = words.iter().zip(&places).rev().find(|(_, place)| !is_blank(&text, place));
        let ends = last.map(|(id, _)| *id) == separator;
        for (word, place) in words.iter_mut().zip(&places) {
            let next = answers.partition_point(|answer| answer.end <= place.start);
            let is_learned = answers.get(next).is_some_and(|answer| answer.start < place.end);
            *word |= if is_learned { 0 } else { NOT_LEARNED };
        }
        words.extend(separator.filter(|_| !ends).map(|id| id | NOT_LEARNED));
        if let Some(last) = words.last_mut() {
            *last |= ENDS;
        }
        Ok(Written { words, learned: answers.iter().map(|answer| answer.len() as u64).sum(), remarks })
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
/// If they need one and there is none, or it is not a template, or there are other texts beside them.
pub fn needed_chat_template<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<ChatTemplate>> {
    let (mut first, mut other) = (None, None);
    for document in documents {
        if document.has_conversations()? { &mut first } else { &mut other }.get_or_insert(document);
    }
    let Some(document) = first else { return Ok(None) };
    if let Some(other) = other {
        bail!("expected conversations in all texts, as in {}, got another text: {}", document.name(), other.name());
    }
    let template = tokenizer.map_or(Ok(None), Tokenizer::chat_template)?;
    let why = match tokenizer {
        Some(_) => "the tokenizer has none: expected chat_template in tokenizer_config.json, or chat_template.jinja",
        None => "a new tokenizer has none: start from a model that has one, or use its folder as the tokenizer",
    };
    match template {
        Some(template) => Ok(Some(template)),
        None => bail!("{}: conversations need a chat template, and {why}", document.name()),
    }
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
