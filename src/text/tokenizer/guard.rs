//! Against what a tokenizer.json from elsewhere can make the library do.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::Precompiled;
use tokenizers::{NormalizedString, Normalizer, Tokenizer as HfTokenizer};

/// What `work` of the library gives, or an error where it panics.
///
/// A last resort. The library unwraps what it finds in a tokenizer.json in many places (unknown tokens, bytes of a
/// character map, lengths of pieces), when it is opened and at any later text; those that are known are checked before, and
/// nobody can list all. What panicked is given up: an error to open it leaves no tokenizer, and in one that is open no
/// call changes anything but caches of results.
pub(super) fn guarded<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            bail!("expected a tokenizer that the library can use, but {what} makes it fail: {message}")
        }
    }
}

/// Refuses character maps that the library unwraps without a look.
pub(super) fn check_character_maps(normalizer: &Value) -> Result<()> {
    if normalizer.get("type").is_some_and(|kind| kind == "Precompiled")
        && let Err(error) = Precompiled::deserialize(normalizer)
    {
        bail!("expected a tokenizer.json whose precompiled_charsmap can be read, got {error}");
    }
    normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_character_maps)
}

/// Refuses decoders that strip the ends of tokens: the library fails on a token of nothing but what is stripped.
pub(super) fn check_strips(decoder: &Value) -> Result<()> {
    if decoder.get("type").is_some_and(|kind| kind == "Strip")
        && let Some(stop) = decoder["stop"].as_u64().filter(|&stop| stop > 0)
    {
        bail!("expected a tokenizer.json whose decoder strips nothing at the end of tokens (stop 0), got stop {stop}");
    }
    decoder["decoders"].as_array().into_iter().flatten().try_for_each(check_strips)
}

/// Refuses added tokens of which the normalizer leaves nothing: the library finds them inside of characters.
pub(super) fn check_added_tokens(inner: &HfTokenizer) -> Result<()> {
    let Some(normalizer) = inner.get_normalizer() else { return Ok(()) };
    for token in inner.get_added_tokens_decoder().into_values().filter(|token| token.normalized) {
        let mut normalized = NormalizedString::from(token.content.as_str());
        normalizer.normalize(&mut normalized).map_err(Error::wrap)?;
        if normalized.is_empty() {
            let content = token.content;
            bail!("expected a tokenizer.json whose normalizer leaves something of each added token, got {content:?}");
        }
    }
    Ok(())
}

/// The most times as long that the replacements of a tokenizer.json together may make a text.
const MOST_GROWTH: f64 = 1024.0;

/// Refuses replacements that, one after the other, make a text longer without bounds: each may double what the one
/// before has doubled.
pub(super) fn check_growth(json: &Value) -> Result<()> {
    for part in ["normalizer", "decoder"] {
        let growth = growth(&json[part]);
        if growth > MOST_GROWTH {
            bail!(
                "expected a tokenizer.json whose {part} makes a text at most {MOST_GROWTH} times longer, got {growth:.0}"
            );
        }
    }
    Ok(())
}

/// How many times longer a normalizer or decoder may make a text.
fn growth(part: &Value) -> f64 {
    let len = |value: &Value| value.as_str().unwrap_or_default().len() as f64;
    let inner = ["normalizers", "decoders"].iter().filter_map(|list| part[list].as_array()).flatten();
    let own = match part.get("content").filter(|content| content.is_string()) {
        // A regular expression may find nothing, before each character.
        Some(content) if part["pattern"]["Regex"].is_string() => 1.0 + len(content),
        Some(content) => (len(content) / len(&part["pattern"]["String"]).max(1.0)).max(1.0),
        None => 1.0 + len(&part["prepend"]),
    };
    own * inner.map(growth).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let error = guarded("it", || -> Result<()> { panic!("index {}", 7) }).unwrap_err().to_string();
        assert!(error.contains("it makes it fail: index 7"), "{error}");
        assert_eq!(guarded("it", || Ok(3)).unwrap(), 3);
    }

    #[test]
    fn a_character_map_that_is_none_is_refused() {
        let part = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
        let nested = json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, part.clone()] });
        for normalizer in [part, nested] {
            let error = check_character_maps(&normalizer).unwrap_err().to_string();
            assert!(error.contains("precompiled_charsmap can be read"), "{error}");
        }
        assert!(check_character_maps(&json!({ "type": "NFC" })).is_ok());
    }

    #[test]
    fn a_decoder_that_strips_ends_is_refused() {
        let strip = |stop: u64| json!({ "type": "Strip", "content": " ", "start": 1, "stop": stop });
        let nested = |stop: u64| json!({ "type": "Sequence", "decoders": [{ "type": "Fuse" }, strip(stop)] });
        for decoder in [strip(1), nested(2)] {
            let error = check_strips(&decoder).unwrap_err().to_string();
            assert!(error.contains("strips nothing at the end of tokens (stop 0), got stop "), "{error}");
        }
        // Llama's.
        check_strips(&nested(0)).unwrap();
    }

    #[test]
    fn an_added_token_that_normalizes_to_nothing_is_refused() {
        let open = |content: &str, normalized: bool| {
            let added = json!({
                "id": 1, "content": content, "special": false, "single_word": true, "lstrip": false, "rstrip": false,
                "normalized": normalized
            });
            let json = json!({
                "version": "1.0", "added_tokens": [added], "pre_tokenizer": null, "post_processor": null, "decoder": null,
                "normalizer": { "type": "Strip", "strip_left": true, "strip_right": true },
                "model": { "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" }
            });
            super::super::Tokenizer::from_json(json.to_string().as_bytes())
        };
        let error = open("  ", true).unwrap_err().to_string();
        assert!(error.contains("leaves something of each added token, got \"  \""), "{error}");
        for (content, normalized) in [("  ", false), (" b", true)] {
            open(content, normalized).unwrap();
        }
    }

    #[test]
    fn replacements_that_double_and_double_are_refused() {
        let double = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
        let list =
            |times: usize| json!({ "normalizer": { "type": "Sequence", "normalizers": vec![double.clone(); times] } });
        assert!(check_growth(&list(10)).is_ok());
        let error = check_growth(&list(40)).unwrap_err().to_string();
        assert!(error.contains("at most 1024 times longer, got 1099511627776"), "{error}");
        let llama = json!({ "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] } });
        assert!(check_growth(&llama).is_ok());
    }
}
