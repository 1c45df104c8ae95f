//! A prompt in words or in tokens, as readers see it.

use anyhow::Result;
use candle_attention::inspect::{AttentionMap, by_word, words};

/// What rows and columns of a map stand for.
pub struct Units {
    /// The texts of all words or tokens, without line breaks.
    pub labels: Vec<String>,
    /// The word of each token, where words are shown.
    words: Option<Vec<usize>>,
}

impl Units {
    /// Words where there are fewer than tokens, unless tokens are asked for.
    pub fn new(tokens: &[String], as_tokens: bool) -> Self {
        let words = words(tokens);
        let count = words.last().map_or(0, |last| last + 1);
        if as_tokens || count == tokens.len() {
            return Self { labels: tokens.iter().map(|token| visible(token)).collect(), words: None };
        }
        let mut labels = vec![String::new(); count];
        for (token, &word) in tokens.iter().zip(&words) {
            labels[word].push_str(token);
        }
        Self { labels: labels.iter().map(|label| visible(label.trim())).collect(), words: Some(words) }
    }

    /// The word for one of them.
    pub fn name(&self) -> &'static str {
        if self.words.is_some() { "word" } else { "token" }
    }

    /// The weights of a head between them, row by row.
    pub fn weights(&self, map: &AttentionMap, (layer, head): (usize, usize)) -> Result<Vec<f32>> {
        let weights = map.head(layer, head)?;
        Ok(match &self.words {
            Some(words) => by_word(&weights, words),
            None => weights,
        })
    }
}

/// A text in one line, in which white space at its ends shows.
pub fn visible(text: &str) -> String {
    let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
    let symbol = |(at, c): (usize, char)| match c {
        '\n' => '⏎',
        '\t' => '⇥',
        ' ' if at < start || at >= end => '␣',
        // XML has no places for these.
        '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        c if c.is_control() => char::from_u32(0x2400 + c as u32).filter(|_| c < ' ').unwrap_or('\u{fffd}'),
        c => c,
    };
    if text.is_empty() { "␣".into() } else { text.char_indices().map(symbol).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_seen_where_it_matters() {
        for (text, shown) in
            [(" a b\n", "␣a b⏎"), ("", "␣"), (" ", "␣"), ("a\u{1b}\u{7f}\u{ffff}", "a␛\u{fffd}\u{fffd}"), ("é", "é")]
        {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn words_are_shown_where_there_are_fewer_than_tokens() {
        let tokens = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let units = |texts: &[&str], as_tokens| Units::new(&tokens(texts), as_tokens).labels;
        assert_eq!(units(&["O", " ", "g", "a", "t", "o"], false), ["O", "gato"]);
        assert_eq!(units(&["O", " ", "g"], true), ["O", "␣", "g"]);
        assert_eq!(units(&["O", " gato"], false), ["O", "␣gato"]);
    }
}
