//! The part of a process in a training that several processes share: which weights it updates, with the moments of these
//! alone. All others have the same weights, average and state, to the last bit.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::gradients::LossAndGradients;
use crate::cpu::storage::{change, values};
use crate::cpu::sums::{BLOCK, block_sums_of_squares};
use crate::host::{Result, bail};
use crate::optim::{Group, Optimizer, Rule};
use crate::processes::{
    Division, Piece, Processes, Root, Shape, Tree, all_gather, gather_numbers, reduce, share_of, subtrees,
};

/// A trainable tensor, and how it is updated.
pub(super) type Trained = (String, Var, Group);

/// What a process updates.
pub(super) struct Part {
    pub(super) processes: Arc<dyn Processes>,
    trained: Vec<Trained>,
    division: Division,
    /// Its weights, flat where Muon does not need a matrix.
    pieces: Vec<Var>,
}

/// The sums of all shards of a step.
pub(super) struct Summed {
    pub(super) loss: f64,
    /// The norms of all gradients.
    pub(super) norms: Vec<f64>,
    /// The gradients of what this process updates.
    pub(super) gradients: Vec<Tensor>,
}

impl Part {
    /// The part of this process, and an optimizer for it.
    pub(super) fn new(processes: Arc<dyn Processes>, trained: Vec<Trained>) -> Result<(Self, Optimizer)> {
        let shape = |(_, var, group): &Trained| {
            let elements = var.elem_count();
            let work = elements * var.dims().iter().copied().min().unwrap_or(1);
            Shape { elements, whole: (group.rule == Rule::Muon).then_some(work) }
        };
        let division = Division::new(&trained.iter().map(shape).collect::<Vec<_>>(), processes.count());
        let own = &division.pieces[processes.rank()];
        let weights = own.iter().map(|piece| {
            let (_, var, group) = &trained[piece.tensor];
            Ok(Var::from_tensor(&cut(var.as_tensor(), piece, group)?)?)
        });
        let pieces = weights.collect::<Result<Vec<Var>>>()?;
        let slots = own.iter().zip(&pieces).map(|(piece, var)| {
            let (name, _, group) = &trained[piece.tensor];
            (name.clone(), var.clone(), *group)
        });
        let optimizer = Optimizer::new(slots)?;
        Ok((Self { processes, trained, division, pieces }, optimizer))
    }

    fn own(&self) -> &[Piece] {
        &self.division.pieces[self.processes.rank()]
    }

    /// What this process has of an optimizer's state.
    pub(super) fn cut_state(&self, state: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut own = BTreeMap::new();
        for piece in self.own() {
            let (name, _, group) = &self.trained[piece.tensor];
            for kind in group.rule.state() {
                let name = format!("{kind}.{name}");
                let Some(tensor) = state.get(&name) else { bail!("{name} is missing") };
                own.insert(name, cut(tensor, piece, group)?);
            }
        }
        Ok(own)
    }

    /// The optimizer's state of all processes, on the first; the others get none. All have to call it.
    pub(super) fn gather_state(&self, optimizer: &Optimizer) -> Result<Vec<(String, Tensor)>> {
        let own: BTreeMap<_, _> = optimizer.state().into_iter().collect();
        let mut all = vec![];
        for (i, (name, var, group)) in self.trained.iter().enumerate() {
            for kind in group.rule.state() {
                let name = format!("{kind}.{name}");
                let own = own.get(&name).map_or(Ok(vec![]), |tensor| tensor.flatten_all()?.to_vec1())?;
                let values = self.gather_tensor(i, &own)?;
                if self.processes.rank() == 0 {
                    all.push((name, Tensor::from_vec(values, var.shape(), &Device::Cpu)?));
                }
            }
        }
        Ok(all)
    }

    /// The numbers of all processes for a tensor, on the first: of this process those of its piece are `own`.
    fn gather_tensor(&self, tensor: usize, own: &[f32]) -> Result<Vec<f32>> {
        /// Numbers that are sent together: MPI counts bytes with 31 bits.
        const TOGETHER: usize = if cfg!(test) { BLOCK } else { 1 << 24 };
        let (rank, count) = (self.processes.rank(), self.processes.count());
        let elements = self.trained[tensor].1.elem_count();
        let (mut own, mut all) = (own, vec![]);
        for start in (0..elements).step_by(TOGETHER) {
            let range = start..(start + TOGETHER).min(elements);
            let len = |rank: usize| self.division.within_tensor(rank, tensor, &range).len();
            let part = own.split_off(..len(rank)).unwrap_or_default();
            let send: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
            let to_first = |rank: usize, len: usize| if rank == 0 { 4 * len } else { 0 };
            let sent: Vec<usize> = (0..count).map(|to| to_first(to, part.len())).collect();
            let received: Vec<usize> = (0..count).map(|from| to_first(rank, len(from))).collect();
            let mut receive = vec![0; received.iter().sum()];
            self.processes.all_to_all(&send, &sent, &mut receive, &received)?;
            all.extend(receive.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)));
        }
        Ok(all)
    }

    /// Adds the sums of the shards of all processes, of which there are so many.
    pub(super) fn sum(&self, own: Tree<LossAndGradients>, shards: usize) -> Result<Summed> {
        let (mut losses, mut roots) = (vec![], vec![]);
        for Root { first, level, sum: LossAndGradients { loss, gradients } } in own.roots() {
            losses.push(loss);
            roots.push(Root { first, level, sum: gradients });
        }
        let sums = reduce(&*self.processes, &self.division, shards, roots)?;
        // The losses, then the sums of the squares of blocks.
        let mut numbers: Vec<f64> = losses;
        numbers.extend(sums.iter().flat_map(|sum| block_sums_of_squares(sum)));
        let (mut tree, mut blocks) = (Tree::default(), vec![vec![]; self.trained.len()]);
        let all = gather_numbers(&*self.processes, &numbers)?;
        for (rank, (numbers, pieces)) in all.into_iter().zip(&self.division.pieces).enumerate() {
            let mut numbers = numbers.into_iter();
            let share = share_of(shards, rank, self.processes.count());
            for ((first, level), sum) in subtrees(share).into_iter().zip(numbers.by_ref()) {
                tree.push(Root { first, level, sum }, add)?;
            }
            for piece in pieces {
                blocks[piece.tensor].extend(numbers.by_ref().take(piece.len.div_ceil(BLOCK)));
            }
        }
        let shaped = |(sum, var): (Vec<f32>, &Var)| Tensor::from_vec(sum, var.shape(), &Device::Cpu);
        Ok(Summed {
            loss: tree.finish(add)?.unwrap_or_default(),
            norms: blocks.iter().map(|sums: &Vec<f64>| sums.iter().sum::<f64>().sqrt()).collect(),
            gradients: sums.into_iter().zip(&self.pieces).map(shaped).collect::<candle_core::Result<_>>()?,
        })
    }

    /// Gives the weights that each process has updated to all.
    pub(super) fn publish(&self) -> Result<()> {
        let none = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
        let own = self.pieces.iter().map(|var| values(var)).collect::<candle_core::Result<Vec<_>>>()?;
        let own: Vec<&[f32]> = own.iter().map(|values| &**values).collect();
        let put = &mut |piece: Piece, bytes: crate::processes::Bytes| {
            change(&self.trained[piece.tensor].1, [&none, &none], |weights, _| {
                bytes.read(&mut weights[piece.range()]);
                Ok(())
            })
        };
        Ok(all_gather(&*self.processes, &self.division, &own, put)?)
    }
}

fn add(a: f64, b: f64) -> Result<f64> {
    Ok(a + b)
}

/// A piece of a tensor: flat, or for Muon the whole matrix. It keeps nothing of the rest in memory.
fn cut(tensor: &Tensor, piece: &Piece, group: &Group) -> Result<Tensor> {
    match group.rule {
        Rule::Muon => Ok(tensor.detach()),
        _ => Ok(tensor.detach().flatten_all()?.narrow(0, piece.start, piece.len)?.force_contiguous()?),
    }
}

#[cfg(test)]
mod tests;
