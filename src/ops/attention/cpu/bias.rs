//! The gradient of a bias on the scores, which is the sum of that of all scores it was added to.

use std::ops::Range;

use super::pack::{RowLayout, RowsMut, SharedBuffer};
use super::parallel::Sizes;
use crate::cpu::elementwise::zip_update;
use crate::cpu::simd::sum_of;

/// The shape (b, h, t, s) of a bias: each is 1 or that of the scores (B, H, T, S).
#[derive(Clone, Copy)]
pub(in super::super) struct BiasShape(pub(in super::super) [usize; 4]);

impl BiasShape {
    pub(in super::super) fn elements(self) -> usize {
        self.0.iter().product()
    }

    /// Where the rows of a head lie; heads and sequences that share a bias share them.
    fn layout(self) -> RowLayout {
        let [b, h, t, s] = self.0;
        let stride = |size: usize, stride: usize| if size == 1 { 0 } else { stride };
        RowLayout {
            offset: 0,
            batch_stride: stride(b, h * t * s),
            position_stride: stride(t, s),
            head_stride: stride(h, t * s),
        }
    }

    /// The work divided so that units which add to the same elements follow one another, and the number of copies of the
    /// gradient that they add to: enough for many threads if they are small, and few if they are large. The division does
    /// not depend on the number of threads.
    pub(super) fn lists(self, sizes: Sizes) -> (Vec<List>, usize) {
        /// Elements of all copies.
        const ELEMENTS: usize = 1 << 24;
        let lists = (ELEMENTS / self.elements().max(1)).clamp(4, 64);
        let [b, h, ..] = self.0;
        let (owners_b, owners_g) = (if b == 1 { 1 } else { sizes.b }, if h == 1 { 1 } else { sizes.g });
        let (members_b, members_g) = (sizes.b / owners_b, sizes.g / owners_g);
        let copies = lists.div_ceil(owners_b * owners_g).min(members_b * members_g);
        let mut lists = Vec::new();
        for owner in 0..owners_b * owners_g {
            let members: Vec<[usize; 2]> = (0..members_b * members_g)
                .map(|i| [owner / owners_g * members_b + i / members_g, owner % owners_g * members_g + i % members_g])
                .collect();
            let units = members.chunks(members.len().div_ceil(copies)).map(<[_]>::to_vec);
            lists.extend(units.enumerate().map(|(copy, units)| List { copy, units }));
        }
        (lists, copies)
    }

    /// Adds copies of the gradient up, in order.
    pub(super) fn sum(self, mut copies: Vec<Vec<f32>>) -> Vec<f32> {
        let mut sum = copies.remove(0);
        for copy in copies {
            zip_update(&mut sum, &copy, |sum, x| sum + x);
        }
        sum
    }
}

/// Work in order.
pub(super) struct List {
    /// Which copy of the gradient it adds to.
    pub(super) copy: usize,
    /// Key-value heads of sequences, (b, g).
    pub(super) units: Vec<[usize; 2]>,
}

/// The rows of a head's bias, to add to.
pub(super) struct BiasRows<'a> {
    rows: RowsMut<'a, f32>,
    is_shared_by_keys: bool,
    s: usize,
}

impl<'a> BiasRows<'a> {
    /// # Safety
    /// That of [`SharedBuffer::rows`]; heads that share a bias use the same rows.
    pub(super) unsafe fn new(buffer: &SharedBuffer<'a, f32>, shape: BiasShape, b: usize, h: usize) -> Self {
        let [.., s] = shape.0;
        // SAFETY: the caller's.
        let rows = unsafe { buffer.rows(shape.layout(), b, h) };
        Self { rows, is_shared_by_keys: s == 1, s }
    }

    /// Adds the gradient of a query's scores, of some keys and padding after them.
    #[inline(always)]
    pub(super) fn add(&mut self, query: usize, keys: Range<usize>, dscores: &[f32]) {
        let dscores = &dscores[..dscores.len().min(keys.len())];
        if self.is_shared_by_keys {
            self.rows.row(query, 1)[0] += sum_of(dscores, dscores, |x, _| x);
            return;
        }
        let row = &mut self.rows.row(query, self.s)[keys];
        row.iter_mut().zip(dscores).for_each(|(sum, x)| *sum += x);
    }
}
