//! Training on several processes, on one machine or many, with the same bits on any number of them.
//!
//! The gradient of a batch is the sum over its shards. It is added over a fixed binary tree on their index: 0 and 1, 2 and 3,
//! then these sums, and so on. Each process computes some neighbouring shards ([`share`]), and adds what lies within them. Of the rest of the tree each adds a slice of the elements:
//!
//! ```text
//! g = (g_0 + g_1) + (g_2 + g_3)                               each g_i of all P elements
//! process 0: g_0 + g_1     process 1: g_2 + g_3               within its shards, all elements
//! all_to_all               each gets its slice of these sums, P / N elements of each
//! process 0: elements 0..P/2     process 1: the others        the sum of all
//! all_gather               each gets the other slices
//! ```
//!
//! [`Processes`] only moves bytes: no sum is left to it, whose order would be its own.

mod division;
mod exchange;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(test)]
pub(crate) mod threads;
mod tree;

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

#[cfg(feature = "lm")]
pub(crate) use self::division::Piece;
pub(crate) use self::division::{Division, Shape};
#[cfg(feature = "lm")]
pub(crate) use self::exchange::Bytes;
pub(crate) use self::exchange::{all_gather, reduce};
#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
#[cfg(feature = "lm")]
pub(crate) use self::tree::subtrees;
pub(crate) use self::tree::{Root, Tree};

/// Processes that train together, and how bytes get from one to another: the last two methods have to be called by all of
/// them.
pub trait Processes: Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Ends all processes at once, this one with the exit code `code`. A process that fails has to call it: the others would wait
    /// for it.
    fn abort(&self, code: u8) -> !;

    /// Sends to each process its part of `send`, `sent` bytes in the order of ranks, and receives a part from each:
    /// `received` bytes of `receive`.
    ///
    /// # Errors
    /// If the bytes cannot be exchanged.
    fn all_to_all(&self, send: &[u8], sent: &[usize], receive: &mut [u8], received: &[usize]) -> Result<()>;

    /// Sends `own` to each process, and receives theirs: `received` bytes of `all`, in the order of ranks.
    ///
    /// # Errors
    /// If the bytes cannot be exchanged.
    fn all_gather(&self, own: &[u8], all: &mut [u8], received: &[usize]) -> Result<()>;
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Processes for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn abort(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }

    fn all_to_all(&self, send: &[u8], _: &[usize], receive: &mut [u8], _: &[usize]) -> Result<()> {
        receive.copy_from_slice(send);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8], _: &[usize]) -> Result<()> {
        all.copy_from_slice(own);
        Ok(())
    }
}

/// Which of `shards` shards this process computes: as many as every other, or one less.
pub fn share(shards: usize, processes: &dyn Processes) -> Range<usize> {
    share_of(shards, processes.rank(), processes.count())
}

pub(crate) fn share_of(shards: usize, rank: usize, count: usize) -> Range<usize> {
    rank * shards / count..(rank + 1) * shards / count
}

/// The sum of the gradients of all `shards` shards of a batch, on every process, with the same bits on any number of them.
/// `own` are those of the shards of this process, in order, each with a gradient of every variable: `f32` on the CPU.
///
/// # Errors
/// If there are fewer shards than processes, `own` is not this process's [`share`], or the gradients of two shards differ in
/// their shapes.
///
/// ```
/// use candle_attention::processes::{Alone, Processes, share, sum_gradients};
/// use candle_core::{DType, Device, Tensor, Var};
///
/// # fn main() -> candle_core::Result<()> {
/// let processes = Alone; // or Mpi::start()?, with the feature `mpi`
/// let weight = Var::ones(3, DType::F32, &Device::Cpu)?;
/// // A batch of four sequences, each of them a shard.
/// let batch = Tensor::arange(0f32, 12f32, &Device::Cpu)?.reshape((4, 3))?;
/// let mut own = vec![];
/// for shard in share(4, &processes) {
///     let loss = (batch.get(shard)? * weight.as_tensor())?.sum_all()?;
///     own.push(vec![loss.backward()?.get(&weight).expect("a gradient").clone()]);
/// }
/// let gradients = sum_gradients(&processes, 4, own)?;
/// assert_eq!(gradients[0].to_vec1::<f32>()?, [18.0, 22.0, 26.0]);
/// # Ok(())
/// # }
/// ```
pub fn sum_gradients(processes: &dyn Processes, shards: usize, own: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    let (share, count) = (share(shards, processes), processes.count());
    if shards < count {
        bail!("sum_gradients: expected at least a shard for each of {count} processes, got {shards}");
    }
    if own.len() != share.len() {
        let (rank, got) = (processes.rank(), own.len());
        bail!("sum_gradients: expected the gradients of shards {share:?} from process {rank}, got those of {got}");
    }
    let shapes: Vec<_> = own[0].iter().map(|tensor| tensor.shape().clone()).collect();
    let mut tree = Tree::default();
    for (first, gradients) in share.zip(own) {
        if gradients.iter().map(Tensor::shape).ne(&shapes) {
            bail!("sum_gradients: expected gradients of the same shapes from every shard");
        }
        tree.push(Root { first, level: 0, sum: gradients }, |a, b| {
            a.iter().zip(&b).map(|(a, b)| crate::cpu::sums::add(a, b)).collect::<Result<Vec<_>>>()
        })?;
    }
    let elements = shapes.iter().map(|shape| Shape { elements: shape.elem_count(), whole: None });
    let division = Division::new(&elements.collect::<Vec<_>>(), count);
    let sums = reduce(processes, &division, shards, tree.roots())?;
    let mut all: Vec<Vec<f32>> = shapes.iter().map(|shape| vec![0.0; shape.elem_count()]).collect();
    let own: Vec<&[f32]> = sums.iter().map(Vec::as_slice).collect();
    all_gather(processes, &division, &own, &mut |piece, values| {
        values.read(&mut all[piece.tensor][piece.range()]);
        Ok(())
    })?;
    let device = candle_core::Device::Cpu;
    all.into_iter().zip(shapes).map(|(values, shape)| Tensor::from_vec(values, shape, &device)).collect()
}

/// The bytes of all processes, each of any length, on every process.
///
/// # Errors
/// If they cannot be exchanged.
pub fn gather(processes: &dyn Processes, own: &[u8]) -> Result<Vec<Vec<u8>>> {
    let count = processes.count();
    let mut lengths = vec![0; 8 * count];
    processes.all_gather(&(own.len() as u64).to_le_bytes(), &mut lengths, &vec![8; count])?;
    let lengths: Vec<usize> = lengths.as_chunks().0.iter().map(|&length| u64::from_le_bytes(length) as usize).collect();
    let mut all = vec![0; lengths.iter().sum()];
    processes.all_gather(own, &mut all, &lengths)?;
    let mut rest = &all[..];
    Ok(lengths.iter().map(|&length| rest.split_off(..length).unwrap_or_default().to_vec()).collect())
}

/// The numbers of all processes.
#[cfg(feature = "lm")]
pub(crate) fn gather_numbers(processes: &dyn Processes, own: &[f64]) -> Result<Vec<Vec<f64>>> {
    let own: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
    let numbers = |bytes: Vec<u8>| bytes.as_chunks().0.iter().map(|&number| f64::from_le_bytes(number)).collect();
    Ok(gather(processes, &own)?.into_iter().map(numbers).collect())
}

#[cfg(test)]
mod tests;
