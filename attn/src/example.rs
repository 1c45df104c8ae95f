//! `attn example`: causal self-attention on three tokens, step by step, on the terminal or as a page.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_attention::nn::CausalSelfAttention;
use candle_attention::ops::Scale;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;

use super::out_file;
use super::pages::Page;
use super::terminal::{note, quoted};

const X: [[f64; 4]; 3] = [[1., 0., 2., 1.], [0., 2., 1., 1.], [1., 1., 0., 2.]];
const W_Q: [[f64; 4]; 4] = [[0.1, 0.2, -0.1, 0.3], [0.2, 0.1, 0.1, -0.2], [-0.1, 0.3, 0.2, 0.1], [0.3, -0.2, 0.1, 0.2]];
const W_K: [[f64; 4]; 4] = [[0.2, -0.1, 0.3, 0.1], [0.1, 0.2, -0.2, 0.3], [0.3, 0.1, 0.1, -0.1], [-0.1, 0.3, 0.2, 0.2]];
const W_V: [[f64; 4]; 4] = [[0.1, 0.3, 0.2, -0.1], [0.2, -0.2, 0.1, 0.3], [-0.1, 0.1, 0.3, 0.2], [0.3, 0.2, -0.1, 0.1]];

/// What is added to show that attention is not invariant to a translation.
const TRANSLATION: [f64; 4] = [0.5, -1., 0.3, 0.7];

// The numbers printed in the chapter; rows it leaves out are empty. They do not follow from its own matrices.
const PRINTED_Q: [&[f64]; 3] = [&[0.2, 0.8, 0.6, 0.8], &[0.1, 0.6, 0.9, 0.8], &[0.4, 0.3, 0.5, 1.0]];
const PRINTED_K: [&[f64]; 3] = [&[0.7, 0.6, 0.9, 0.2], &[0.4, 0.9, 0.1, 0.4], &[0.6, 0.4, 0.6, 0.5]];
const PRINTED_V: [&[f64]; 3] = [&[0.2, 0.8, 0.7, 0.4], &[], &[]];
const PRINTED_SCORES: [&[f64]; 3] = [&[1.4], &[1.22, 1.32], &[1.16, 0.89, 1.04]];
const PRINTED_WEIGHTS: [&[f64]; 3] = [&[], &[0.47, 0.53], &[0.37, 0.28, 0.35]];
const PRINTED_OUTPUT: [&[f64]; 3] = [&[], &[0.46, 0.45, 0.64, 0.67], &[0.45, 0.53, 0.71, 0.46]];

/// The command line of `attn example`.
pub fn command() -> Command {
    let out = Arg::new("out").long("out").value_name("FILE.html").value_parser(value_parser!(PathBuf));
    Command::new("example")
        .about("The worked example of causal self-attention, step by step")
        .arg(out.help("Write a page to step through, whose numbers can be changed, instead of printing"))
}

/// Prints the example, or writes its page.
pub fn run(matches: &ArgMatches, out: &mut dyn Write) -> Result<()> {
    match matches.get_one::<PathBuf>("out") {
        Some(path) => write_page(path),
        None => print(out),
    }
}

/// Replaces the file `path` by the page, which has the numbers from here and computes the rest itself.
fn write_page(path: &Path) -> Result<()> {
    out_file::extension(path, &["html"])?;
    let page = Page {
        body: include_str!("pages/example.html"),
        title: "Self-attention by hand",
        css: include_str!("pages/example.css"),
        script: concat!(
            include_str!("pages/example_arithmetic.js"),
            include_str!("pages/example.js"),
            include_str!("pages/example_trials.js"),
            include_str!("pages/example_steps.js"),
        ),
    };
    let data = json!({
        "x": X, "wq": W_Q, "wk": W_K, "wv": W_V, "translation": TRANSLATION,
        "printed": {
            "q": PRINTED_Q, "k": PRINTED_K, "v": PRINTED_V,
            "scores": PRINTED_SCORES, "weights": PRINTED_WEIGHTS, "output": PRINTED_OUTPUT,
        },
    });
    page.write(path, &data)?;
    note(&format!("wrote {}", quoted(path)));
    Ok(())
}

/// Prints every step of the example, computed by the layer itself, next to the chapter's numbers.
fn print(out: &mut dyn Write) -> Result<()> {
    let x = Tensor::new(&X, &Device::Cpu)?; // (T, C)
    writeln!(out, "Causal self-attention on three tokens of four channels (T = 3, C = d_k = 4), in f64.")?;
    writeln!(
        out,
        "Right: what the chapter prints, where it prints a number. It does not follow from the chapter's own"
    )?;
    writeln!(out, "matrices: trust the left.\n")?;

    writeln!(out, "1. One row a token")?;
    table(out, "X", &x, &[])?;
    for (name, weights) in [("W^Q", W_Q), ("W^K", W_K), ("W^V", W_V)] {
        table(out, name, &Tensor::new(&weights, &Device::Cpu)?, &[])?;
    }

    let unscaled = layer(Scale::One)?;
    let (q, k) = (unscaled.q_proj().forward(&x)?, unscaled.k_proj().forward(&x)?);
    writeln!(out, "2. Project: q_i = x_i W^Q, k_i = x_i W^K, v_i = x_i W^V")?;
    table(out, "Q", &q, &PRINTED_Q)?;
    table(out, "K", &k, &PRINTED_K)?;
    table(out, "V", &unscaled.v_proj().forward(&x)?, &PRINTED_V)?;

    writeln!(out, "3. Score: score(i, j) = q_i . k_j; causal attention uses j <= i only")?;
    let scores = q.matmul(&k.t()?)?; // (T, T)
    table(out, "Q K^T", &scores, &PRINTED_SCORES)?;

    for (n, name, scale) in [(4, "unscaled", Scale::One), (5, "scaled by 1 / sqrt(d_k) = 1/2", Scale::InverseSqrt)] {
        let (output, weights) = layer(scale)?.forward_with_weights(&x)?; // (T, C), (H, T, T)
        let printed = scale == Scale::One;
        writeln!(out, "{n}. Normalise and combine, {name}: weights = softmax over j <= i, a_i = sum_j weights_ij v_j")?;
        if scale == Scale::InverseSqrt {
            table(out, "scores", &(&scores * 0.5)?, &[])?;
        }
        table(out, "weights", &weights.squeeze(0)?, if printed { &PRINTED_WEIGHTS } else { &[] })?;
        table(out, "A", &output, if printed { &PRINTED_OUTPUT } else { &[] })?;
    }
    writeln!(out, "From the chapter's own q and k its scores would be 1.32, 1.40, 0.99, 1.11, 0.88, 1.16.")?;
    Ok(())
}

/// The layer in the chapter's form, with its matrices.
fn layer(scale: Scale) -> Result<CausalSelfAttention> {
    let named = [("q_proj.weight", W_Q), ("k_proj.weight", W_K), ("v_proj.weight", W_V)];
    let tensors = named
        .into_iter()
        // The chapter multiplies rows, x W; a Linear keeps W as (out, in).
        .map(|(name, weights)| Ok((name.to_string(), Tensor::new(&weights, &Device::Cpu)?.t()?.contiguous()?)))
        .collect::<Result<_>>()?;
    let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
    Ok(CausalSelfAttention::single_head(4, scale, vb)?)
}

/// Prints a matrix row by row, next to the rows printed in the chapter.
fn table(out: &mut dyn Write, name: &str, matrix: &Tensor, printed: &[&[f64]]) -> Result<()> {
    for (i, row) in matrix.to_vec2::<f64>()?.iter().enumerate() {
        let label = if i == 0 { name } else { "" };
        let left: String = row.iter().map(|value| format!("{value:9.4}")).collect();
        let right: String =
            printed.get(i).map_or(String::new(), |row| row.iter().map(|value| format!("{value:7.2}")).collect());
        writeln!(out, "{}", format!("   {label:8}{left:40}{right}").trim_end())?;
    }
    writeln!(out)?;
    Ok(())
}
