//! What only training reads: checkpoints, settings, ids and metrics.

use candle_attention::train::resume;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;

pub const CHECKPOINT: &str = "training/step-00000002.safetensors";
pub const IDS: &str = "training/ids.safetensors";

/// The length of the header of a file of ids, with the length itself.
const IDS_HEADER: usize = 1024;

/// Resumes the training with more steps, makes one and validates.
pub fn open_training(root: &Path) -> Result<()> {
    let changes = toml::Table::from_iter([("steps".to_string(), i64::MAX.into())]);
    let (mut trainer, mut run, damaged) = resume(root, &changes, &Device::Cpu, &mut |_| {})?;
    damaged.iter().for_each(check_message);
    // Weights that are not finite are found here.
    let stepped = trainer.next_batch().and_then(|batch| trainer.step(&batch));
    check_result(stepped);
    check_result(trainer.validate(&mut |_, _| ControlFlow::Continue(())));
    check_result(run.save(&trainer));
    Ok(())
}

/// A copy of a run without its older checkpoints: what a damaged one is replaced by.
fn copy(victim: &Victim) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let files = contents(&victim.root).into_iter().map(|(path, bytes)| {
        let inside = path.strip_prefix(&victim.root).unwrap().to_path_buf();
        (inside, bytes)
    });
    for (path, bytes) in files {
        let is_older = path.to_string_lossy().contains("step-") && path != Path::new(CHECKPOINT);
        if !is_older && !path.starts_with("training/tensorboard") {
            let path = copy.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    copy
}

/// Resumes a copy of the run with each of `mutants` in place of the file `name`, and with checksums that are right.
fn endure(victim: &Victim, name: &str, mutants: Vec<Vec<u8>>) {
    let before = contents(&victim.root);
    let good = std::fs::read(victim.path(name)).unwrap();
    let (mut opened, count) = (0, mutants.len());
    let is_opened = |mutant: &[u8]| {
        let copy = copy(victim);
        std::fs::write(copy.path().join(name), mutant).unwrap();
        restamp(copy.path());
        is_endured(name, mutant, || open_training(copy.path()))
    };
    for mutant in mutants {
        opened += usize::from(is_opened(&mutant));
    }
    assert!(is_opened(&good), "{name}: the good one is refused");
    assert_eq!(before, contents(&victim.root));
    println!("{name}: {count} cases, {opened} of them opened");
}

/// Corrects a checkpoint's checksum, and its fingerprint of the corpus, as whoever changed the files would.
fn restamp(root: &Path) {
    let path = root.join(CHECKPOINT);
    let mut bytes = std::fs::read(&path).unwrap();
    let begin = br#"{"__metadata__":{"checksum":""#;
    let start = 8 + begin.len();
    if bytes.get(8..start) != Some(begin) || bytes.len() < start + 64 {
        return;
    }
    if let Some(fingerprint) = stored_fingerprint(&std::fs::read(root.join(IDS)).unwrap()) {
        let key = br#"\"corpus\":\""#;
        let place = bytes.windows(key.len()).position(|window| window == key).map(|at| at + key.len());
        if let Some(stored) = place.and_then(|at| bytes.get_mut(at..at + 64)) {
            stored.copy_from_slice(fingerprint.as_bytes());
        }
    }
    bytes[start..start + 64].fill(b'0');
    let checksum = hexadecimal(Sha256::new().chain_update(&bytes));
    bytes[start..start + 64].copy_from_slice(checksum.as_bytes());
    std::fs::write(&path, bytes).unwrap();
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fingerprint in the header of a file of ids.
fn stored_fingerprint(ids: &[u8]) -> Option<String> {
    let len = u64::from_le_bytes(*ids.first_chunk()?) as usize;
    let header: Value = serde_json::from_slice(ids.get(8..8usize.checked_add(len)?)?).ok()?;
    let fingerprint = header["__metadata__"]["fingerprint"].as_str()?;
    (fingerprint.len() == 64).then(|| fingerprint.to_string())
}

/// The header of a safetensors file and the rest.
fn parts(file: &[u8]) -> (Value, &[u8]) {
    let (header, data) = file[8..].split_at(u64::from_le_bytes(file[..8].try_into().unwrap()) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

/// A checkpoint with each part of its state replaced by each odd value.
fn states(good: &[u8]) -> Vec<Vec<u8>> {
    let (mut header, data) = parts(good);
    let state = header["__metadata__"]["state"].as_str().unwrap().to_string();
    let states = mutate::structured(state.as_bytes()).into_iter().map(|state| {
        header["__metadata__"]["state"] = String::from_utf8(state).unwrap().into();
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    });
    states.collect()
}

#[test]
fn a_checkpoint() {
    let victim = Victim::new("char");
    let good = std::fs::read(victim.path(CHECKPOINT)).unwrap();
    endure(&victim, CHECKPOINT, cases(states(&good), &good, 5));
    endure(&victim, CHECKPOINT, cases(mutate::lying_headers(&good), &good, 6));
}

#[test]
fn settings() {
    let victim = Victim::new("char");
    let name = "training/settings.toml";
    let good = std::fs::read_to_string(victim.path(name)).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let mut ordered = vec![];
    for (i, (key, _)) in lines.iter().enumerate().filter_map(|(i, line)| Some((i, line.split_once(" = ")?))) {
        let with = |line: String| {
            let line = [line];
            let all: Vec<&str> = lines[..i]
                .iter()
                .copied()
                .chain(line.iter().map(String::as_str))
                .chain(lines[i + 1..].iter().copied())
                .collect();
            all.join("\n").into_bytes()
        };
        ordered.extend(mutate::values().into_iter().map(|value| with(format!("{key} = {value}"))));
        ordered.extend([with(String::new()), with(format!("{key} = 1\n{key} = 1"))]);
    }
    endure(&victim, name, cases(ordered, good.as_bytes(), 9));
}

#[test]
fn metrics_and_the_configuration_of_a_run() {
    let victim = Victim::new("char");
    for (seed, name) in [(10, "training/metrics.jsonl"), (11, "config.json")] {
        let good = std::fs::read(victim.path(name)).unwrap();
        let ordered = if name.ends_with("json") { mutate::structured(&good) } else { vec![] };
        endure(&victim, name, cases(ordered, &good, seed));
    }
}

/// A file of ids whose fingerprint is right.
fn stamped(
    train: &[u32],
    validation: &[u32],
    [train_bytes, validation_bytes]: [usize; 2],
    end: Option<u32>,
) -> Vec<u8> {
    let ids = || train.iter().chain(validation);
    let mut hash = Sha256::new();
    ids().for_each(|id| hash.update(id.to_le_bytes()));
    hash.update(format!("{end:?}"));
    let lens = [train.len(), validation.len(), train_bytes, validation_bytes];
    lens.into_iter().for_each(|len| hash.update((len as u64).to_le_bytes()));
    let mut metadata = json!({
        "fingerprint": hexadecimal(hash), "train_bytes": train_bytes.to_string(),
        "validation_bytes": validation_bytes.to_string()
    });
    if let Some(end) = end {
        metadata["separator"] = end.to_string().into();
    }
    let is_small = ids().all(|&id| id < 1 << 16);
    let (dtype, width) = if is_small { ("U16", 2) } else { ("U32", 4) };
    let info = |from: usize, len: usize| json!({ "dtype": dtype, "shape": [len], "data_offsets": [from * width, (from + len) * width] });
    let header = json!({
        "__metadata__": metadata, "train": info(0, train.len()), "validation": info(train.len(), validation.len())
    });
    let mut file = ((IDS_HEADER - 8) as u64).to_le_bytes().to_vec();
    file.extend(header.to_string().bytes());
    file.resize(IDS_HEADER, b' ');
    ids().for_each(|id| file.extend_from_slice(&id.to_le_bytes()[..width]));
    file
}

/// Ids that are what their fingerprint says, but nothing that the run could have been trained on.
#[test]
fn ids_of_another_text() {
    let victim = Victim::new("char");
    let (_, corpus) = corpus("char", IdsStore::Temporary);
    let [train, validation] = [&corpus.train, &corpus.validation].map(|ids| ids.to_vec().unwrap());
    let bytes = [corpus.train_bytes, corpus.validation_bytes];
    let good = stamped(&train, &validation, bytes, None);
    assert!(good == std::fs::read(victim.path(IDS)).unwrap());
    let all = |id: u32, ids: &[u32]| vec![id; ids.len()];
    let mut mutants = vec![
        stamped(&[], &[], [0, 0], None),
        stamped(&[], &validation, bytes, None),
        stamped(&train, &[], bytes, None),
        stamped(&train[..5], &validation[..5], bytes, None),
        stamped(&train[..6], &validation[..1], bytes, None),
        stamped(&train, &validation, [0, 0], None),
        stamped(&train, &validation, [usize::MAX; 2], None),
        stamped(&train, &validation, bytes, Some(u32::MAX)),
        stamped(&train, &validation, bytes, Some(0)),
    ];
    for id in [6, 7, 8, 1000, 65_535, 65_536, u32::MAX - 1, u32::MAX] {
        mutants.push(stamped(&all(id, &train), &validation, bytes, None));
        mutants.push(stamped(&train, &all(id, &validation), bytes, None));
        mutants.push(stamped(&[&train[..], &[id]].concat(), &validation, bytes, None));
    }
    endure(&victim, IDS, mutants);
    endure(&victim, IDS, cases(mutate::lying_headers(&good), &good, 8));
}
