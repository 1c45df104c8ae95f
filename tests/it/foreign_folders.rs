//! Folders as other tools lay them out: the same weights under other names, in several files, or behind links; and what is
//! refused, in a line that says what to do.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_attention::model::{CausalLm, ModelConfig, load_weights};
use candle_attention::nn::Parameters;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{assert_close, max_difference};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

type Tensors = HashMap<String, Tensor>;

fn tensors(base: &str) -> Tensors {
    candle_core::safetensors::load(fixture(base).join("model.safetensors"), &Device::Cpu).unwrap()
}

fn save(folder: &Path, name: &str, tensors: &Tensors) {
    candle_core::safetensors::save(tensors, folder.join(name)).unwrap();
}

/// A folder with the `config.json` of a fixture.
fn folder(base: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture(base).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

fn logits(folder: &Path) -> candle_attention::Result<Tensor> {
    let config = ModelConfig::open(folder)?;
    let weights = load_weights(folder, &config, &Device::Cpu)?;
    let model = CausalLm::new(&config, Parameters::restored(weights)?.frozen(DType::F32, &Device::Cpu))?;
    Ok(model.forward(&Tensor::new(&[[3u32, 1, 4, 1, 5, 9]], &Device::Cpu)?)?)
}

fn refusal(folder: &Path) -> String {
    let error = logits(folder).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

const BASES: [&str; 3] = ["gpt2_untied", "llama_tied", "qwen3"];

/// Writes the tensors into one file per third of them, and an index.
fn shard(folder: &Path, tensors: &Tensors) {
    let mut map = serde_json::Map::new();
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    for (i, names) in names.chunks(names.len().div_ceil(3)).enumerate() {
        let file = format!("model-0000{}-of-00003.safetensors", i + 1);
        map.extend(names.iter().map(|name| (name.to_string(), file.clone().into())));
        save(folder, &file, &names.iter().map(|name| (name.to_string(), tensors[*name].clone())).collect());
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn weights_in_shards_under_other_names_and_of_other_dtypes_are_the_same_weights() {
    for base in BASES {
        let (expected, all) = (logits(&fixture(base)).unwrap(), tensors(base));
        let same = |what: &str, write: &dyn Fn(&Path)| {
            let space = folder(base);
            write(space.path());
            let got = logits(space.path()).unwrap_or_else(|error| panic!("{base}, {what}: {error}"));
            assert_close(&format!("{base}, {what}"), &got, &expected, 0.0);
        };
        same("shards", &|folder| shard(folder, &all));
        let renamed = |rename: &dyn Fn(&str) -> String| -> Tensors {
            all.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
        };
        let whole = |folder: &Path, tensors: &Tensors| save(folder, "model.safetensors", tensors);
        for prefix in ["module.", "_orig_mod.", "module._orig_mod."] {
            same(prefix, &|folder| whole(folder, &renamed(&|name| format!("{prefix}{name}"))));
        }
        let wrapped = |name: &str| name.replacen(".0.", ".0._fsdp_wrapped_module.", 1);
        same("wrapped blocks", &|folder| whole(folder, &renamed(&wrapped)));
        let bare = |name: &str| name.trim_start_matches("transformer.").trim_start_matches("model.").to_string();
        same("bare names", &|folder| whole(folder, &renamed(&bare)));
        let wide = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_dtype(DType::F64).unwrap());
        same("f64", &|folder| whole(folder, &all.iter().map(wide).collect()));
        let mut buffers = all.clone();
        let table = Tensor::zeros((1, 1, 4, 4), DType::U8, &Device::Cpu).unwrap();
        let extra: &[&str] = match base {
            "gpt2_untied" => &["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
            _ => &["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.cos_cached"],
        };
        buffers.extend(extra.iter().map(|name| (name.to_string(), table.clone())));
        same("buffers", &|folder| whole(folder, &buffers));

        // Halves are widened.
        for dtype in [DType::F16, DType::BF16] {
            let [space, widened] = [folder(base), folder(base)];
            let half = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
            let stored = all.iter().map(|(name, tensor)| (name.clone(), half(tensor))).collect();
            let wide = all.iter().map(|(name, tensor)| (name.clone(), half(tensor).to_dtype(DType::F32).unwrap()));
            whole(space.path(), &stored);
            whole(widened.path(), &wide.collect());
            let (got, expected) = (logits(space.path()).unwrap(), logits(widened.path()).unwrap());
            assert_eq!(max_difference(&got, &expected), 0.0, "{base}, {dtype:?}");
        }
    }
}

#[test]
fn a_tied_tensor_has_either_name_or_both() {
    for (base, embedding) in [("llama_tied", "model.embed_tokens.weight"), ("qwen3", "model.embed_tokens.weight")] {
        let (expected, mut all) = (logits(&fixture(base)).unwrap(), tensors(base));
        let space = folder(base);
        all.insert("lm_head.weight".into(), all[embedding].clone());
        save(space.path(), "model.safetensors", &all);
        assert_eq!(max_difference(&logits(space.path()).unwrap(), &expected), 0.0);
        let head = all.remove(embedding).unwrap();
        save(space.path(), "model.safetensors", &all);
        assert_eq!(max_difference(&logits(space.path()).unwrap(), &expected), 0.0);
        // transformers 4 and 5 disagree about which of two different ones counts.
        all.insert(embedding.into(), (head + 1.0).unwrap());
        save(space.path(), "model.safetensors", &all);
        assert!(refusal(space.path()).contains("tie_word_embeddings"), "{}", refusal(space.path()));
    }
}

#[test]
fn what_is_missing_or_of_another_kind_is_named() {
    let base = "llama_grouped";
    let all = tensors(base);
    let with = |files: &[(&str, &[u8])]| {
        let space = folder(base);
        files.iter().for_each(|(name, content)| fs::write(space.path().join(name), content).unwrap());
        refusal(space.path())
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
    for (files, words) in [
        (&[][..], "expected model.safetensors or model.safetensors.index.json"),
        (&[("pytorch_model.bin", &b"PK"[..])], "only pytorch_model.bin"),
        (&[("model.safetensors", pointer)], "git lfs pull"),
        (&[("config.json", pointer)], "git lfs pull"),
        (&[("config.json", b"\xef\xbb\xbf{}")], "byte order mark"),
        (&[("model.safetensors.index.json", b"{}")], "weight_map"),
    ] {
        let error = with(files);
        assert!(error.contains(words), "{error}");
    }
    let space = folder(base);
    shard(space.path(), &all);
    fs::remove_file(space.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(refusal(space.path()).contains("model-00002-of-00003.safetensors is missing"), "{}", refusal(space.path()));
    for outside in ["../model.safetensors", "/etc/passwd", ".."] {
        let index = json!({ "weight_map": { "model.norm.weight": outside } });
        fs::write(space.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert!(refusal(space.path()).contains("names of files in this folder"), "{}", refusal(space.path()));
    }
    shard(space.path(), &all);
    let path = space.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["lost"] = index["weight_map"]["model.norm.weight"].clone();
    fs::write(&path, index.to_string()).unwrap();
    assert!(refusal(space.path()).contains("lost is in none of the shards"), "{}", refusal(space.path()));
}

/// `snapshots/REVISION/NAME` leads to `../../blobs/HASH`: by a link or, in a copy without links, by a file that names it.
#[cfg(unix)]
#[test]
fn a_snapshot_of_hugging_faces_cache_opens() {
    let base = "qwen3";
    let expected = logits(&fixture(base)).unwrap();
    for is_link in [true, false] {
        let space = tempfile::tempdir().unwrap();
        let [blobs, snapshot] = ["blobs", "snapshots/0123abc"].map(|path| space.path().join("models--a--b").join(path));
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        let link = |name: &str, target: &str| match is_link {
            true => std::os::unix::fs::symlink(target, snapshot.join(name)).unwrap(),
            false => fs::write(snapshot.join(name), target).unwrap(),
        };
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture(base).join(name), blobs.join(format!("hash-of-{name}"))).unwrap();
            link(name, &format!("../../blobs/hash-of-{name}"));
        }
        assert_eq!(max_difference(&logits(&snapshot).unwrap(), &expected), 0.0);
        // Nothing else leads out.
        let secret = space.path().join("secret");
        fs::copy(fixture(base).join("config.json"), &secret).unwrap();
        fs::remove_file(snapshot.join("config.json")).unwrap();
        link("config.json", "../../../secret");
        let error = refusal(&snapshot);
        let expected = if is_link { "outside of the folder" } else { "config.json" };
        assert!(error.contains(expected), "{error}");
    }
}
