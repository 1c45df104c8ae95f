//! The optimizer's state, saved and restored.

use super::*;
use candle_core::{DType, Device};

fn vars() -> Vec<(String, Var)> {
    [("blocks.0.mlp.up_proj.weight", &[3, 5][..]), ("norm.weight", &[5])]
        .map(|(name, shape)| (name.to_string(), Var::ones(shape, DType::F32, &Device::Cpu).unwrap()))
        .to_vec()
}

fn optimizer() -> Optimizer {
    Optimizer::new(vars(), &TrainOptions { optimizer: OptimizerKind::Muon, ..Default::default() }).unwrap()
}

#[test]
fn muon_keeps_one_tensor_and_adamw_two() {
    let names: Vec<String> = optimizer().state().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["momentum.blocks.0.mlp.up_proj.weight", "first_moment.norm.weight", "second_moment.norm.weight"]
    );
}

#[test]
fn a_state_that_does_not_fit_is_listed_whole_and_changes_nothing() {
    let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let state = [
        ("momentum.blocks.0.mlp.up_proj.weight", ones(&[5, 3])),
        ("first_moment.norm.weight", ones(&[5])),
        ("first_moment.blocks.0.mlp.up_proj.weight", ones(&[3, 5])),
    ];
    let mut optimizer = optimizer();
    let error =
        optimizer.restore(state.map(|(name, tensor)| (name.to_string(), tensor)).into()).unwrap_err().to_string();
    for problem in [
        "momentum.blocks.0.mlp.up_proj.weight: expected shape [3, 5], got [5, 3]",
        "second_moment.norm.weight is missing",
        "first_moment.blocks.0.mlp.up_proj.weight has no place in it",
    ] {
        assert!(error.contains(problem), "{error}");
    }
    assert!(optimizer.state().iter().all(|(_, tensor)| ops::euclidean_norm(tensor).unwrap() == 0.0));
}

#[test]
fn a_state_comes_back_into_its_places() {
    let mut optimizer = optimizer();
    let state: BTreeMap<String, Tensor> =
        (1..).zip(optimizer.state()).map(|(i, (name, tensor))| (name, (tensor + f64::from(i)).unwrap())).collect();
    optimizer.restore(state.clone()).unwrap();
    for (name, tensor) in optimizer.state() {
        let difference = ops::euclidean_norm(&(tensor - &state[&name]).unwrap()).unwrap();
        assert_eq!(difference, 0.0, "{name}");
    }
}
