//! How a GGUF file says that rotary frequencies are scaled: in keys, or for Llama 3 in a tensor of divisors.

use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};

use crate::host::gguf::GgufFile;
use crate::host::{Result, bail};
use crate::model::ModelConfig;
use crate::nn::RotaryScaling;

/// Keys, after the architecture.
pub(super) const KEYS: [&str; 6] = [
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// The tensor of divisors.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

/// Channels that turn this often over the original positions are kept, or divided: Yarn's usual borders.
const BETAS: (f64, f64) = (32.0, 1.0);

/// The scaling that the file asks for, for a model of this configuration.
pub(super) fn read(file: &mut GgufFile, config: &ModelConfig) -> Result<RotaryScaling> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", config.architecture.model_type());
    let kind = file.text(&key("type"))?.unwrap_or("none").to_string();
    let factor = file.number(&key("factor"))?.unwrap_or(1.0);
    let has_divisors = file.shape(DIVISORS).is_some();
    match kind.as_str() {
        "none" if has_divisors => from_divisors(file, config),
        "none" => Ok(RotaryScaling::None),
        "linear" if !has_divisors => Ok(RotaryScaling::Linear { factor }),
        "yarn" if !has_divisors => Ok(RotaryScaling::Yarn {
            factor,
            original_positions: file.whole(&key("original_context_length"))?.unwrap_or(config.context_len),
            beta_fast: file.number(&key("yarn_beta_fast"))?.unwrap_or(BETAS.0),
            beta_slow: file.number(&key("yarn_beta_slow"))?.unwrap_or(BETAS.1),
            truncate: true,
            attention_factor: RotaryScaling::yarn_attention_factor(factor),
        }),
        other => bail!("{}: {} {other} is not supported", file.path().display(), key("type")),
    }
}

/// The scaling of Llama 3 with these divisors. Its borders, 1 and 4, are those of all its models.
fn from_divisors(file: &mut GgufFile, config: &ModelConfig) -> Result<RotaryScaling> {
    let len = config.head_channels() / 2;
    if file.shape(DIVISORS) != Some(&[len]) {
        bail!("{}: expected {DIVISORS} of {len} numbers, got {:?}", file.path().display(), file.shape(DIVISORS));
    }
    let found: Vec<f32> = file.read(DIVISORS, &Device::Cpu)?.to_vec1()?;
    let factor = found.iter().fold(1.0, |max: f32, divisor| max.max(*divisor)).into();
    for original_positions in (4..24).map(|power| 1 << power) {
        let scaling = RotaryScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_positions };
        let expected = divisors(&scaling, config)?;
        if found.iter().zip(&expected).all(|(found, expected)| (f64::from(*found) / expected - 1.0).abs() < 1e-4) {
            return Ok(scaling);
        }
    }
    bail!("{}: {DIVISORS} is not supported: its numbers are not those of Llama 3", file.path().display())
}

/// By what each frequency is divided.
fn divisors(scaling: &RotaryScaling, config: &ModelConfig) -> Result<Vec<f64>> {
    let d = config.head_channels();
    let plain: Vec<f64> = (0..d / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / d as f64)).collect();
    let mut scaled = plain.clone();
    scaling.scale(&mut scaled, config.rope_theta)?;
    Ok(plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect())
}

/// What a file says of the scaling: keys and, for Llama 3, divisors.
pub(super) fn describe(config: &ModelConfig) -> Result<(Vec<(&'static str, Value)>, Option<Tensor>)> {
    let text = |text: &str| Value::String(text.into());
    let number = |number: f64| Value::F32(number as f32);
    match config.rope_scaling {
        // The second changes nothing within the context.
        RotaryScaling::None | RotaryScaling::Dynamic { .. } => Ok((vec![], None)),
        RotaryScaling::Linear { factor } => {
            Ok((vec![("rope.scaling.type", text("linear")), ("rope.scaling.factor", number(factor))], None))
        }
        RotaryScaling::Llama3 { .. } => {
            let divisors: Vec<f32> = divisors(&config.rope_scaling, config)?.iter().map(|x| *x as f32).collect();
            Ok((vec![], Some(Tensor::new(divisors, &Device::Cpu)?)))
        }
        RotaryScaling::Yarn { factor, original_positions, beta_fast, beta_slow, truncate, attention_factor } => {
            let usual = RotaryScaling::yarn_attention_factor(factor);
            if !truncate || (attention_factor - usual).abs() > 1e-6 * usual {
                bail!("GGUF has no way to say attention_factor {attention_factor} and truncate {truncate} of yarn");
            }
            let mut keys = vec![
                ("rope.scaling.type", text("yarn")),
                ("rope.scaling.factor", number(factor)),
                ("rope.scaling.original_context_length", Value::U32(original_positions as u32)),
            ];
            if (beta_fast, beta_slow) != BETAS {
                keys.push(("rope.scaling.yarn_beta_fast", number(beta_fast)));
                keys.push(("rope.scaling.yarn_beta_slow", number(beta_slow)));
            }
            Ok((keys, None))
        }
    }
}
