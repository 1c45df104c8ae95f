//! `clean_up_tokenization_spaces` of a `tokenizer_config.json`: no space before punctuation and English contractions.

/// What is replaced, in this order, each throughout the text, as transformers does.
const REPLACED: [(&str, &str); 10] = [
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
];

/// The text without these spaces.
pub(super) fn cleaned(text: &str) -> String {
    REPLACED.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

/// A place, as late as possible, at which both sides of a text can be cleaned on their own whatever follows: a space, as
/// every replaced string begins with one, after a character that is in none of them.
pub(super) fn last_cut(text: &str) -> usize {
    let is_replaced = |c: char| REPLACED.iter().any(|(from, _)| from.contains(c));
    let spaces = text.rmatch_indices(' ').map(|(at, _)| at);
    let mut cuts = spaces.filter(|&at| text[..at].chars().next_back().is_some_and(|c| !is_replaced(c)));
    cuts.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spaces_before_punctuation_go() {
        assert_eq!(
            cleaned("it 's a \" test \" , is n't it ? I ' m  ! sure ."),
            "it's a \" test \", isn't it? I'm ! sure."
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

        #[test]
        fn a_text_cut_is_cleaned_as_in_one_piece(text in "[ntmsver'.?!, dk ]{0,24}", rest in "[ntmsver'.?!, dk ]{0,9}") {
            let (left, right) = text.split_at(last_cut(&text));
            prop_assert_eq!(cleaned(left) + &cleaned(&format!("{right}{rest}")), cleaned(&format!("{text}{rest}")));
        }
    }
}
