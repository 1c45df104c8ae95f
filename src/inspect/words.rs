//! From tokens to words.

/// The word, counted from 0, that each token belongs to, from the texts of the tokens. A word
/// begins with a token that has text and either starts with white space, as " word" does, or follows some; white space alone
/// belongs to the word before it.
///
/// ```
/// use candle_attention::inspect::words;
///
/// assert_eq!(words(&["A", "n", " ", "o", "x", "."]), [0, 0, 0, 1, 1, 1]);
/// assert_eq!(words(&["An", " o", "x", "."]), [0, 1, 1, 1]);
/// ```
pub fn words(tokens: &[impl AsRef<str>]) -> Vec<usize> {
    let (mut word, mut is_over) = (0, false);
    let of_token = |token: &str| {
        let begins = !token.trim().is_empty() && token.starts_with(char::is_whitespace);
        let goes_on = token.trim().is_empty() || !(begins || is_over);
        is_over = token.ends_with(char::is_whitespace) || (is_over && token.is_empty());
        goes_on
    };
    let goes_on: Vec<bool> = tokens.iter().map(|token| token.as_ref()).map(of_token).collect();
    let number = |(i, goes_on): (usize, bool)| {
        word += usize::from(!goes_on && i > 0);
        word
    };
    goes_on.into_iter().enumerate().map(number).collect()
}

/// Weights between words (W, W) from weights between tokens (T, T): that of word `a` on word `b` is the mean over the tokens
/// of `a` of the sum over the tokens of `b`, so that rows still add up to 1. `words` is that of [`words`]; entries that do not
/// fit it count as 0.
pub fn by_word(weights: &[f32], words: &[usize]) -> Vec<f32> {
    let (t, count) = (words.len(), words.last().map_or(0, |last| last + 1));
    let mut sums = vec![0f64; count * count];
    let mut tokens = vec![0usize; count];
    for (row, &a) in weights.chunks_exact(t.max(1)).zip(words) {
        tokens[a] += 1;
        for (weight, &b) in row.iter().zip(words) {
            sums[a * count + b] += f64::from(*weight);
        }
    }
    sums.iter().enumerate().map(|(i, sum)| (sum / tokens[i / count].max(1) as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_after_white_space_however_a_tokenizer_cuts() {
        for (tokens, expected) in [
            (&["O", " ", "g", "a", "\n", "p"][..], &[0, 0, 1, 1, 1, 2][..]),
            (&["O", " gat", "o", " pr"], &[0, 1, 1, 2]),
            (&["O ", "gato ", "preto"], &[0, 1, 2]),
            (&[" ", " ", "O", "  ", "a"], &[0, 0, 1, 1, 2]),
            (&["\u{fffd}", "", "x"], &[0, 0, 0]),
            (&[" O"], &[0]),
            (&[], &[]),
        ] {
            assert_eq!(words(tokens), expected, "{tokens:?}");
        }
    }

    #[test]
    fn weights_of_words_are_means_of_sums() {
        let weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]];
        let expected = [1.0, 0.0, 0.75, 0.25];
        assert_eq!(by_word(weights.as_flattened(), &[0, 0, 1]), expected);
        assert!(by_word(&[], &[]).is_empty());
    }
}
