//! SentencePiece's BPE has a score for each piece, a `tokenizer.json` an order of merges.

use std::collections::HashMap;

/// The merges that follow from scores: every pair of pieces that makes a piece, that with the best score first.
pub(super) fn merges<'a>(pieces: &[(&'a str, f32)]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, (piece, _))| (*piece, id)).collect();
    let mut merges = Vec::new();
    for &(piece, score) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                merges.push((score, *first, *second, (left, right)));
            }
        }
    }
    // Of several ways to make a piece, the one whose parts came first.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges.into_iter().map(|(_, _, _, pair)| pair).collect()
}

/// Scores of pieces from which exactly these merges follow, if there are any: the earlier a piece can be made, the better.
pub(super) fn of_merges(pieces: &[&str], merges_wanted: &[(&str, &str)]) -> Option<Vec<f32>> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    let mut last = 0;
    for (left, right) in merges_wanted {
        let next = ranks.len();
        let rank = *ranks.entry(format!("{left}{right}")).or_insert(next);
        // All ways to make a piece follow one another.
        if rank + 1 < ranks.len() && rank != last {
            return None;
        }
        last = rank;
    }
    // A piece that no merge makes is never chosen, whatever its score.
    let score = |piece: &&str| -(ranks.get(*piece).map_or(ranks.len(), |rank| *rank) as f32);
    let scores: Vec<f32> = pieces.iter().map(score).collect();
    let scored: Vec<(&str, f32)> = pieces.iter().copied().zip(scores.iter().copied()).collect();
    let (mut found, mut wanted) = (merges(&scored), merges_wanted.to_vec());
    found.sort_unstable();
    wanted.sort_unstable();
    (found == wanted).then_some(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_from_scores_and_scores_from_merges() {
        let pieces = [("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0), ("aba", -3.0), ("é", 0.0), ("éa", -1.5)];
        let expected = [("b", "a"), ("é", "a"), ("a", "b"), ("a", "ba"), ("ab", "a")];
        assert_eq!(merges(&pieces), expected);
        let names: Vec<&str> = pieces.iter().map(|(piece, _)| *piece).collect();
        let scores = of_merges(&names, &expected).unwrap();
        let scored: Vec<(&str, f32)> = names.iter().copied().zip(scores).collect();
        assert_eq!(merges(&scored), expected);
        // One way to make "aba" is missing: SentencePiece would take it all the same.
        assert_eq!(of_merges(&names, &expected[..4]), None);
        // One way has another rank than the other.
        assert_eq!(of_merges(&names, &[expected[3], expected[0], expected[1], expected[2], expected[4]]), None);
    }
}
