//! Masks as the kernel asks them: which tiles to skip, which to take whole, and what to hide in the others.

use std::ops::Range;

use super::mask::Seen;

/// The mask of one sequence. A kernel is compiled for each kind.
pub(super) trait Visible {
    /// Whether a query sees a key.
    fn sees(&self, query: usize, key: usize) -> bool;

    /// A range, of all `s` keys, outside of which none of these queries sees anything.
    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize>;

    /// Whether each of these queries sees each of these keys; to say no is always right.
    fn all(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool;
}

/// Nothing is hidden.
pub(super) struct Full;

impl Visible for Full {
    fn sees(&self, _query: usize, _key: usize) -> bool {
        true
    }

    fn keys(&self, _queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s
    }

    fn all(&self, _queries: &Range<usize>, _keys: &Range<usize>) -> bool {
        true
    }
}

/// Up to the own position, before whose first there are this many keys.
pub(super) struct Causal {
    pub(super) before: usize,
}

impl Visible for Causal {
    fn sees(&self, query: usize, key: usize) -> bool {
        key <= query + self.before
    }

    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        0..s.min(queries.end + self.before)
    }

    fn all(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        keys.end <= queries.start + self.before + 1
    }
}

/// Any other mask, by its definition; the range of keys is known for a window and found out for the rest.
pub(super) struct Other<'a> {
    pub(super) seen: &'a Seen,
    pub(super) sequence: usize,
}

impl Visible for Other<'_> {
    fn sees(&self, query: usize, key: usize) -> bool {
        self.seen.sees(self.sequence, query, key)
    }

    fn keys(&self, queries: &Range<usize>, s: usize) -> Range<usize> {
        if let Seen::Window { before, len } = self.seen {
            return (queries.start + before + 1).saturating_sub(*len)..s.min(queries.end + before);
        }
        let is_seen = |key: &usize| queries.clone().any(|query| self.sees(query, *key));
        match ((0..s).find(is_seen), (0..s).rfind(is_seen)) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    fn all(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        match self.seen {
            Seen::Window { before, len } => {
                keys.end <= queries.start + before + 1 && queries.end + before <= keys.start + len
            }
            Seen::Prefix { before, len } => keys.end <= (queries.start + before + 1).max(*len),
            _ => false,
        }
    }
}
