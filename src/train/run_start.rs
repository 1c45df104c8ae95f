//! What a run started from: its initial weights, its first batch, and the gradients there or anywhere else.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use toml::{Table, Value};

use super::gradients::{LossAndGradients, loss_and_gradients};
use super::memory_needed::check_memory;
use super::ownership::{is_of_a_run, not_a_run};
use super::{TrainOptions, settings_file};
use crate::host::{ModelPath, Result, adapter_base, memory};
use crate::model::{CausalLm, DropoutRates, DropoutSource, ModelConfig, ResidualInit, load_weights};
use crate::nn::Parameters;
use crate::text::{Batch, Corpus, TextProgress};

/// The weights that training started from in the run `root`, a model of this configuration, by their names in the model:
/// those of the model that its setting `init` names, else drawn again from its seed. Those of an adapter (LoRA), whether a
/// run or not, are its base's.
///
/// That they are the ones is taken from the run's settings: a model at `init` that has changed since gives other weights.
///
/// # Errors
/// If it is neither a run nor an adapter, its settings cannot be read, or the model that it started from is not there any
/// more or has another configuration.
pub fn initial_weights(root: &Path, config: &ModelConfig, device: &Device) -> Result<BTreeMap<String, Tensor>> {
    if let ModelPath::Adapter(folder) = ModelPath::of(root)? {
        return load_weights(&adapter_base(&folder)?, config, device);
    }
    let (settings, options) = settings(root)?;
    if let Some(init) = settings.get("init").and_then(Value::as_str).filter(|init| !init.is_empty()) {
        return load_weights(Path::new(init), config, device);
    }
    let residual_init = match settings.get("zero-residual").and_then(Value::as_bool) {
        Some(true) => ResidualInit::Zero,
        _ => config.residual_init,
    };
    let parameters = Parameters::new(options.seed);
    let config = ModelConfig { residual_init, ..config.clone() };
    CausalLm::new(&config, parameters.var_builder(DType::F32, device))?;
    Ok(parameters.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect())
}

/// The batch of the first step of the run `root`, of a model of this configuration.
///
/// # Errors
/// If it is not a run, its settings or ids cannot be read or do not fit the model, or the batch needs more memory than this
/// machine has.
pub fn first_batch(
    root: &Path,
    config: &ModelConfig,
    device: &Device,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Batch> {
    let (_, options) = settings(root)?;
    let corpus = Corpus::open(&root.join("training/ids.safetensors"), progress)?;
    options.validate_for(config, &corpus)?;
    check_memory(config, &corpus, &options, None)?;
    options.sampler(config, &corpus).batch(&corpus.train, 0, device)
}

/// The mean loss of a batch in nats per token, without dropout and label smoothing, and its gradients with respect to all
/// `weights` of a model of this configuration, by their names in the model.
///
/// # Errors
/// If a weight is missing or misshapen, an id is none of the model's, or memory cannot hold the gradients.
pub fn gradients(
    config: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
    batch: &Batch,
) -> Result<(f64, BTreeMap<String, Tensor>)> {
    let config = ModelConfig { dropout: DropoutRates::default(), ..config.clone() };
    // A sequence in each shard: no more activations at once than need be.
    let (all, batch_size) = (TrainOptions::default(), batch.size());
    let options = TrainOptions { accumulate: batch_size.div_ceil(all.shards).max(1), ..all };
    // The weights once more, the gradients of each shard, and their sum.
    let copies = 2 + options.shards.min(batch_size);
    let scalars: usize = weights.values().map(Tensor::elem_count).sum();
    memory::check("gradients", memory::tensor_bytes(&[copies, scalars], size_of::<f32>()))?;
    let device = batch.inputs.device();
    let parameters = Parameters::restored(weights.iter().map(|(name, tensor)| (name.clone(), tensor.clone())))?;
    let model = CausalLm::new(&config, parameters.var_builder(DType::F32, device))?;
    let (vars, dropout) = (parameters.vars(), DropoutSource { seed: 0, step: 0, first_sequence: 0 });
    let LossAndGradients { loss, gradients } = loss_and_gradients(&model, &vars, batch, &options, dropout)?;
    Ok((loss, vars.into_iter().map(|(name, _)| name).zip(gradients).collect()))
}

/// All settings of the run `root`, and the options among them.
fn settings(root: &Path) -> Result<(Table, TrainOptions)> {
    let training = root.join("training");
    if !is_of_a_run(&training) {
        return Err(not_a_run(root));
    }
    settings_file::read(&training)
}
