//! Where the positions of a piece go in sequences of different lengths.

use candle_core::{Result, Tensor, bail};

use super::KvCache;
use crate::ops::KeyPadding;

/// The real positions of a piece with T positions, and those they become, by sequence.
#[derive(Debug)]
pub(in crate::nn) struct Placement {
    of: Vec<Sequence>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    /// Positions held before.
    before: usize,
    /// Positions of the piece that come before the real ones.
    skipped: usize,
    real: usize,
}

impl KvCache {
    /// Where the `t` positions of a piece of `b` sequences go; `None` if simply after those held, all of one length.
    pub(in crate::nn) fn place(&self, b: usize, t: usize, padding: Option<&KeyPadding>) -> Result<Option<Placement>> {
        let (real, is_left) = match padding {
            None => (vec![t; b], false),
            Some(KeyPadding::Left(lengths)) => (lengths.clone(), true),
            Some(KeyPadding::Right(lengths)) => (lengths.clone(), false),
            Some(_) => bail!("kv-cache: expected padding as lengths, left or right, got another form"),
        };
        if real.len() != b || real.iter().any(|real| *real > t) {
            bail!("kv-cache: expected a length of at most {t} for each of {b} sequences, got {real:?}");
        }
        if self.lengths.is_none() && real.iter().all(|real| *real == t) {
            return Ok(None);
        }
        if self.slides {
            bail!("kv-cache: expected sequences of one length in a sliding cache, got {real:?} positions to add");
        }
        let before = if self.is_empty() { vec![0; b] } else { self.lengths() };
        if before.len() != b {
            bail!("kv-cache: expected more of {} sequences, got {b}", before.len());
        }
        let sequence = |(before, real)| Sequence { before, skipped: if is_left { t - real } else { 0 }, real };
        Ok(Some(Placement { of: before.into_iter().zip(real).map(sequence).collect() }))
    }
}

impl Placement {
    /// The position of the first of the T in each sequence: where these come before the real ones, it may be below 0.
    pub(in crate::nn) fn first_positions(&self) -> Vec<i64> {
        self.of.iter().map(|sequence| sequence.before as i64 - sequence.skipped as i64).collect()
    }

    /// The positions (B, T) of a piece of `t`, in order. Those of padding are some position of the text.
    pub(in crate::nn) fn positions(&self, t: usize) -> Vec<u32> {
        let of = |sequence: &Sequence| {
            let &Sequence { before, skipped, real } = sequence;
            let last = (before + real).saturating_sub(1);
            (0..t).map(move |i| (before + i).saturating_sub(skipped).min(last) as u32)
        };
        self.of.iter().flat_map(of).collect()
    }

    /// The positions held of each sequence, before.
    pub(in crate::nn) fn lengths_before(&self) -> Vec<usize> {
        self.of.iter().map(|sequence| sequence.before).collect()
    }

    /// The positions held of each sequence, afterwards.
    pub(in crate::nn) fn lengths_after(&self) -> Vec<usize> {
        self.of.iter().map(|sequence| sequence.before + sequence.real).collect()
    }

    /// The positions held of the longest sequence, afterwards, or before if that was longer.
    pub(super) fn longest(&self) -> usize {
        self.lengths_after().into_iter().max().unwrap_or(0)
    }

    /// Writes the real ones of `rows` (B, T, G, D) into a buffer whose first position is that of the text.
    pub(super) fn write(&self, rows: &Tensor, buffer: &Tensor) -> Result<()> {
        for (b, sequence) in self.of.iter().enumerate().filter(|(_, sequence)| sequence.real > 0) {
            let real = rows.narrow(0, b, 1)?.narrow(1, sequence.skipped, sequence.real)?;
            buffer.narrow(0, b, 1)?.slice_set(&real.contiguous()?, 1, sequence.before)?;
        }
        Ok(())
    }
}
