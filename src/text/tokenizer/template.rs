//! What a tokenizer puts around each text.

use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Token};

use super::guard::guarded;
use crate::host::{Error, Result};

/// The ids that the post-processor of a `tokenizer.json` puts in front of a text and behind it, such as a beginning and
/// an end of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::text) struct Template {
    pub(in crate::text) front: Vec<u32>,
    pub(in crate::text) rear: Vec<u32>,
}

impl Template {
    /// That of a post-processor, found by processing a text of one token.
    pub(super) fn of(processor: Option<&PostProcessorWrapper>) -> Result<Self> {
        const TEXT: u32 = u32::MAX;
        let Some(processor) = processor else { return Ok(Self::default()) };
        let text = Encoding::from_tokens(vec![Token::new(TEXT, "a".into(), (0, 1))], 0);
        let processed = guarded(|| processor.process(text, None, true)).map_err(Error::Input)?;
        let processed = processed.map_err(|error| Error::Input(format!("the post-processor: {error}")))?;
        let mut parts = processed.get_ids().split(|&id| id == TEXT);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(front), Some(rear), None) => Ok(Self { front: front.to_vec(), rear: rear.to_vec() }),
            _ => Err(Error::Input("expected a post-processor that gives a text once, got another one".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(processor: serde_json::Value) -> Result<Template> {
        Template::of(Some(&serde_json::from_value(processor).unwrap()))
    }

    #[test]
    fn every_post_processor_says_what_it_puts_around_a_text() {
        let tokens = json!({ "B": { "id": "B", "ids": [4, 5], "tokens": ["B", "b"] }, "E": { "id": "E", "ids": [6], "tokens": ["E"] } });
        let special = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        let processing = |single: &[serde_json::Value]| json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens });
        let of = |front: &[u32], rear: &[u32]| Template { front: front.into(), rear: rear.into() };
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
        let both = processing(&[special("B"), text.clone(), special("E")]);
        assert_eq!(template(both.clone()).unwrap(), of(&[4, 5], &[6]));
        assert_eq!(template(byte_level.clone()).unwrap(), of(&[], &[]));
        let sequence = json!({ "type": "Sequence", "processors": [byte_level, both] });
        assert_eq!(template(sequence).unwrap(), of(&[4, 5], &[6]));
        let bert = json!({ "type": "BertProcessing", "sep": ["S", 2], "cls": ["C", 1] });
        assert_eq!(template(bert).unwrap(), of(&[1], &[2]));
        assert_eq!(Template::of(None).unwrap(), Template::default());
        let error = template(processing(&[text.clone(), text])).unwrap_err().to_string();
        assert!(error.contains("gives a text once"), "{error}");
    }
}
