//! The loss and gradients of a batch.

use candle_core::{Device, Result, Tensor, Var, bail};

use super::Gradients;
use crate::model::{CausalLm, DropoutSource, ForwardContext};
use crate::ops::{self, CrossEntropyOptions};
use crate::text::Batch;

/// Everything that the gradients of a step depend on, except its batch.
#[derive(Clone, Copy)]
pub(super) struct Backward<'a> {
    pub(super) model: &'a CausalLm,
    /// The variables of the model.
    pub(super) vars: &'a [(String, Var)],
    pub(super) device: &'a Device,
    /// The step's random numbers, from the first sequence of its batch on.
    pub(super) dropout: DropoutSource,
    pub(super) label_smoothing: f64,
    pub(super) z_loss: f64,
}

/// A part of a batch.
struct Shard {
    batch: Batch,
    /// The number of its first sequence in the batch.
    first_sequence: u64,
}

impl Shard {
    /// A batch divided into at most `count` shards.
    fn all(batch: &Batch, count: usize) -> Vec<Self> {
        Self { batch: batch.clone(), first_sequence: 0 }.divided(count)
    }

    fn divided(&self, count: usize) -> Vec<Self> {
        let mut next = self.first_sequence;
        let shard = |batch: Batch| {
            let first_sequence = next;
            next += batch.batch_size as u64;
            Self { batch, first_sequence }
        };
        self.batch.shards(count).into_iter().map(shard).collect()
    }
}

/// A batch in at most `accumulate` rounds, each of at most `shards` shards. No round has more than `1 / accumulate` of
/// the batch's sequences, rounded up.
fn rounds(batch: &Batch, shards: usize, accumulate: usize) -> impl Iterator<Item = Vec<Shard>> {
    Shard::all(batch, accumulate).into_iter().map(move |round| round.divided(shards))
}

impl Backward<'_> {
    /// The mean loss of a batch and its gradients, in `accumulate` rounds of `shards` shards. Within a round each shard
    /// runs forward and backward on a thread of its own; rounds run one after the other. Losses and gradients are added
    /// in the order of the shards, so the bits of the result depend on where the batch is cut, but not on threads or
    /// rounds.
    pub(super) fn gradients(&self, batch: &Batch, shards: usize, accumulate: usize) -> Result<(f64, Gradients)> {
        let divisor = batch.targets.len() as f64;
        let (mut loss, mut sum) = (0.0, None);
        for round in rounds(batch, shards, accumulate) {
            let parts = ops::map(round.len(), |i| self.gradients_of(&round[i], divisor));
            let (losses, gradients): (Vec<f64>, Vec<Gradients>) =
                parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
            loss = losses.iter().fold(loss, |sum, part| sum + part);
            let gradients: Vec<Gradients> = sum.take().into_iter().chain(gradients).collect();
            sum = Some(Gradients::sum(&gradients)?);
        }
        match sum {
            Some(sum) => Ok((loss, sum)),
            None => bail!("gradients: expected at least one sequence, got none"),
        }
    }

    /// The indices of the sequences of a batch that are bad alone: `is_bad` is given the loss of each and the norms of
    /// its gradients.
    pub(super) fn bad_sequences(
        &self,
        batch: &Batch,
        is_bad: impl Fn(f64, &[f64]) -> bool + Sync,
    ) -> Result<Vec<usize>> {
        let sequences = Shard::all(batch, batch.batch_size);
        let divisor = batch.targets.len() as f64;
        let is_bad = ops::map(sequences.len(), |i| {
            let (loss, gradients) = self.gradients_of(&sequences[i], divisor)?;
            Ok(is_bad(loss, &gradients.norms()?))
        });
        let is_bad: Vec<bool> = is_bad.into_iter().collect::<Result<_>>()?;
        Ok((0..is_bad.len()).filter(|&i| is_bad[i]).collect())
    }

    fn gradients_of(&self, shard: &Shard, divisor: f64) -> Result<(f64, Gradients)> {
        if self.records() { self.recorded(shard, divisor) } else { self.by_graph(shard, divisor) }
    }

    /// Only operations with kernels, on the CPU, can be recorded.
    fn records(&self) -> bool {
        self.device.is_cpu()
    }

    /// The loss of a shard, divided by the targets of the whole batch, and its gradients, by [`ops::record`].
    fn recorded(&self, shard: &Shard, divisor: f64) -> Result<(f64, Gradients)> {
        let (loss, recording) = ops::record::record(|| self.loss(shard, divisor))?;
        let gradients = Gradients::collect_recorded(recording.backward(&loss)?, self.vars)?;
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    }

    /// The same by candle's own graph.
    fn by_graph(&self, shard: &Shard, divisor: f64) -> Result<(f64, Gradients)> {
        let loss = self.loss(shard, divisor)?;
        let gradients = Gradients::collect(loss.backward()?, self.vars)?;
        Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
    }

    fn loss(&self, Shard { batch, first_sequence }: &Shard, divisor: f64) -> Result<Tensor> {
        let (ids, targets) = (batch.inputs_tensor(self.device)?, batch.targets_tensor(self.device)?);
        let &Self { label_smoothing, z_loss, .. } = self;
        let dropout = DropoutSource { first_sequence: *first_sequence, ..self.dropout };
        let documents = batch.documents_tensor(self.device)?;
        let context = ForwardContext { dropout: Some(dropout), documents };
        let options = CrossEntropyOptions { divisor: Some(divisor), label_smoothing, z_loss, ..Default::default() };
        self.model.loss_with(&ids, &targets, &options, &context)
    }

    /// Compares the recorded gradients of the batch's first sequence with those of candle's graph: an operation that is
    /// not recorded loses its part of the gradient.
    ///
    /// # Errors
    /// If they differ by more than rounding errors: names the first such tensor.
    pub(super) fn check_recording(&self, batch: &Batch) -> Result<()> {
        /// Far above the rounding errors of reordered `f32` sums, far below the effect of a missing part.
        const TOLERANCE: f64 = 1e-3;
        if !self.records() {
            return Ok(());
        }
        let sequences = Shard::all(batch, batch.batch_size);
        let Some(first) = sequences.first() else { return Ok(()) };
        let divisor = first.batch.targets.len() as f64;
        let (recorded, by_graph) = (self.recorded(first, divisor)?.1, self.by_graph(first, divisor)?.1);
        for ((name, _), (recorded, expected)) in self.vars.iter().zip(recorded.tensors().iter().zip(by_graph.tensors()))
        {
            let (difference, norm) = (ops::euclidean_norm(&(recorded - expected)?)?, ops::euclidean_norm(expected)?);
            if difference > TOLERANCE * norm {
                bail!(
                    "recording: the gradient of {name} differs by {difference:.1e} from candle's, whose norm is {norm:.1e}"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Activation, DropoutRates, ModelConfig};
    use crate::nn::{MultiHeadAttention, MultiHeadAttentionConfig, Parameters};
    use crate::ops::testing::randn;
    use candle_core::DType;

    fn batch(b: usize, t: usize) -> Batch {
        let ids = |shift: u32| (0..(b * t) as u32).map(|i| (i * i + shift) % 11).collect();
        Batch { inputs: ids(0), targets: ids(1), batch_size: b, seq_len: t, starts: vec![0; b], documents: None }
    }

    #[test]
    fn no_round_has_more_sequences_than_its_part_of_the_batch() {
        for (b, shards, accumulate) in
            [(12, 12, 4), (12, 8, 4), (12, 2, 1), (7, 3, 3), (7, 16, 7), (5, 1, 5), (6, 2, 2)]
        {
            let all = batch(b, 2);
            let (mut next, mut count) = (0, 0);
            for round in rounds(&all, shards, accumulate) {
                let sequences = round.iter().map(|shard| shard.batch.batch_size).sum::<usize>();
                assert!(
                    sequences <= b.div_ceil(accumulate),
                    "{sequences} of {b}, {shards} shards, {accumulate} rounds"
                );
                assert_eq!(round.len(), shards.min(sequences));
                for shard in round {
                    assert_eq!(shard.first_sequence as usize, next);
                    assert_eq!(shard.batch.inputs, all.inputs[next * 2..(next + shard.batch.batch_size) * 2]);
                    next += shard.batch.batch_size;
                }
                count += 1;
            }
            assert_eq!((next, count), (b, accumulate));
        }
    }

    /// Every form of the model, with full and shorter contexts.
    #[test]
    fn recorded_gradients_are_those_of_candles_graph() {
        let base = ModelConfig {
            context_len: 7,
            embed_dim: 12,
            num_heads: 3,
            num_layers: 2,
            hidden_dim: 20,
            ..ModelConfig::gpt2(11)
        };
        let of = |form: ModelConfig| {
            let ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, .. } = base;
            ModelConfig { context_len, embed_dim, num_heads, num_layers, hidden_dim, ..form }
        };
        let forms = [
            base.clone(),
            ModelConfig { bias: true, ..base.clone() },
            ModelConfig { dropout: DropoutRates::all(0.3), ..base.clone() },
            ModelConfig { tie_embeddings: false, activation: Activation::GeluTanh, ..base.clone() },
            of(ModelConfig { dropout: DropoutRates::all(0.3), ..ModelConfig::llama(11) }),
            of(ModelConfig { bias: true, mlp_bias: true, num_kv_heads: Some(1), ..ModelConfig::llama(11) }),
            of(ModelConfig {
                tie_embeddings: false,
                num_kv_heads: Some(1),
                head_dim: Some(6),
                ..ModelConfig::qwen3(11)
            }),
        ];
        for config in forms {
            let parameters = Parameters::new(3);
            let model = CausalLm::new(&config, parameters.var_builder(DType::F32, &Device::Cpu)).unwrap();
            let vars = parameters.vars();
            let backward = Backward {
                model: &model,
                vars: &vars,
                device: &Device::Cpu,
                dropout: Default::default(),
                label_smoothing: 0.0,
                z_loss: 0.0,
            };
            for (t, end, label_smoothing) in [(1, None, 0.0), (5, None, 0.2), (7, None, 0.0), (7, Some(4), 0.0)] {
                let backward = Backward { label_smoothing, z_loss: label_smoothing / 10.0, ..backward };
                let batch = batch(3, t).with_isolated_documents(end);
                backward.check_recording(&batch).unwrap();
                let batch = Shard { batch, first_sequence: 2 };
                let (recorded, by_graph) =
                    (backward.recorded(&batch, 5.0).unwrap(), backward.by_graph(&batch, 5.0).unwrap());
                assert_eq!(recorded.0, by_graph.0);
                for ((name, _), (a, b)) in vars.iter().zip(recorded.1.tensors().iter().zip(by_graph.1.tensors())) {
                    let difference = ops::euclidean_norm(&(a - b).unwrap()).unwrap();
                    assert!(
                        difference <= 1e-6 * ops::euclidean_norm(b).unwrap(),
                        "{name}: {difference} at {t} positions"
                    );
                }
            }
        }
    }

    /// Shapes that change, and rows that are left out, on the way to the loss.
    #[test]
    fn targets_that_do_not_count_and_heads_that_are_not_packed_are_recorded() {
        let f32s = |seed, shape: &[usize]| Var::from_tensor(&randn(seed, shape).to_dtype(DType::F32).unwrap()).unwrap();
        let (xs, weight) = (f32s(1, &[2, 3, 8]), f32s(2, &[5, 8]));
        let parameters = Parameters::new(3);
        let vb = parameters.var_builder(DType::F32, &Device::Cpu);
        let config = MultiHeadAttentionConfig { num_kv_heads: Some(1), ..MultiHeadAttentionConfig::new(8, 2) };
        let attention = MultiHeadAttention::new(&config, vb).unwrap();
        let targets = Tensor::new(&[[0u32, 9, 4], [9, 1, 2]], &Device::Cpu).unwrap();
        let options = ops::CrossEntropyOptions { ignored: Some(9), ..Default::default() };
        let loss = || {
            let ys = ops::record::add(&xs, &attention.forward_with(&xs, &Default::default())?)?;
            ops::linear_cross_entropy(&ys, &weight, &targets, &options)
        };
        let (recorded_loss, recording) = ops::record::record(loss).unwrap();
        let recorded = recording.backward(&recorded_loss).unwrap();
        let by_graph = loss().unwrap().backward().unwrap();
        for var in parameters.vars().iter().map(|(_, var)| var).chain([&xs, &weight]) {
            let (got, expected) = (&recorded[&var.id()], by_graph.get(var).unwrap());
            let difference = ops::euclidean_norm(&(got - expected).unwrap()).unwrap();
            assert!(difference <= 1e-6 * ops::euclidean_norm(expected).unwrap(), "{difference} of {expected}");
        }
    }

    /// The reason for the check at the start: a missing part of the gradient.
    #[test]
    fn an_operation_that_is_not_recorded_is_refused_or_leaves_its_variable_without_gradient() {
        let var = Var::from_tensor(&randn(1, &[3, 4]).to_dtype(DType::F32).unwrap()).unwrap();
        let composed = ops::record::record(|| ops::silu(&var.t()?)).err().unwrap().to_string();
        assert!(composed.contains("comes from an operation that is not recorded"), "{composed}");

        let cut = |x: &Tensor| ops::silu(&(x * 2.0)?)?.sum_all();
        let (loss, recording) = ops::record::record(|| cut(&ops::silu(&var)?)).unwrap();
        let vars = [("weight".to_string(), var)];
        let error = Gradients::collect_recorded(recording.backward(&loss).unwrap(), &vars).err().unwrap().to_string();
        assert!(error.contains("no gradient reaches weight"), "{error}");
    }
}
