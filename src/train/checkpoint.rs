//! One checkpoint on disk: a safetensors file of weights, averages and optimizer state, with the rest of the state and a
//! checksum in its metadata.
//!
//! | tensor | |
//! |---|---|
//! | `weight.NAME` | a weight in training |
//! | `average.NAME` | its moving average, if the run has one |
//! | `first_moment.NAME`, `second_moment.NAME` | AdamW's state |
//! | `momentum.NAME` | Muon's state |
//!
//! The checksum is the SHA-256 of the whole file with 64 zeros in the place of the checksum, which is the first entry of
//! the header.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::host::{Error, Result, disk, input};
use crate::model::{TensorFile, write_tensors};

/// How every checkpoint begins, after the eight bytes of the header's length; the checksum follows.
const BEGIN: &str = r#"{"__metadata__":{"checksum":""#;

/// Where the checksum stands.
const CHECKSUM_AT: u64 = 8 + BEGIN.len() as u64;

/// In the place of a checksum.
const ZEROS: [u8; 64] = [b'0'; 64];

/// The path of the checkpoint of a step in the folder `training`.
pub(super) fn path(training: &Path, step: u64) -> PathBuf {
    training.join(format!("step-{step:08}.safetensors"))
}

/// The steps of the checkpoints in the folder `training`, newest first.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn steps(training: &Path) -> Result<Vec<u64>> {
    let mut steps = vec![];
    for entry in fs::read_dir(training).map_err(Error::io("read", training))? {
        let name = entry.map_err(Error::io("read", training))?.file_name().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|name| name.strip_suffix(".safetensors"));
        let step = step.and_then(|step| step.parse().ok());
        steps.extend(step.filter(|step| path(training, *step).ends_with(&name)));
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Removes what a crash has left of checkpoints that never appeared.
///
/// # Errors
/// If the folder cannot be read, or something cannot be removed.
pub(super) fn remove_unfinished(training: &Path) -> Result<()> {
    for entry in fs::read_dir(training).map_err(Error::io("read", training))? {
        let path = entry.map_err(Error::io("read", training))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("step-") && name.ends_with(".safetensors.tmp") {
            disk::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Writes a checkpoint, which appears by one rename.
///
/// # Errors
/// If it cannot be written.
pub(super) fn write(path: &Path, state: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let checksum = String::from_utf8_lossy(&ZEROS).into_owned();
    let metadata = BTreeMap::from([("checksum", checksum), ("state", state.to_string())]);
    disk::replace(path, |file| {
        let mut out = Hashed { file, hash: Sha256::new() };
        write_tensors(&mut out, tensors, &metadata)?;
        let Hashed { file, hash } = out;
        file.seek(SeekFrom::Start(CHECKSUM_AT))?;
        file.write_all(hexadecimal(hash).as_bytes())
    })
}

/// Reads a checkpoint: the state, and the tensors by name.
///
/// # Errors
/// If it cannot be read, or is not what was written.
pub(super) fn read(path: &Path, device: &Device) -> Result<(String, BTreeMap<String, Tensor>)> {
    let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
    let (mut file, _) = input::open(&input::inside(folder, name)?)?;
    verify(&mut file).map_err(Error::io("read", path))?.map_err(|what| Error::corrupt(path, what))?;
    let mut file = TensorFile::open(path)?;
    let state = file.metadata("state").ok_or_else(|| Error::corrupt(path, "it has no state"))?;
    let names = file.tensors().into_keys();
    let tensors = names.map(|name| Ok((name.clone(), file.read(&name, device)?))).collect::<Result<_>>()?;
    Ok((state, tensors))
}

/// Compares a file with its checksum.
fn verify(file: &mut File) -> io::Result<Result<(), &'static str>> {
    let mut head = Vec::new();
    Read::take(&mut *file, CHECKSUM_AT + ZEROS.len() as u64).read_to_end(&mut head)?;
    let Some((begin, checksum)) = head.split_at_checked(CHECKSUM_AT as usize) else {
        return Ok(Err("it is cut short"));
    };
    if begin[8..] != *BEGIN.as_bytes() {
        return Ok(Err("it is not a checkpoint"));
    }
    let mut hash = Sha256::new();
    hash.update(begin);
    hash.update(ZEROS);
    let mut buffer = Vec::new();
    while Read::take(&mut *file, 1 << 20).read_to_end(&mut buffer)? > 0 {
        hash.update(&buffer);
        buffer.clear();
    }
    Ok(if hexadecimal(hash).as_bytes() == checksum { Ok(()) } else { Err("it is not what was written") })
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes to a file and hashes what it writes.
struct Hashed<'a> {
    file: &'a mut File,
    hash: Sha256,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn tensors() -> BTreeMap<String, Tensor> {
        let tensor = |seed| crate::cpu::testing::randn(seed, &[3, 5]).to_dtype(DType::F32).unwrap();
        BTreeMap::from([("weight.a".to_string(), tensor(1)), ("average.a".to_string(), tensor(2))])
    }

    #[test]
    fn what_is_written_comes_back_and_the_bytes_are_always_the_same() {
        let space = tempfile::tempdir().unwrap();
        let (one, two) = (path(space.path(), 7), path(space.path(), 12));
        let tensors = tensors();
        write(&one, r#"{"step":7}"#, &tensors).unwrap();
        write(&two, r#"{"step":7}"#, &tensors).unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        assert_eq!(steps(space.path()).unwrap(), [12, 7]);
        let (state, read) = read(&one, &Device::Cpu).unwrap();
        assert_eq!(state, r#"{"step":7}"#);
        for (name, tensor) in &tensors {
            assert_eq!(read[name].to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
        }
        // Any other program reads it too.
        let bytes = fs::read(&one).unwrap();
        assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().len(), 2);
    }

    #[test]
    fn one_changed_bit_is_seen_wherever_it_is() {
        let space = tempfile::tempdir().unwrap();
        let path = path(space.path(), 7);
        write(&path, r#"{"step":7}"#, &tensors()).unwrap();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, bad).unwrap();
            assert!(matches!(read(&path, &Device::Cpu), Err(Error::Corrupt { .. })), "byte {at}");
        }
        for len in [0, 7, 8, 50, 99, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            assert!(matches!(read(&path, &Device::Cpu), Err(Error::Corrupt { .. })), "length {len}");
        }
    }
}
