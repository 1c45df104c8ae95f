//! A head in a few numbers.

use serde::Serialize;

/// What a head does with a prompt, as means over its queries from the second on (the first can only look at itself); all 0
/// for a prompt of one token. With `w[t][s]` the weight of query `t` on key `s`:
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeadScores {
    /// `-sum over s of w[t][s] log2 w[t][s]`, in bits: `2^entropy` is the number of tokens it looks at.
    pub entropy: f64,
    /// `sum over s of w[t][s] (t - s)`: how far back it looks, in tokens.
    pub distance: f64,
    /// `w[t][t - 1]`.
    pub previous: f64,
    /// `w[t][0]`.
    pub first: f64,
    /// The sum of `w[t][s]` over earlier positions `s < t` with the same token, over those queries that have one.
    pub same: Option<f64>,
    /// The largest `w[t][s]` with `1 <= s <= t - 2`: on a token that is neither the first, nor the one before the query, nor
    /// the query itself. Where it is large, the head looks something up.
    pub telling: f64,
}

impl HeadScores {
    /// The names of the [`numbers`](Self::numbers).
    pub const NAMES: [&str; 6] = ["entropy", "distance", "previous", "first", "same", "telling"];

    /// Of the weights (T, T) of one head, for the prompt `ids`.
    pub(super) fn of(weights: &[f32], ids: &[u32]) -> Self {
        let t = ids.len();
        let rows: Vec<&[f32]> = weights.chunks_exact(t.max(1)).enumerate().map(|(i, row)| &row[..=i]).collect();
        let mean = |of: &dyn Fn(usize, &[f32]) -> Option<f64>| {
            let each: Vec<f64> = (1..rows.len()).filter_map(|i| of(i, rows[i])).collect();
            if each.is_empty() { None } else { Some(each.iter().sum::<f64>() / each.len() as f64) }
        };
        let always = |of: &dyn Fn(usize, &[f32]) -> f64| mean(&|i, row| Some(of(i, row))).unwrap_or(0.0);
        let weighted = |row: &[f32], factor: &dyn Fn(usize, f64) -> f64| -> f64 {
            row.iter().enumerate().map(|(s, w)| f64::from(*w) * factor(s, f64::from(*w))).sum()
        };
        Self {
            entropy: always(&|_, row| -weighted(row, &|_, w| if w > 0.0 { w.log2() } else { 0.0 })).max(0.0),
            distance: always(&|i, row| weighted(row, &|s, _| (i - s) as f64)),
            previous: always(&|i, row| f64::from(row[i - 1])),
            first: always(&|_, row| f64::from(row[0])),
            same: mean(&|i, row| {
                let is_same = |s: usize| s < i && ids[s] == ids[i];
                (0..i).any(is_same).then(|| weighted(row, &|s, _| if is_same(s) { 1.0 } else { 0.0 }))
            }),
            telling: always(&|i, row| row[1.min(i - 1)..i - 1].iter().copied().fold(0f32, f32::max).into()),
        }
    }

    /// The numbers in the order of [`NAMES`](Self::NAMES); NaN where there is none.
    pub fn numbers(&self) -> [f32; 6] {
        let Self { entropy, distance, previous, first, same, telling } = *self;
        [entropy, distance, previous, first, same.unwrap_or(f64::NAN), telling].map(|number| number as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
    }

    /// By hand, over the queries from the second on.
    #[test]
    fn scores_of_a_small_head() {
        let weights = [[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0], [0.0, 0.75, 0.0, 0.25]];
        let scores = HeadScores::of(weights.as_flattened(), &[7, 8, 9, 8]);
        let last = -(0.75 * 0.75f64.log2() + 0.25 * 0.25f64.log2());
        close(scores.entropy, (1.0 + 1.5 + last) / 3.0);
        close(scores.distance, (0.5 + (0.5 + 0.5) + 1.5) / 3.0);
        close(scores.previous, (0.5 + 0.5 + 0.0) / 3.0);
        close(scores.first, (0.5 + 0.25 + 0.0) / 3.0);
        close(scores.same.unwrap(), 0.75);
        // The second query has no such token, the third has none but the one before it.
        close(scores.telling, 0.75 / 3.0);
    }

    #[test]
    fn one_token_has_nothing_to_look_at() {
        let scores = HeadScores::of(&[1.0], &[3]);
        assert_eq!(scores.numbers()[..4], [0.0; 4]);
        assert_eq!((scores.same, scores.telling), (None, 0.0));
    }
}
