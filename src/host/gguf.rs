//! Reading GGUF, the file format of llama.cpp: a model's configuration, tokenizer and weights in one file. The work on the
//! file is candle's.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

use super::{Error, Result, bail, caught, input, memory};

/// The longest description of metadata and tensors that is read: several times what any vocabulary needs.
const MAX_HEAD: u64 = 32 << 20;

/// A GGUF file whose description of metadata and tensors has been read.
pub(crate) struct GgufFile {
    path: PathBuf,
    file: BufReader<File>,
    content: Content,
}

impl GgufFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// If it cannot be read, is malformed, or is a part of a model that was split into several files.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, len) = input::open(path)?;
        let mut head = Head { file: BufReader::new(file), len: len.min(MAX_HEAD) };
        // A value of a single byte takes this many.
        let bytes = (head.len as usize).checked_mul(size_of::<Value>());
        memory::check(&path.display().to_string(), bytes)?;
        let unreadable = |message: String| Error::Input(format!("cannot read {} as GGUF: {message}", path.display()));
        let content = caught(|| Content::read(&mut head)).map_err(unreadable)?;
        let content = content.map_err(|error| unreadable(Error::from(error).to_string()))?;
        let opened = Self { path: path.to_path_buf(), file: head.file, content };
        match opened.whole("split.count")? {
            Some(parts) if parts > 1 => bail!(
                "{}: expected a GGUF file of a whole model, got one of {parts} parts (split.count); join them with \
                 llama-gguf-split --merge",
                path.display()
            ),
            _ => Ok(opened),
        }
    }

    /// What the file says of `key`, as `read` understands it.
    fn value<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => bail!("{}: expected {key} to be {expected}, got {}", self.path.display(), described(value)),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.value(key, "a text", |value| value.to_string().ok().map(String::as_str))
    }

    /// A whole number from 0 on, of whichever width.
    pub(crate) fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.value(key, "a whole number from 0 on", |value| usize::try_from(integer(value)?).ok())
    }

    /// A number. One of 32 bits is the shortest decimal number that it can stand for.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.value(key, "a number", |value| match value {
            Value::F32(number) => number.to_string().parse().ok(),
            Value::F64(number) => Some(*number),
            _ => None,
        })
    }

    /// A truth value.
    pub(crate) fn switch(&self, key: &str) -> Result<Option<bool>> {
        self.value(key, "true or false", |value| value.to_bool().ok())
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.value(key, "a list of texts", |value| {
            value.to_vec().ok()?.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
        })
    }

    /// A list of whole numbers.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i128>>> {
        self.value(key, "a list of whole numbers", |value| value.to_vec().ok()?.iter().map(integer).collect())
    }

    /// A list of numbers of 32 bits.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.value(key, "a list of numbers", |value| {
            value.to_vec().ok()?.iter().map(|value| value.to_f32().ok()).collect()
        })
    }

    /// An element of a list, if there is one.
    fn element(&self, key: &str, index: usize) -> Option<&Value> {
        self.content.metadata.get(key)?.to_vec().ok()?.get(index)
    }

    /// What the file cannot do without.
    ///
    /// # Errors
    /// If it does.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::Input(format!("{}: {key} is missing", self.path.display())))
    }

    /// All keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.content.metadata.keys().map(String::as_str)
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// The names of all tensors, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.content.tensor_infos.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Reads a tensor, dequantised to `f32`. Its shape must have been compared with what the model needs.
    ///
    /// # Errors
    /// If there is none, it reaches beyond the end of the file, or candle cannot dequantise it.
    pub(crate) fn read(&mut self, name: &str, device: &Device) -> Result<Tensor> {
        let (file, content) = (&mut self.file, &self.content);
        let read = caught(|| content.tensor(file, name, device)?.dequantize(device));
        let at = |message: String| Error::Input(format!("{}: {name}: {message}", self.path.display()));
        read.map_err(at)?.map_err(|error| at(Error::from(error).to_string()))
    }
}

/// The id of a special token such as `bos`; for SentencePiece's vocabularies with the default of llama.cpp.
///
/// llama.cpp has such an id for every vocabulary. Where there is no such token, it is that of an ordinary one.
pub(crate) fn special_id(file: &GgufFile, name: &str) -> Result<Option<u32>> {
    const NORMAL: i128 = 1;
    let given = file.whole(&format!("tokenizer.ggml.{name}_token_id"))?;
    let default = match name {
        "unknown" => Some(0),
        "bos" => Some(1),
        "eos" => Some(2),
        _ => None,
    };
    let is_sentence_piece = file.text("tokenizer.ggml.model")? == Some("llama");
    let Some(id) = given.or(default.filter(|_| is_sentence_piece)) else { return Ok(None) };
    let is_normal = file.element("tokenizer.ggml.token_type", id).and_then(integer) == Some(NORMAL);
    let token = file.element("tokenizer.ggml.tokens", id).and_then(|token| token.to_string().ok());
    let is_character = token.is_some_and(|token| token.chars().count() == 1);
    let is_ordinary = is_normal && (given.is_none() || is_character);
    Ok(u32::try_from(id).ok().filter(|_| !is_ordinary))
}

fn integer(value: &Value) -> Option<i128> {
    match *value {
        Value::U8(number) => Some(number.into()),
        Value::I8(number) => Some(number.into()),
        Value::U16(number) => Some(number.into()),
        Value::I16(number) => Some(number.into()),
        Value::U32(number) => Some(number.into()),
        Value::I32(number) => Some(number.into()),
        Value::U64(number) => Some(number.into()),
        Value::I64(number) => Some(number.into()),
        _ => None,
    }
}

/// A value in a message: a list or a text may be long.
fn described(value: &Value) -> String {
    match value {
        Value::Array(all) => format!("a list of {}", all.len()),
        Value::String(text) if text.len() > 80 => format!("a text of {} bytes", text.len()),
        value => format!("{value:?}"),
    }
}

/// The start of a file, which seems to end there: what the file announces beyond that is refused before memory is taken.
struct Head {
    file: BufReader<File>,
    len: u64,
}

impl Read for Head {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Head {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(if matches!(to, SeekFrom::End(_)) { SeekFrom::Start(self.len) } else { to })
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        self.file.stream_position()
    }
}
