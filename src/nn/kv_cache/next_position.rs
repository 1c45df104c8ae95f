//! One position at a time, on slices.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor};

use super::KvCache;
use crate::cpu::storage::slice_mut;
use crate::ops::attention::Sequences;

impl KvCache {
    /// Appends the next position of each sequence: of `rows` (B, ..), keys (G, D) from channel `first` on, and values
    /// (G, E) behind them.
    pub(in crate::nn) fn append_rows(&mut self, rows: Sequences, first: usize, [b, g, d, e]: [usize; 4]) -> Result<()> {
        let (kept, size, index) = (self.kept(), self.allocated(), self.start + self.len);
        let has_room = index < size && self.lengths.is_none() && (self.slides || self.len < self.capacity);
        let places = [(first, d), (first + g * d, e)];
        match &self.buffers {
            Some(buffers) if has_room && self.holds([b, g, d, e]) => {
                for (buffer, (first, channels)) in buffers.iter().zip(places) {
                    let width = g * channels;
                    buffer.inplace_op1(&Write {
                        rows,
                        first,
                        width,
                        buffer_stride: size * width,
                        at: index * width,
                    })?;
                }
                self.forgotten += self.len - kept;
                (self.start, self.len) = (index - kept, kept + 1);
                Ok(())
            }
            // New or larger buffers, or a window that moves to the front.
            _ => {
                let tensor = |(first, channels): (usize, usize)| {
                    let of = |sequence: usize| &rows.data[sequence * rows.stride + first..][..g * channels];
                    Tensor::from_vec((0..b).flat_map(of).copied().collect(), (b, 1, g, channels), &Device::Cpu)
                };
                self.append(&tensor(places[0])?, &tensor(places[1])?).map(drop)
            }
        }
    }

    /// The buffers of keys and values, (B, size, G, D) and (B, size, G, E), and the positions held in them.
    pub(in crate::nn) fn held(&self) -> Option<(&[Tensor; 2], Range<usize>)> {
        self.buffers.as_ref().map(|buffers| (buffers, self.start..self.start + self.len))
    }

    /// Whether the buffers are for `f32` of these numbers of sequences, heads, and channels of keys and of values.
    fn holds(&self, [b, g, d, e]: [usize; 4]) -> bool {
        let is_for = |buffer: &Tensor, channels: usize| {
            let [sequences, _, heads, width] = *buffer.dims() else { return false };
            buffer.dtype() == DType::F32 && [sequences, heads, width] == [b, g, channels]
        };
        self.buffers.as_ref().is_some_and(|[keys, values]| is_for(keys, d) && is_for(values, e))
    }
}

/// Writes some channels of each sequence's row to a place in its part of the buffer.
struct Write<'a> {
    rows: Sequences<'a>,
    first: usize,
    width: usize,
    buffer_stride: usize,
    at: usize,
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv-cache"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let &Self { rows, first, width, buffer_stride, at } = self;
        let buffer = slice_mut(storage, layout)?;
        for (row, buffer) in rows.data.chunks(rows.stride).zip(buffer.chunks_exact_mut(buffer_stride)) {
            buffer[at..][..width].copy_from_slice(&row[first..][..width]);
        }
        Ok(())
    }
}
