//! Writing GGUF. candle's own writer makes every empty list one of numbers, and llama.cpp refuses a vocabulary whose list of
//! merges is that.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::Tensor;
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};

use super::{Error, Result, bail, disk};

/// Metadata by key, in the order in which it is written.
pub(crate) type Metadata = Vec<(String, Value)>;

/// A tensor, its name, and how it is stored.
pub(crate) type Stored = (String, Tensor, GgmlDType);

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 32;

/// Writes the GGUF file `path`, which is replaced atomically. One tensor at a time is converted.
///
/// # Errors
/// If metadata or tensors are of a type that is not written here, or the file cannot be written.
pub(crate) fn write(path: &Path, metadata: &Metadata, tensors: &[Stored]) -> Result<()> {
    let mut head = Vec::new();
    head.extend_from_slice(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut head, key);
        head.extend(type_of(value)?.to_le_bytes());
        put(&mut head, value)?;
    }
    let mut offset = 0;
    for (name, tensor, dtype) in tensors {
        put_text(&mut head, name);
        head.extend((tensor.rank() as u32).to_le_bytes());
        for size in tensor.dims().iter().rev() {
            head.extend((*size as u64).to_le_bytes());
        }
        head.extend(type_of_tensor(*dtype)?.to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        let bytes = tensor.elem_count() / dtype.block_size() * dtype.type_size();
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    disk::replace(path, |file| {
        let mut out = BufWriter::new(file);
        out.write_all(&head)?;
        for (_, tensor, dtype) in tensors {
            let stored = QTensor::quantize(tensor, *dtype).map_err(other)?;
            let bytes = stored.data().map_err(other)?;
            out.write_all(&bytes)?;
            out.write_all(&vec![0; bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()])?;
        }
        out.flush()
    })
}

fn other(error: candle_core::Error) -> io::Error {
    io::Error::other(Error::from(error).to_string())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    match value {
        Value::U32(number) => out.extend(number.to_le_bytes()),
        Value::I32(number) => out.extend(number.to_le_bytes()),
        Value::F32(number) => out.extend(number.to_le_bytes()),
        Value::Bool(is_true) => out.push(u8::from(*is_true)),
        Value::String(text) => put_text(out, text),
        Value::Array(all) => {
            let one = all.first().map_or(Ok(STRING), type_of)?;
            out.extend(one.to_le_bytes());
            out.extend((all.len() as u64).to_le_bytes());
            for value in all {
                if type_of(value)? != one {
                    bail!("GGUF: expected a list of values of one type, got two");
                }
                put(out, value)?;
            }
        }
        other => bail!("GGUF: values of the type {:?} are not written", other.value_type()),
    }
    Ok(())
}

const STRING: u32 = 8;

fn type_of(value: &Value) -> Result<u32> {
    Ok(match value {
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => STRING,
        Value::Array(_) => 9,
        other => bail!("GGUF: values of the type {:?} are not written", other.value_type()),
    })
}

fn type_of_tensor(dtype: GgmlDType) -> Result<u32> {
    Ok(match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q8_0 => 8,
        other => bail!("GGUF: tensors of the type {other:?} are not written"),
    })
}
