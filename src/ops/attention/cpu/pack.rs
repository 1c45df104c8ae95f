//! Strided rows of a head, and copies of them in the layouts that products need.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;

/// Where the rows of a tensor of heads, (B, T, H, D), begin in a buffer. The channels of a row are adjacent.
#[derive(Clone, Copy)]
pub(in super::super) struct RowLayout {
    pub(in super::super) offset: usize,
    pub(in super::super) batch_stride: usize,
    pub(in super::super) position_stride: usize,
    pub(in super::super) head_stride: usize,
}

impl RowLayout {
    /// Of a contiguous tensor (B, `t`, `h`, `d`).
    pub(in super::super) fn contiguous(t: usize, h: usize, d: usize) -> Self {
        Self { offset: 0, batch_stride: t * h * d, position_stride: h * d, head_stride: d }
    }

    fn start(self, b: usize, h: usize) -> usize {
        self.offset + b * self.batch_stride + h * self.head_stride
    }

    /// The rows of a head.
    pub(super) fn rows(self, data: &[f32], b: usize, h: usize) -> Rows<'_> {
        Rows { data: &data[self.start(b, h)..], stride: self.position_stride }
    }
}

/// The rows of one head, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn row(self, i: usize, len: usize) -> &'a [f32] {
        &self.data[i * self.stride..i * self.stride + len]
    }

    /// Copies some rows of `len` channels, times `factor`, to rows of whole groups, `stride` apart. Returns the largest
    /// magnitude before that; NaN if something is not finite.
    #[inline(always)]
    pub(super) fn copy<S: Simd>(
        self,
        simd: S,
        rows: Range<usize>,
        len: usize,
        factor: f32,
        to: &mut [f32],
        stride: usize,
    ) -> f32 {
        // Written out, because the compiler makes gathers of loops over arrays.
        let (zero, factor) = (simd.splat_f32s(0.0), simd.splat_f32s(factor));
        let (mut max, mut unless_finite) = (zero, zero);
        for (row, to) in rows.zip(to.chunks_exact_mut(stride)) {
            let (row, rest) = S::as_simd_f32s(self.row(row, len));
            let to = S::as_mut_simd_f32s(to).0;
            for (x, to) in row.iter().zip(to.iter_mut()) {
                max = simd.max_f32s(simd.abs_f32s(*x), max);
                unless_finite = simd.mul_add_e_f32s(*x, zero, unless_finite);
                *to = simd.mul_f32s(*x, factor);
            }
            if !rest.is_empty() {
                let x = simd.partial_load_f32s(rest);
                max = simd.max_f32s(simd.abs_f32s(x), max);
                unless_finite = simd.mul_add_e_f32s(x, zero, unless_finite);
                to[row.len()] = simd.mul_f32s(x, factor);
            }
        }
        simd.reduce_max_f32s(max) + simd.reduce_sum_f32s(unless_finite)
    }
}

/// A buffer that several threads write at once, each to rows of its own.
pub(super) struct SharedBuffer<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a unique borrow of values that may be sent, and the only access, `rows`, leaves it to its caller
// that no rows are used twice at once.
unsafe impl<T: Send> Sync for SharedBuffer<'_, T> {}

impl<'a, T> SharedBuffer<'a, T> {
    pub(super) fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), borrowed: PhantomData }
    }

    /// The rows of a head, to write to.
    ///
    /// # Safety
    /// While a row of the result is in use, on this thread or another, no row that overlaps it may be used through
    /// another result.
    pub(super) unsafe fn rows(&self, layout: RowLayout, b: usize, h: usize) -> RowsMut<'a, T> {
        let start = layout.start(b, h);
        assert!(start <= self.len, "a head begins past its buffer");
        // SAFETY: `start` is within the buffer or one past its end, as just checked.
        let first = unsafe { self.start.add(start) };
        RowsMut { start: first, len: self.len - start, stride: layout.position_stride, borrowed: PhantomData }
    }
}

/// The rows of one head, to write to.
pub(super) struct RowsMut<'a, T> {
    start: *mut T,
    len: usize,
    stride: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> RowsMut<'_, T> {
    #[inline(always)]
    pub(super) fn row(&mut self, i: usize, len: usize) -> &mut [T] {
        let first = i * self.stride;
        assert!(first + len <= self.len, "a row reaches past its buffer");
        // SAFETY: the row lies within the buffer, as just checked; the unique borrow of `self` keeps it from being used
        // twice through this, and the contract of `SharedBuffer::rows` from being used through another.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

/// An element that is yet to be written.
pub(super) type Uninit = MaybeUninit<f32>;

impl RowsMut<'_, Uninit> {
    /// Writes a row, times `factor`.
    #[inline(always)]
    pub(super) fn write(&mut self, i: usize, row: &[f32], factor: f32) {
        for (to, x) in self.row(i, row.len()).iter_mut().zip(row) {
            to.write(x * factor);
        }
    }
}
