//! From the metadata of a GGUF file to a `tokenizer.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::pre::Pre;
use super::{SPACE, kind, scores};
use crate::host::gguf::{GgufFile, special_id};
use crate::host::{Result, bail};
use crate::text::tokenizer::build::JsonParts;
use crate::text::tokenizer::{END_OF_TEXT, Tokenizer};

/// No piece of SentencePiece's is longer, in bytes.
const MAX_PIECE_BYTES: usize = 1 << 9;

/// The tokenizer of a GGUF file.
pub(in crate::text::tokenizer) fn open(path: &Path) -> Result<Tokenizer> {
    let file = GgufFile::open(path)?;
    let vocabulary = Vocabulary::read(&file)?;
    let tokenizer = match file.required("tokenizer.ggml.model", file.text("tokenizer.ggml.model")?)? {
        "gpt2" => byte_level(&file, &vocabulary),
        "llama" => sentence_piece(&file, &vocabulary),
        other => bail!("{}: expected tokenizer.ggml.model gpt2 or llama, got {other}", path.display()),
    };
    let mut tokenizer = tokenizer.map_err(|error| error.at(path.display()))?;
    let known = |name| special_id(&file, name).map(|id| id.filter(|&id| (id as usize) < vocabulary.tokens.len()));
    tokenizer.end_of_text_id = known("eos")?.or(tokenizer.end_of_text_id);
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("model_input_names".into(), vec!["input_ids", "attention_mask"].into());
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some(id) = known(name)?.filter(|&id| tokenizer.has_token(id)) {
            config.insert(key.into(), vocabulary.tokens[id as usize].into());
        }
    }
    if let Some(template) = file.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    tokenizer.config = Some(config);
    Ok(tokenizer)
}

/// The tokens by id, and their types.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = file.required(TOKENS, file.texts(TOKENS)?)?;
        let types = match file.integers(TYPES)? {
            Some(types) => types.into_iter().map(|one| one as i32).collect(),
            None => vec![kind::NORMAL; tokens.len()],
        };
        if types.len() != tokens.len() {
            bail!(
                "{}: expected as many {TYPES} as {TOKENS}, got {} and {}",
                file.path().display(),
                types.len(),
                tokens.len()
            );
        }
        Ok(Self { tokens, types })
    }

    /// The tokens in use, with their types and ids.
    fn used(&self) -> impl Iterator<Item = (&'a str, i32, usize)> {
        let all = self.tokens.iter().zip(&self.types).enumerate();
        all.map(|(id, (token, one))| (*token, *one, id)).filter(|(_, one, _)| *one != kind::UNUSED)
    }

    fn json(&self) -> Value {
        self.used().map(|(token, _, id)| (token.to_string(), id.into())).collect::<Map<_, _>>().into()
    }

    /// The tokens that are found in a text before anything else is done with it.
    fn added(&self) -> Vec<Value> {
        let is_added = |one: i32| matches!(one, kind::CONTROL | kind::USER_DEFINED | kind::UNKNOWN);
        let added = self.used().filter(|(token, one, _)| is_added(*one) && !token.is_empty());
        let json = |(token, one, id): (&str, i32, usize)| {
            json!({
                "id": id, "content": token, "special": one != kind::USER_DEFINED,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
            })
        };
        added.map(json).collect()
    }
}

/// BPE over bytes.
fn byte_level(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or_default();
    let Some(pre) = Pre::named(name) else {
        bail!("tokenizer.ggml.pre {name} is not known: how it splits text is written in no file");
    };
    const MERGES: &str = "tokenizer.ggml.merges";
    let mut merges = Vec::new();
    for merge in file.required(MERGES, file.texts(MERGES)?)? {
        // A part may begin with a space.
        let Some(at) = merge.bytes().skip(1).position(|byte| byte == b' ') else {
            bail!("expected two parts in each of {MERGES}, got {merge:?}");
        };
        merges.push([&merge[..=at], &merge[at + 2..]]);
    }
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(), "normalizer": null,
        "pre_tokenizer": pre.to_json(), "post_processor": template(file, vocabulary, pre.adds_begin)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "ignore_merges": pre.ignores_merges, "merges": merges }
    });
    json["model"]["vocab"] = vocabulary.json();
    Tokenizer::assemble(json, None)
}

/// SentencePiece's BPE.
fn sentence_piece(file: &GgufFile, vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let adds_space = file.switch("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let post_processor = template(file, vocabulary, true)?;
    if !adds_space
        && post_processor.is_null()
        && let Some(characters) = characters(vocabulary)
    {
        return characters;
    }
    const SCORES: &str = "tokenizer.ggml.scores";
    let all_scores = file.required(SCORES, file.numbers(SCORES)?)?;
    if all_scores.len() != vocabulary.tokens.len() {
        bail!("expected as many {SCORES} as tokens, got {} and {}", all_scores.len(), vocabulary.tokens.len());
    }
    if let Some(long) = vocabulary.tokens.iter().find(|token| token.len() > MAX_PIECE_BYTES) {
        bail!("expected tokens of at most {MAX_PIECE_BYTES} bytes, got one of {}", long.len());
    }
    let pieces: Vec<(&str, f32)> = vocabulary
        .used()
        .filter(|(_, one, _)| matches!(*one, kind::NORMAL | kind::USER_DEFINED))
        .map(|(token, _, id)| (token, all_scores[id]))
        .collect();
    let unknown = special_id(file, "unknown")?.and_then(|id| vocabulary.tokens.get(id as usize));
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let prepend = json!({ "type": "Prepend", "prepend": SPACE });
    let normalizers = if adds_space { vec![prepend, replace] } else { vec![replace] };
    let strip = json!({ "type": "Strip", "content": " ", "start": usize::from(adds_space), "stop": 0 });
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocabulary.added(),
        "normalizer": { "type": "Sequence", "normalizers": normalizers }, "pre_tokenizer": null,
        "post_processor": post_processor,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" }, strip
        ] },
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": true,
            "byte_fallback": vocabulary.types.contains(&kind::BYTE), "merges": scores::merges(&pieces)
        }
    });
    json["model"]["vocab"] = vocabulary.json();
    Tokenizer::assemble(json, None)
}

/// This crate's own tokenizer if each token is a character, the last one perhaps the end of text.
fn characters(vocabulary: &Vocabulary) -> Option<Result<Tokenizer>> {
    let is_end = |(token, one, _): &(&str, i32, usize)| *token == END_OF_TEXT && *one == kind::CONTROL;
    let mut used: Vec<_> = vocabulary.used().collect();
    let has_end = used.last().is_some_and(is_end);
    used.truncate(used.len() - usize::from(has_end));
    let mut vocab = Vec::new();
    for (place, (token, one, id)) in used.into_iter().enumerate() {
        if one != kind::NORMAL || token.chars().count() != 1 || id != place {
            return None;
        }
        vocab.push((if token == SPACE { " " } else { token }.to_string(), id as u32));
    }
    vocab.is_sorted().then(|| JsonParts::characters(vocab).assemble(has_end))
}

/// What a text is framed by: the tokens that begin and end it, where the file says so.
fn template(file: &GgufFile, vocabulary: &Vocabulary, adds_begin: bool) -> Result<Value> {
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut specials = Map::new();
    for (name, is_default) in [("bos", adds_begin), ("eos", false)] {
        let is_added = file.switch(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(is_default);
        let id = special_id(file, name)?.filter(|_| is_added);
        let Some((id, token)) = id.and_then(|id| Some((id, vocabulary.tokens.get(id as usize)?))) else { continue };
        let piece = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        single.insert(if name == "bos" { 0 } else { single.len() }, piece);
        specials.insert(token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    }
    if specials.is_empty() {
        return Ok(Value::Null);
    }
    let pair = json!([{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }]);
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials }))
}
