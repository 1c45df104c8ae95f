//! How llama.cpp finds the words within which byte-level BPE merges, by the names of `tokenizer.ggml.pre`.

use serde_json::{Value, json};

/// How words are found: the matches of each expression are taken out of what those before it left.
pub(super) struct Pre {
    names: &'static [&'static str],
    splits: &'static [&'static str],
    /// Whether a word that is a token is that token, whatever the merges say.
    pub(super) ignores_merges: bool,
    /// Whether a text begins with the begin-of-text token, unless the file says otherwise.
    pub(super) adds_begin: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const fn pre(names: &'static [&'static str], splits: &'static [&'static str]) -> Pre {
    Pre { names, splits, ignores_merges: false, adds_begin: false }
}

/// In each row, the first name is the one that is written.
const ALL: [Pre; 7] = [
    pre(&["gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe", "gigachat"], &[GPT2]),
    pre(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"], &[r"\p{N}", GPT2]),
    Pre {
        ignores_merges: true,
        adds_begin: true,
        ..pre(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"], &[LLAMA3])
    },
    pre(&["smaug-bpe", "dbrx"], &[LLAMA3]),
    pre(&["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"], &[QWEN2]),
    Pre { ignores_merges: true, adds_begin: true, ..pre(&["tekken"], &[TEKKEN]) },
    pre(&["default", ""], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

impl Pre {
    /// The one of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|one| one.names.contains(&name))
    }

    /// The name of the one that does what a pre-tokenizer of a `tokenizer.json` does.
    pub(super) fn of(pre_tokenizer: &Value, ignores_merges: bool) -> Option<&'static str> {
        let found = splits_of(pre_tokenizer)?;
        let one = ALL.iter().find(|one| one.splits == found && one.ignores_merges == ignores_merges)?;
        Some(one.names[0])
    }

    /// As the pre-tokenizer of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Value {
        let byte_level = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        if self.splits == [GPT2] {
            return byte_level(true);
        }
        let split = |regex: &&str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
        let all = self.splits.iter().map(split).chain([byte_level(false)]);
        json!({ "type": "Sequence", "pretokenizers": all.collect::<Vec<_>>() })
    }
}

/// The expressions of a pre-tokenizer that ends with GPT-2's alphabet of bytes.
fn splits_of(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let one = std::slice::from_ref(pre_tokenizer);
    let (last, steps) = pre_tokenizer["pretokenizers"].as_array().map_or(one, |all| all).split_last()?;
    let mut found = Vec::new();
    for step in steps {
        let is_split = step["type"] == "Split" && step["behavior"] == "Isolated" && step["invert"] != true;
        let is_digits = step["type"] == "Digits" && step["individual_digits"] == true;
        found.push(match step["pattern"]["Regex"].as_str() {
            Some(regex) if is_split => regex,
            _ if is_digits => r"\p{N}",
            _ => return None,
        });
    }
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    // By default it splits.
    if last["use_regex"] != false {
        found.push(GPT2);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_what_it_does() {
        for one in &ALL {
            assert_eq!(Pre::of(&one.to_json(), one.ignores_merges), Some(one.names[0]));
        }
        let digits = json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }
        ] });
        assert_eq!(Pre::of(&digits, false), Some("smollm"));
        assert_eq!(Pre::of(&json!({ "type": "Whitespace" }), false), None);
        assert_eq!(Pre::of(&Value::Null, false), None);
    }
}
