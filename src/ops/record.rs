//! The trainer's own recording of a forward pass, and the backward pass along it.
//!
//! candle's backward pass allocates a tensor of zeros for every edge of its graph and adds the gradient to it. Inside
//! [`record`], the operations of this crate bypass the graph and record themselves here instead.
//! [`Recording::backward`] then passes each gradient on as it is, adds only where two meet, and frees what forward kept
//! as soon as it has been used. The gradients equal those of candle's own backward pass.
//!
//! Only this crate's operations are recorded, and only on the recording thread. A recorded result is a variable to
//! candle: what a candle operation makes of it, or of a variable of the model, has a graph that leads back to it, by
//! which the next recorded operation, or backward, recognises and refuses it: within a recording, no gradient is cut in
//! silence.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::shape::ShapeWithOneHole;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, TensorId, Var, bail,
};

use crate::cpu::elementwise::{zip_map, zip_update};
use crate::cpu::storage::{add_parameter, values};
use crate::cpu::sums::{self, sum_rows};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// Computes the gradients of an operation's inputs, in order, from that of its result.
type Backward = Box<dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>>;

struct Node {
    inputs: Vec<TensorId>,
    out: TensorId,
    backward: Backward,
}

/// The operations of a forward pass, in order.
#[derive(Default)]
pub(crate) struct Recording {
    nodes: Vec<Node>,
    /// The results so far.
    results: HashSet<TensorId>,
}

/// Runs a forward pass on this thread and records it.
///
/// # Errors
/// Those of `work`.
pub(crate) fn record<R>(work: impl FnOnce() -> Result<R>) -> Result<(R, Recording)> {
    /// Restores the previous recording, even if `work` panics.
    struct Restore(Option<Recording>);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0.take());
        }
    }
    let _restore = Restore(RECORDING.replace(Some(Recording::default())));
    let result = work()?;
    Ok((result, RECORDING.take().unwrap_or_default()))
}

impl Recording {
    /// The gradients of the variables, by id, for a result whose own gradient is 1.
    ///
    /// # Errors
    /// If the result was not recorded, and those of the operations.
    pub(crate) fn backward(self, result: &Tensor) -> Result<HashMap<TensorId, Tensor>> {
        self.check(result)?;
        let mut gradients = HashMap::from([(result.id(), Tensor::ones(result.shape(), result.dtype(), &Device::Cpu)?)]);
        for Node { inputs, out, backward } in self.nodes.into_iter().rev() {
            let Some(gradient) = gradients.remove(&out) else { continue };
            for (input, gradient) in inputs.into_iter().zip(backward(&gradient)?) {
                let Some(gradient) = gradient else { continue };
                let sum = match gradients.remove(&input) {
                    Some(before) => sums::add(&before, &gradient)?,
                    None => gradient,
                };
                gradients.insert(input, sum);
            }
        }
        Ok(gradients)
    }

    /// Refuses what candle computed from a variable or a recorded result.
    fn check(&self, tensor: &Tensor) -> Result<()> {
        if tensor.track_op() && !tensor.is_variable() && !self.results.contains(&tensor.id()) {
            bail!("record: a tensor of shape {:?} comes from an operation that is not recorded", tensor.dims());
        }
        Ok(())
    }
}

/// Whether operations of this thread are recorded.
pub(crate) fn is_recording() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

/// What an operation computed, as a tensor; if the gradient of an input may be needed, as a recorded variable.
fn recorded(
    inputs: &[&Tensor],
    (values, shape): (Vec<f32>, Shape),
    backward: impl FnOnce(&Tensor) -> Backward,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Tensor::from_vec(values, shape, &Device::Cpu);
    }
    let out = Var::from_vec(values, shape, &Device::Cpu)?.into_inner();
    push(inputs, &out, backward(&out))?;
    Ok(out)
}

/// Records an operation.
fn push(inputs: &[&Tensor], out: &Tensor, backward: Backward) -> Result<()> {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording else { return Ok(()) };
        inputs.iter().try_for_each(|input| recording.check(input))?;
        recording.results.insert(out.id());
        let inputs = inputs.iter().map(|input| input.id()).collect();
        recording.nodes.push(Node { inputs, out: out.id(), backward });
        Ok(())
    })
}

/// What an operation's gradients depend on beside what it keeps itself, and the recording keeps: all else is freed after
/// its last use in forward.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kept {
    Nothing,
    Inputs,
    InputsAndResult,
}

/// Calls a kernel with the content of tensors, and takes the values that it computes.
fn compute(
    tensors: &[&Tensor],
    kernel: impl FnOnce(&[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)>,
) -> Result<(Vec<f32>, Shape)> {
    let held: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let contents = held.iter().map(|(storage, layout)| match &**storage {
        Storage::Cpu(storage) => Ok((storage, *layout)),
        _ => bail!("record: expected tensors on the CPU"),
    });
    match kernel(&contents.collect::<Result<Vec<_>>>()?)? {
        (CpuStorage::F32(values), shape) => Ok((values, shape)),
        _ => bail!("record: expected a result of f32"),
    }
}

/// Applies an operation, in candle's graph or in the recording. In backward, the gradient stands in for what is not
/// kept.
pub(crate) fn apply1(a: &Tensor, op: impl CustomOp1 + Send + Sync + 'static, kept: Kept) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op1(op);
    }
    let computed = compute(&[a], |x| op.cpu_fwd(x[0].0, x[0].1))?;
    recorded(&[a], computed, |out| {
        let kept_a = (kept != Kept::Nothing).then(|| a.clone());
        let kept_out = (kept == Kept::InputsAndResult).then(|| out.clone());
        Box::new(move |dout| {
            let (a, out) = (kept_a.as_ref().unwrap_or(dout), kept_out.as_ref().unwrap_or(dout));
            Ok(vec![op.bwd(a, out, dout)?])
        })
    })
}

/// As [`apply1`], for two tensors on which alone the gradients depend.
pub(crate) fn apply2(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op2(b, op);
    }
    let computed = compute(&[a, b], |x| op.cpu_fwd(x[0].0, x[0].1, x[1].0, x[1].1))?;
    recorded(&[a, b], computed, |_| {
        let (a, b) = (a.clone(), b.clone());
        Box::new(move |dout| {
            let (da, db) = op.bwd(&a, &b, dout, dout)?;
            Ok(vec![da, db])
        })
    })
}

/// As [`apply1`], for three tensors, which are kept.
pub(crate) fn apply3(
    [a, b, c]: [&Tensor; 3],
    op: impl CustomOp3 + Send + Sync + 'static,
    kept: Kept,
) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op3(b, c, op);
    }
    let computed = compute(&[a, b, c], |x| op.cpu_fwd(x[0].0, x[0].1, x[1].0, x[1].1, x[2].0, x[2].1))?;
    recorded(&[a, b, c], computed, |out| {
        let (a, b, c) = (a.clone(), b.clone(), c.clone());
        let kept_out = (kept == Kept::InputsAndResult).then(|| out.clone());
        Box::new(move |dout| {
            let (da, db, dc) = op.bwd(&a, &b, &c, kept_out.as_ref().unwrap_or(dout), dout)?;
            Ok(vec![da, db, dc])
        })
    })
}

/// The same elements in another shape.
pub(crate) fn reshape(a: &Tensor, shape: impl ShapeWithOneHole) -> Result<Tensor> {
    let out = a.reshape(shape)?;
    if is_recording() && a.track_op() {
        let before = a.shape().clone();
        push(&[a], &out, Box::new(move |dout| Ok(vec![Some(dout.reshape(before)?)])))?;
    }
    Ok(out)
}

/// `a + b`, of equal shape.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_recording() {
        return a + b;
    }
    if a.shape() != b.shape() {
        bail!("record: expected a sum of tensors of one shape, got {:?} and {:?}", a.dims(), b.dims());
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let sum = zip_map(&values(&a)?, &values(&b)?, |a, b| a + b);
    let backward = |dout: &Tensor| Ok(vec![Some(dout.clone()), Some(dout.clone())]);
    recorded(&[&a, &b], (sum, a.shape().clone()), |_| Box::new(backward))
}

/// `factor * a`.
pub(crate) fn scale(a: &Tensor, factor: f64) -> Result<Tensor> {
    if !is_recording() {
        return a * factor;
    }
    let a = a.contiguous()?;
    let product = zip_map(&values(&a)?, &values(&a)?, |a, _| a * factor as f32);
    recorded(&[&a], (product, a.shape().clone()), |_| Box::new(move |dout| Ok(vec![Some((dout * factor)?)])))
}

/// Adds the T rows of a table (L, C) from `start` on to each sequence of `xs` (B, T, C).
pub(crate) fn add_positions(xs: &Tensor, table: &Tensor, start: usize) -> Result<Tensor> {
    let (b, t, c) = xs.dims3()?;
    if !is_recording() {
        return add_parameter(xs, &table.narrow(0, start, t)?);
    }
    let xs = xs.contiguous()?;
    let (of_sequence, rows) = (t * c, table.dim(0)?);
    let (mut sum, positions) = (values(&xs)?.to_vec(), values(table)?);
    for sequence in sum.chunks_exact_mut(of_sequence.max(1)) {
        zip_update(sequence, &positions[start * c..][..of_sequence], |x, position| x + position);
    }
    let backward = move |dout: &Tensor| {
        let dys = dout.contiguous()?;
        let dys = values(&dys)?;
        let of_positions = sum_rows(b, of_sequence, |i, sums: &mut [f32]| {
            sums.iter_mut().zip(&dys[i * of_sequence..]).for_each(|(sum, dy)| *sum += dy);
        });
        let mut dtable = vec![0.0; rows * c];
        dtable[start * c..][..of_sequence].copy_from_slice(&of_positions);
        Ok(vec![Some(dout.clone()), Some(Tensor::from_vec(dtable, (rows, c), &Device::Cpu)?)])
    };
    recorded(&[&xs, table], (sum, xs.shape().clone()), |_| Box::new(backward))
}

/// Concatenates matrices of equal width along the rows.
pub(crate) fn stack_rows(parts: &[&Tensor]) -> Result<Tensor> {
    if !is_recording() {
        return Tensor::cat(parts, 0);
    }
    let stacked = Tensor::cat(&parts.iter().map(|part| part.detach()).collect::<Vec<_>>(), 0)?;
    let rows = parts.iter().map(|part| part.dim(0)).collect::<Result<Vec<_>>>()?;
    let backward = move |dout: &Tensor| {
        let mut first = 0;
        let part = |rows: usize| {
            first += rows;
            dout.narrow(0, first - rows, rows).map(Some)
        };
        rows.into_iter().map(part).collect()
    };
    let computed = (values(&stacked)?.to_vec(), stacked.shape().clone());
    recorded(parts, computed, |_| Box::new(backward))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use crate::nn::{MultiHeadAttention, MultiHeadAttentionConfig, Parameters};
    use crate::ops::{CrossEntropyOptions, linear_cross_entropy, silu};
    use candle_core::{DType, Device, Var};

    fn var(seed: u64, shape: &[usize]) -> Var {
        Var::from_tensor(&randn(seed, shape).to_dtype(DType::F32).unwrap()).unwrap()
    }

    /// Shapes that change, and rows that are left out, on the way to the loss. The same kernels are called in both ways,
    /// and what meets in pairs has the same sum in either order: nothing is rounded differently.
    #[test]
    fn targets_that_do_not_count_and_heads_that_are_not_packed_are_recorded() {
        let (xs, weight, parameters) = (var(1, &[2, 3, 8]), var(2, &[5, 8]), Parameters::new(3));
        let config = MultiHeadAttentionConfig { num_kv_heads: Some(1), ..MultiHeadAttentionConfig::new(8, 2) };
        let attention = MultiHeadAttention::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
        let targets = Tensor::new(&[[0u32, 9, 4], [9, 1, 2]], &Device::Cpu).unwrap();
        let options = CrossEntropyOptions { ignore_index: Some(9), ..Default::default() };
        let loss = || {
            let ys = add(&xs, &attention.forward_with(&xs, &Default::default())?)?;
            linear_cross_entropy(&ys, &weight, None, &targets, &options)
        };
        let (recorded_loss, recording) = record(loss).unwrap();
        let recorded = recording.backward(&recorded_loss).unwrap();
        let by_graph = loss().unwrap().backward().unwrap();
        for var in parameters.vars().iter().map(|(_, var)| var).chain([&xs, &weight]) {
            let [got, expected] = [&recorded[&var.id()], by_graph.get(var).unwrap()]
                .map(|gradient| gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            assert_eq!(got, expected, "of shape {:?}", var.dims());
        }
    }

    #[test]
    fn an_operation_that_is_not_recorded_is_refused() {
        let var = var(1, &[3, 4]);
        let expected = "a tensor of shape [4, 3] comes from an operation that is not recorded";
        let refused = |work: &dyn Fn() -> Result<Tensor>| {
            let error = record(work).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(&|| silu(&var.t()?));
        refused(&|| silu(&(silu(&var)? * 2.0)?.t()?));
        refused(&|| silu(&reshape(&silu(&var)?, (4, 3))?.relu()?));
        refused(&|| add(&Tensor::ones((4, 3), DType::F32, &Device::Cpu)?, &silu(&var)?.t()?));

        let (loss, recording) = record(|| silu(&var)?.sum_all()).unwrap();
        let error = recording.backward(&loss).unwrap_err().to_string();
        assert!(error.contains("a tensor of shape [] comes from an operation that is not recorded"), "{error}");
    }

    /// What no variable is part of is a plain tensor, and may go through any operation.
    #[test]
    fn what_has_no_gradient_is_not_recorded() {
        let xs = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
        let (ys, recording) = record(|| silu(&(silu(&xs)? * 2.0)?)).unwrap();
        assert!(!ys.track_op() && recording.nodes.is_empty());
    }
}
