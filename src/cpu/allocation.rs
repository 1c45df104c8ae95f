//! Refusing sizes that cannot be allocated, since an allocation that fails would end the process; buffers of kernels.

use std::ops::{Deref, DerefMut, Range};

use candle_core::{Result, bail};

/// Refuses a tensor of this shape, with elements of `bytes_each` bytes, that the system does not allocate.
///
/// # Errors
/// Names `what` it is for, and its size.
pub(crate) fn check(what: &str, shape: &[usize], bytes_each: usize) -> Result<()> {
    let bytes = shape.iter().try_fold(bytes_each, |bytes, size| bytes.checked_mul(*size));
    match bytes {
        Some(bytes) if Vec::<u8>::new().try_reserve_exact(bytes).is_ok() => Ok(()),
        Some(bytes) => bail!("{what}: expected a size that fits into memory, got {} MB", bytes.div_ceil(1_000_000)),
        None => bail!("{what}: expected a size that fits into memory, got more bytes than 64 bits count"),
    }
}

/// Zeros that begin at a cache line, which no vector in them then crosses.
pub(crate) struct Buffer {
    data: Vec<f32>,
    place: Range<usize>,
}

impl Buffer {
    pub(crate) fn zeros(len: usize) -> Self {
        const LINE: usize = 64;
        let data = vec![0.0; len + LINE / size_of::<f32>()];
        // At most the number of elements in a line.
        let start = data.as_ptr().align_offset(LINE).min(data.len() - len);
        Self { data, place: start..start + len }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.place.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.place.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        check("rows", &[7, 11], 4).unwrap();
        for (shape, named) in [([usize::MAX / 16, 2], "MB"), ([usize::MAX, 2], "64 bits")] {
            let error = check("rows", &shape, 4).unwrap_err().to_string();
            assert!(error.starts_with("rows: ") && error.contains(named), "{error}");
        }
    }
}
