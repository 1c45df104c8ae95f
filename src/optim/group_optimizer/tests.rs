//! The optimizers against their single steps and candle-nn's AdamW; states, and what is refused.

use super::*;
use crate::cpu::testing::randn;
use crate::optim::{AdamWStep, Moments, MuonStep, adamw, muon};
use candle_core::DType;
use candle_nn::Optimizer as _;

fn var(seed: u64, shape: &[usize], dtype: DType) -> Var {
    Var::from_tensor(&randn(seed, shape).to_dtype(dtype).unwrap()).unwrap()
}

/// Named variables: two matrices, one of them in half precision, and a vector.
fn vars() -> Vec<(String, Var)> {
    let shapes = [("a", &[3, 5][..], DType::F32), ("b", &[4, 2], DType::BF16), ("c", &[7], DType::F32)];
    (1..).zip(shapes).map(|(seed, (name, shape, dtype))| (name.to_string(), var(seed, shape, dtype))).collect()
}

/// Gradients that differ from step to step, from a graph.
fn gradients(vars: &[(String, Var)], step: u64) -> GradStore {
    let terms = vars.iter().zip(10 * step..).map(|((_, var), seed)| {
        let factors = randn(seed, var.dims()).to_dtype(var.dtype())?;
        (var.as_tensor() * factors)?.to_dtype(DType::F64)?.sum_all()
    });
    let loss: Result<Tensor> = terms.reduce(|a, b| a? + b?).unwrap();
    loss.unwrap().backward().unwrap()
}

fn values(vars: &[(String, Var)]) -> Vec<Vec<f64>> {
    let values = |var: &Var| var.to_dtype(DType::F64)?.flatten_all()?.to_vec1();
    vars.iter().map(|(_, var)| values(var).unwrap()).collect()
}

fn groups(vars: &[(String, Var)]) -> Vec<ParamGroup> {
    vec![
        ParamGroup { weight_decay: Some(0.3), ..ParamGroup::muon(vars[..2].to_vec()) },
        ParamGroup { lr: 0.25, ..ParamGroup::adamw(vars[2..].to_vec()) },
    ]
}

/// With clipping to a norm that is always exceeded.
fn params() -> ParamsMuon {
    ParamsMuon { max_grad_norm: Some(0.5), ..Default::default() }
}

#[test]
fn groups_are_updated_by_their_rules_and_numbers() {
    let (got, expected) = (vars(), vars());
    let mut optimizer = Muon::with_groups(groups(&got), params()).unwrap();
    let precise = |var: &Var| if var.dtype() == DType::BF16 { DType::F32 } else { var.dtype() };
    let zeros = |var: &Var| Tensor::zeros(var.shape(), precise(var), &Device::Cpu).unwrap();
    let mut averages = [zeros(&expected[0].1), zeros(&expected[1].1)];
    let mut moments = Moments::zeros(&expected[2].1).unwrap();
    for step in 1..=4 {
        let learning_rate = 0.01 * step as f64;
        optimizer.set_learning_rate(learning_rate);
        assert_eq!(optimizer.learning_rate(), learning_rate);
        optimizer.step(&gradients(&got, step)).unwrap();

        let store = gradients(&expected, step);
        let found: Vec<Tensor> = expected.iter().map(|(_, var)| store.get(var).unwrap().clone()).collect();
        let (_, norm) = global_norm(&found).unwrap();
        assert!(norm > 0.5 && optimizer.grad_norm() == Some(norm));
        let gradient_scale = clip_factor(norm, 0.5);
        let of_matrix = MuonStep { learning_rate, weight_decay: 0.3, gradient_scale, ..Default::default() };
        for ((average, (_, var)), gradient) in averages.iter_mut().zip(&expected).zip(&found) {
            muon(var, gradient, average, &of_matrix).unwrap();
        }
        let of_vector = AdamWStep {
            learning_rate: 0.25 * learning_rate,
            beta2: 0.95,
            weight_decay: 0.1,
            gradient_scale,
            step,
            ..Default::default()
        };
        adamw(&expected[2].1, &found[2], &mut moments, &of_vector).unwrap();
        assert_eq!(values(&got), values(&expected), "step {step}");
    }
    assert_ne!(values(&got), values(&vars()));
    assert_eq!(optimizer.steps(), 4);
}

#[test]
fn the_default_is_candles_adamw() {
    let [ours, theirs] = [1, 1].map(|seed| vec![("a".to_string(), var(seed, &[3, 5], DType::F64))]);
    let mut optimizer = AdamW::new(vec![ours[0].1.clone()], ParamsAdamW::default()).unwrap();
    let mut other = candle_nn::AdamW::new(vec![theirs[0].1.clone()], candle_nn::ParamsAdamW::default()).unwrap();
    assert_eq!(optimizer.learning_rate(), other.learning_rate());
    for step in 1..=5 {
        optimizer.step(&gradients(&ours, step)).unwrap();
        other.step(&gradients(&theirs, step)).unwrap();
    }
    for (ours, theirs) in values(&ours)[0].iter().zip(&values(&theirs)[0]) {
        assert!((ours - theirs).abs() < 1e-14, "{ours}, expected {theirs}");
    }
    assert!(optimizer.grad_norm().is_some_and(f64::is_finite));
}

/// Weights and state in files, read by a program that has just started: to the last bit.
#[test]
fn a_run_that_loads_its_state_continues_exactly() {
    let space = tempfile::tempdir().unwrap();
    let file = space.path().join("optimizer.safetensors");
    let run = |vars: &[(String, Var)], optimizer: &mut Muon, steps: std::ops::Range<u64>| {
        for step in steps {
            optimizer.step(&gradients(vars, step)).unwrap();
        }
    };
    let whole = vars();
    let mut optimizer = Muon::with_groups(groups(&whole), params()).unwrap();
    run(&whole, &mut optimizer, 1..4);
    optimizer.save(&file).unwrap();
    let saved: Vec<Tensor> = whole.iter().map(|(_, var)| var.as_tensor().copy().unwrap()).collect();
    run(&whole, &mut optimizer, 4..7);

    let resumed = vars();
    resumed.iter().zip(&saved).for_each(|((_, var), value)| var.set(value).unwrap());
    let mut optimizer = Muon::with_groups(groups(&resumed), params()).unwrap();
    optimizer.load(&file).unwrap();
    assert_eq!(optimizer.steps(), 3);
    run(&resumed, &mut optimizer, 4..7);
    assert_eq!(values(&resumed), values(&whole));
    assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 1);
}

#[test]
fn another_state_is_refused_and_changes_nothing() {
    let space = tempfile::tempdir().unwrap();
    let (file, vars) = (space.path().join("optimizer.safetensors"), vars());
    let mut of_muon = Muon::with_groups(groups(&vars), params()).unwrap();
    of_muon.step(&gradients(&vars, 1)).unwrap();
    of_muon.save(&file).unwrap();

    let group = ParamGroup::adamw(vars[..1].to_vec());
    let mut of_adamw = AdamW::with_groups(vec![group], ParamsAdamW::default()).unwrap();
    let error = of_adamw.load(&file).unwrap_err().to_string();
    assert!(error.contains("first_moment.a of shape [3, 5] is missing; "), "{error}");
    assert!(error.contains("momentum.a is left over; momentum.b is left over"), "{error}");

    let other = Var::zeros((3, 5), DType::F64, &Device::Cpu).unwrap();
    let group = |var: Var| vec![ParamGroup::adamw(vec![("a".to_string(), var)])];
    AdamW::with_groups(group(other), ParamsAdamW::default()).unwrap().save(&file).unwrap();
    let error = of_adamw.load(&file).unwrap_err().to_string();
    assert!(error.contains("expected first_moment.a in F32, got F64"), "{error}");
    assert_eq!(of_adamw.steps(), 0);
}

#[test]
fn a_gradient_may_be_missing_only_where_variables_are_frozen() {
    let vars = vars();
    let store = gradients(&vars[..1], 1);
    let before = values(&vars);
    let all: Vec<Var> = vars.iter().map(|(_, var)| var.clone()).collect();
    let mut optimizer = AdamW::new(all, ParamsAdamW::default()).unwrap();
    let error = optimizer.step(&store).unwrap_err().to_string();
    assert!(error.contains("got none of variable 1 of shape [4, 2], variable 2 of shape [7]"), "{error}");
    assert!(values(&vars) == before && optimizer.steps() == 0);

    let groups = vec![ParamGroup::adamw(vars[..1].to_vec()), ParamGroup::frozen(vars[1..].to_vec())];
    let mut optimizer = AdamW::with_groups(groups, ParamsAdamW::default()).unwrap();
    optimizer.step(&store).unwrap();
    let after = values(&vars);
    assert!(after[0] != before[0] && after[1..] == before[1..]);
}

#[test]
fn a_norm_that_is_not_finite_updates_nothing() {
    let vars = &vars()[..1];
    let mut optimizer = AdamW::with_groups(vec![ParamGroup::adamw(vars.to_vec())], ParamsAdamW::default()).unwrap();
    let before = values(vars);
    let loss = (vars[0].1.as_tensor() * f64::NAN).unwrap().sum_all().unwrap();
    let error = optimizer.backward_step(&loss).unwrap_err().to_string();
    assert!(error.contains("expected gradients of a finite norm, got NaN"), "{error}");
    assert!(values(vars) == before && optimizer.steps() == 0);
}

/// Their state would go to other variables if these came in another order.
#[test]
fn variables_without_names_have_no_state_in_a_file() {
    let mut optimizer = AdamW::new(vec![vars()[0].1.clone()], ParamsAdamW::default()).unwrap();
    let file = tempfile::tempdir().unwrap().path().join("state.safetensors");
    for error in [optimizer.save(&file).unwrap_err(), optimizer.load(&file).unwrap_err()] {
        assert!(error.to_string().contains("expected variables with names"), "{error}");
    }
}

#[test]
fn numbers_out_of_their_range_are_refused_before_anything_moves() {
    let vars = vars();
    let group = |lr, weight_decay| ParamGroup { lr, weight_decay, ..ParamGroup::adamw(vars[..1].to_vec()) };
    let error = |group, params| AdamW::with_groups(vec![group], params).err().unwrap().to_string();
    let good = ParamsAdamW::default();
    for (message, expected) in [
        (error(group(-1.0, None), good.clone()), "a group's rate of at least 0, got -1"),
        (error(group(1.0, Some(f64::NAN)), good.clone()), "a weight decay of at least 0, got NaN"),
        (error(group(1.0, None), ParamsAdamW { lr: f64::NAN, ..good.clone() }), "a learning rate of at least 0"),
        (error(group(1.0, None), ParamsAdamW { beta2: 1.0, ..good.clone() }), "beta2 from 0 to below 1, got 1"),
        (error(group(1.0, None), ParamsAdamW { eps: 0.0, ..good.clone() }), "an eps above 0"),
        (error(group(1.0, None), ParamsAdamW { max_grad_norm: Some(0.0), ..good.clone() }), "a max_grad_norm above 0"),
        (error(group(1.0, None), ParamsAdamW { max_grad_norm: Some(f64::NAN), ..good.clone() }), "above 0, got NaN"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
    let mut optimizer = AdamW::with_groups(vec![group(1.0, None)], good).unwrap();
    optimizer.set_learning_rate(f64::NAN);
    let before = values(&vars);
    assert!(optimizer.backward_step(&vars[0].1.sum_all().unwrap()).is_err());
    assert!(values(&vars) == before && optimizer.steps() == 0);
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let vars = vars();
    let adamw = |groups| AdamW::with_groups(groups, ParamsAdamW::default()).err().unwrap().to_string();
    let error = adamw(vec![ParamGroup::adamw(vars.clone()), ParamGroup::frozen(vars[1..2].to_vec())]);
    assert!(error.contains("expected names that differ, got b twice"), "{error}");
    let again = vec![("again".to_string(), vars[0].1.clone())];
    let error = adamw(vec![ParamGroup::adamw(vars.clone()), ParamGroup::adamw(again)]);
    assert!(error.contains("expected each variable once, got one as a and as again"), "{error}");
    let error = adamw(vec![ParamGroup::muon(vars[..1].to_vec())]);
    assert!(error.contains("expected groups of AdamW alone"), "{error}");
    let error = Muon::new(vec![vars[2].1.clone()], ParamsMuon::default()).err().unwrap().to_string();
    assert!(error.contains("muon: expected a matrix, got variable 0 of shape [7]"), "{error}");
}
