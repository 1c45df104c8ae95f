//! The sizes of a call of attention, and the layout of its gradients.

use std::ops::Range;

use super::kernel::Dims;
use super::rows::Place;

/// The sizes of a call: sequences, query heads, key-value heads, and those of a head.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) g: usize,
    pub(super) head: Dims,
}

impl Sizes {
    /// The query heads that share key-value head `g`.
    pub(super) fn heads(self, g: usize) -> Range<usize> {
        let per_group = self.h / self.g;
        g * per_group..(g + 1) * per_group
    }

    /// The place of a head's rows, for sequence 0, in a tensor (B, T, H, E).
    pub(super) fn out(self, h: usize) -> Place {
        Place { offset: h * self.head.e, stride: self.h * self.head.e }
    }
}

/// The layout of the gradients of queries, keys and values.
#[derive(Clone, Copy)]
pub(super) enum GradientLayout {
    /// In one buffer, like the packed input: (B, T, 3, H, D).
    Packed,
    /// In three buffers: (B, T, H, D), (B, S, G, D), (B, S, G, E).
    Separate,
}

impl GradientLayout {
    /// The elements of one sequence in each buffer.
    pub(super) fn lens(self, Sizes { h, g, head: Dims { t, s, d, e }, .. }: Sizes) -> Vec<usize> {
        match self {
            Self::Packed => vec![t * 3 * h * d],
            Self::Separate => vec![t * h * d, s * g * d, s * g * e],
        }
    }

    /// The places of query head `h_i` and of key-value head `g_i` of a sequence, each in its buffer.
    pub(super) fn places(self, h_i: usize, g_i: usize, Sizes { h, g, head, .. }: Sizes) -> [Place; 3] {
        let Dims { d, e, .. } = head;
        match self {
            Self::Packed => [(0, h_i), (1, g_i), (2, g_i)]
                .map(|(part, head)| Place { offset: (part * h + head) * d, stride: 3 * h * d }),
            Self::Separate => [
                Place { offset: h_i * d, stride: h * d },
                Place { offset: g_i * d, stride: g * d },
                Place { offset: g_i * e, stride: g * e },
            ],
        }
    }
}

/// The gradients of one sequence, in one buffer or three.
pub(super) enum Piece<'a> {
    Packed(&'a mut [f32]),
    Separate([&'a mut [f32]; 3]),
}

impl<'a> Piece<'a> {
    /// The pieces of all sequences, from the buffers of a layout.
    pub(super) fn all(buffers: &'a mut [Vec<f32>], lens: &[usize]) -> Vec<Self> {
        match buffers {
            [dq, dk, dv] => {
                let (dq, dk, dv) = (dq.chunks_mut(lens[0]), dk.chunks_mut(lens[1]), dv.chunks_mut(lens[2]));
                dq.zip(dk).zip(dv).map(|((dq, dk), dv)| Self::Separate([dq, dk, dv])).collect()
            }
            buffers => buffers.iter_mut().flat_map(|packed| packed.chunks_mut(lens[0])).map(Self::Packed).collect(),
        }
    }

    /// The buffer of queries (0), keys (1) or values (2).
    pub(super) fn buffer(&mut self, which: usize) -> &mut [f32] {
        match self {
            Self::Packed(buffer) => buffer,
            Self::Separate(buffers) => buffers[which],
        }
    }
}
