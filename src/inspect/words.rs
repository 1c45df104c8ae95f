//! From tokens to words.

use crate::host::{Result, bail};
use crate::text::Tokenizer;

/// The tokens of a prompt as texts, and the words that they belong to.
///
/// A word begins with a token that has text and either starts with white space, as " word" does, or follows some; white
/// space alone belongs to the word before it. A special token, such as one that begins a text, is a word of its own.
///
/// ```
/// use candle_attention::{inspect::Words, text::Tokenizer};
///
/// let tokenizer = Tokenizer::characters(&["an ox"], false)?;
/// let words = Words::new(&tokenizer, &tokenizer.encode("an ox")?)?;
/// assert_eq!(words.of_token, [0, 0, 0, 1, 1]);
/// assert_eq!(words.texts, ["an ", "ox"]);
/// # Ok::<(), candle_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Words {
    /// The text of each token: see [`Tokenizer::token_texts`].
    pub tokens: Vec<String>,
    /// The word, counted from 0, that each token belongs to.
    pub of_token: Vec<usize>,
    /// The text of each word.
    pub texts: Vec<String>,
}

impl Words {
    /// Of the prompt `ids`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn new(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Self> {
        let tokens = tokenizer.token_texts(ids)?;
        let is_special: Vec<bool> = ids.iter().map(|id| tokenizer.is_special(*id)).collect();
        let of_token = numbers(&tokens, &is_special);
        let (mut texts, mut start) = (vec![], 0);
        for word in of_token.chunk_by(|a, b| a == b) {
            let of_word = start..start + word.len();
            start = of_word.end;
            // Not the texts of the tokens, which may be parts of characters.
            let text = tokenizer.decode(&ids[of_word.clone()])?;
            texts.push(if text.is_empty() { tokens[of_word].concat() } else { text });
        }
        Ok(Self { tokens, of_token, texts })
    }

    /// Weights between words (W, W), row by row, from weights between tokens (T, T): that of word `a` on word `b` is the mean
    /// over the tokens of `a` of the sum over the tokens of `b`, so that rows still add up to 1.
    ///
    /// # Errors
    /// If there are not T T weights.
    pub fn weights(&self, weights: &[f32]) -> Result<Vec<f32>> {
        let (t, count) = (self.tokens.len(), self.texts.len());
        if weights.len() != t * t {
            bail!("words: expected {} weights between {t} tokens, got {}", t * t, weights.len());
        }
        let mut sums = vec![0f64; count * count];
        let mut tokens = vec![0usize; count];
        for (row, &a) in weights.chunks_exact(t.max(1)).zip(&self.of_token) {
            tokens[a] += 1;
            for (weight, &b) in row.iter().zip(&self.of_token) {
                sums[a * count + b] += f64::from(*weight);
            }
        }
        Ok(sums.iter().enumerate().map(|(i, sum)| (sum / tokens[i / count] as f64) as f32).collect())
    }
}

/// The number of each token's word.
fn numbers(tokens: &[String], is_special: &[bool]) -> Vec<usize> {
    let (mut word, mut is_over) = (0, false);
    let number = |(i, (token, is_special)): (usize, (&String, &bool))| {
        let begins = !token.trim().is_empty() && (is_over || token.starts_with(char::is_whitespace));
        word += usize::from(i > 0 && (begins || *is_special));
        is_over = *is_special || token.ends_with(char::is_whitespace);
        word
    };
    tokens.iter().zip(is_special).enumerate().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers_of(tokens: &[&str], special: &[usize]) -> Vec<usize> {
        let is_special: Vec<bool> = (0..tokens.len()).map(|i| special.contains(&i)).collect();
        numbers(&tokens.iter().map(|token| token.to_string()).collect::<Vec<_>>(), &is_special)
    }

    #[test]
    fn words_begin_after_white_space_however_a_tokenizer_cuts() {
        for (tokens, special, expected) in [
            (&["O", " ", "g", "a", "\n", "p"][..], &[][..], &[0, 0, 1, 1, 1, 2][..]),
            (&["O", " gat", "o", " pr"], &[], &[0, 1, 1, 2]),
            (&["O ", "gato ", "preto"], &[], &[0, 1, 2]),
            (&[" ", " ", "O", "  ", "a"], &[], &[0, 0, 1, 1, 2]),
            (&["<C3>", "\u{e9}", "x"], &[], &[0, 0, 0]),
            (&[" O"], &[], &[0]),
            (&[], &[], &[]),
            (&["<s>", "O", " gato", "</s>"], &[0, 3], &[0, 1, 2, 3]),
            (&["O", "<unk>", "a"], &[1], &[0, 1, 2]),
        ] {
            assert_eq!(numbers_of(tokens, special), expected, "{tokens:?}");
        }
    }

    #[test]
    fn words_have_whole_characters_and_tokens_show_their_parts() {
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let words = Words::new(&tokenizer, &tokenizer.encode("a \u{e9}!").unwrap()).unwrap();
        assert_eq!(words.tokens, ["a", " ", "<C3>", "\u{e9}", "!"]);
        assert_eq!(words.texts, ["a ", "\u{e9}!"]);
    }

    #[test]
    fn weights_of_words_are_means_of_sums() {
        let weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]];
        let tokenizer = Tokenizer::characters(&["a b"], false).unwrap();
        let words = Words::new(&tokenizer, &tokenizer.encode("a b").unwrap()).unwrap();
        let expected: [f32; 4] = [1.0, 0.0, 0.75, 0.25];
        assert_eq!(words.weights(weights.as_flattened()).unwrap(), expected);
        let error = words.weights(&[1.0]).unwrap_err().to_string();
        assert_eq!(error, "words: expected 9 weights between 3 tokens, got 1");
    }
}
