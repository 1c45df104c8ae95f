//! Sizes of a call of attention, and where its gradients lie.

use std::ops::Range;

use super::kernel::Dims;
use super::rows::Place;

/// Sizes of a call: sequences, heads of queries, heads of keys and values, and those of a head.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) g: usize,
    pub(super) head: Dims,
}

impl Sizes {
    /// The heads of queries that share head `g` of keys and values.
    pub(super) fn heads(self, g: usize) -> Range<usize> {
        let per_group = self.h / self.g;
        g * per_group..(g + 1) * per_group
    }

    /// Where the rows of a head of sequence 0 lie in a tensor (B, T, H, E).
    pub(super) fn out(self, h: usize) -> Place {
        Place { offset: h * self.head.e, stride: self.h * self.head.e }
    }
}

/// Where the gradients of one sequence lie in its piece of the buffer: the places of the first head of queries, keys
/// and values, the distance from one head to the next, and the length of a piece.
#[derive(Clone, Copy)]
pub(super) struct GradientLayout {
    pub(super) places: [Place; 3],
    pub(super) head_strides: [usize; 3],
    pub(super) len: usize,
}

impl GradientLayout {
    /// As the packed input: (T, 3, H, D).
    pub(super) fn packed(h: usize, d: usize, t: usize) -> Self {
        let place = |i| Place { offset: i * h * d, stride: 3 * h * d };
        Self { places: [place(0), place(1), place(2)], head_strides: [d; 3], len: t * 3 * h * d }
    }

    /// One after the other: (T, H, D), (S, G, D), (S, G, E).
    pub(super) fn separate(Sizes { h, g, head: Dims { t, s, d, e }, .. }: Sizes) -> Self {
        let (dk, dv) = (t * h * d, t * h * d + s * g * d);
        Self {
            places: [
                Place { offset: 0, stride: h * d },
                Place { offset: dk, stride: g * d },
                Place { offset: dv, stride: g * e },
            ],
            head_strides: [d, d, e],
            len: dv + s * g * e,
        }
    }

    /// The places of query head `h` and key-value head `g`.
    pub(super) fn head(self, h: usize, g: usize) -> [Place; 3] {
        let shifted = |i: usize, head: usize| {
            let Place { offset, stride } = self.places[i];
            Place { offset: offset + head * self.head_strides[i], stride }
        };
        [shifted(0, h), shifted(1, g), shifted(2, g)]
    }
}
