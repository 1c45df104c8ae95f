//! The fused operations beside the same formulas composed of candle's and candle-nn's differentiable operations.
//!
//!     cargo bench --bench ops [FILTER]
//!
//! Both sides of a pair run in one process with the same allocator, one after the other, on as many threads; inputs are
//! made before. Backward starts from ones. At the end stands a table of the medians. The shapes of attention are those
//! of `benches/attention.rs`, where torch stands beside it; composed it would hold 8 GiB at the largest one, which is
//! left out here.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use candle_attention::ops;
use candle_core::{D, Device, Module, Result as CandleResult, Tensor, Var};
use candle_nn::Optimizer;
use criterion::Criterion;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod support {
    pub mod composed_attention;
}
use support::composed_attention;

/// Where the samples are kept.
const RESULTS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/criterion");
const FUSED: &str = "candle-attention";
const COMPOSED: &str = "candle-nn";

/// B, H, T, D.
const ATTENTION_SHAPES: [[usize; 4]; 6] =
    [[12, 4, 64, 32], [8, 6, 256, 64], [4, 8, 512, 64], [2, 8, 1024, 64], [1, 8, 2048, 64], [1, 8, 4096, 64]];
/// Positions of the longest sequence whose weights are still held whole.
const LONGEST_COMPOSED: usize = 2048;

type Op = Box<dyn Fn(&[Tensor]) -> CandleResult<Tensor>>;

/// The same formula twice.
struct Pair {
    name: String,
    /// The shapes of the tensors that both are given.
    inputs: Vec<Vec<usize>>,
    fused: Op,
    composed: Option<Op>,
}

impl Pair {
    fn new(name: String, inputs: &[&[usize]], fused: Op, composed: Op) -> Self {
        Self { name, inputs: inputs.iter().map(|shape| shape.to_vec()).collect(), fused, composed: Some(composed) }
    }
}

fn main() -> Result<()> {
    let begun = SystemTime::now();
    // Without `--bench`, which `cargo bench` passes, everything is run once as a test.
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let mut criterion = Criterion::default()
        .output_directory(Path::new(RESULTS))
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();

    let mut names = Vec::new();
    for pair in if is_bench { pairs([8, 256, 384, 1536, 4096])? } else { pairs([2, 3, 5, 7, 11])? } {
        names.extend(compare(&mut criterion, &pair)?);
    }
    names.push(compare_adamw(&mut criterion, if is_bench { (384, 1536) } else { (3, 5) })?);
    if is_bench {
        print_table(&names, begun)?;
    }
    Ok(())
}

/// All pairs, for B sequences of T positions with C channels, F channels in the middle and V classes.
fn pairs([b, t, c, f, v]: [usize; 5]) -> Result<Vec<Pair>> {
    let mut pairs = attention_pairs(if t < 256 { &[[2, 3, 7, 5]] } else { &ATTENTION_SHAPES })?;
    let (xs, hidden): (&[usize], &[usize]) = (&[b, t, c], &[b, t, f]);
    let targets: Vec<u32> = (0..b * t).map(|i| (i * i % v) as u32).collect();
    let targets = Tensor::from_vec(targets, b * t, &Device::Cpu)?;
    let composed_targets = targets.clone();
    pairs.extend([
        Pair::new(
            format!("linear {c} to {f}"),
            &[xs, &[f, c]],
            Box::new(|x| ops::linear(&x[0], &x[1], None)),
            Box::new(|x| candle_nn::Linear::new(x[1].clone(), None).forward(&x[0])),
        ),
        Pair::new(
            format!("linear {c} to {f} with bias"),
            &[xs, &[f, c], &[f]],
            Box::new(|x| ops::linear(&x[0], &x[1], Some(&x[2]))),
            Box::new(|x| candle_nn::Linear::new(x[1].clone(), Some(x[2].clone())).forward(&x[0])),
        ),
        Pair::new(
            format!("layer norm {c}"),
            &[xs, &[c], &[c]],
            Box::new(|x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5)),
            Box::new(|x| candle_nn::ops::layer_norm_slow(&x[0], &x[1], &x[2], 1e-5)),
        ),
        Pair::new(
            format!("rms norm {c}"),
            &[xs, &[c]],
            Box::new(|x| ops::rms_norm(&x[0], &x[1], 1e-5)),
            Box::new(|x| candle_nn::ops::rms_norm_slow(&x[0], &x[1], 1e-5)),
        ),
        Pair::new(
            format!("gelu erf {f}"),
            &[hidden],
            Box::new(|x| ops::gelu_erf(&x[0])),
            Box::new(|x| x[0].gelu_erf()),
        ),
        Pair::new(format!("gelu tanh {f}"), &[hidden], Box::new(|x| ops::gelu_tanh(&x[0])), Box::new(|x| x[0].gelu())),
        Pair::new(
            format!("linear and cross-entropy {c} to {v}"),
            &[&[b * t, c], &[v, c]],
            Box::new(move |x| ops::linear_cross_entropy(&x[0], &x[1], &targets, targets.elem_count() as f64)),
            Box::new(move |x| {
                let logits = candle_nn::Linear::new(x[1].clone(), None).forward(&x[0])?;
                candle_nn::loss::cross_entropy(&logits, &composed_targets)
            }),
        ),
    ]);
    Ok(pairs)
}

/// Causal attention for some B, H, T, D.
fn attention_pairs(shapes: &[[usize; 4]]) -> Result<Vec<Pair>> {
    let pair = |&[b, h, t, d]: &[usize; 4]| {
        let mask = composed_attention::causal_mask(t)?;
        let mut pair = Pair::new(
            format!("attention B {b} H {h} T {t} D {d}"),
            &[[b, t, h, d].as_slice(); 3],
            Box::new(|x| ops::attention(&x[0], &x[1], &x[2], &ops::AttentionOptions::default())),
            Box::new(move |x| composed_attention::attention(&x[0], &x[1], &x[2], &mask)),
        );
        if t > LONGEST_COMPOSED {
            pair.composed = None;
        }
        Ok(pair)
    };
    shapes.iter().map(pair).collect()
}

/// Measures forward, then forward and backward: the names of the two groups.
fn compare(criterion: &mut Criterion, pair: &Pair) -> Result<[String; 2]> {
    let variable = |shape: &Vec<usize>| Ok(Var::randn(0f32, 1f32, shape.as_slice(), &Device::Cpu)?.into_inner());
    let variables = pair.inputs.iter().map(variable).collect::<CandleResult<Vec<Tensor>>>()?;
    let constants: Vec<Tensor> = variables.iter().map(Tensor::detach).collect();
    let sides: Vec<(&str, &Op)> = [(FUSED, Some(&pair.fused)), (COMPOSED, pair.composed.as_ref())]
        .into_iter()
        .filter_map(|(side, op)| Some((side, op?)))
        .collect();
    check_agreement(&pair.name, &sides, &variables)?;

    let names = ["forward", "forward and backward"].map(|pass| format!("{} {pass}", pair.name));
    let mut group = criterion.benchmark_group(&names[0]);
    for (side, op) in &sides {
        group.bench_function(*side, |bencher| bencher.iter(|| op(black_box(&constants))));
    }
    group.finish();
    let mut group = criterion.benchmark_group(&names[1]);
    for (side, op) in &sides {
        group.bench_function(*side, |bencher| bencher.iter(|| op(black_box(&variables))?.backward()));
    }
    group.finish();
    Ok(names)
}

/// Refuses sides whose outputs or gradients differ by more than `f32` explains.
fn check_agreement(name: &str, sides: &[(&str, &Op)], variables: &[Tensor]) -> Result<()> {
    let mut found: Vec<Vec<Tensor>> = Vec::new();
    for (side, op) in sides {
        let out = op(variables)?;
        let gradients = out.backward()?;
        let Some(gradients) = variables.iter().map(|x| gradients.get(x).cloned()).collect::<Option<Vec<_>>>() else {
            bail!("{name}: expected {side} to have a gradient of every input")
        };
        found.push([vec![out], gradients].concat());
    }
    let [fused, composed] = &found[..] else { return Ok(()) };
    fused.iter().zip(composed).try_for_each(|(fused, composed)| check_near(name, fused, composed))
}

fn check_near(name: &str, fused: &Tensor, composed: &Tensor) -> Result<()> {
    let size = |x: &Tensor| x.abs()?.flatten_all()?.max(D::Minus1)?.to_scalar::<f32>();
    let (difference, size) = (size(&(fused - composed)?)?, size(composed)?);
    // Written so that NaN is refused too.
    let is_near = difference <= 1e-4 * size.max(1.0);
    if !is_near {
        bail!("{name}: expected both sides to agree, got a difference of {difference} at a size of {size}");
    }
    Ok(())
}

/// Measures a step of AdamW on one matrix: the name of the group.
fn compare_adamw(criterion: &mut Criterion, shape: (usize, usize)) -> Result<String> {
    let fused = Var::randn(0f32, 1f32, shape, &Device::Cpu)?;
    let composed = Var::from_tensor(&fused.copy()?)?;
    let gradients = composed.sqr()?.backward()?;
    let Some(gradient) = gradients.get(&composed) else { bail!("adamw: expected a gradient") };
    // A rate whose step stands out against the tolerance.
    let parameters = candle_nn::ParamsAdamW { lr: 0.1, ..Default::default() };
    let mut optimizer = candle_nn::AdamW::new(vec![composed.clone()], parameters.clone())?;
    let mut moments = ops::Moments::zeros(&fused)?;
    let mut step = ops::AdamWStep {
        learning_rate: parameters.lr,
        beta1: parameters.beta1,
        beta2: parameters.beta2,
        eps: parameters.eps,
        weight_decay: parameters.weight_decay,
        gradient_scale: 1.0,
        step: 1,
    };
    let name = format!("adamw {} x {}", shape.0, shape.1);
    ops::adamw(&fused, gradient, &mut moments, &step)?;
    optimizer.step(&gradients)?;
    check_near(&name, &fused, &composed)?;

    let mut group = criterion.benchmark_group(&name);
    group.bench_function(FUSED, |bencher| {
        bencher.iter(|| {
            step.step += 1;
            ops::adamw(&fused, gradient, &mut moments, &step)
        })
    });
    group.bench_function(COMPOSED, |bencher| bencher.iter(|| optimizer.step(&gradients)));
    group.finish();
    Ok(name)
}

/// The medians of the groups that were measured since `begun`, in Markdown.
fn print_table(names: &[String], begun: SystemTime) -> Result<()> {
    println!("| ms | {FUSED} | {COMPOSED} | ratio |\n|---|---|---|---|");
    for name in names {
        match (median_ms(name, FUSED, begun)?, median_ms(name, COMPOSED, begun)?) {
            (Some(fused), Some(composed)) => {
                println!("| {name} | {fused:.3} | {composed:.3} | {:.2} |", composed / fused);
            }
            (Some(fused), None) => println!("| {name} | {fused:.3} | - | - |"),
            _ => {}
        }
    }
    Ok(())
}

/// The median that criterion left in a file, unless it is older than `begun`: then a filter has passed it over.
fn median_ms(group: &str, side: &str, begun: SystemTime) -> Result<Option<f64>> {
    let path = Path::new(RESULTS).join(group).join(side).join("new/estimates.json");
    if !path.metadata().and_then(|file| file.modified()).is_ok_and(|modified| modified >= begun) {
        return Ok(None);
    }
    let estimates: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    Ok(estimates["median"]["point_estimate"].as_f64().map(|nanoseconds| nanoseconds / 1e6))
}
