//! Reading safetensors tensor by tensor: the header is read and checked before memory is taken for what it announces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo, TensorView, View};
use serde::Serializer;

use crate::host::{Error, Result, bail, input, memory};

/// Bytes of the length field that precedes the header.
const LENGTH: u64 = 8;

/// A safetensors file whose header has been read.
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    /// The offset at which the tensors begin.
    start: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// If there is no such file, or its header is malformed or does not match the file's length.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (mut file, len) = input::open(path)?;
        let mut start = [0; 64];
        let read = file.read(&mut start).map_err(Error::io("read", path))?;
        input::check_no_pointer(path, &start[..read])?;
        file.rewind().map_err(Error::io("read", path))?;
        let (start, metadata) =
            read_header(&mut file, len).map_err(|error| error.at(format_args!("cannot read {}", path.display())))?;
        Ok(Self { path: path.to_path_buf(), file, start, metadata })
    }

    /// The dtype and shape of each tensor, by name.
    pub(crate) fn tensors(&self) -> BTreeMap<String, TensorInfo> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect()
    }

    /// A text in the file's metadata.
    pub(crate) fn metadata(&self, name: &str) -> Option<String> {
        self.metadata.metadata().as_ref()?.get(name).cloned()
    }

    /// Reads one tensor.
    ///
    /// # Errors
    /// If there is no tensor of that name, memory cannot hold it, or candle lacks its dtype.
    pub(crate) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        let Some(info) = self.metadata.info(name) else { bail!("{}: {name} is missing", self.path.display()) };
        let cannot = |error: &dyn std::fmt::Display| {
            Error::Input(format!("cannot read {name} in {}: {error}", self.path.display()))
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
        Ok(view.load(device)?)
    }
}

fn unreadable(error: std::io::Error) -> Error {
    Error::Input(error.to_string())
}

/// The offset of the tensors in a file of `len` bytes, and their description.
fn read_header(file: &mut impl Read, len: u64) -> Result<(u64, Metadata)> {
    if len < LENGTH {
        bail!("expected a safetensors file, got {len} bytes");
    }
    let mut length = [0; LENGTH as usize];
    file.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > input::MAX_CONFIG_BYTES.min(len - LENGTH) {
        bail!("expected a header of at most {} bytes, got {length}", input::MAX_CONFIG_BYTES.min(len - LENGTH));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
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

/// Writes tensors, in the order of their names, and metadata, in the order of its keys: the same ones always give the same
/// bytes.
pub(crate) fn write_tensors(
    out: &mut impl Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<&str, String>,
) -> io::Result<()> {
    // First, whatever the names of the tensors: a checkpoint's checksum has its place at the start of the file.
    let mut entries = vec![("__metadata__", serde_json::to_value(metadata)?)];
    let mut end = 0;
    for (name, tensor) in tensors {
        let (dtype, begin) = (View::dtype(&tensor), end);
        end += View::data_len(&tensor);
        let info = TensorInfo { dtype, shape: tensor.dims().to_vec(), data_offsets: (begin, end) };
        entries.push((name, serde_json::to_value(info)?));
    }
    let mut header = Vec::new();
    serde_json::Serializer::new(&mut header).collect_map(entries)?;
    // The format asks for tensors at multiples of 8 bytes.
    header.resize(header.len().next_multiple_of(LENGTH as usize), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.values().try_for_each(|tensor| out.write_all(&View::data(&tensor)))?;
    // What drops a buffer loses its errors.
    out.flush()
}
