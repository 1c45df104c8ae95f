//! Windows over a sequence of ids: in random order for training, one after the other for evaluation.
//!
//! A window starting at `s` has the inputs `ids[s..s + T]` and the targets `ids[s + 1..s + T + 1]`. In conversations,
//! only what the assistant says counts as a target.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Ids;
use super::ids::{ENDS, NOT_LEARNED, id};
use super::permutation::permuted;
use crate::host::{Result, bail};

/// Windows of the same length.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The input ids, (B, T) of `u32`.
    pub inputs: Tensor,
    /// The id that follows each input, (B, T) of `u32`; [`Batch::IGNORED`] where it does not count.
    pub targets: Tensor,
    /// The number of the document that each input belongs to, (B, T) of `u32`, if documents are isolated: counted from 0
    /// in each window.
    pub documents: Option<Tensor>,
}

impl Batch {
    /// The target where none counts.
    pub const IGNORED: u32 = u32::MAX;

    /// A batch of inputs and targets, (B, T) each, as one document. Documents are added by update syntax.
    pub fn from_tensors(inputs: Tensor, targets: Tensor) -> Self {
        Self { inputs, targets, documents: None }
    }

    /// The windows that begin at `starts`. With a `separator`, the id that ends each document, documents are isolated.
    fn new(ids: &Ids, starts: &[usize], seq_len: usize, separator: Option<u32>, device: &Device) -> Result<Self> {
        let shape = (starts.len(), seq_len);
        let capacity = starts.len() * seq_len;
        let (mut words, mut targets) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        for &start in starts {
            let row = ids.words(start..start + seq_len + 1)?;
            words.extend_from_slice(&row[..seq_len]);
            targets.extend_from_slice(&row[1..]);
        }
        let is_marked = ids.is_marked();
        let documents = separator.map(|separator| match is_marked {
            true => document_numbers(&words, seq_len, |word| word & ENDS != 0),
            false => document_numbers(&words, seq_len, |id| id == separator),
        });
        if is_marked {
            words.iter_mut().for_each(|word| *word = id(*word));
            targets
                .iter_mut()
                .for_each(|word| *word = if *word & NOT_LEARNED == 0 { id(*word) } else { Self::IGNORED });
        }
        Ok(Self {
            inputs: Tensor::from_vec(words, shape, device)?,
            targets: Tensor::from_vec(targets, shape, device)?,
            documents: documents.map(|numbers| Tensor::from_vec(numbers, shape, device)).transpose()?,
        })
    }

    /// The number of windows, B.
    pub fn size(&self) -> usize {
        self.inputs.dims()[0]
    }

    /// The number of positions, B T.
    pub fn tokens(&self) -> usize {
        self.targets.elem_count()
    }

    /// The number of targets that count.
    ///
    /// # Errors
    /// If the targets cannot be read.
    pub fn learned(&self) -> Result<usize> {
        let targets: Vec<u32> = self.targets.flatten_all()?.to_vec1()?;
        Ok(targets.into_iter().filter(|&target| target != Self::IGNORED).count())
    }

    /// `count` of the windows, from `first` on.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn narrow(&self, first: usize, count: usize) -> Result<Self> {
        let part = |tensor: &Tensor| tensor.narrow(0, first, count);
        let documents = self.documents.as_ref().map(part).transpose()?;
        Ok(Self { inputs: part(&self.inputs)?, targets: part(&self.targets)?, documents })
    }
}

/// In each row of `seq_len` ids, a number that starts at 0 and increases after each that ends a document.
fn document_numbers(ids: &[u32], seq_len: usize, ends: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut numbers = Vec::with_capacity(ids.len());
    for row in ids.chunks(seq_len) {
        let mut number = 0;
        for &id in row {
            numbers.push(number);
            number += u32::from(ends(id));
        }
    }
    numbers
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
    /// The id that ends each document, if documents are isolated.
    pub separator: Option<u32>,
}

impl BatchSampler {
    /// Without isolated documents.
    pub fn new(seed: u64, batch_size: usize, context_len: usize) -> Self {
        Self { seed, batch_size, context_len, separator: None }
    }

    /// The batch of a step. The windows of all steps, one after the other, are passes over the ids. A pass cuts them from
    /// a random offset below `context_len` into `(ids.len() - 1) / context_len` windows that do not overlap, but for the
    /// last, which may be moved back to where the ids end; it visits each once, in random order. So an id is a target once
    /// in each pass, but for those within `context_len` of either end, some of which a pass leaves out. Offset and order of
    /// a pass come from ChaCha8 with the seed as key and the number of the pass as stream.
    ///
    /// # Errors
    /// Fewer ids than `context_len + 1`, a size of 0, and a file of ids that can't be read.
    pub fn batch(&self, ids: &Ids, step: u64, device: &Device) -> Result<Batch> {
        check(ids, self.context_len, self.batch_size)?;
        // 64 bits on every machine: draws of `usize` may depend on its size.
        let [batch_size, context_len, targets] = [self.batch_size, self.context_len, ids.len() - 1].map(|n| n as u64);
        let (count, last) = (targets / context_len, targets - context_len);
        let start = |window: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(window / count);
            let offset = rng.random_range(0..context_len.min(last + 1));
            let place = permuted(window % count, count, &rng.random());
            (offset + place * context_len).min(last) as usize
        };
        let first = step.wrapping_mul(batch_size);
        let starts: Vec<usize> = (0..batch_size).map(|i| start(first.wrapping_add(i))).collect();
        Batch::new(ids, &starts, self.context_len, self.separator, device)
    }
}

/// All non-overlapping windows of `context_len` ids, in order: batches of at most `batch_size` windows, then what is left
/// of `n` ids after the `(n - 1) / context_len` whole windows as a last batch of one shorter window, unless `drop_last`.
/// With a `separator`, the id that ends each document, documents are isolated.
///
/// # Errors
/// A size of 0; too few ids: fewer than 2, or with `drop_last` fewer than `context_len + 1`. A batch is an error if a
/// file of ids can't be read.
pub fn windows<'a>(
    ids: &'a Ids,
    (batch_size, context_len): (usize, usize),
    drop_last: bool,
    separator: Option<u32>,
    device: &'a Device,
) -> Result<impl Iterator<Item = Result<Batch>> + 'a> {
    check(ids, if drop_last { context_len } else { context_len.min(1) }, batch_size)?;
    let (whole, left) = ((ids.len() - 1) / context_len, (ids.len() - 1) % context_len);
    let batches = (0..whole).step_by(batch_size).map(move |first| {
        let starts: Vec<usize> = (first..whole.min(first + batch_size)).map(|window| window * context_len).collect();
        Batch::new(ids, &starts, context_len, separator, device)
    });
    let shorter = (!drop_last && left > 0).then(|| Batch::new(ids, &[whole * context_len], left, separator, device));
    Ok(batches.chain(shorter))
}

fn check(ids: &Ids, context_len: usize, batch_size: usize) -> Result<()> {
    if context_len == 0 || batch_size == 0 {
        bail!(
            "expected windows of at least one token and batches of at least one window, got context length {context_len} and batch size {batch_size}"
        );
    }
    if ids.len() <= context_len {
        let needed = context_len.saturating_add(1);
        bail!("expected at least {needed} ids for windows of {context_len}, got {}", ids.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const CPU: Device = Device::Cpu;

    fn numbers(n: u32) -> Vec<u32> {
        (0..n).map(|i| 1000 + i).collect()
    }

    fn ids(n: u32) -> Ids {
        numbers(n).into()
    }

    fn sampler(batch_size: usize, context_len: usize) -> BatchSampler {
        BatchSampler::new(11, batch_size, context_len)
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
        tensor.to_vec2().unwrap()
    }

    /// Where the windows of a batch of [`ids`] begin.
    fn starts(batch: &Batch) -> Vec<u32> {
        rows(&batch.inputs).into_iter().map(|row| row[0] - 1000).collect()
    }

    fn all(ids: &Ids, drop_last: bool) -> Vec<Batch> {
        windows(ids, (3, 4), drop_last, None, &CPU).unwrap().collect::<Result<_>>().unwrap()
    }

    fn flat<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<u32> {
        tensors.flat_map(|tensor| rows(tensor).concat()).collect()
    }

    #[test]
    fn targets_are_the_inputs_one_later() {
        let batch = sampler(3, 7).batch(&ids(101), 5, &CPU).unwrap();
        assert_eq!((batch.size(), batch.tokens()), (3, 21));
        assert_eq!((batch.inputs.dims(), batch.targets.dims()), (&[3, 7][..], &[3, 7][..]));
        for (inputs, targets) in rows(&batch.inputs).iter().zip(rows(&batch.targets)) {
            let expected: Vec<u32> = (inputs[0]..inputs[0] + 8).collect();
            assert_eq!((&inputs[..], &targets[..]), (&expected[..7], &expected[1..]));
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_step_alone() {
        let (ids, sampler) = (ids(1009), sampler(5, 7));
        let starts = |sampler: BatchSampler, step| starts(&sampler.batch(&ids, step, &CPU).unwrap());
        assert_eq!(starts(sampler, 3), starts(sampler, 3));
        assert_ne!(starts(sampler, 3), starts(sampler, 4));
        assert_ne!(starts(sampler, 3), starts(BatchSampler { seed: 12, ..sampler }, 3));
        // Pinned: a run resumed by a later version must see the same data.
        assert_eq!(starts(sampler, 3), [793, 681, 23, 695, 583]);
    }

    /// 101 ids are 16 windows of 6, with 4 to spare; 4 batches of 4 are a pass.
    #[test]
    fn a_pass_visits_every_window_once() {
        let (ids, sampler) = (ids(101), sampler(4, 6));
        let pass = |number: u64| -> Vec<u32> {
            (4 * number..4 * number + 4).flat_map(|step| starts(&sampler.batch(&ids, step, &CPU).unwrap())).collect()
        };
        let mut offsets = HashSet::new();
        for number in 0..50 {
            let (drawn, mut sorted) = (pass(number), pass(number));
            sorted.sort_unstable();
            assert_ne!(drawn, sorted, "pass {number} is in order");
            let offset = sorted[0];
            let expected: Vec<u32> = (0..16).map(|place| (offset + 6 * place).min(94)).collect();
            assert_eq!(sorted, expected, "pass {number}");
            offsets.insert(offset);
        }
        assert_eq!(offsets, (0..6).collect());
    }

    /// A batch that ends one pass and begins the next, and one of several passes.
    #[test]
    fn passes_need_not_be_whole_batches() {
        let ids = ids(101);
        let drawn = |batch_size: usize| -> Vec<u32> {
            let sampler = sampler(batch_size, 6);
            (0..240 / batch_size as u64).flat_map(|step| starts(&sampler.batch(&ids, step, &CPU).unwrap())).collect()
        };
        assert_eq!(drawn(5), drawn(4));
        assert_eq!(drawn(40), drawn(4));
    }

    #[test]
    fn every_id_but_the_first_is_a_target() {
        let passes = |n: u32, batch_size: usize, passes: u64| {
            let (ids, sampler, mut counts) = (ids(n), sampler(batch_size, 6), vec![0; n as usize]);
            for pass in 0..passes {
                let targets = sampler.batch(&ids, pass, &CPU).unwrap().targets;
                rows(&targets).concat().into_iter().for_each(|id| counts[id as usize - 1000] += 1);
            }
            counts
        };
        let counts = passes(101, 16, 200);
        assert!(counts[0] == 0 && counts[1..].iter().all(|&count| count > 0), "{counts:?}");
        assert!(counts[6..=94].iter().all(|count| (200..=240).contains(count)), "{counts:?}");
        // A single window begins anywhere: an id is a target in each fifth of the passes for each such window with it.
        let counts = passes(11, 1, 5000);
        let expected = [0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1].map(|windows| 1000 * windows);
        // Five standard deviations of the number of one of five windows among 5,000 are 142, of two of five 174.
        assert!(counts.iter().zip(expected).all(|(count, expected)| (expected - 174..=expected + 174).contains(count)));
    }

    #[test]
    fn windows_cover_the_ids_without_overlap() {
        let batches = all(&ids(31), true);
        let ids = numbers(31);
        assert_eq!(batches.iter().map(Batch::size).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(flat(batches.iter().map(|batch| &batch.inputs)), ids[..28]);
        assert_eq!(flat(batches.iter().map(|batch| &batch.targets)), ids[1..29]);
        assert_eq!(starts(&batches[1]), [12, 16, 20]);
    }

    #[test]
    fn with_a_shorter_last_window_every_id_but_the_first_is_a_target_once() {
        for n in 2..40 {
            let batches = all(&ids(n), false);
            assert_eq!(flat(batches.iter().map(|batch| &batch.targets)), numbers(n)[1..], "{n}");
            let whole = batches.iter().filter(|batch| batch.inputs.dims()[1] == 4);
            assert_eq!(whole.map(Batch::size).sum::<usize>(), (n as usize - 1) / 4, "{n}");
        }
    }

    #[test]
    fn a_document_begins_after_a_separator() {
        let ids = Ids::from(vec![5, 9, 9, 5, 5, 9, 5, 9, 5]);
        let documents = |separator| Batch::new(&ids, &[0, 3], 5, separator, &CPU).unwrap().documents;
        assert!(documents(None).is_none());
        assert_eq!(rows(&documents(Some(8)).unwrap()), [[0; 5]; 2]);
        assert_eq!(rows(&documents(Some(9)).unwrap()), [[0, 0, 1, 2, 2], [0, 0, 0, 1, 1]]);
        // So it does in windows and in random batches, with the separator that these are given.
        let isolated = windows(&ids, (2, 4), false, Some(9), &CPU).unwrap().next().unwrap().unwrap();
        assert_eq!(rows(&isolated.documents.unwrap()), [[0, 0, 1, 2], [0, 0, 1, 1]]);
        let sampler = BatchSampler { separator: Some(9), ..sampler(1, 8) };
        assert_eq!(rows(&sampler.batch(&ids, 0, &CPU).unwrap().documents.unwrap()), [[0, 0, 1, 2, 2, 2, 3, 3]]);
    }

    #[test]
    fn a_batch_is_cut_by_windows() {
        let ids = Ids::from(vec![5, 9, 9, 5, 5, 9, 5, 9, 5]);
        let batch = Batch::new(&ids, &[0, 3, 1], 5, Some(9), &CPU).unwrap();
        let part = batch.narrow(1, 2).unwrap();
        assert_eq!((part.size(), part.tokens()), (2, 10));
        assert_eq!(rows(&part.inputs), rows(&batch.inputs)[1..]);
        assert_eq!(rows(&part.targets), rows(&batch.targets)[1..]);
        assert_eq!(rows(&part.documents.unwrap()), rows(batch.documents.as_ref().unwrap())[1..]);
        assert!(batch.narrow(1, 3).is_err());
    }

    #[test]
    fn impossible_sizes_are_errors() {
        let error = sampler(2, 7).batch(&ids(7), 0, &CPU).unwrap_err().to_string();
        assert!(error.contains("at least 8 ids for windows of 7, got 7"), "{error}");
        assert_eq!(starts(&sampler(2, 7).batch(&ids(8), 0, &CPU).unwrap()), [0, 0]);
        assert!(sampler(2, 0).batch(&ids(8), 0, &CPU).is_err());
        assert!(sampler(0, 7).batch(&ids(8), 0, &CPU).is_err());
        assert!(sampler(2, usize::MAX).batch(&ids(8), 0, &CPU).is_err());
        let refused = |n, sizes, drop_last| windows(&ids(n), sizes, drop_last, None, &CPU).is_err();
        assert!(refused(8, (1, 0), false) && refused(8, (0, 1), false));
        assert!(refused(0, (1, 3), false) && refused(1, (1, 3), false) && !refused(2, (1, 3), false));
        assert!(refused(3, (1, 3), true) && !refused(4, (1, 3), true));
    }
}
