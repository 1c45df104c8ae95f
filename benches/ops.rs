//! The fused operations, compared with the same formulas composed of candle's and candle-nn's differentiable
//! operations.
//!
//!     cargo bench -p candle-attention --bench ops [FILTER]
//!
//! Both sides of a pair run in one process with the same allocator and number of threads, one after the other, on
//! inputs made beforehand. Backward starts from ones. A table of the medians comes at the end. The shapes of attention
//! are those of `benches/attention.rs`, which compares it with torch; at the largest one the composed side is left out,
//! as it would hold 8 GiB.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use candle_attention::optim::{self, AdamWStep, Cautious, Moments};
use candle_core::{D, Device, Result as CandleResult, Tensor, Var};
use candle_nn::Optimizer;
use criterion::Criterion;

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
    pub mod composed_attention;
    pub mod pairs;
}
use support::args;
use support::pairs::{Op, Pair, pairs};

/// Where criterion keeps its samples.
const RESULTS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/criterion");
const FUSED: &str = "candle-attention";
const COMPOSED: &str = "candle-nn";

/// B, H, T, D.
const ATTENTION_SHAPES: [[usize; 4]; 6] =
    [[12, 4, 64, 32], [8, 6, 256, 64], [4, 8, 512, 64], [2, 8, 1024, 64], [1, 8, 2048, 64], [1, 8, 4096, 64]];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let begun = SystemTime::now();
    let (is_bench, _) = args::read();
    let mut criterion = Criterion::default()
        .output_directory(Path::new(RESULTS))
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();

    let sizes = if is_bench { [8, 256, 6, 64, 1536, 4096] } else { [2, 3, 5, 2, 7, 11] };
    let attention_shapes: &[_] = if is_bench { &ATTENTION_SHAPES } else { &[[2, 3, 7, 5]] };
    let mut names = Vec::new();
    for pair in pairs(sizes, attention_shapes)? {
        names.extend(compare(&mut criterion, &pair)?);
    }
    names.push(compare_adamw(&mut criterion, if is_bench { (384, 1536) } else { (3, 5) })?);
    if is_bench {
        print_table(&names, begun)?;
    }
    Ok(())
}

/// Measures forward, then forward and backward, and returns the names of the two groups.
fn compare(criterion: &mut Criterion, pair: &Pair) -> Result<[String; 2]> {
    let variable = |shape: &Vec<usize>| Ok(Var::randn(0f32, 1f32, shape.as_slice(), &Device::Cpu)?.into_inner());
    let mut tracked = pair.inputs.iter().map(variable).collect::<CandleResult<Vec<Tensor>>>()?;
    tracked.extend_from_slice(&pair.constants);
    let untracked: Vec<Tensor> = tracked.iter().map(Tensor::detach).collect();
    let sides = [(FUSED, Some(pair.fused)), (COMPOSED, pair.composed)];
    let sides: Vec<(&str, Op)> = sides.into_iter().filter_map(|(side, op)| Some((side, op?))).collect();
    check_agreement(&pair.name, &sides, &tracked, pair.inputs.len())?;

    let names = ["forward", "forward and backward"].map(|pass| format!("{} {pass}", pair.name));
    let mut group = criterion.benchmark_group(&names[0]);
    for (side, op) in &sides {
        group.bench_function(*side, |bencher| bencher.iter(|| op(black_box(&untracked))));
    }
    group.finish();
    let mut group = criterion.benchmark_group(&names[1]);
    for (side, op) in &sides {
        group.bench_function(*side, |bencher| bencher.iter(|| op(black_box(&tracked))?.backward()));
    }
    group.finish();
    Ok(names)
}

/// Refuses sides whose outputs, or gradients of the inputs, differ by more than `f32` explains.
fn check_agreement(name: &str, sides: &[(&str, Op)], tensors: &[Tensor], inputs: usize) -> Result<()> {
    let mut found: Vec<Vec<Tensor>> = Vec::new();
    for (side, op) in sides {
        let out = op(tensors)?;
        let gradients = out.backward()?;
        let Some(gradients) = tensors[..inputs].iter().map(|x| gradients.get(x).cloned()).collect::<Option<Vec<_>>>()
        else {
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
    // Not `>`, which would accept NaN.
    let is_near = difference <= 1e-4 * size.max(1.0);
    if !is_near {
        bail!("{name}: expected both sides to agree, got a difference of {difference} at a size of {size}");
    }
    Ok(())
}

/// Measures a step of AdamW on one matrix, and returns the name of the group.
fn compare_adamw(criterion: &mut Criterion, shape: (usize, usize)) -> Result<String> {
    let fused = Var::randn(0f32, 1f32, shape, &Device::Cpu)?;
    let composed = Var::from_tensor(&fused.copy()?)?;
    let gradients = composed.sqr()?.backward()?;
    let Some(gradient) = gradients.get(&composed) else { bail!("adamw: expected a gradient") };
    // Large enough that a wrong step exceeds the tolerance.
    let parameters = candle_nn::ParamsAdamW { lr: 0.1, ..Default::default() };
    let mut optimizer = candle_nn::AdamW::new(vec![composed.clone()], parameters.clone())?;
    let mut moments = Moments::zeros(&fused)?;
    let mut step = AdamWStep {
        cautious: Cautious::default(),
        learning_rate: parameters.lr,
        beta1: parameters.beta1,
        beta2: parameters.beta2,
        eps: parameters.eps,
        weight_decay: parameters.weight_decay,
        gradient_scale: 1.0,
        step: 1,
    };
    let name = format!("adamw {} x {}", shape.0, shape.1);
    optim::adamw(&fused, gradient, &mut moments, &step)?;
    optimizer.step(&gradients)?;
    check_near(&name, &fused, &composed)?;

    let mut group = criterion.benchmark_group(&name);
    group.bench_function(FUSED, |bencher| {
        bencher.iter(|| {
            step.step += 1;
            optim::adamw(&fused, gradient, &mut moments, &step)
        })
    });
    group.bench_function(COMPOSED, |bencher| bencher.iter(|| optimizer.step(&gradients)));
    group.finish();
    Ok(name)
}

/// Prints the medians of the groups measured since `begun`, in Markdown.
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

/// The median that criterion saved in a file, unless that is older than `begun`, when a filter has excluded the group.
fn median_ms(group: &str, side: &str, begun: SystemTime) -> Result<Option<f64>> {
    let path = Path::new(RESULTS).join(group).join(side).join("new/estimates.json");
    if !path.metadata().and_then(|file| file.modified()).is_ok_and(|modified| modified >= begun) {
        return Ok(None);
    }
    let estimates: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    Ok(estimates["median"]["point_estimate"].as_f64().map(|nanoseconds| nanoseconds / 1e6))
}
