//! A model written for candle-nn, with a different `use` line.

use candle_attention::nn::Parameters;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};

use crate::support::{assert_as_exact, assert_close, values};

/// The same model with the layers of either crate.
macro_rules! model_with {
    ($name:ident, $($crate_name:ident)::+) => {
        mod $name {
            use $($crate_name)::+::{
                Dropout, Embedding, LayerNorm, LayerNormConfig, Linear, RmsNorm, embedding, layer_norm, layer_norm_no_bias,
                linear, linear_b, linear_no_bias, rms_norm,
            };
            use candle_core::{Module, ModuleT, Result, Tensor};
            use candle_nn::VarBuilder;

            pub struct Model {
                embedding: Embedding,
                up: Linear,
                norm: LayerNorm,
                down: Linear,
                centred: LayerNorm,
                rms: RmsNorm,
                head: Linear,
                dropout: Dropout,
            }

            impl Model {
                pub fn new(vb: VarBuilder) -> Result<Self> {
                    let config = LayerNormConfig { eps: 1e-4, ..Default::default() };
                    Ok(Self {
                        embedding: embedding(11, 6, vb.pp("embedding"))?,
                        up: linear(6, 13, vb.pp("up"))?,
                        norm: layer_norm_no_bias(13, 1e-5, vb.pp("norm"))?,
                        down: linear_no_bias(13, 7, vb.pp("down"))?,
                        centred: layer_norm(7, config, vb.pp("centred"))?,
                        rms: rms_norm(7, 1e-6, vb.pp("rms"))?,
                        head: linear_b(7, 3, true, vb.pp("head"))?,
                        dropout: Dropout::new(0.5),
                    })
                }

                /// The part that candle-nn's gradients reach.
                pub fn lower(&self, ids: &Tensor) -> Result<Tensor> {
                    let xs = self.up.forward(&self.embedding.forward(ids)?)?.tanh()?;
                    self.down.forward(&self.norm.forward(&xs)?)
                }

                pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
                    let xs = self.dropout.forward_t(&self.lower(ids)?, false)?;
                    let xs = self.rms.forward(&self.centred.forward(&xs)?)?;
                    self.head.forward(&self.dropout.forward(&xs, false)?)
                }

                /// The accessors that a model may use.
                pub fn parts(&self) -> Result<(usize, f64, Vec<Tensor>)> {
                    let rms = RmsNorm::new(self.rms.weight().clone(), 1e-6).into_inner();
                    let again = LayerNorm::new(self.norm.weight().clone(), self.norm.weight().zeros_like()?, 1e-5);
                    let linear = Linear::new(self.up.weight().clone(), self.up.bias().cloned());
                    let xs = Embedding::new(self.embedding.embeddings().clone(), 6).embeddings().clone();
                    let ys = again.forward(&linear.forward(&xs)?)?;
                    let zs = LayerNorm::new_no_bias(self.norm.weight().clone(), 1e-3).forward(&ys)?;
                    let rms_ys = rms.forward(&zs.narrow(1, 3, 7)?)?;
                    Ok((self.embedding.hidden_size(), rms.eps(), vec![ys, zs, rms_ys]))
                }
            }
        }
    };
}

model_with!(theirs, candle_nn);
model_with!(ours, candle_attention::nn);

fn ids() -> Tensor {
    Tensor::new(&[[1u32, 10, 0, 3, 3], [4, 2, 7, 1, 9]], &Device::Cpu).unwrap()
}

/// Names, shapes and initial values, with any store of weights.
fn stores() -> [Parameters; 2] {
    let stores = [Parameters::new(5), Parameters::new(5)];
    theirs::Model::new(stores[0].var_builder(DType::F64, &Device::Cpu)).unwrap();
    ours::Model::new(stores[1].var_builder(DType::F64, &Device::Cpu)).unwrap();
    stores
}

#[test]
fn tensors_have_the_same_names_shapes_and_initial_values() {
    let [theirs, ours] = stores().map(|store| {
        let tensor = |(name, var): (String, Var)| (name, var.dims().to_vec(), values(&var));
        store.vars().into_iter().map(tensor).collect::<Vec<_>>()
    });
    assert_eq!(theirs.len(), 10);
    assert_eq!(theirs, ours);
}

#[test]
fn outputs_are_the_same() {
    let [store, _] = stores();
    let in_f64 = || store.var_builder(DType::F64, &Device::Cpu);
    // candle-nn's norms do not support f64: ours are the truth, and in f32 both must be close to it.
    let truth = ours::Model::new(in_f64()).unwrap();
    let store_in_f32 = in_f32(&store);
    let in_f32 = || store_in_f32.var_builder(DType::F32, &Device::Cpu);
    let (theirs, ours) = (theirs::Model::new(in_f32()).unwrap(), ours::Model::new(in_f32()).unwrap());
    let (truth_parts, their_parts, our_parts) =
        (truth.parts().unwrap(), theirs.parts().unwrap(), ours.parts().unwrap());
    assert_eq!((their_parts.0, their_parts.1), (our_parts.0, our_parts.1));
    let outputs = [truth.forward(&ids()), theirs.forward(&ids()), ours.forward(&ids())].map(Result::unwrap);
    let mut results = vec![outputs];
    for ((truth, theirs), ours) in truth_parts.2.into_iter().zip(their_parts.2).zip(our_parts.2) {
        results.push([truth, theirs, ours]);
    }
    for (i, [truth, theirs, ours]) in results.iter().enumerate() {
        assert_close(&format!("result {i} of candle-nn"), theirs, truth, 1e-4);
        assert_as_exact(&format!("result {i}"), ours, theirs, truth);
    }
}

#[test]
fn gradients_are_the_same_where_candle_nn_has_some() {
    let [store, _] = stores();
    let vb = || store.var_builder(DType::F64, &Device::Cpu);
    let (theirs, ours) = (theirs::Model::new(vb()).unwrap(), ours::Model::new(vb()).unwrap());
    let (theirs, ours) = (gradients(theirs.lower(&ids())), gradients(ours.lower(&ids())));
    for (name, var) in store.vars() {
        let is_lower = ["embedding", "up", "norm", "down"].iter().any(|layer| name.starts_with(&format!("{layer}.")));
        if is_lower {
            assert_close(&name, ours.get(&var).unwrap(), theirs.get(&var).unwrap(), 1e-10);
        }
    }
}

/// candle-nn's gradients do not pass through norms: only what comes after them learns.
#[test]
fn gradients_reach_everything() {
    let [store, _] = stores();
    let store = in_f32(&store);
    let vb = || store.var_builder(DType::F32, &Device::Cpu);
    let (theirs, ours) = (theirs::Model::new(vb()).unwrap(), ours::Model::new(vb()).unwrap());
    let (theirs, ours) = (gradients(theirs.forward(&ids())), gradients(ours.forward(&ids())));
    for (name, var) in store.vars() {
        assert_eq!(theirs.get(&var).is_some(), name.starts_with("head."), "candle-nn's {name}");
        assert!(ours.get(&var).is_some(), "{name}");
    }
}

fn gradients(ys: Result<Tensor>) -> GradStore {
    ys.unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap()
}

fn in_f32(store: &Parameters) -> Parameters {
    Parameters::restored(store.vars().into_iter().map(|(name, var)| (name, var.to_dtype(DType::F32).unwrap()))).unwrap()
}

#[test]
fn old_names_of_norms_are_read() {
    for (weight, bias) in [("weight", "bias"), ("gamma", "beta")] {
        let tensors = [(weight, 2.0), (bias, 3.0)]
            .map(|(name, value)| (name.to_string(), Tensor::full(value, 5, &Device::Cpu).unwrap()));
        let store = Parameters::restored(tensors).unwrap();
        let norm = candle_attention::nn::layer_norm(5, 1e-5, store.var_builder(DType::F64, &Device::Cpu)).unwrap();
        assert_eq!((values(norm.weight()), values(norm.bias().unwrap())), (vec![2.0; 5], vec![3.0; 5]));
        assert!(store.unread().is_empty());
    }
}

#[test]
fn dropout_in_training_drops_its_share_and_scales_the_rest() {
    use candle_attention::nn::Dropout;
    let ones = Tensor::ones((4, 1000), DType::F32, &Device::Cpu).unwrap();
    let dropped = |dropout: &Dropout| values(&dropout.forward(&ones, true).unwrap());
    let dropout = Dropout::seeded(0.25, 7);
    let first = dropped(&dropout);
    let share = first.iter().filter(|x| **x == 0.0).count() as f64 / 4000.0;
    // Four standard errors of a share of 4000 draws.
    assert!((share - 0.25).abs() < 4.0 * (0.25 * 0.75 / 4000f64).sqrt(), "{share}");
    assert!(first.iter().all(|x| *x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
    // The numbers advance with each call, also a clone's, and are reproducible from the seed.
    let clone = dropout.clone();
    let (second, third) = (dropped(&clone), dropped(&dropout));
    assert!(first != second && second != third && first != third);
    let again = Dropout::seeded(0.25, 7);
    assert_eq!([dropped(&again), dropped(&again), dropped(&again)], [first, second, third]);
    assert_ne!(dropped(&Dropout::new(0.25)), dropped(&Dropout::new(0.25)));
    for p in [1.0, 1.5, -0.1, f32::NAN] {
        assert!(Dropout::new(p).forward(&ones, true).is_err(), "{p}");
        assert_eq!(values(&Dropout::new(p).forward(&ones, false).unwrap()), vec![1.0; 4000]);
    }
}
