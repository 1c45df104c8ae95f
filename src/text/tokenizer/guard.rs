//! Protection against what a third-party `tokenizer.json` can make the library do.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use candle_core::{Error, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::normalizers::Precompiled;
use tokenizers::{NormalizedString, Normalizer, Tokenizer as HfTokenizer};

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The result of `work`, which calls the library, or an error if it panics.
///
/// This is a last resort. In many places the library unwraps what it finds in a `tokenizer.json` (unknown tokens, bytes
/// of a character map, lengths of pieces), on opening it or later with some text. The known ones are checked
/// beforehand, but no list can be complete. Nothing is reused after a panic: if opening fails there is no tokenizer,
/// and calls on an open one change nothing but caches of results.
///
/// The panic is still printed to standard error by the process's panic hook; see [`hide_caught_panics`].
pub(super) fn guarded<T, E: From<Error>>(
    what: &str,
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let message = format!("expected a tokenizer that the library can use, but {what} makes it fail: {message}");
        Err(Error::Msg(message).into())
    })
}

/// Keeps panics of the tokenizers library that become errors from being printed. Other panics go to the panic hook that
/// was installed before, on every thread.
///
/// A panic hook belongs to the whole process, so this is for programs to call at their start, as `attn` does.
pub fn hide_caught_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                before(panic);
            }
        }));
    });
}

/// Refuses character maps that would make the library panic.
pub(super) fn check_character_maps(normalizer: &Value) -> Result<()> {
    if normalizer.get("type").is_some_and(|kind| kind == "Precompiled")
        && let Err(error) = Precompiled::deserialize(normalizer)
    {
        bail!("expected a tokenizer.json whose precompiled_charsmap can be read, got {error}");
    }
    normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_character_maps)
}

/// Refuses decoders that strip the ends of tokens: the library panics on a token that is stripped completely.
pub(super) fn check_strips(decoder: &Value) -> Result<()> {
    if decoder.get("type").is_some_and(|kind| kind == "Strip")
        && let Some(stop) = decoder["stop"].as_u64().filter(|&stop| stop > 0)
    {
        bail!("expected a tokenizer.json whose decoder strips nothing at the end of tokens (stop 0), got stop {stop}");
    }
    decoder["decoders"].as_array().into_iter().flatten().try_for_each(check_strips)
}

/// Refuses added tokens that the normalizer reduces to nothing: the library finds these inside characters.
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

/// The largest factor by which all replacements of a `tokenizer.json` together may lengthen a text.
const MOST_GROWTH: f64 = 1024.0;

/// Refuses replacements that together lengthen a text without bound: each may double what the previous one has doubled.
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

/// The largest factor by which a normalizer or decoder may lengthen a text.
fn growth(part: &Value) -> f64 {
    let len = |value: &Value| value.as_str().unwrap_or_default().len() as f64;
    let inner = ["normalizers", "decoders"].iter().filter_map(|list| part[list].as_array()).flatten();
    let own = match part.get("content").filter(|content| content.is_string()) {
        // A regular expression may match the empty string before every character.
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
        assert_eq!(guarded("it", || Ok::<_, Error>(3)).unwrap(), 3);
        assert!(!IS_GUARDED.get());
    }

    #[test]
    fn an_invalid_character_map_is_refused() {
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
