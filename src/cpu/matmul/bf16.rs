//! Products of `f32` matrices whose elements are rounded to bf16 (to nearest, ties to even) and whose sums are `f32`, by
//! AVX-512's `vdpbf16ps`, which does twice the arithmetic of an `f32` instruction.
//!
//! Both factors are rounded and packed, a part at a time that stays in the L2 cache, so that the innermost loop reads
//! memory in order. A block of [`ROWS`] rows and up to [`WIDTH`] vectors of the output stays in registers while `k` runs.
//! Where `k` is cut depends on its length alone, so an element of the output has the same bits in whatever part it is
//! computed.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::{MaybeUninit, transmute};

use super::{Matrix, Output};
use crate::cpu::simd::prefetch;
use crate::cpu::{parallel, simd};

/// Rows of a block of the output.
const ROWS: usize = 8;

/// Vectors in a row of a block: three take 24 registers for sums and leave enough for the factors.
const WIDTH: usize = 3;

/// Rows of the left factor, or columns of the right one, in a panel: as many as a vector has lanes.
const PANEL: usize = 16;

/// The largest part of the terms of a sum that is packed: what a block reads stays in the L1 cache.
const MAX_TERMS: usize = 384;

/// The largest parts of rows and columns: both packed factors stay in the L2 cache.
const MAX_ROWS: usize = 384;
const MAX_COLS: usize = 768;

/// Two neighbouring terms of each row or column of a panel, the first in the low half of an element. A packed factor is
/// a list of panels, each a list of lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([[u32; ROWS]; PANEL / ROWS]);

thread_local! {
    static PACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// The product of `a` and `b`, neither of them empty, written or added to rows `stride` apart. With [`Output::Add`] these
/// must be initialised. Threads share the work in this many pieces, or fewer.
pub(super) fn product(
    out: &mut [MaybeUninit<f32>],
    stride: usize,
    how: (Output, f32),
    a: Matrix,
    b: Matrix,
    pieces: usize,
) {
    assert!(simd::has_bf16(), "this processor has no instructions for bf16");
    let rows = a.rows.div_ceil(pieces).next_multiple_of(ROWS);
    parallel::for_each_chunk(out, rows * stride, |i, data| {
        let a = a.part((i * rows, rows.min(a.rows - i * rows)), (0, a.cols));
        product_of_rows(Block { data, stride, rows: a.rows, cols: b.cols }, how, a, b);
    });
}

fn product_of_rows(out: Block, (output, scale): (Output, f32), a: Matrix, b: Matrix) {
    let terms = part_len(a.cols, MAX_TERMS, 2);
    let (rows, cols) = (part_len(a.rows, MAX_ROWS, PANEL), part_len(b.cols, MAX_COLS, WIDTH * PANEL));
    let [left, right] = [rows, cols].map(|len| len.div_ceil(PANEL) * terms / 2);
    PACKED.with_borrow_mut(|packed| {
        if packed.len() < left + right {
            packed.resize(left + right, Line([[0; ROWS]; PANEL / ROWS]));
        }
        let (left, right) = packed.split_at_mut(left);
        for k in (0..a.cols).step_by(terms) {
            let ks = (k, terms.min(a.cols - k));
            let how = (if k == 0 { output } else { Output::Add }, scale);
            for col in (0..b.cols).step_by(cols) {
                let b = b.part(ks, (col, cols.min(b.cols - col)));
                // SAFETY: `product` has checked that the processor has the instructions.
                unsafe { pack(right, b.t()) };
                for row in (0..a.rows).step_by(rows) {
                    let a = a.part((row, rows.min(a.rows - row)), ks);
                    let data = &mut out.data[row * out.stride + col..];
                    let out = Block { data, rows: a.rows, cols: b.cols, ..out };
                    // SAFETY: the same.
                    unsafe {
                        pack(left, a);
                        multiply(out, how, left, right, ks.1.div_ceil(2));
                    }
                }
            }
        }
    });
}

impl Matrix<'_> {
    /// The part of this many rows and columns that begins there.
    fn part(self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> Self {
        let first = row * self.row_stride + col * self.col_stride;
        Self { data: &self.data[first..], rows, cols, ..self }
    }
}

/// The length of equal parts of `len`, of at most `max` (a multiple of `unit`) each and whole units.
fn part_len(len: usize, max: usize, unit: usize) -> usize {
    len.div_ceil(len.div_ceil(max)).next_multiple_of(unit)
}

/// A part of the output, all of its rows `stride` apart.
struct Block<'a> {
    data: &'a mut [MaybeUninit<f32>],
    stride: usize,
    rows: usize,
    cols: usize,
}

/// Packs a factor whose columns are the terms. What is missing in the last panel or pair is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(packed: &mut [Line], factor: Matrix) {
    let Matrix { data, rows, cols, row_stride, col_stride } = factor;
    let lines = cols.div_ceil(2);
    if col_stride == 1 {
        for (panel, row) in packed.chunks_exact_mut(lines).zip((0..rows).step_by(PANEL)) {
            for (lines, k) in panel.chunks_mut(PANEL).zip((0..cols).step_by(2 * PANEL)) {
                let mut terms = [_mm512_setzero_si512(); PANEL];
                for (terms, row) in terms.iter_mut().zip(row..rows) {
                    let row = &data[row * row_stride + k..][..(cols - k).min(2 * PANEL)];
                    let in_next_panel = row.as_ptr().wrapping_add(PANEL * row_stride);
                    prefetch(in_next_panel);
                    prefetch(in_next_panel.wrapping_add(PANEL));
                    *terms = round(load(row), load(&row[row.len().min(PANEL)..]));
                }
                for (line, terms) in lines.iter_mut().zip(transpose(terms)) {
                    // SAFETY: both are 64 bytes of plain numbers.
                    *line = unsafe { transmute::<__m512i, Line>(terms) };
                }
            }
        }
    } else {
        let interleaved = std::array::from_fn(|i| (i / 2 + i % 2 * PANEL) as u16);
        // SAFETY: both are 64 bytes of plain numbers.
        let interleaved = unsafe { transmute::<[u16; 32], __m512i>(interleaved) };
        for line in 0..lines {
            let term = |k: usize| if k < cols { &data[k * col_stride..][..rows] } else { &[] };
            let (first, second) = (term(2 * line), term(2 * line + 1));
            for (panel, first) in first.chunks(PANEL).enumerate() {
                let in_later_pair = first.as_ptr().wrapping_add(4 * col_stride);
                prefetch(in_later_pair);
                prefetch(in_later_pair.wrapping_add(col_stride));
                let pairs = round(load(first), load(&second[second.len().min(panel * PANEL)..]));
                let pairs = _mm512_permutexvar_epi16(interleaved, pairs);
                // SAFETY: both are 64 bytes of plain numbers.
                packed[panel * lines + line] = unsafe { transmute::<__m512i, Line>(pairs) };
            }
        }
    }
}

/// The first numbers of a slice, at most as many as a vector has lanes, then zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(xs: &[f32]) -> __m512 {
    // SAFETY: only what lies in the slice is read.
    unsafe { _mm512_maskz_loadu_ps(lanes(xs.len()), xs.as_ptr()) }
}

/// The mask of the first `n` lanes.
fn lanes(n: usize) -> __mmask16 {
    if n < PANEL { (1 << n) - 1 } else { __mmask16::MAX }
}

/// The numbers rounded to bf16, the second vector after the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(first: __m512, second: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of plain numbers.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// The transpose of 16 rows of 16 elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; PANEL]) -> [__m512i; PANEL] {
    let (mut pairs, mut fours, mut out) = (rows, rows, rows);
    for i in (0..PANEL).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Then fours[4 i + j] has, in its 128-bit lane l, rows 4 i to 4 i + 3 of column 4 l + j.
    for i in (0..PANEL).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        out[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[4 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        out[8 + j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    out
}

/// The product of two packed factors, with `lines` lines in a panel.
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(out: Block, how: (Output, f32), left: &[Line], right: &[Line], lines: usize) {
    let Block { data, stride, rows, cols } = out;
    for (right, col) in right.chunks(WIDTH * lines).zip((0..cols).step_by(WIDTH * PANEL)) {
        let cols = (cols - col).min(WIDTH * PANEL);
        for row in (0..rows).step_by(ROWS) {
            let left = (&left[row / PANEL * lines..][..lines], row % PANEL / ROWS);
            let data = &mut data[row * stride + col..];
            let block = Block { data, stride, rows: (rows - row).min(ROWS), cols };
            match cols.div_ceil(PANEL) {
                1 => multiply_block::<1>(block, how, left, right),
                2 => multiply_block::<2>(block, how, left, right),
                _ => multiply_block::<WIDTH>(block, how, left, right),
            }
        }
    }
}

/// The product of eight rows (the first or the second eight of a panel) and `N` panels.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_block<const N: usize>(
    out: Block,
    (output, scale): (Output, f32),
    (left, eight): (&[Line], usize),
    right: &[Line],
) {
    for row in out.data.chunks(out.stride).take(out.rows) {
        row[..out.cols].chunks(PANEL).for_each(|out| prefetch(out.as_ptr().cast()));
    }
    let mut sums = [[_mm512_setzero_ps(); N]; ROWS];
    let panels: [&[Line]; N] = std::array::from_fn(|n| &right[n * left.len()..][..left.len()]);
    for (k, left) in left.iter().enumerate() {
        // SAFETY: a line is 64 bytes of plain numbers, and so is a vector.
        let right: [__m512bh; N] = std::array::from_fn(|n| unsafe { transmute::<Line, __m512bh>(panels[n][k]) });
        for (sums, left) in sums.iter_mut().zip(&left.0[eight]) {
            // SAFETY: both are 64 bytes of plain numbers.
            let left = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(left.cast_signed())) };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = _mm512_dpbf16_ps(*sum, left, right);
            }
        }
    }
    let Block { data, stride, rows, cols } = out;
    let scale = _mm512_set1_ps(scale);
    for (row, sums) in data.chunks_mut(stride).zip(sums).take(rows) {
        for (out, sum) in row[..cols].chunks_mut(PANEL).zip(sums) {
            let (lanes, at) = (lanes(out.len()), out.as_mut_ptr().cast::<f32>());
            // SAFETY: only what lies in the slice is written, and read only if the caller says that it is initialised.
            unsafe {
                let before = if output == Output::Add { lanes } else { 0 };
                let sum = _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(before, at));
                _mm512_mask_storeu_ps(at, lanes, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::cpu::testing::randn;

    /// A matrix, or the transpose of one, and its elements as candle rounds them.
    struct Factor {
        data: Vec<f32>,
        rounded: Vec<f32>,
        is_transposed: bool,
    }

    impl Factor {
        fn new(seed: u64, rows: usize, cols: usize, is_transposed: bool) -> Self {
            let values = randn(seed, &[rows * cols]).to_dtype(DType::F32).unwrap();
            let rounded = values.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            let [data, rounded] = [values, rounded].map(|values| values.to_vec1().unwrap());
            Self { data, rounded, is_transposed }
        }

        fn matrix(&self, rows: usize, cols: usize) -> Matrix<'_> {
            match self.is_transposed {
                true => Matrix::new(&self.data, cols, rows, rows).t(),
                false => Matrix::new(&self.data, rows, cols, cols),
            }
        }

        fn rounded(&self, rows: usize, cols: usize, row: usize, col: usize) -> f64 {
            self.rounded[if self.is_transposed { col * rows + row } else { row * cols + col }].into()
        }
    }

    /// In one and several parts of each size, with and without whole panels, blocks and pairs.
    #[test]
    fn products_are_those_of_the_rounded_factors() {
        if !simd::has_bf16() {
            return;
        }
        for ((m, n, k), transposed) in [(1, 1, 1), (7, 65, 33), (13, 17, 900), (401, 31, 2), (3, 801, 5), (24, 48, 64)]
            .into_iter()
            .flat_map(|sizes| [(false, false), (true, false), (false, true), (true, true)].map(|t| (sizes, t)))
        {
            let (a, b) = (Factor::new(1, m, k, transposed.0), Factor::new(2, k, n, transposed.1));
            let (stride, scale) = (n + 3, 0.7f32);
            let initial: Vec<f32> = randn(3, &[m * stride]).to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            for output in [Output::Overwrite, Output::Add] {
                let mut out: Vec<MaybeUninit<f32>> = initial.iter().map(|x| MaybeUninit::new(*x)).collect();
                product(&mut out, stride, (output, scale), a.matrix(m, k), b.matrix(k, n), 1);
                for (at, initial) in initial.iter().enumerate() {
                    // SAFETY: they all were initialised.
                    let got = unsafe { out[at].assume_init() };
                    let (row, col) = (at / stride, at % stride);
                    if col >= n {
                        assert_eq!(got, *initial, "{row}, {col} is outside");
                        continue;
                    }
                    let before = if output == Output::Add { f64::from(*initial) } else { 0.0 };
                    let terms = (0..k).map(|i| a.rounded(m, k, row, i) * b.rounded(k, n, i, col) * f64::from(scale));
                    let (expected, size) =
                        terms.fold((before, before.abs()), |(sum, size), term| (sum + term, size + term.abs()));
                    // Each addition rounds once, and so do the product with the scale and the sums of parts.
                    let allowed = (k + 4) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                    let error = (f64::from(got) - expected).abs();
                    let label = format!("{m} {n} {k}, transposed {transposed:?}, at {row}, {col}");
                    assert!(error <= allowed, "{label}: got {got}, expected {expected} ± {allowed:e}");
                }
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        if !simd::has_bf16() {
            return;
        }
        let (m, n, k) = (517, 389, 901);
        let (a, b) = (Factor::new(1, m, k, false), Factor::new(2, k, n, true));
        let bits = |threads: usize| {
            let mut out = vec![MaybeUninit::new(0.0); m * n];
            product(&mut out, n, (Output::Overwrite, 1.0), a.matrix(m, k), b.matrix(k, n), threads);
            // SAFETY: they all were initialised.
            out.iter().map(|x| unsafe { x.assume_init() }.to_bits()).collect::<Vec<_>>()
        };
        let one = bits(1);
        for threads in [2, 3, 5, 100] {
            assert!(bits(threads) == one, "{threads} threads");
        }
    }
}
