//! The loss and gradients of a batch, added up over its shards.

use std::ops::Range;

use candle_core::{Tensor, Var};

use super::evaluate::loss;
use super::{Precision, TrainOptions};
use crate::cpu::parallel::{map, threads};
use crate::cpu::sums::add;
use crate::host::{Error, Result};
use crate::model::{CausalLm, DropoutSource};
use crate::ops::{CrossEntropyOptions, bf16_products, record};
use crate::processes::{Root, Tree};
use crate::text::Batch;

/// The loss of a batch, in nats per token, and its gradients, in the order of the variables.
pub(super) struct LossAndGradients {
    pub(super) loss: f64,
    pub(super) gradients: Vec<Tensor>,
}

/// The mean loss of a batch and its gradients, with the bits that [`sum_of_shards`] gives them.
pub(super) fn loss_and_gradients(
    model: &CausalLm,
    vars: &[(String, Var)],
    batch: &Batch,
    options: &TrainOptions,
    dropout: DropoutSource,
) -> Result<LossAndGradients> {
    let all = 0..options.shards_of(batch.size()).len();
    LossAndGradients::of(sum_of_shards(model, vars, batch, options, dropout, all)?)
}

/// The loss and gradients of some shards of a batch, as far as they are complete subtrees of the sum of all: of those of an
/// index in `own`. As many as a round of `accumulate` has are computed side by side, each forward and backward on a thread of
/// its own, or on all if there are few. So the bits of the sum depend on where the batch is cut, but not on threads, rounds or
/// processes. Each shard is divided by the number of targets that count in the whole batch; if none does, loss and gradients
/// are 0.
pub(super) fn sum_of_shards(
    model: &CausalLm,
    vars: &[(String, Var)],
    batch: &Batch,
    options: &TrainOptions,
    dropout: DropoutSource,
    own: Range<usize>,
) -> Result<Tree<LossAndGradients>> {
    let cross_entropy = CrossEntropyOptions {
        normalizer: Some(batch.learned()? as f64),
        label_smoothing: options.label_smoothing,
        ..Default::default()
    };
    let shards = options.shards_of(batch.size());
    let part = |i: usize| {
        let Range { start, end } = shards[i];
        let dropout = DropoutSource { first_sequence: start as u64, ..dropout };
        let batch = batch.narrow(start, end - start)?;
        let gradients = || of_shard(model, vars, &batch, dropout, &cross_entropy);
        match options.precision {
            Precision::F32 => gradients(),
            Precision::Bf16 => bf16_products(gradients)?,
        }
    };
    let mut tree = Tree::default();
    let mut push = |first: usize, sum: Result<LossAndGradients>| {
        tree.push(Root { first, level: 0, sum: sum? }, LossAndGradients::plus)
    };
    let at_once = options.shards.min(batch.size().div_ceil(options.accumulate)).max(1);
    for first in own.clone().step_by(at_once) {
        let count = at_once.min(own.end - first);
        // Shards side by side scale better than the parts of an operation, if they keep most threads at work.
        if count > 1 && 2 * count >= threads() {
            (first..).zip(map(count, |i| part(first + i))).try_for_each(|(i, sum)| push(i, sum))?;
        } else {
            (first..first + count).try_for_each(|i| push(i, part(i)))?;
        }
    }
    Ok(tree)
}

impl TrainOptions {
    /// The shards of a batch of so many sequences: in each of `accumulate` rounds `shards` ranges of them, or fewer where
    /// there are fewer sequences.
    pub(super) fn shards_of(&self, batch: usize) -> Vec<Range<usize>> {
        cut(0..batch, self.accumulate).into_iter().flat_map(|round| cut(round, self.shards)).collect()
    }
}

/// Divides a range into at most `count` parts whose lengths differ by at most one.
fn cut(range: Range<usize>, count: usize) -> Vec<Range<usize>> {
    let count = count.clamp(1, range.len().max(1));
    let bound = |i: usize| range.start + i * range.len() / count;
    (0..count).map(|i| bound(i)..bound(i + 1)).collect()
}

fn of_shard(
    model: &CausalLm,
    vars: &[(String, Var)],
    batch: &Batch,
    dropout: DropoutSource,
    options: &CrossEntropyOptions,
) -> Result<LossAndGradients> {
    let forward = || loss(model, batch, Some(dropout), options);
    // On the CPU all operations have kernels, which can be recorded; elsewhere candle's own graph is used.
    if model.device().is_cpu() {
        let (loss, recording) = record::record(forward)?;
        let mut gradients = recording.backward(&loss)?;
        collect(&loss, vars, |var| gradients.remove(&var.id()))
    } else {
        let loss = forward()?;
        let mut gradients = loss.backward()?;
        collect(&loss, vars, |var| gradients.remove(var))
    }
}

fn collect(
    loss: &Tensor,
    vars: &[(String, Var)],
    mut gradient: impl FnMut(&Var) -> Option<Tensor>,
) -> Result<LossAndGradients> {
    let (mut gradients, mut missing) = (Vec::with_capacity(vars.len()), vec![]);
    for (name, var) in vars {
        match gradient(var) {
            Some(gradient) => gradients.push(gradient),
            None => missing.push(name.as_str()),
        }
    }
    if !missing.is_empty() {
        return Err(Error::NoGradient(format!("no gradient reaches {}", missing.join(", "))));
    }
    Ok(LossAndGradients { loss: f64::from(loss.to_scalar::<f32>()?), gradients })
}

impl LossAndGradients {
    /// The sum of all shards.
    pub(super) fn of(shards: Tree<Self>) -> Result<Self> {
        let sum = shards.finish(Self::plus)?;
        sum.ok_or_else(|| Error::Input("expected a batch of at least one sequence, got none".into()))
    }

    fn plus(self, other: Self) -> Result<Self> {
        let sums = map(self.gradients.len(), |i| add(&self.gradients[i], &other.gradients[i]));
        Ok(Self { loss: self.loss + other.loss, gradients: sums.into_iter().collect::<candle_core::Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::randn;
    use crate::model::{Activation, DropoutRates, ModelConfig};
    use crate::nn::{LoraConfig, Parameters};
    use crate::text::windows;
    use candle_core::{DType, Device};

    #[test]
    fn ranges_are_cut_evenly() {
        assert_eq!(cut(3..10, 3), [3..5, 5..7, 7..10]);
        assert_eq!(cut(0..2, 5), [0..1, 1..2]);
        assert_eq!(cut(4..4, 3).len(), 1);
    }

    #[test]
    fn a_tensor_that_no_gradient_reaches_is_named() {
        let vars =
            ["cut", "fine", "lost"].map(|name| (name.to_string(), Var::ones(3, DType::F32, &Device::Cpu).unwrap()));
        let [cut, fine, _] = vars.each_ref().map(|(_, var)| var);
        let loss = (fine.as_tensor() + cut.as_detached_tensor()).unwrap().sum_all().unwrap();
        let mut gradients = loss.backward().unwrap();
        let error = collect(&loss, &vars, |var| gradients.remove(var)).err().unwrap().to_string();
        assert_eq!(error, "gradient audit: no gradient reaches cut, lost");
    }

    /// Every form of the model: tied and untied, with biases, with grouped heads, with a given head width.
    fn forms() -> Vec<ModelConfig> {
        let of = |form: ModelConfig| ModelConfig {
            context_len: 7,
            embed_dim: 12,
            num_heads: 3,
            num_layers: 2,
            hidden_dim: 20,
            dropout: DropoutRates { embedding: 0.2, attention: 0.3, residual: 0.4 },
            ..form
        };
        let (gpt2, llama, qwen3) = (of(ModelConfig::gpt2(11)), of(ModelConfig::llama(11)), of(ModelConfig::qwen3(11)));
        let untied = |form: &ModelConfig| ModelConfig { tie_embeddings: false, ..form.clone() };
        vec![
            gpt2.clone(),
            ModelConfig { bias: true, activation: Activation::GeluTanh, ..untied(&gpt2) },
            ModelConfig { dropout: DropoutRates::default(), bias: true, ..gpt2.clone() },
            ModelConfig { activation: Activation::Relu, ..gpt2.clone() },
            ModelConfig { activation: Activation::QuickGelu, ..gpt2.clone() },
            ModelConfig { activation: Activation::Relu, ..llama.clone() },
            ModelConfig { activation: Activation::QuickGelu, ..llama.clone() },
            llama.clone(),
            ModelConfig { bias: true, mlp_bias: true, num_kv_heads: Some(1), ..untied(&llama) },
            qwen3.clone(),
            ModelConfig { num_kv_heads: Some(1), head_dim: Some(6), bias: true, ..untied(&qwen3) },
        ]
    }

    /// The trainer's own backward pass against candle's, on the CPU in `f32`: an operation that is not recorded would lose
    /// its part of the gradient. Both call the same kernels, and in these models no more than two gradients meet at a
    /// tensor; the rounded sum of two does not depend on their order. So nothing is rounded differently.
    #[test]
    fn recorded_gradients_are_those_of_candles_own_backward_pass() {
        for config in forms() {
            let parameters = Parameters::new(3);
            let model = CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
            hold(&model, &parameters.vars(), 0.0);
        }
    }

    /// The same with adapters, where more gradients meet, in another order: what is left of rounding.
    #[test]
    fn recorded_gradients_of_adapters_are_those_of_candles_own_backward_pass() {
        for config in forms() {
            let (base, parameters) = (Parameters::new(3), Parameters::new(4));
            let model = CausalLm::new(&config, base.frozen(DType::F32, &Device::Cpu)).unwrap();
            let lora = LoraConfig { rank: 2, alpha: 3.0 };
            let model = model.with_lora(&lora, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
            let names: Vec<String> = parameters.vars().into_iter().map(|(name, _)| name).collect();
            let mut expected: Vec<String> = config.lora_parameters(&lora).into_iter().map(|(name, _)| name).collect();
            expected.sort_unstable();
            assert_eq!(names, expected);
            hold(&model, &parameters.vars(), 1e-5);
        }
    }

    /// A weight rounded to bf16 is off by one part in 256 at most; a gradient goes through some ten products, whose errors are
    /// independent.
    #[test]
    fn gradients_of_products_in_bf16_are_close_to_those_in_f32_and_not_the_same() {
        if bf16_products(|| ()).is_err() {
            return;
        }
        let config = ModelConfig { dropout: DropoutRates::default(), ..forms()[0].clone() };
        let parameters = Parameters::new(3);
        let model = CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
        let ids: Vec<u32> = (0..40).map(|i| (i * i + i / 3) % 11).collect();
        let batch = windows(&ids.into(), (3, 7), true, None, &Device::Cpu).unwrap().next().unwrap().unwrap();
        let dropout = DropoutSource { seed: 3, step: 5, first_sequence: 2 };
        let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
            let options = TrainOptions { precision, ..Default::default() };
            loss_and_gradients(&model, &parameters.vars(), &batch, &options, dropout).unwrap()
        });
        assert!(exact.loss != rounded.loss && (exact.loss - rounded.loss).abs() < 0.01 * exact.loss);
        for ((name, _), (exact, rounded)) in
            parameters.vars().iter().zip(exact.gradients.iter().zip(&rounded.gradients))
        {
            let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let error = norm(&(exact - rounded).unwrap()) / norm(exact);
            assert!(0.0 < error && error < 10.0 / 256.0, "{name}: {error}");
        }
    }

    /// Compares gradients, of which each element may differ by this part of the tensor's largest.
    fn hold(model: &CausalLm, vars: &[(String, Var)], tolerance: f32) {
        let ids: Vec<u32> = (0..40).map(|i| (i * i + i / 3) % 11).collect();
        let (ids, dropout) = (ids.into(), DropoutSource { seed: 3, step: 5, first_sequence: 2 });
        for (i, (_, var)) in vars.iter().enumerate() {
            var.set(&(randn(i as u64, var.dims()) * 0.3).unwrap().to_dtype(DType::F32).unwrap()).unwrap();
        }
        for (t, separator, label_smoothing) in [(1, None, 0.0), (5, None, 0.2), (7, None, 0.0), (7, Some(4), 0.1)] {
            let mut batches = windows(&ids, (3, t), true, separator, &Device::Cpu).unwrap();
            let batch = batches.next().unwrap().unwrap();
            let options = CrossEntropyOptions { normalizer: Some(5.0), label_smoothing, ..Default::default() };
            let recorded = of_shard(model, vars, &batch, dropout, &options).unwrap();
            let by_graph = loss(model, &batch, Some(dropout), &options).unwrap();
            let mut gradients = by_graph.backward().unwrap();
            let by_graph = collect(&by_graph, vars, |var| gradients.remove(var)).unwrap();
            assert_eq!(recorded.loss, by_graph.loss);
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let largest_of = |x: &[f32]| x.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
            // Of one position, queries and keys have no gradient but rounding errors.
            let floor = 0.01;
            for ((name, _), (got, expected)) in vars.iter().zip(recorded.gradients.iter().zip(&by_graph.gradients)) {
                let [got, expected] = [got, expected].map(flat);
                let largest = largest_of(&expected).max(floor);
                let is_close = |(got, expected): (&f32, &f32)| (got - expected).abs() <= tolerance * largest;
                let label = format!("{name} of {:?}, {t} positions", model.config().architecture);
                assert!(got.iter().zip(&expected).all(is_close), "{label}: {got:?}, expected {expected:?}");
            }
        }
    }
}
