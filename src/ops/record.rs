//! The trainer's own recording of a forward pass, and the backward pass along it.
//!
//! candle's backward pass allocates a tensor of zeros for every edge of its graph and adds the gradient to it. Inside
//! [`record`], the operations of this crate bypass the graph and record themselves here instead.
//! [`Recording::backward`] then passes each gradient on as it is, adds only where two meet, and frees what forward kept
//! as soon as it has been used. The gradients equal those of candle's own backward pass.
//!
//! Only this crate's operations are recorded, and only on the recording thread. A candle operation on a variable is
//! refused. On a recorded result it would cut the gradient: everything that a recorded forward pass calls must go
//! through this module, which a test of the trainer verifies for every form of the model.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use candle_core::shape::ShapeWithOneHole;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, Result, Tensor, TensorId, bail};

use crate::cpu::storage::{add_parameter, precise};

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
    /// Results so far that depend on a variable.
    tracked: HashSet<TensorId>,
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
    /// Those of the operations.
    pub(crate) fn backward(self, result: &Tensor) -> Result<HashMap<TensorId, Tensor>> {
        let mut gradients = HashMap::from([(result.id(), result.ones_like()?)]);
        for Node { inputs, out, backward } in self.nodes.into_iter().rev() {
            let Some(gradient) = gradients.remove(&out) else { continue };
            for (input, gradient) in inputs.into_iter().zip(backward(&gradient)?) {
                let Some(gradient) = gradient else { continue };
                let sum = match gradients.remove(&input) {
                    Some(before) => (before + gradient)?,
                    None => gradient,
                };
                gradients.insert(input, sum);
            }
        }
        Ok(gradients)
    }
}

/// Whether the gradient of this tensor may be needed.
pub(crate) fn is_tracked(tensor: &Tensor) -> bool {
    let is_recorded = |recording: &Option<Recording>| {
        recording.as_ref().is_some_and(|recording| recording.tracked.contains(&tensor.id()))
    };
    tensor.track_op() || RECORDING.with_borrow(is_recorded)
}

/// Whether operations of this thread are recorded.
pub(crate) fn is_recording() -> bool {
    RECORDING.with_borrow(Option::is_some)
}

/// Records an operation if one of its inputs is tracked.
fn push(inputs: &[&Tensor], out: &Tensor, backward: Backward) -> Result<()> {
    if let Some(input) = inputs.iter().find(|input| input.track_op() && !input.is_variable()) {
        bail!("record: a tensor of shape {:?} comes from an operation that is not recorded", input.dims());
    }
    let is_tracked = inputs.iter().any(|input| is_tracked(input));
    RECORDING.with_borrow_mut(|recording| {
        if let Some(recording) = recording.as_mut().filter(|_| is_tracked) {
            recording.tracked.insert(out.id());
            let inputs = inputs.iter().map(|input| input.id()).collect();
            recording.nodes.push(Node { inputs, out: out.id(), backward });
        }
    });
    Ok(())
}

/// What an operation's gradients depend on, and the recording keeps: what is not kept is freed after its last use in
/// forward.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kept {
    Inputs,
    InputsAndResult,
}

impl Kept {
    /// What takes the place of the result in backward.
    fn result(self, out: &Tensor, input: &Tensor) -> Tensor {
        if self == Self::InputsAndResult { out.clone() } else { input.clone() }
    }
}

/// Applies an operation, in candle's graph or in the recording.
pub(crate) fn apply1(a: &Tensor, op: impl CustomOp1 + Send + Sync + 'static, kept: Kept) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op1(op);
    }
    let out = a.apply_op1_no_bwd(&op)?;
    let (kept_a, kept_out) = (a.clone(), kept.result(&out, a));
    push(&[a], &out, Box::new(move |dout| Ok(vec![op.bwd(&kept_a, &kept_out, dout)?])))?;
    Ok(out)
}

/// As [`apply1`], for two tensors on which alone the gradients depend.
pub(crate) fn apply2(a: &Tensor, b: &Tensor, op: impl CustomOp2 + Send + Sync + 'static) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op2(b, op);
    }
    let out = a.apply_op2_no_bwd(b, &op)?;
    let kept = [a.clone(), b.clone()];
    let backward = move |dout: &Tensor| {
        let (da, db) = op.bwd(&kept[0], &kept[1], &kept[0], dout)?;
        Ok(vec![da, db])
    };
    push(&[a, b], &out, Box::new(backward))?;
    Ok(out)
}

/// As [`apply1`], for three tensors.
pub(crate) fn apply3(
    [a, b, c]: [&Tensor; 3],
    op: impl CustomOp3 + Send + Sync + 'static,
    kept: Kept,
) -> Result<Tensor> {
    if !is_recording() {
        return a.apply_op3(b, c, op);
    }
    let out = a.apply_op3_no_bwd(b, c, &op)?;
    let (kept, kept_out) = ([a.clone(), b.clone(), c.clone()], kept.result(&out, a));
    let backward = move |dout: &Tensor| {
        let (da, db, dc) = op.bwd(&kept[0], &kept[1], &kept[2], &kept_out, dout)?;
        Ok(vec![da, db, dc])
    };
    push(&[a, b, c], &out, Box::new(backward))?;
    Ok(out)
}

/// The tensor, or a contiguous copy.
pub(crate) fn contiguous(a: &Tensor) -> Result<Tensor> {
    let out = a.contiguous()?;
    if is_recording() && out.id() != a.id() {
        push(&[a], &out, Box::new(|dout| Ok(vec![Some(dout.clone())])))?;
    }
    Ok(out)
}

/// The same elements in another shape.
pub(crate) fn reshape(a: &Tensor, shape: impl ShapeWithOneHole) -> Result<Tensor> {
    if !is_recording() {
        return a.reshape(shape);
    }
    let out = a.detach().reshape(shape)?;
    let before = a.shape().clone();
    push(&[a], &out, Box::new(move |dout| Ok(vec![Some(dout.reshape(before)?)])))?;
    Ok(out)
}

/// `a + b`, of equal shape.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_recording() {
        return a + b;
    }
    let out = (a.detach() + b.detach())?;
    push(&[a, b], &out, Box::new(|dout| Ok(vec![Some(dout.clone()), Some(dout.clone())])))?;
    Ok(out)
}

/// `factor * a`.
pub(crate) fn scale(a: &Tensor, factor: f64) -> Result<Tensor> {
    if !is_recording() {
        return a * factor;
    }
    let out = (a.detach() * factor)?;
    push(&[a], &out, Box::new(move |dout| Ok(vec![Some((dout * factor)?)])))?;
    Ok(out)
}

/// Adds the T rows of a table (L, C) from `start` on to each sequence of `xs` (B, T, C).
pub(crate) fn add_positions(xs: &Tensor, table: &Tensor, start: usize) -> Result<Tensor> {
    let t = xs.dim(1)?;
    if !is_recording() {
        return add_parameter(xs, &table.narrow(0, start, t)?);
    }
    let out = add_parameter(&xs.detach(), &table.detach().narrow(0, start, t)?)?;
    let rest = table.dim(0)? - start - t;
    let backward = move |dout: &Tensor| {
        let dtable = dout.to_dtype(precise(dout.dtype()))?.sum(0)?.to_dtype(dout.dtype())?; // (T, C)
        let dtable = if start + rest == 0 { dtable } else { dtable.pad_with_zeros(0, start, rest)? };
        Ok(vec![Some(dout.clone()), Some(dtable)])
    };
    push(&[xs, table], &out, Box::new(backward))?;
    Ok(out)
}

/// Concatenates matrices of equal width along the rows.
pub(crate) fn stack_rows(parts: &[&Tensor]) -> Result<Tensor> {
    if !is_recording() {
        return Tensor::cat(parts, 0);
    }
    let out = Tensor::cat(&parts.iter().map(|part| part.detach()).collect::<Vec<_>>(), 0)?;
    let rows = parts.iter().map(|part| part.dim(0)).collect::<Result<Vec<_>>>()?;
    let backward = move |dout: &Tensor| {
        let mut first = 0;
        let part = |rows: usize| {
            first += rows;
            dout.narrow(0, first - rows, rows).map(Some)
        };
        rows.into_iter().map(part).collect()
    };
    push(parts, &out, Box::new(backward))?;
    Ok(out)
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
    fn an_operation_that_is_not_recorded_is_refused_or_cuts_the_gradient() {
        let var = var(1, &[3, 4]);
        let error = record(|| silu(&var.t()?)).err().unwrap().to_string();
        assert!(error.contains("a tensor of shape [4, 3] comes from an operation that is not recorded"), "{error}");

        let (loss, recording) = record(|| silu(&(silu(&var)? * 2.0)?)?.sum_all()).unwrap();
        assert!(!recording.backward(&loss).unwrap().contains_key(&var.id()));
    }
}
