//! Conversations: as text, as data and in generation.

use std::collections::BTreeMap;

use candle_attention::text::{ChatTemplate, Message};
use serde_json::Value;

const TEMPLATES: &str = include_str!("../fixtures/chat_templates.json");

#[test]
fn conversations_read_as_transformers_writes_them() {
    let fixture: Value = serde_json::from_str(TEMPLATES).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let tokens = fixture["special_tokens"].as_object().unwrap();
    let tokens: BTreeMap<String, String> = tokens.iter().map(|(name, token)| (name.clone(), text(token))).collect();
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let template = text(&fixture["templates"][text(&case["template"])]);
        let template = ChatTemplate::new(&template, tokens.clone()).unwrap();
        let messages = fixture["conversations"][text(&case["conversation"])].as_array().unwrap();
        let messages: Vec<Message> =
            messages.iter().map(|message| Message::new(text(&message["role"]), text(&message["content"]))).collect();
        let written = template.render(&messages, case["add_generation_prompt"] == true);
        match case["error"].as_str() {
            Some(error) => assert!(written.unwrap_err().to_string().ends_with(error), "{case}"),
            None => {
                assert_eq!(written.unwrap_or_else(|error| panic!("{error}: {case}")), text(&case["text"]), "{case}")
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 126);
}
