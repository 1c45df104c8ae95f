//! Threads in the place of processes, for tests.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use candle_core::{Error, Result};

use super::Processes;

/// A thread that exchanges with others over channels.
pub(crate) struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Threads {
    fn all(count: usize) -> Vec<Self> {
        let mut all: Vec<Self> = (0..count).map(|rank| Self { rank, to: vec![], from: vec![] }).collect();
        for from in 0..count {
            for to in 0..count {
                let (sender, receiver) = channel();
                all[from].to.push(sender);
                all[to].from.push(Mutex::new(receiver));
            }
        }
        all
    }

    fn receive(&self, mut all: &mut [u8], received: &[usize]) -> Result<()> {
        for (from, &len) in self.from.iter().zip(received) {
            let bytes = from.lock().unwrap().recv().map_err(Error::wrap)?;
            all.split_off_mut(..len).unwrap().copy_from_slice(&bytes);
        }
        assert!(all.is_empty());
        Ok(())
    }
}

impl Processes for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.to.len()
    }

    fn abort(&self, code: u8) -> ! {
        panic!("process {} ends all with {code}", self.rank)
    }

    fn all_to_all(&self, mut send: &[u8], sent: &[usize], receive: &mut [u8], received: &[usize]) -> Result<()> {
        for (to, &len) in self.to.iter().zip(sent) {
            to.send(send.split_off(..len).unwrap().to_vec()).map_err(Error::wrap)?;
        }
        assert!(send.is_empty());
        self.receive(receive, received)
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8], received: &[usize]) -> Result<()> {
        self.to.iter().try_for_each(|to| to.send(own.to_vec())).map_err(Error::wrap)?;
        self.receive(all, received)
    }
}

/// What each of `count` threads gives, in the order of ranks.
pub(crate) fn on_threads<R: Send>(count: usize, work: impl Fn(Arc<dyn Processes>) -> R + Sync) -> Vec<R> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = Threads::all(count)
            .into_iter()
            .map(|thread| scope.spawn(move || work(Arc::new(thread) as Arc<dyn Processes>)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
