//! The fingerprint by which a corpus is recognised.

use candle_core::Result;
use sha2::{Digest, Sha256};

use super::ids::Width;
use super::{Ids, TextProgress};

/// SHA-256, in hexadecimal, of the number of training ids and of all ids.
pub(super) fn fingerprint(train: &Ids, validation: &Ids, progress: &mut dyn FnMut(TextProgress)) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update((train.len() as u64).to_le_bytes());
    let (mut bytes, mut done, total) = (Vec::new(), 0, (train.len() + validation.len()) as u64);
    for block in train.blocks().chain(validation.blocks()) {
        let block = block?;
        bytes.clear();
        Width::Four.extend(&mut bytes, &block);
        hash.update(&bytes);
        done += block.len() as u64;
        progress(TextProgress::Checking { done, total });
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
