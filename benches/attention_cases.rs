//! Calls of attention that another program describes, for `peers/torch_attention_cases.py` to compare with torch.
//!
//!     cargo bench -p candle-attention --bench attention_cases -- FOLDER
//!
//! `FOLDER` has `cases.json`, a list of options, and `inputs.safetensors` with the tensors of case `i` as `i.q`, `i.k`, …;
//! results and gradients are written to `results.safetensors`: `i.out`, `i.lse`, `i.dq`, …

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_attention::ops::{AttentionOptions, Band, KeyPadding, Mask, QkvLayout, Scale, attention_with_lse};
use candle_core::{DType, Device, Tensor, Var, safetensors};
use serde_json::Value;

fn main() -> Result<()> {
    let Some(folder) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) else {
        println!("attention_cases: no folder of cases given");
        return Ok(());
    };
    let folder = Path::new(&folder);
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("cases.json"))?)?;
    let inputs = safetensors::load(folder.join("inputs.safetensors"), &Device::Cpu)?;
    let mut results = HashMap::new();
    for (i, case) in cases.iter().enumerate() {
        let input = |name: &str| inputs.get(&format!("{i}.{name}")).cloned();
        for (name, tensor) in run(case, &input).with_context(|| format!("case {i}: {case}"))? {
            results.insert(format!("{i}.{name}"), tensor);
        }
    }
    Ok(safetensors::save(&results, folder.join("results.safetensors"))?)
}

/// The output and the log-sum-exp of a case, and the gradients of its tensors for the given gradients of both.
fn run(case: &Value, input: &dyn Fn(&str) -> Option<Tensor>) -> Result<Vec<(String, Tensor)>> {
    let names = ["q", "k", "v", "bias", "sinks"];
    let vars: Vec<(&str, Var)> = names
        .into_iter()
        .filter_map(|name| Some((name, input(name)?)))
        .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
        .collect::<Result<_>>()?;
    let tensor = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, var)| var.as_tensor().clone());
    let constant = |name: &str| if case["tracked"] == true { tensor(name) } else { tensor(name).map(|x| x.detach()) };
    let integers = |name: &str| input(name).map(|x| x.to_dtype(DType::U32)).transpose();
    let lengths =
        |key: &str| case[key].as_array().map(|list| list.iter().filter_map(Value::as_u64).map(|n| n as usize));
    let band = match (case["band"].as_str(), case["band_len"].as_u64().unwrap_or(0) as usize) {
        (Some("causal"), _) => Band::Causal,
        (Some("full"), _) => Band::Full,
        (Some("window"), len) => Band::Window(len),
        (Some("prefix"), len) => Band::Prefix(len),
        (other, _) => anyhow::bail!("unknown band {other:?}"),
    };
    let key_padding = match input("real") {
        Some(real) => Some(KeyPadding::Real(real)),
        None => lengths("left")
            .map(|n| KeyPadding::Left(n.collect()))
            .or_else(|| lengths("right").map(|n| KeyPadding::Right(n.collect()))),
    };
    let options = AttentionOptions {
        scale: case["scale"].as_f64().map_or(Scale::InverseSqrt, Scale::Value),
        mask: Mask {
            band,
            documents: integers("documents")?,
            key_padding,
            allowed: input("allowed"),
            bias: constant("bias"),
            alibi: case["alibi"].as_array().map(|slopes| slopes.iter().filter_map(Value::as_f64).collect()),
            query_positions: case["positions"].as_array().map(|list| list.iter().filter_map(Value::as_i64).collect()),
        },
        softcap: case["softcap"].as_f64(),
        sinks: constant("sinks"),
        layout: if case["layout"] == "bhtd" { QkvLayout::Bhtd } else { QkvLayout::Bthd },
        ..Default::default()
    };
    let [q, k, v] = ["q", "k", "v"].map(|name| tensor(name).context("a tensor is missing"));
    let (out, lse) = attention_with_lse(&q?, &k?, &v?, &options)?;
    let [dout, dlse] = ["dout", "dlse"].map(|name| input(name).context("a gradient is missing"));
    let dlse = dlse?.to_dtype(lse.dtype())?;
    // The log-sum-exp of a query that sees nothing is minus infinity, and flows nowhere.
    let seen = lse.gt(f64::NEG_INFINITY)?.where_cond(&lse, &lse.zeros_like()?.detach())?;
    let of_out = (&out * dout?)?.to_dtype(DType::F64)?.sum_all()?;
    let loss = (of_out + (&seen * dlse)?.to_dtype(DType::F64)?.sum_all()?)?;
    let gradients = loss.backward()?;
    let mut results = vec![("out".to_string(), out.detach()), ("lse".to_string(), lse.detach())];
    for (name, var) in &vars {
        match gradients.get(var) {
            Some(gradient) => results.push((format!("d{name}"), gradient.contiguous()?)),
            None => ensure!(["bias", "sinks"].contains(name) && case["tracked"] != true, "{name} has no gradient"),
        }
    }
    Ok(results)
}
