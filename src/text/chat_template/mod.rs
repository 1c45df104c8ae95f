//! Chat templates: how a model's conversations are written as text.
//!
//! A template is a Jinja program in a model's tokenizer files. It gets what transformers gives it, with the same
//! functions and the same white space, and its text is the same.
//!
//! ```
//! use candle_attention::text::{ChatTemplate, Message};
//!
//! let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}";
//! let template = ChatTemplate::new(source, [("eos_token".into(), "</s>".into())])?;
//! assert_eq!(template.render(&[Message::new("user", "Hi")], true)?, "<user>Hi</s>");
//! # Ok::<(), candle_attention::Error>(())
//! ```

mod clock;
mod python;

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error as TemplateError, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Map;

use super::Tokenizer;
use crate::host::{Error, Result, bail};

/// Steps, and units of 64 bytes of text, that a template may take for a conversation: a thousand times what a long one
/// needs, and a second and 320 MB at most. The engine does not count lists that are added to one another.
const FUEL: u64 = 5_000_000;

/// Around what a generation block writes: noncharacters, which are for such uses inside a program.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    fn value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    /// Whether it marks the assistant's turns itself, by generation blocks.
    marks_answers: bool,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// The assistant's turns in it, in order.
    pub(super) answers: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the variables `bos_token`, `eos_token` and the like.
    ///
    /// # Errors
    /// If it is not a Jinja template.
    pub fn new(source: &str, special_tokens: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(explained)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("strftime_now", |format: &str| clock::now(format));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("__generation__", generation);
        let (source, marks_answers) = with_calls_for_generation(source);
        environment.add_template_owned(NAME, source).map_err(explained)?;
        Ok(Self { environment, special_tokens: special_tokens.into_iter().collect(), marks_answers })
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// If the template refuses the conversation, fails, or takes too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(Message::value).collect();
        Ok(self.marked(&messages, &Value::from(()), add_generation_prompt)?.text)
    }

    /// A special token, such as `eos_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).map(String::as_str)
    }

    /// A whole conversation, with the assistant's turns found: those in generation blocks, if the template has any.
    /// Else a turn is what its message adds to the text of those before it, the generation prompt included.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`], and a template that writes a message in another way when others follow it, so
    /// that its part of the whole cannot be told.
    pub(super) fn render_with_answers(&self, messages: &[Value], tools: &Value) -> Result<Rendered> {
        let mut whole = self.marked(messages, tools, false)?;
        if self.marks_answers {
            return Ok(whole);
        }
        for (i, message) in messages.iter().enumerate() {
            if message.get_attr("role").map_err(explained)?.as_str() != Some("assistant") {
                continue;
            }
            let before = self.marked(&messages[..i], tools, true)?.text;
            let with = self.marked(&messages[..=i], tools, false)?.text;
            if !with.starts_with(&before) || !whole.text.starts_with(&with) {
                bail!(
                    "chat template: expected it to write a conversation turn by turn, but message {} changes with what \
                     follows; mark the assistant's turns in it with {{% generation %}} and {{% endgeneration %}}",
                    i + 1
                );
            }
            whole.answers.push(before.len()..with.len());
        }
        Ok(whole)
    }

    /// What the template writes, with the places of its generation blocks.
    fn marked(&self, messages: &[Value], tools: &Value, add_generation_prompt: bool) -> Result<Rendered> {
        let tokens = Value::from_pairs(self.special_tokens.clone());
        let context = context! { messages, tools, add_generation_prompt, documents => (), ..tokens };
        let template = self.environment.get_template(NAME).map_err(explained)?;
        let marked = template.render(context).map_err(explained)?;
        if !self.marks_answers {
            return Ok(Rendered { text: marked, answers: vec![] });
        }
        if serde_json::to_string(messages).is_ok_and(|json| json.contains(MARKS)) {
            bail!("chat template: expected messages without the noncharacters U+FDD0 and U+FDD1, got one of them");
        }
        let (mut text, mut answers, mut start) = (String::with_capacity(marked.len()), vec![], 0);
        for c in marked.chars() {
            match c {
                c if c == MARKS[0] => start = text.len(),
                c if c == MARKS[1] => answers.push(start..text.len()),
                c => text.push(c),
            }
        }
        Ok(Rendered { text, answers })
    }
}

impl Tokenizer {
    /// The chat template of its `tokenizer_config.json`, if there is one: of several, that named `default`.
    ///
    /// # Errors
    /// If there are several and none is named so, or it is not a template.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let empty = Map::new();
        let config = self.config().unwrap_or(&empty);
        let source = match config.get("chat_template") {
            None | Some(serde_json::Value::Null) => return Ok(None),
            Some(serde_json::Value::Array(named)) => {
                let default = named.iter().find(|template| template["name"] == "default");
                default.and_then(|template| template["template"].as_str())
            }
            Some(template) => template.as_str(),
        };
        let Some(source) = source else {
            bail!("chat_template: expected a text or a list with one named default, got neither");
        };
        let tokens = config.iter().filter(|(name, _)| name.ends_with("_token"));
        let tokens = tokens.filter_map(|(name, token)| Some((name.clone(), token_text(token)?.to_string())));
        ChatTemplate::new(source, tokens).map(Some)
    }
}

/// The text of a special token: a string, or an object with its content.
fn token_text(token: &serde_json::Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// The template's tags of generation blocks, which Jinja does not know, as calls with a block.
fn with_calls_for_generation(source: &str) -> (String, bool) {
    let (mut result, mut has_any) = (String::with_capacity(source.len()), false);
    for (i, piece) in source.split("{%").enumerate() {
        result.push_str(if i > 0 { "{%" } else { "" });
        let tag = piece.split("%}").next().unwrap_or_default();
        let name = tag.trim_matches(['-', '+']).trim();
        let call = match name {
            "generation" => "call __generation__()",
            "endgeneration" => "endcall",
            _ => {
                result.push_str(piece);
                continue;
            }
        };
        has_any = true;
        result.push_str(&piece.replacen(name, call, 1));
    }
    (result, has_any)
}

/// What a generation block writes, between marks.
fn generation(state: &mut State, block: Kwargs) -> Result<String, TemplateError> {
    let text = block.get::<Value>("caller")?.call(state, &[])?;
    let [start, end] = MARKS;
    Ok(format!("{start}{text}{end}"))
}

fn raise_exception(message: &str) -> Result<Value, TemplateError> {
    Err(TemplateError::new(ErrorKind::InvalidOperation, message.to_string()))
}

/// The error of a template, with the line in it.
fn explained(error: TemplateError) -> Error {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too long".into(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    let line = error.line().map_or(String::new(), |line| format!(", line {line}"));
    Error::Input(format!("chat template{line}: {what}"))
}

#[cfg(test)]
mod tests;
