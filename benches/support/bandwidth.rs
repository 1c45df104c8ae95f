//! The memory's bandwidth.

use std::time::Instant;

/// Bytes that no cache holds.
const BYTES: usize = 256 << 20;

/// Gigabytes per second, read and written ones counted, in the best of twenty copies on all threads.
pub fn copy_gigabytes_per_second() -> f64 {
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    let piece = BYTES.div_ceil(rayon::current_num_threads());
    let mut copy = || {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(piece).zip(from.chunks(piece)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        begun.elapsed().as_secs_f64()
    };
    let best = (0..20).map(|_| copy()).fold(f64::INFINITY, f64::min);
    2.0 * BYTES as f64 / best / 1e9
}
