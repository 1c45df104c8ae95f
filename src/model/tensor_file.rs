//! Reading safetensors tensor by tensor: the header is read and checked before memory is taken for what it announces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Result, Tensor, bail};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::errors::bare;
use crate::{input, memory};

/// Bytes of the length field that precedes the header.
const LENGTH: u64 = 8;

/// A safetensors file, on disk or in memory, whose header has been read.
pub(super) struct TensorFile<R> {
    path: PathBuf,
    file: R,
    /// The offset at which the tensors begin.
    start: u64,
    metadata: Metadata,
}

impl TensorFile<File> {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// If there is no such file, or its header is malformed or does not match the file's length.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, len) = input::open(path)?;
        Self::new(path, file, len)
    }
}

impl<'a> TensorFile<Cursor<&'a [u8]>> {
    /// Reads the header of these bytes, the content of the file at `path`.
    ///
    /// # Errors
    /// If the header is malformed or does not match the number of bytes.
    pub(super) fn from_bytes(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        Self::new(path, Cursor::new(bytes), bytes.len() as u64)
    }
}

impl<R: Read + Seek> TensorFile<R> {
    fn new(path: &Path, mut file: R, len: u64) -> Result<Self> {
        match read_header(&mut file, len) {
            Ok((start, metadata)) => Ok(Self { path: path.to_path_buf(), file, start, metadata }),
            Err(error) => bail!("cannot read {}: {}", path.display(), bare(&error)),
        }
    }

    /// The dtype and shape of each tensor, by name.
    pub(super) fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect()
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// If there is no tensor of that name, memory cannot hold it, or candle lacks its dtype.
    pub(super) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(info) = self.metadata.info(name) else { bail!("{}: {name} is missing", self.path.display()) };
        let cannot = |error: &dyn std::fmt::Display| {
            candle_core::Error::Msg(format!("cannot read {name} in {}: {error}", self.path.display()))
        };
        if matches!(info.dtype, Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 | Dtype::F8_E8M0) {
            // candle can hold their bytes, but panics when it computes with them.
            return Err(cannot(&format!("computing with {:?} is not supported", info.dtype)));
        }
        let (begin, end) = info.data_offsets;
        // Its bytes and, while they are converted, its values.
        memory::check(&format!("{}: {name}", self.path.display()), (end - begin).checked_mul(2))?;
        let mut bytes = vec![0; end - begin];
        self.file.seek(SeekFrom::Start(self.start + begin as u64)).map_err(|error| cannot(&error))?;
        self.file.read_exact(&mut bytes).map_err(|error| cannot(&error))?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes).map_err(|error| cannot(&error))?;
        view.load(device)
    }
}

/// The offset of the tensors in a file of `len` bytes, and their description.
fn read_header(file: &mut impl Read, len: u64) -> Result<(u64, Metadata)> {
    if len < LENGTH {
        bail!("expected a safetensors file, got {len} bytes");
    }
    let mut length = [0; LENGTH as usize];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > input::MOST_CONFIG_BYTES.min(len - LENGTH) {
        bail!("expected a header of at most {} bytes, got {length}", input::MOST_CONFIG_BYTES.min(len - LENGTH));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)?;
    // Not `SafeTensors::read_metadata`, whose sum of lengths may wrap around to the file's length.
    let metadata: Metadata = match serde_json::from_slice(&header) {
        Ok(metadata) => metadata,
        Err(error) => bail!("expected the header of a safetensors file, got {error}"),
    };
    let start = LENGTH + length;
    let expected = start.checked_add(metadata.data_len() as u64);
    match expected {
        Some(expected) if expected == len => Ok((start, metadata)),
        _ => bail!("expected {} bytes of tensors, as the header says, got {}", metadata.data_len(), len - start),
    }
}

/// All tensors of a safetensors file with this content; `path` is for messages only.
pub(crate) fn safetensors_from_bytes(path: &Path, bytes: &[u8], device: &Device) -> Result<BTreeMap<String, Tensor>> {
    let mut file = TensorFile::from_bytes(path, bytes)?;
    memory::check(&path.display().to_string(), Some(file.metadata.data_len()))?;
    let names = file.tensors().into_keys();
    names.map(|name| Ok((name.clone(), file.read(&name, device)?))).collect()
}
