//! Masks as the kernel needs them: which tiles to skip, which to compute, and what to hide in them.

use std::ops::Range;

use super::mask::Seen;

/// The mask of one head. The kernel is compiled for each kind.
pub(super) trait Visible {
    /// A range of the `s` keys outside which none of these queries sees anything.
    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize>;

    /// The number of these keys, from the first, that covers all that the query sees; never fewer than for an earlier
    /// query.
    fn reach(&self, query: usize, keys: &Range<usize>) -> usize;

    /// Sets scores to minus infinity where the query does not see the key. `scores` starts with those of `keys`; the
    /// padding after them is hidden too.
    fn hide(&self, scores: &mut [f32], query: usize, keys: &Range<usize>);
}

/// Hides nothing.
pub(super) struct Full;

impl Visible for Full {
    #[inline(always)]
    fn keys(&self, _queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s
    }

    #[inline(always)]
    fn reach(&self, _query: usize, keys: &Range<usize>) -> usize {
        keys.len()
    }

    #[inline(always)]
    fn hide(&self, scores: &mut [f32], _query: usize, keys: &Range<usize>) {
        hide_from(scores, keys.len());
    }
}

/// Causal: each query sees the keys up to its own position; `before` keys precede the first query.
pub(super) struct Causal {
    pub(super) before: usize,
}

impl Visible for Causal {
    #[inline(always)]
    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s.min(queries.end + self.before)
    }

    #[inline(always)]
    fn reach(&self, query: usize, keys: &Range<usize>) -> usize {
        (query + self.before + 1).saturating_sub(keys.start).min(keys.len())
    }

    #[inline(always)]
    fn hide(&self, scores: &mut [f32], query: usize, keys: &Range<usize>) {
        hide_from(scores, self.reach(query, keys));
    }
}

/// Hides all scores from `first` on.
#[inline(always)]
fn hide_from(scores: &mut [f32], first: usize) {
    if let Some(hidden) = scores.get_mut(first..) {
        hidden.fill(f32::NEG_INFINITY);
    }
}

/// Any other mask, by its definition; the range of keys is computed for a window and searched for the others.
pub(super) struct Other<'a> {
    pub(super) seen: &'a Seen,
    pub(super) sequence: usize,
    pub(super) head: usize,
}

impl Other<'_> {
    /// For an additive mask, the terms of a query's scores.
    fn terms(&self, query: usize) -> Option<&[f32]> {
        let Seen::Additive { bias, dims: [b, h, t, s] } = self.seen else { return None };
        // A dimension of 1 applies to all sequences or heads.
        let (b_i, h_i) = (self.sequence % b, self.head % h);
        Some(&bias[((b_i * h + h_i) * t + query) * s..][..*s])
    }
}

impl Visible for Other<'_> {
    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        match self.seen {
            Seen::Window { before, len } => {
                return (queries.start + before + 1).saturating_sub(*len)..s.min(queries.end + before);
            }
            Seen::Additive { .. } => return 0..s,
            _ => {}
        }
        let is_seen = |key: &usize| queries.clone().any(|query| self.seen.sees(self.sequence, query, *key));
        match ((0..s).find(is_seen), (0..s).rfind(is_seen)) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    fn reach(&self, _query: usize, keys: &Range<usize>) -> usize {
        keys.len()
    }

    fn hide(&self, scores: &mut [f32], query: usize, keys: &Range<usize>) {
        hide_from(scores, keys.len());
        if let Some(terms) = self.terms(query) {
            scores.iter_mut().zip(&terms[keys.clone()]).for_each(|(score, term)| *score += term);
            return;
        }
        for (score, key) in scores.iter_mut().zip(keys.clone()) {
            if !self.seen.sees(self.sequence, query, key) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}
