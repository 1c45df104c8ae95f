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

use candle_core::{DType, Device, Error, Result, Shape as TensorShape, Tensor, bail};

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
/// them, in the same order.
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
/// `own` gives those of the shards of this process, in order, each with a gradient of every variable: `f32` on the CPU. They
/// are added as they come, so that few are in memory at once.
///
/// The sum is the gradient of the batch if the loss of a shard is its part of the batch's: a sum over sequences divided by those of the
/// batch. All processes need the same weights to begin with, as from one seed.
///
/// # Errors
/// If there are fewer shards than processes, `own` gives an error or not this process's [`share`], or the gradients of two shards differ
/// in their shapes. All processes get an error then, and none is left waiting; only if the exchange itself fails has
/// [`Processes::abort`] to end the others.
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
/// let own = share(4, &processes).map(|shard| {
///     let loss = (batch.get(shard)? * weight.as_tensor())?.sum_all()?;
///     Ok(vec![loss.backward()?.get(&weight).expect("a gradient").clone()])
/// });
/// let gradients = sum_gradients(&processes, 4, own)?;
/// assert_eq!(gradients[0].to_vec1::<f32>()?, [18.0, 22.0, 26.0]);
/// # Ok(())
/// # }
/// ```
pub fn sum_gradients(
    processes: &dyn Processes,
    shards: usize,
    own: impl IntoIterator<Item = Result<Vec<Tensor>>>,
) -> Result<Vec<Tensor>> {
    let summed = if shards < processes.count() {
        Err(Error::msg(format!("expected at least a shard for each of {} processes, got {shards}", processes.count())))
    } else {
        let share = share(shards, processes);
        // One more would be refused.
        let own = own.into_iter().take(share.len() + 1);
        sum_own(share, own)
    };
    // What has to be the same on all of them, or why a process has nothing to exchange.
    let told = match &summed {
        Ok(roots) => format!("gradients of {shards} shards, of shapes {:?}", shapes(&roots[0].sum)),
        Err(error) => format!("an error: {}", without_backtrace(error)),
    };
    let all = gather(processes, told.as_bytes())?;
    let roots = summed?;
    if let Some(rank) = all.iter().position(|other| other != told.as_bytes()) {
        let (own, other) = (processes.rank(), String::from_utf8_lossy(&all[rank]));
        bail!("sum_gradients: process {own} has {told}; process {rank} has {other}");
    }
    let shapes = shapes(&roots[0].sum);
    let elements = shapes.iter().map(|shape| Shape { elements: shape.elem_count(), whole: None });
    let division = Division::new(&elements.collect::<Vec<_>>(), processes.count());
    let sums = reduce(processes, &division, shards, roots)?;
    let mut all: Vec<Vec<f32>> = shapes.iter().map(|shape| vec![0.0; shape.elem_count()]).collect();
    let own: Vec<&[f32]> = sums.iter().map(Vec::as_slice).collect();
    all_gather(processes, &division, &own, &mut |piece, values| {
        values.read(&mut all[piece.tensor][piece.range()]);
        Ok(())
    })?;
    all.into_iter().zip(shapes).map(|(values, shape)| Tensor::from_vec(values, shape, &Device::Cpu)).collect()
}

fn without_backtrace(error: &Error) -> &Error {
    match error {
        Error::WithBacktrace { inner, .. } => without_backtrace(inner),
        error => error,
    }
}

fn shapes(tensors: &[Tensor]) -> Vec<TensorShape> {
    tensors.iter().map(|tensor| tensor.shape().clone()).collect()
}

/// The sums of a process's own shards, of which there is at least one, as far as the order allows.
fn sum_own(share: Range<usize>, own: impl IntoIterator<Item = Result<Vec<Tensor>>>) -> Result<Vec<Root<Vec<Tensor>>>> {
    let (mut tree, mut first, mut given) = (Tree::default(), vec![], 0);
    for (i, gradients) in own.into_iter().enumerate() {
        let gradients = gradients?;
        if i == 0 {
            first = shapes(&gradients);
        } else if shapes(&gradients) != first {
            bail!("expected gradients of the same shapes from every shard");
        }
        if let Some(other) = gradients.iter().find(|tensor| tensor.dtype() != DType::F32 || !tensor.device().is_cpu()) {
            bail!("expected gradients in f32 on the CPU, got {:?} on {:?}", other.dtype(), other.device().location());
        }
        given = i + 1;
        tree.push(Root { first: share.start + i, level: 0, sum: gradients }, |a, b| {
            a.iter().zip(&b).map(|(a, b)| crate::cpu::sums::add(a, b)).collect::<Result<Vec<_>>>()
        })?;
    }
    if given != share.len() {
        bail!("expected the gradients of shards {share:?}, got those of {given}");
    }
    Ok(tree.roots())
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
