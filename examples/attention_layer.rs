//! The layer in a candle model of your own. The model learns to output the token three positions back, which it can
//! only do by attending to it.
//!
//!     cargo run --release --example attention_layer

use candle_attention::nn::{Parameters, causal_self_attention};
use candle_attention::optim::{AdamW, ParamsAdamW};
use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::{Optimizer, Sequential, VarBuilder, embedding, linear, loss::cross_entropy, seq};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// 7 tokens, 16 positions, 32 channels: (B, T) to (B, T, V).
fn model(vb: VarBuilder) -> Result<Sequential> {
    let positions = vb.get_with_hints((16, 32), "positions", candle_nn::init::DEFAULT_KAIMING_NORMAL)?;
    Ok(seq()
        .add(embedding(7, 32, vb.pp("tokens"))?)
        .add_fn(move |xs| xs.broadcast_add(&positions))
        .add(causal_self_attention(32, 2, vb.pp("attention"))?)
        .add(linear(32, 7, vb.pp("head"))?))
}

fn main() -> Result<()> {
    let (parameters, mut rng) = (Parameters::new(1), StdRng::seed_from_u64(1));
    let model = model(parameters.var_builder(DType::F32, &Device::Cpu))?;
    let params = ParamsAdamW { lr: 1e-2, max_grad_norm: Some(1.0), ..Default::default() };
    let mut optimizer = AdamW::new(parameters.all_vars(), params)?;
    for step in 0..=200 {
        let ids = Tensor::from_iter((0..8 * 16).map(|_| rng.random_range(0..7u32)), &Device::Cpu)?.reshape((8, 16))?;
        let (logits, targets) = (model.forward(&ids)?.narrow(1, 3, 13)?, ids.narrow(1, 0, 13)?);
        let loss = cross_entropy(&logits.reshape((8 * 13, 7))?, &targets.flatten_all()?)?;
        optimizer.backward_step(&loss)?;
        if step % 50 == 0 {
            let right = logits.argmax(D::Minus1)?.eq(&targets)?.to_dtype(DType::F32)?.mean_all()?;
            println!(
                "step {step:3}  loss {:.3}  {:.0} % right",
                loss.to_scalar::<f32>()?,
                right.to_scalar::<f32>()? * 100.0
            );
        }
    }
    Ok(())
}
