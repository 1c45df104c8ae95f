//! Windows over a sequence of ids: random ones for training, all of them in order for evaluation.
//!
//! A window starting at `s` has the inputs `ids[s..s + T]` and the targets `ids[s + 1..s + T + 1]`.

use candle_core::{Device, Result, Tensor, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Ids;

/// Windows of the same length, in rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The input ids, (B, T) in row-major order.
    pub inputs: Vec<u32>,
    /// The id that follows each input, (B, T) in row-major order.
    pub targets: Vec<u32>,
    /// The number of windows, B.
    pub batch_size: usize,
    /// The length of each, T.
    pub seq_len: usize,
    /// The position in the ids at which each window starts, B of them.
    pub starts: Vec<usize>,
    /// The number of the document that each input belongs to, (B, T) in row-major order, if documents are isolated.
    pub documents: Option<Vec<u32>>,
}

impl Batch {
    fn of(ids: &Ids, starts: Vec<usize>, seq_len: usize) -> Result<Self> {
        let len = starts.len() * seq_len;
        let (mut inputs, mut targets) = (Vec::with_capacity(len), Vec::with_capacity(len));
        for &start in &starts {
            let row = ids.read(start..start + seq_len + 1)?;
            inputs.extend_from_slice(&row[..seq_len]);
            targets.extend_from_slice(&row[1..]);
        }
        Ok(Self { inputs, targets, batch_size: starts.len(), seq_len, starts, documents: None })
    }

    /// Checks that the lengths match the batch's sizes.
    ///
    /// # Errors
    /// Names the expected and the actual length.
    pub fn check(&self) -> Result<()> {
        let (b, t) = (self.batch_size, self.seq_len);
        if b == 0 || t == 0 {
            bail!("batch: expected at least one window of at least one id, got {b} of {t}");
        }
        let documents = self.documents.as_ref().map(Vec::len);
        for (name, got) in [("inputs", self.inputs.len()), ("targets", self.targets.len())]
            .into_iter()
            .chain(documents.map(|got| ("document numbers", got)))
        {
            if b.checked_mul(t) != Some(got) {
                bail!("batch: expected {b} times {t} {name}, got {got}");
            }
        }
        if self.starts.len() != b {
            bail!("batch: expected the starts of {b} windows, got {}", self.starts.len());
        }
        Ok(())
    }

    /// Divides the windows, in order, into at most `count` batches whose sizes differ by at most one. The batch must
    /// pass [`check`](Self::check).
    pub fn shards(&self, count: usize) -> Vec<Self> {
        let count = count.clamp(1, self.batch_size.max(1));
        let bound = |i: usize| i * self.batch_size / count;
        let part = |i: usize| {
            let (rows, t) = (bound(i)..bound(i + 1), self.seq_len);
            let ids = rows.start * t..rows.end * t;
            Self {
                inputs: self.inputs[ids.clone()].to_vec(),
                targets: self.targets[ids.clone()].to_vec(),
                batch_size: rows.len(),
                seq_len: t,
                starts: self.starts[rows].to_vec(),
                documents: self.documents.as_ref().map(|numbers| numbers[ids.clone()].to_vec()),
            }
        };
        (0..count).map(part).collect()
    }

    /// The inputs as a tensor of `u32`, (B, T).
    ///
    /// # Errors
    /// Those of the device.
    pub fn inputs_tensor(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.inputs, (self.batch_size, self.seq_len), device)
    }

    /// The batch with its documents isolated, if a separator is given: in each window they are numbered from 0, and the
    /// number increases after each separator.
    pub fn with_isolated_documents(mut self, separator: Option<u32>) -> Self {
        self.documents = separator.map(|separator| {
            let mut numbers = Vec::with_capacity(self.inputs.len());
            for row in self.inputs.chunks(self.seq_len.max(1)) {
                let mut number = 0;
                for &id in row {
                    numbers.push(number);
                    number += u32::from(id == separator);
                }
            }
            numbers
        });
        self
    }

    /// The document numbers as a tensor of `u32`, (B, T), if documents are isolated.
    ///
    /// # Errors
    /// Those of the device.
    pub fn documents_tensor(&self, device: &Device) -> Result<Option<Tensor>> {
        let tensor = |numbers: &Vec<u32>| Tensor::from_slice(numbers, (self.batch_size, self.seq_len), device);
        self.documents.as_ref().map(tensor).transpose()
    }

    /// The targets as a tensor of `u32`, (B, T).
    ///
    /// # Errors
    /// Those of the device.
    pub fn targets_tensor(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_slice(&self.targets, (self.batch_size, self.seq_len), device)
    }
}

/// Draws training batches. It has no state: a batch is a function of the seed and the step, so only the step needs to
/// be saved to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSampler {
    /// The seed of the random positions.
    pub seed: u64,
    /// Windows in a batch, B.
    pub batch_size: usize,
    /// Tokens in a window, T.
    pub context_len: usize,
}

impl BatchSampler {
    /// The batch of a step: windows with random starts in `0..ids.len() - context_len`, with replacement, so that each
    /// id but the first can be a target. The starts come from ChaCha8 with the seed as key and the step as stream.
    ///
    /// # Errors
    /// Fewer ids than `context_len + 1`, a size of 0, and a file of ids that can't be read.
    pub fn batch(&self, ids: &Ids, step: u64) -> Result<Batch> {
        check(ids, self.context_len, self.batch_size)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(step);
        // 64 bits on every machine: draws of `usize` may depend on its size.
        let positions = (ids.len() - self.context_len) as u64;
        let starts = (0..self.batch_size).map(|_| rng.random_range(0..positions) as usize).collect();
        Batch::of(ids, starts, self.context_len)
    }
}

/// What to do with the ids after the last complete window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Leave them out: all windows have the same length.
    Drop,
    /// Return them as a last batch of one shorter window: each id but the first is a target exactly once.
    Keep,
}

/// All non-overlapping windows of `context_len`, in order, in batches of at most `batch_size`: the `(n - 1) /
/// context_len` complete ones of `n` ids, followed by the rest with [`Rest::Keep`].
///
/// # Errors
/// A size of 0; too few ids: fewer than 2, or with [`Rest::Drop`] fewer than `context_len + 1`. A batch is an error if
/// a file of ids can't be read.
pub fn windows(
    ids: &Ids,
    context_len: usize,
    batch_size: usize,
    rest: Rest,
) -> Result<impl Iterator<Item = Result<Batch>>> {
    let least = if rest == Rest::Keep { context_len.min(1) } else { context_len };
    check(ids, least, batch_size)?;
    let whole = (ids.len() - 1) / context_len;
    let batches = (0..whole).step_by(batch_size).map(move |first| {
        let last = whole.min(first + batch_size);
        Batch::of(ids, (first..last).map(|window| window * context_len).collect(), context_len)
    });
    let left = (ids.len() - 1) % context_len;
    let shorter = (rest == Rest::Keep && left > 0).then(|| Batch::of(ids, vec![whole * context_len], left));
    Ok(batches.chain(shorter))
}

fn check(ids: &Ids, context_len: usize, batch_size: usize) -> Result<()> {
    if context_len == 0 || batch_size == 0 {
        bail!(
            "expected windows of at least one token and batches of at least one window, got context length {context_len} and batch size {batch_size}"
        );
    }
    if ids.len() <= context_len {
        bail!(
            "expected at least {} ids for windows of {context_len}, got {}",
            context_len.saturating_add(1),
            ids.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: u32) -> Vec<u32> {
        (0..n).map(|i| 1000 + i).collect()
    }

    fn ids(n: u32) -> Ids {
        numbers(n).into()
    }

    fn all(ids: &Ids, context_len: usize, batch_size: usize, rest: Rest) -> Vec<Batch> {
        windows(ids, context_len, batch_size, rest).unwrap().collect::<Result<_>>().unwrap()
    }

    #[test]
    fn targets_are_the_inputs_one_later() {
        let sampler = BatchSampler { seed: 11, batch_size: 3, context_len: 7 };
        let batch = sampler.batch(&ids(101), 5).unwrap();
        assert_eq!((batch.batch_size, batch.seq_len, batch.starts.len()), (3, 7, 3));
        for (row, &start) in batch.starts.iter().enumerate() {
            for t in 0..7 {
                assert_eq!(batch.inputs[row * 7 + t], 1000 + (start + t) as u32);
                assert_eq!(batch.targets[row * 7 + t], 1000 + (start + t + 1) as u32);
            }
        }
        let tensor = batch.targets_tensor(&Device::Cpu).unwrap();
        assert_eq!(tensor.dims(), [3, 7]);
        assert_eq!(tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap(), batch.targets);
        assert_eq!(batch.inputs_tensor(&Device::Cpu).unwrap().dims(), [3, 7]);
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let sampler = BatchSampler { seed: 11, batch_size: 5, context_len: 7 };
        let ids = ids(1009);
        let starts = |sampler: BatchSampler, step| sampler.batch(&ids, step).unwrap().starts;
        assert_eq!(starts(sampler, 3), starts(sampler, 3));
        assert_ne!(starts(sampler, 3), starts(sampler, 4));
        assert_ne!(starts(sampler, 3), starts(BatchSampler { seed: 12, ..sampler }, 3));
        // Pinned: a run resumed by a later version must see the same data.
        assert_eq!(starts(sampler, 3), PINNED);
    }

    const PINNED: [usize; 5] = [523, 280, 552, 27, 682];

    #[test]
    fn every_position_is_drawn_about_as_often() {
        let (ids, sampler) = (ids(17), BatchSampler { seed: 2, batch_size: 13, context_len: 6 });
        let mut counts = [0usize; 11];
        for step in 0..1000 {
            sampler.batch(&ids, step).unwrap().starts.iter().for_each(|&start| counts[start] += 1);
        }
        // 13000 draws over 11 positions: 1182 each, with a standard deviation of 33; five of these are allowed either
        // way.
        assert!(counts.iter().all(|count| (1018..=1346).contains(count)), "{counts:?}");
    }

    #[test]
    fn windows_cover_the_ids_without_overlap() {
        let ids = ids(31);
        let batches = all(&ids, 4, 3, Rest::Drop);
        let ids = numbers(31);
        assert_eq!(batches.iter().map(|batch| batch.batch_size).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(batches.iter().flat_map(|batch| batch.inputs.clone()).collect::<Vec<_>>(), ids[..28]);
        assert_eq!(batches.iter().flat_map(|batch| batch.targets.clone()).collect::<Vec<_>>(), ids[1..29]);
        assert_eq!(batches[1].starts, [12, 16, 20]);
    }

    #[test]
    fn with_the_rest_every_id_but_the_first_is_a_target_once() {
        for n in 2..40 {
            let ids = ids(n);
            let batches = all(&ids, 4, 3, Rest::Keep);
            let ids = numbers(n);
            assert_eq!(batches.iter().flat_map(|batch| batch.targets.clone()).collect::<Vec<_>>(), ids[1..], "n {n}");
            let whole = batches.iter().filter(|batch| batch.seq_len == 4).map(|batch| batch.batch_size).sum::<usize>();
            assert_eq!(whole, (n as usize - 1) / 4);
        }
    }

    #[test]
    fn a_document_begins_after_a_separator() {
        let ids = Ids::from(vec![5, 9, 9, 5, 5, 9, 5, 9, 5]);
        let batch = Batch::of(&ids, vec![0, 3], 5).unwrap();
        assert!(batch.documents_tensor(&Device::Cpu).unwrap().is_none());
        assert_eq!(batch.clone().with_isolated_documents(Some(8)).documents.unwrap(), [0; 10]);
        let batch = batch.with_isolated_documents(Some(9));
        assert_eq!(batch.documents.as_deref().unwrap(), [0, 0, 1, 2, 2, 0, 0, 0, 1, 1]);
        assert_eq!(batch.documents_tensor(&Device::Cpu).unwrap().unwrap().dims(), [2, 5]);
        assert_eq!(batch.shards(2)[1].documents.as_deref().unwrap(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn a_batch_of_wrong_lengths_is_refused() {
        let batch = Batch::of(&ids(20), vec![0, 3, 5], 4).unwrap().with_isolated_documents(Some(9));
        batch.check().unwrap();
        let none = Some(vec![]);
        for (wrong, expected) in [
            (Batch { batch_size: 0, ..batch.clone() }, "expected at least one window of at least one id, got 0 of 4"),
            (Batch { seq_len: 5, ..batch.clone() }, "expected 3 times 5 inputs, got 12"),
            (Batch { seq_len: usize::MAX, ..batch.clone() }, "inputs, got 12"),
            (Batch { targets: vec![], ..batch.clone() }, "expected 3 times 4 targets, got 0"),
            (Batch { documents: none, ..batch.clone() }, "expected 3 times 4 document numbers, got 0"),
            (Batch { starts: vec![0], ..batch.clone() }, "expected the starts of 3 windows, got 1"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let sampler = BatchSampler { seed: 0, batch_size: 2, context_len: 7 };
        let error = sampler.batch(&ids(7), 0).unwrap_err().to_string();
        assert!(error.contains("at least 8 ids for windows of 7, got 7"), "{error}");
        assert_eq!(sampler.batch(&ids(8), 0).unwrap().starts, [0, 0]);
        assert!(BatchSampler { context_len: 0, ..sampler }.batch(&ids(8), 0).is_err());
        assert!(BatchSampler { batch_size: 0, ..sampler }.batch(&ids(8), 0).is_err());
        assert!(windows(&ids(8), 0, 1, Rest::Keep).is_err());
        assert!(windows(&ids(0), 3, 1, Rest::Keep).is_err());
        assert!(windows(&ids(3), 3, 1, Rest::Drop).is_err());
    }
}
