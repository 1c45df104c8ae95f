//! A prompt in words or in tokens, as readers see it.

use anyhow::Result;
use candle_attention::inspect::{AttentionMap, Words};

/// What rows and columns of a map stand for.
pub struct Units<'a> {
    /// The texts of all words or tokens, without line breaks.
    pub labels: Vec<String>,
    /// Where words are shown.
    words: Option<&'a Words>,
}

impl<'a> Units<'a> {
    /// Words where there are several, and fewer than tokens, unless tokens are asked for.
    pub fn new(words: &'a Words, as_tokens: bool) -> Self {
        if as_tokens || words.texts.len() < 2 || words.texts.len() == words.tokens.len() {
            return Self { labels: words.tokens.iter().map(|token| visible(token)).collect(), words: None };
        }
        Self { labels: words.texts.iter().map(|text| visible(text.trim())).collect(), words: Some(words) }
    }

    /// The name of one of them.
    pub fn name(&self) -> &'static str {
        if self.words.is_some() { "word" } else { "token" }
    }

    /// The weights of a head between them, row by row.
    pub fn weights(&self, map: &AttentionMap, (layer, head): (usize, usize)) -> Result<Vec<f32>> {
        let weights = map.head(layer, head)?;
        Ok(match &self.words {
            Some(words) => words.weights(&weights)?,
            None => weights,
        })
    }
}

/// A text in one line, in which white space at its ends shows.
pub fn visible(text: &str) -> String {
    let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
    let symbol = |(at, c): (usize, char)| match c {
        '\n' => '↵',
        '\t' => '⇥',
        ' ' if at < start || at >= end => '␣',
        // XML has no places for these.
        '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        // Nor may text turn others around.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => char::from_u32(0x2400 + c as u32).filter(|_| c < ' ').unwrap_or('\u{fffd}'),
        c => c,
    };
    if text.is_empty() { "∅".into() } else { text.char_indices().map(symbol).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_attention::text::Tokenizer;

    #[test]
    fn white_space_is_seen_where_it_matters() {
        for (text, shown) in
            [(" a b\n", "␣a b↵"), ("", "∅"), (" ", "␣"), ("a\u{1b}\u{7f}\u{ffff}", "a␛\u{fffd}\u{fffd}"), ("é", "é")]
        {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn words_are_shown_where_there_are_several_and_fewer_than_tokens() {
        let tokenizer = Tokenizer::characters(&["O gato"], false).unwrap();
        let units = |text: &str, as_tokens| {
            let words = Words::new(&tokenizer, &tokenizer.encode(text).unwrap()).unwrap();
            Units::new(&words, as_tokens).labels
        };
        assert_eq!(units("O gato", false), ["O", "gato"]);
        assert_eq!(units("O g", true), ["O", "␣", "g"]);
        assert_eq!(units("gato", false), ["g", "a", "t", "o"]);
    }
}
