#![doc = include_str!("../../docs/mappings.md")]

use std::collections::{BTreeMap, HashMap};

use candle_core::{Result, Tensor, bail};

/// The three projections of the input, in the order in which others pack them.
const QKV: &[&str] = &["q_proj", "k_proj", "v_proj"];

/// A tensor of another library, and what it is here.
struct Entry<'a> {
    theirs: String,
    /// The layers here whose tensors it holds, stacked along the outputs in equal parts.
    ours: &'a [&'a str],
    suffix: &'a str,
    /// Whether it is stored as (in, out).
    is_transposed: bool,
}

impl<'a> Entry<'a> {
    fn new(theirs: impl Into<String>, ours: &'a [&'a str], suffix: &'a str) -> Self {
        Self { theirs: theirs.into(), ours, suffix, is_transposed: false }
    }

    /// The `weight` and `bias` of a layer.
    fn layer(theirs: &str, ours: &'a [&'a str]) -> [Self; 2] {
        ["weight", "bias"].map(|suffix| Self::new(format!("{theirs}.{suffix}"), ours, suffix))
    }
}

/// The tensors of a [`MultiHeadAttention`](super::MultiHeadAttention) from those of torch's `nn.MultiheadAttention`,
/// whose names begin with `prefix` and a dot, or with nothing if `prefix` is empty.
///
/// # Errors
/// If there is no such tensor, or one that has no place in the layer (`bias_k` and `bias_v`).
pub fn torch(tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let mut entries = vec![
        Entry::new("in_proj_weight", QKV, "weight"),
        Entry::new("in_proj_bias", QKV, "bias"),
        // Where keys and values have a width of their own.
        Entry::new("q_proj_weight", &["q_proj"], "weight"),
        Entry::new("k_proj_weight", &["k_proj"], "weight"),
        Entry::new("v_proj_weight", &["v_proj"], "weight"),
    ];
    entries.extend(Entry::layer("out_proj", &["o_proj"]));
    mapped(tensors, prefix, entries, &[])
}

/// As [`torch`], from the attention of Hugging Face's gpt2: `c_attn` and `c_proj`, stored as (in, out). Tables of the
/// mask, which old files contain, are left out.
///
/// # Errors
/// If there is no such tensor, or one that has no place in the layer.
pub fn gpt2(tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let mut entries: Vec<Entry> = Entry::layer("c_attn", QKV).into_iter().collect();
    entries.extend(Entry::layer("c_proj", &["o_proj"]));
    for entry in entries.iter_mut().filter(|entry| entry.suffix == "weight") {
        entry.is_transposed = true;
    }
    mapped(tensors, prefix, entries, &["bias", "masked_bias"])
}

/// As [`torch`], from the attention of Hugging Face's llama or qwen3, whose tensors are those of this crate. A table of
/// rotary frequencies, which old files contain, is left out.
///
/// # Errors
/// If there is no such tensor, or one that has no place in the layer.
pub fn llama(tensors: &HashMap<String, Tensor>, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let mut entries = linear(["q_proj", "k_proj", "v_proj", "o_proj"]);
    entries.push(Entry::new("q_norm.weight", &["q_norm"], "weight"));
    entries.push(Entry::new("k_norm.weight", &["k_norm"], "weight"));
    mapped(tensors, prefix, entries, &["rotary_emb.inv_freq"])
}

/// As [`torch`], from four `Linear`s of candle-nn or torch with any names: those of the projections to queries, keys and
/// values, and of the output projection.
///
/// # Errors
/// If there is no such tensor, or one that has no place in the layer.
pub fn projections(
    tensors: &HashMap<String, Tensor>,
    prefix: &str,
    [q, k, v, o]: [&str; 4],
) -> Result<BTreeMap<String, Tensor>> {
    mapped(tensors, prefix, linear([q, k, v, o]), &[])
}

fn linear([q, k, v, o]: [&str; 4]) -> Vec<Entry<'static>> {
    let layers = [
        Entry::layer(q, &["q_proj"]),
        Entry::layer(k, &["k_proj"]),
        Entry::layer(v, &["v_proj"]),
        Entry::layer(o, &["o_proj"]),
    ];
    layers.into_iter().flatten().collect()
}

/// The tensors with this prefix, by their names here. Each needs an entry, or is `ignored`; an entry needs no tensor,
/// as the layer names what it lacks.
fn mapped(
    tensors: &HashMap<String, Tensor>,
    prefix: &str,
    entries: Vec<Entry>,
    ignored: &[&str],
) -> Result<BTreeMap<String, Tensor>> {
    let mut mapped = BTreeMap::new();
    // In order, so that the first error is always the same.
    for (name, tensor) in tensors.iter().collect::<BTreeMap<_, _>>() {
        let own = match prefix {
            "" => Some(name.as_str()),
            prefix => name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')),
        };
        let Some(own) = own.filter(|own| !ignored.contains(own)) else { continue };
        let Some(entry) = entries.iter().find(|entry| entry.theirs == own) else {
            bail!("mapping: expected tensors of an attention layer, got {name}, which has no place in it");
        };
        for (part, tensor) in entry.ours.iter().zip(unpacked(tensor, entry.ours.len(), entry.is_transposed)?) {
            mapped.insert(format!("{part}.{}", entry.suffix), tensor);
        }
    }
    if mapped.is_empty() {
        bail!("mapping: expected tensors whose names begin with {prefix:?}, got none");
    }
    Ok(mapped)
}

/// The weights (out, in) or biases (out) of `parts` layers of equal size that are stored as one, perhaps transposed.
pub(crate) fn unpacked(tensor: &Tensor, parts: usize, is_transposed: bool) -> Result<Vec<Tensor>> {
    let tensor = if is_transposed { tensor.t()? } else { tensor.clone() };
    let out = tensor.dim(0)?;
    if !out.is_multiple_of(parts) {
        bail!("mapping: expected outputs of {parts} layers of equal size in one tensor, got {out}");
    }
    let part = |i: usize| tensor.narrow(0, i * (out / parts), out / parts)?.contiguous();
    (0..parts).map(part).collect()
}
