//! Attention computes all positions at once, a recurrent network one after the other: tokens per second, forward and
//! backward, of candle-nn's LSTM and GRU and of this crate's layer at the same width, by length T.
//!
//!     cargo bench -p candle-attention --bench recurrence
//!
//! Medians of several runs, one after the other in one process.

use std::time::Instant;

use candle_attention::nn::{Parameters, causal_self_attention};
use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::rnn::{GRUConfig, LSTMConfig, RNN, gru, lstm};

#[path = "../attn/src/allocator.rs"]
mod allocator;

mod support {
    pub mod args;
}
use support::args;

const BATCH: usize = 8;
const WIDTH: usize = 128;
const HEADS: usize = 4;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (is_bench, _) = args::read();
    let (lengths, repeats): (&[usize], usize) = if is_bench { (&[16, 32, 64, 128, 256, 512], 7) } else { (&[8], 1) };
    println!("forward and backward, f32, B {BATCH}, width {WIDTH}, tokens per second");
    println!("    T       LSTM        GRU  attention  attention / LSTM");
    for &t in lengths {
        let [lstm, gru, attention] = rates(t, repeats)?;
        println!("{t:5} {lstm:10.0} {gru:10.0} {attention:10.0} {:17.1}", attention / lstm);
    }
    Ok(())
}

/// Tokens per second of LSTM, GRU and attention.
fn rates(t: usize, repeats: usize) -> Result<[f64; 3]> {
    let parameters = Parameters::new(1);
    let vb = parameters.var_builder(DType::F32, &Device::Cpu);
    let lstm = lstm(WIDTH, WIDTH, LSTMConfig::default(), vb.pp("lstm"))?;
    let gru = gru(WIDTH, WIDTH, GRUConfig::default(), vb.pp("gru"))?;
    let attention = causal_self_attention(WIDTH, HEADS, vb.pp("attention"))?;
    let xs = Tensor::ones((BATCH, t, WIDTH), DType::F32, &Device::Cpu)?;
    let rate = |loss: &dyn Fn() -> Result<Tensor>| -> Result<f64> {
        let mut seconds = (0..repeats)
            .map(|_| {
                let begun = Instant::now();
                loss()?.backward()?;
                Ok(begun.elapsed().as_secs_f64())
            })
            .collect::<Result<Vec<f64>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok((BATCH * t) as f64 / seconds[repeats / 2])
    };
    Ok([
        rate(&|| lstm.states_to_tensor(&lstm.seq(&xs)?)?.sum_all())?,
        rate(&|| gru.states_to_tensor(&gru.seq(&xs)?)?.sum_all())?,
        rate(&|| attention.forward(&xs)?.sum_all())?,
    ])
}
