//! Transposed copies of matrices.

#[cfg(target_arch = "x86_64")]
use pulp::x86::V3;

/// Rows and columns of the squares that are transposed at once.
const SQUARE: usize = 8;

/// `to[j * to_stride + i] = from[i * from_stride + j]` for `rows` by `cols` elements of `from`.
pub(crate) fn transpose(from: &[f32], from_stride: usize, [rows, cols]: [usize; 2], to: &mut [f32], to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = V3::try_new() {
        return simd.vectorize(Squares { simd, from: (from, from_stride), size: [rows, cols], to: (to, to_stride) });
    }
    one_by_one((from, from_stride), [0..rows, 0..cols], (to, to_stride));
}

fn one_by_one(
    (from, from_stride): (&[f32], usize),
    [rows, cols]: [std::ops::Range<usize>; 2],
    (to, to_stride): (&mut [f32], usize),
) {
    for i in rows {
        for j in cols.clone() {
            to[j * to_stride + i] = from[i * from_stride + j];
        }
    }
}

/// By squares of 8 by 8 in registers of AVX, at several times the speed of what the compiler makes of loops.
#[cfg(target_arch = "x86_64")]
struct Squares<'a> {
    simd: V3,
    from: (&'a [f32], usize),
    size: [usize; 2],
    to: (&'a mut [f32], usize),
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Squares<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, from: (from, from_stride), size: [rows, cols], to: (to, to_stride) } = self;
        let whole = [rows, cols].map(|n| n / SQUARE * SQUARE);
        // Down the columns first: a strip of the result is written from its start to its end.
        for j in (0..whole[1]).step_by(SQUARE) {
            for i in (0..whole[0]).step_by(SQUARE) {
                let mut square = [[0.0; SQUARE]; SQUARE];
                for (k, row) in square.iter_mut().enumerate() {
                    row.copy_from_slice(&from[(i + k) * from_stride + j..][..SQUARE]);
                }
                for (k, row) in transposed(simd, square).iter().enumerate() {
                    to[(j + k) * to_stride + i..][..SQUARE].copy_from_slice(row);
                }
            }
        }
        one_by_one((from, from_stride), [whole[0]..rows, 0..whole[1]], (to, to_stride));
        one_by_one((from, from_stride), [0..rows, whole[1]..cols], (to, to_stride));
    }
}

/// Pairs of numbers change places, then pairs of pairs, then halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(simd: V3, square: [[f32; SQUARE]; SQUARE]) -> [[f32; SQUARE]; SQUARE] {
    let avx = simd.avx;
    let [a, b, c, d, e, f, g, h] = square.map(pulp::cast);
    let singles = |a, b| [avx._mm256_unpacklo_ps(a, b), avx._mm256_unpackhi_ps(a, b)];
    let ([a, b], [c, d], [e, f], [g, h]) = (singles(a, b), singles(c, d), singles(e, f), singles(g, h));
    let pairs = |a, b| [avx._mm256_shuffle_ps::<0b01_00_01_00>(a, b), avx._mm256_shuffle_ps::<0b11_10_11_10>(a, b)];
    let ([a, b], [c, d], [e, f], [g, h]) = (pairs(a, c), pairs(b, d), pairs(e, g), pairs(f, h));
    let halves = |a, b| [avx._mm256_permute2f128_ps::<0x20>(a, b), avx._mm256_permute2f128_ps::<0x31>(a, b)];
    let ([a, e], [b, f], [c, g], [d, h]) = (halves(a, e), halves(b, f), halves(c, g), halves(d, h));
    [a, b, c, d, e, f, g, h].map(pulp::cast)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_changes_its_row_for_its_column() {
        for (rows, cols) in [(0, 3), (1, 1), (7, 9), (8, 8), (16, 24), (17, 41)] {
            let (from_stride, to_stride) = (cols + 3, rows + 2);
            let from: Vec<f32> = (0..rows * from_stride).map(|i| i as f32).collect();
            let [mut got, mut expected] = [vec![-1.0; cols * to_stride], vec![-1.0; cols * to_stride]];
            transpose(&from, from_stride, [rows, cols], &mut got, to_stride);
            one_by_one((&from, from_stride), [0..rows, 0..cols], (&mut expected, to_stride));
            assert_eq!(got, expected, "{rows} {cols}");
        }
    }
}
