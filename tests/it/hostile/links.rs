//! Links, pipes and devices in a model folder: nothing outside it is read or written, and nothing hangs.

use std::os::unix::fs::symlink;
use std::process::Command;

use candle_attention::train::resume;
use training::{CHECKPOINT, IDS};

use super::*;

/// Opens the training, and changes nothing but what every resumption does.
fn open_training(root: &Path) -> Result<()> {
    resume(root, &toml::Table::new(), &Device::Cpu, &mut |_| {}).map(drop)
}

/// The result of opening the run after one of its files is replaced by a link to `target`.
fn with_link(victim: &Victim, name: &str, target: &Path, open: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let path = victim.path(name);
    let kept = path.with_extension("kept");
    std::fs::rename(&path, &kept).unwrap();
    symlink(target, &path).unwrap();
    let result = open(&victim.root);
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(&kept, &path).unwrap();
    result
}

#[test]
fn a_link_out_of_the_folder_is_not_followed() {
    let (victim, outside) = (Victim::new("char"), Victim::new("char"));
    let of_the_model: [&str; 5] =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    for name in of_the_model {
        let error = with_link(&victim, name, &outside.path(name), &open_model).unwrap_err().to_string();
        assert!(error.contains("outside of the folder") && error.contains("cp -rL"), "{name}: {error}");
        // A link within the folder is as good as a file.
        let kept = victim.path(name).with_extension("kept");
        with_link(&victim, name, &kept, &open_model).unwrap();
    }
    let before = contents(&outside.root);
    for name in ["training/metrics.jsonl", "training/lock", "training/settings.toml", "config.json", CHECKPOINT, IDS] {
        let error = with_link(&victim, name, &outside.path(name), &open_training).unwrap_err().to_string();
        assert!(error.contains("link"), "{name}: {error}");
        assert_eq!(before, contents(&outside.root), "{name}");
    }
    open_training(&victim.root).unwrap();
}

#[test]
fn hugging_faces_cache_is_opened_as_it_is() {
    let victim = Victim::new("char");
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--a--b/snapshots/0123abc");
    let blobs = dir.path().join("models--a--b/blobs");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(victim.path(name), blobs.join(format!("sha-of-{name}"))).unwrap();
        symlink(format!("../../blobs/sha-of-{name}"), snapshot.join(name)).unwrap();
    }
    open_model(&snapshot).unwrap();
    // A blob that is itself a link is not part of the cache.
    std::fs::remove_file(blobs.join("sha-of-config.json")).unwrap();
    symlink(victim.path("config.json"), blobs.join("sha-of-config.json")).unwrap();
    assert!(open_model(&snapshot).unwrap_err().to_string().contains("outside of the folder"));
}

#[test]
fn pipes_and_devices_are_no_files_of_a_model() {
    let victim = Victim::new("char");
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let path = victim.path(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = open_model(&victim.root).unwrap_err().to_string();
        assert!(error.contains("expected a regular file"), "{name}: {error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = open_model(&victim.root).unwrap_err().to_string();
        assert!(error.contains("expected a file, got a folder"), "{name}: {error}");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, good).unwrap();
    }
    for device in ["/dev/zero", "/dev/null"] {
        let error = Tokenizer::open(device).unwrap_err().to_string();
        assert!(error.contains("expected a regular file"), "{error}");
    }
    open_model(&victim.root).unwrap();
}

#[test]
fn files_that_are_too_long_are_not_read() {
    let victim = Victim::new("char");
    let refused = |name: &str, bytes: u64, open: &dyn Fn(&Path) -> Result<()>| {
        let path = victim.path(name);
        let good = std::fs::read(&path).unwrap();
        // A hole, which takes no space on disk.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        let error = open(&victim.root).unwrap_err().to_string();
        assert!(
            error.contains("expected at most") && error.contains(&format!("bytes, got {bytes}")),
            "{name}: {error}"
        );
        std::fs::write(&path, good).unwrap();
    };
    for (name, bytes) in [("config.json", 1 << 30), ("tokenizer.json", 1 << 33), ("tokenizer_config.json", 1 << 33)] {
        refused(name, bytes, &open_model);
    }
    // Far less than there is memory for.
    for (name, bytes) in [("config.json", 16 << 20), ("training/settings.toml", 16 << 20)] {
        refused(name, bytes + 1, &open_training);
    }
    refused("tokenizer.json", (256 << 20) + 1, &open_model);
    open_model(&victim.root).unwrap();
    open_training(&victim.root).unwrap();
}
