//! Notes on what was met in texts.

use candle_attention::text::{Remarks, Tokenizer};
use indicatif::HumanCount;

use super::terminal::{note, one_line};

/// What to know of texts to train on.
pub fn note_in_training(remarks: &Remarks) {
    if remarks.unread_ends > 0 {
        note(&format!(
            "<|endoftext|> is read as plain text, {}; --split-at-end-of-text makes it separate documents",
            times(remarks.unread_ends)
        ));
    }
    note_in_any_text(remarks);
}

/// What to know of any texts.
pub fn note_in_any_text(remarks: &Remarks) {
    note_unknown(remarks.unknown, remarks.first_unknown.as_deref());
    if remarks.cut_words > 0 {
        note(&format!(
            "words of more than 4096 bytes are cut into sections, of which there are {}: other programs give other tokens there",
            HumanCount(remarks.cut_words as u64)
        ));
    }
}

/// What was accepted in a prompt.
pub fn note_in_prompt(tokenizer: &Tokenizer, prompt: &[u8]) {
    if let Ok((_, unknown)) = tokenizer.encode_with_unknown(&String::from_utf8_lossy(prompt)) {
        note_unknown(unknown, None);
    }
}

/// What was accepted although the tokenizer has no token for it.
fn note_unknown(count: usize, first: Option<&str>) {
    if count > 0 {
        let first = first.map(|first| format!("; the first: {}", one_line(first))).unwrap_or_default();
        note(&format!("accepted without a token of its own: a character or word, {}{first}", times(count)));
    }
}

fn times(count: usize) -> String {
    match count {
        1 => "once".into(),
        n => format!("{} times", HumanCount(n as u64)),
    }
}
