//! Processes that MPI has started: `mpirun -np N program`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Result, bail};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::Processes;

/// All processes of an MPI job. They can exchange until this is dropped, on the thread that started it, which waits for all of
/// them or, in a panic, ends them.
pub struct Mpi {
    rank: usize,
    count: usize,
    /// One thread at a time may call it.
    turn: Mutex<()>,
    _universe: Universe,
}

impl Mpi {
    /// Starts MPI, once in a process.
    ///
    /// # Errors
    /// If it has been started before, or is one that can be called from the main thread alone.
    pub fn start() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            bail!("mpi: expected to be the first to start it in this process");
        };
        if threading < Threading::Serialized {
            bail!("mpi: expected an MPI that any thread can call, got one of {threading:?}");
        }
        let world = universe.world();
        Ok(Self {
            rank: world.rank() as usize,
            count: world.size() as usize,
            turn: Mutex::default(),
            _universe: universe,
        })
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Mpi {
    /// After a panic the others would wait for this process for ever, and it for them.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
    }
}

/// Numbers of bytes as MPI has them, and where these begin.
fn places(bytes: &[usize]) -> Result<(Vec<i32>, Vec<i32>)> {
    let all: usize = bytes.iter().sum();
    if i32::try_from(all).is_err() {
        bail!("mpi: expected less than 2 GiB at once, got {all} bytes");
    }
    let starts = bytes.iter().scan(0, |end, bytes| {
        let start = *end;
        *end += bytes;
        Some(start)
    });
    Ok((bytes.iter().map(|&bytes| bytes as i32).collect(), starts.map(|start| start as i32).collect()))
}

/// The same bytes: where there are none, at the address of one. That of an empty vector may be 1, which is `MPI_IN_PLACE` in Open
/// MPI.
fn at_an_address(bytes: &[u8]) -> &[u8] {
    static ONE: [u8; 1] = [0];
    if bytes.is_empty() { &ONE[..0] } else { bytes }
}

impl Processes for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn abort(&self, code: u8) -> ! {
        SimpleCommunicator::world().abort(code.into())
    }

    fn all_to_all(&self, send: &[u8], sent: &[usize], receive: &mut [u8], received: &[usize]) -> Result<()> {
        let (sent, received, mut one) = (places(sent)?, places(received)?, [0]);
        let send = Partition::new(at_an_address(send), sent.0, sent.1);
        let receive = if receive.is_empty() { &mut one[..0] } else { receive };
        let mut receive = PartitionMut::new(receive, received.0, received.1);
        let _turn = self.turn();
        SimpleCommunicator::world().all_to_all_varcount_into(&send, &mut receive);
        Ok(())
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8], received: &[usize]) -> Result<()> {
        let ((counts, starts), mut one) = (places(received)?, [0]);
        let all = if all.is_empty() { &mut one[..0] } else { all };
        let mut all = PartitionMut::new(all, counts, starts);
        let _turn = self.turn();
        SimpleCommunicator::world().all_gather_varcount_into(at_an_address(own), &mut all);
        Ok(())
    }
}
