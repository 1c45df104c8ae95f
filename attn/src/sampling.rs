//! How `attn generate` samples: its options, over those of the model's `generation_config.json`, over its own defaults.

use std::path::Path;

use anyhow::Result;
use candle_attention::generate::{GenerationDefaults, SamplingOptions};
use clap::{Arg, ArgMatches, value_parser};

/// The defaults where there is no `generation_config.json`. That of our own runs says the same.
const TEMPERATURE: f64 = 0.8;
const MAX_TOKENS: usize = 500;

/// How text is sampled.
pub struct Sampling {
    pub options: SamplingOptions,
    pub max_tokens: usize,
    /// A line on what comes from the model's `generation_config.json` and changes something.
    pub from_model: Option<String>,
}

/// The options of sampling.
pub fn args() -> [Arg; 6] {
    let number =
        |name: &'static str, value| Arg::new(name).long(name).value_name(value).value_parser(value_parser!(f64));
    let whole =
        |name: &'static str, value| Arg::new(name).long(name).value_name(value).value_parser(value_parser!(u64));
    [
        whole("max-tokens", "N").help(
            "Maximum number of tokens to write [default: 500; for this and the options below, what the model's \
             generation_config.json says comes first]",
        ),
        number("temperature", "T").help(
            "Divisor of the logits: below 1 is safer, above 1 more varied; 0 always takes the likeliest token [default: 0.8]",
        ),
        whole("top-k", "K").help("Sample only from this many likeliest tokens; 0 is all of them [default: 0]"),
        number("top-p", "P").help(
            "Sample only from the fewest likeliest tokens that together have this probability; 1 is all of them [default: 1]",
        ),
        number("min-p", "P").help(
            "Sample only from tokens at least this many times as likely as the likeliest one; 0 is all of them [default: 0]",
        ),
        number("repetition-penalty", "FACTOR").help(
            "Above 1, tokens that already occur in the text become less likely: positive logits are divided by this, \
             negative ones multiplied [default: 1]",
        ),
    ]
}

impl Sampling {
    /// The options given, completed by those of the model in `root`.
    pub fn of(matches: &ArgMatches, root: &Path) -> Result<Self> {
        let number = |name: &str| matches.get_one::<f64>(name).copied();
        let whole = |name: &str| matches.get_one::<u64>(name).map(|n| *n as usize);
        let given = SamplingOptions {
            temperature: number("temperature").unwrap_or(TEMPERATURE),
            top_k: whole("top-k"),
            top_p: number("top-p"),
            min_p: number("min-p"),
            repetition_penalty: number("repetition-penalty").unwrap_or(1.0),
        };
        given.validate()?;
        let max_tokens = whole("max-tokens").unwrap_or(MAX_TOKENS);
        let Some(model) = GenerationDefaults::open(root)? else {
            return Ok(Self { options: given, max_tokens, from_model: None });
        };
        let temperature = if model.do_sample { model.sampling.temperature } else { 0.0 };
        let options = SamplingOptions {
            temperature: number("temperature").unwrap_or(temperature),
            top_k: given.top_k.or(model.sampling.top_k),
            top_p: given.top_p.or(model.sampling.top_p),
            min_p: given.min_p.or(model.sampling.min_p),
            repetition_penalty: number("repetition-penalty").unwrap_or(model.sampling.repetition_penalty),
        };
        let max = whole("max-tokens").or(model.max_tokens).unwrap_or(MAX_TOKENS);
        let from_model = described(&changed((&given, max_tokens), (&options, max)), &model.not_applied);
        Ok(Self { options, max_tokens: max, from_model })
    }
}

/// What the model's settings change of the options, as one would give it on the command line.
fn changed(before: (&SamplingOptions, usize), after: (&SamplingOptions, usize)) -> Vec<String> {
    let values = |(options, max_tokens): (&SamplingOptions, usize)| {
        // Without temperature there is nothing to choose from.
        let is_sampling = after.0.temperature > 0.0;
        [
            ("max-tokens", Some(max_tokens.to_string())),
            ("temperature", Some(options.temperature.to_string())),
            ("top-k", options.top_k.filter(|_| is_sampling).map(|k| k.to_string())),
            ("top-p", options.top_p.filter(|_| is_sampling).map(|p| p.to_string())),
            ("min-p", options.min_p.filter(|_| is_sampling).map(|p| p.to_string())),
            ("repetition-penalty", Some(options.repetition_penalty.to_string())),
        ]
    };
    let differ = values(before).into_iter().zip(values(after)).filter(|(before, after)| before != after);
    differ.filter_map(|(_, (name, value))| Some(format!("--{name} {}", value?))).collect()
}

fn described(changed: &[String], not_applied: &[String]) -> Option<String> {
    let applied = (!changed.is_empty()).then(|| format!("as generation_config.json says: {}", changed.join(" ")));
    let others =
        (!not_applied.is_empty()).then(|| format!("not applied of generation_config.json: {}", not_applied.join(", ")));
    applied.into_iter().chain(others).reduce(|applied, others| format!("{applied}; {others}"))
}
