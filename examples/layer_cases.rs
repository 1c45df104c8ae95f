//! Random inputs of the layer in its textbook form, with everything that it makes of them, in f64 as JSON: what
//! `tests/browser/example.py` compares the arithmetic of `attn example --out` with.
//!
//!     cargo run --release --example layer_cases > cases.json

use candle_attention::nn::{CausalSelfAttention, CausalSelfAttentionConfig};
use candle_attention::ops::Scale;
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::VarBuilder;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

const CASES: usize = 1000;

fn main() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(15);
    let cases = (0..CASES).map(|_| case(&mut rng)).collect::<Result<Vec<_>>>()?;
    println!("{}", Value::from(cases));
    Ok(())
}

/// Up to 7 positions and channels; matrices of small to large numbers, so that some softmax is flat and some saturates.
fn case(rng: &mut StdRng) -> Result<Value> {
    let (t, c) = (rng.random_range(1..=7), rng.random_range(1..=7));
    let [x, wq, wk, wv] = [t, c, c, c].map(|rows| {
        let size = 10f64.powf(rng.random_range(-2.0..2.0));
        Tensor::from_iter((0..rows * c).map(|_| rng.random_range(-size..size)), &Device::Cpu)?.reshape((rows, c))
    });
    let [x, wq, wk, wv] = [x?, wq?, wk?, wv?];
    let (is_scaled, causal) = (rng.random(), rng.random());
    let scale = if is_scaled { Scale::InverseSqrt } else { Scale::One };

    // The textbook multiplies rows, x W; a Linear keeps W as (out, in).
    let tensors = [("q_proj.weight", &wq), ("k_proj.weight", &wk), ("v_proj.weight", &wv)]
        .map(|(name, weights)| Ok((name.to_string(), weights.t()?.contiguous()?)));
    let vb = VarBuilder::from_tensors(tensors.into_iter().collect::<Result<_>>()?, DType::F64, &Device::Cpu);
    let config =
        CausalSelfAttentionConfig { output_projection: false, scale, causal, ..CausalSelfAttentionConfig::new(c, 1) };
    let layer = CausalSelfAttention::new(&config, vb)?;

    let (output, weights) = layer.forward_with_weights(&x)?; // (T, C), (1, T, T)
    let (q, k, v) = (layer.q_proj().forward(&x)?, layer.k_proj().forward(&x)?, layer.v_proj().forward(&x)?);
    let factor = if is_scaled { 1.0 / (c as f64).sqrt() } else { 1.0 };
    let scores = (q.matmul(&k.t()?)? * factor)?; // (T, T)
    let rows = |matrix: &Tensor| matrix.to_vec2::<f64>();
    Ok(json!({
        "x": rows(&x)?, "wq": rows(&wq)?, "wk": rows(&wk)?, "wv": rows(&wv)?,
        "scale": if is_scaled { "inverse_sqrt" } else { "one" }, "causal": causal,
        "expected": {
            "q": rows(&q)?, "k": rows(&k)?, "v": rows(&v)?, "scores": rows(&scores)?,
            "weights": rows(&weights.squeeze(0)?)?, "output": rows(&output)?,
        },
    }))
}
