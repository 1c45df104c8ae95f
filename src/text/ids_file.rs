//! Ids in a file: a safetensors file with the tensors `train` and `validation`, of type `U16` if the vocabulary fits
//! and `U32` otherwise, with the fingerprint, the bytes of text and the separator of documents as metadata.
//!
//! The lengths are only known at the end, so the header has a fixed length, padded with spaces as the format allows,
//! and is written last: an incomplete file is not a safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Error, Result, bail};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::fingerprint::fingerprint;
use super::ids::{IdsFile, Width};
use super::ids_writer::IdsWriter;
use super::{Corpus, Ids, Separator, TextProgress};
use crate::errors::bare;
use crate::{files, input};

/// Bytes before the ids: the length of the header, and the header.
pub(super) const HEADER_BYTES: usize = 1024;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// A file of at most this many bytes is read into memory when it is opened.
const MOST_BYTES_IN_MEMORY: u64 = 32 << 20;

/// Completes the file of a corpus whose ids have just been written to it.
pub(super) fn write_header(corpus: &Corpus, file: &IdsFile, width: Width) -> Result<()> {
    let header = header(corpus, width).map_err(|error| cannot_write(&file.path, &error))?;
    files::write_at(&file.file, &file.path, 0, &header)?;
    files::sync(&file.path)
}

fn header(corpus: &Corpus, width: Width) -> std::io::Result<Vec<u8>> {
    let dtype = if width == Width::Two { Dtype::U16 } else { Dtype::U32 };
    let (train, validation) = (corpus.train.len(), corpus.validation.len());
    let info = |from: usize, len: usize| TensorInfo {
        dtype,
        shape: vec![len],
        data_offsets: (from * width.bytes(), (from + len) * width.bytes()),
    };
    let json = serde_json::json!({
        "__metadata__": {
            "fingerprint": corpus.fingerprint,
            "train_bytes": corpus.train_bytes.to_string(),
            "validation_bytes": corpus.validation_bytes.to_string(),
            SEPARATOR: separator_text(corpus.separator),
        },
        "train": info(0, train),
        "validation": info(train, validation),
    });
    let mut header = ((HEADER_BYTES - LENGTH_BYTES) as u64).to_le_bytes().to_vec();
    serde_json::to_writer(&mut header, &json)?;
    header.resize(HEADER_BYTES, b' ');
    Ok(header)
}

impl Corpus {
    /// Writes the ids to a new file, for [`Corpus::open`] and anything else that reads safetensors. If they are in a
    /// temporary file already, that is linked, or copied if the file system has no hard links.
    ///
    /// # Errors
    /// A file that exists or can't be written, and a disk without enough space, which is checked beforehand.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(file) = self.train.file() {
            if files::link(&file.path, path).is_ok() {
                return Ok(());
            }
            let len = file.file.metadata().map_err(|error| cannot_write(path, &error))?.len();
            files::check_space(files::parent(path), "the ids of the text", len)?;
            return files::copy(&file.path, path);
        }
        let highest = self
            .train
            .blocks()
            .chain(self.validation.blocks())
            .try_fold(0, |most, block| Ok::<_, Error>(block?.iter().copied().fold(most, u32::max)))?;
        let width = Width::of(highest as usize + 1);
        let most = self.ids_bytes(width);
        files::check_space(files::parent(path), "the ids of the text", most)?;
        let mut writer = IdsWriter::create(path, width, most)?;
        for (part, ids) in [&self.train, &self.validation].into_iter().enumerate() {
            for block in ids.blocks() {
                writer.extend(part, &block?)?;
            }
        }
        let [train, _] = writer.finish()?;
        match train.file() {
            Some(file) => {
                write_header(self, file, width)?;
                file.keep();
                Ok(())
            }
            None => bail!("internal error: the ids written to {} are in no file", path.display()),
        }
    }

    /// The most bytes that [`Corpus::save`] writes: none if it only links a file.
    pub(crate) fn bytes_to_save(&self) -> u64 {
        if self.train.file().is_some() { 0 } else { self.ids_bytes(Width::Four) }
    }

    fn ids_bytes(&self, width: Width) -> u64 {
        (HEADER_BYTES + (self.train.len() + self.validation.len()) * width.bytes()) as u64
    }

    /// Removes the name of the temporary file, once a run has a link or a copy of it. The ids can still be read.
    pub fn forget_temporary(&self) {
        if let Some(file) = self.train.file() {
            file.forget();
        }
    }

    /// Opens a file written by [`Corpus::save`], and reads it once to check that the ids are those that were written.
    /// If there are many, they stay in the file.
    ///
    /// # Errors
    /// A file that can't be read, isn't such a file or is damaged.
    pub fn open(path: &Path, progress: &mut dyn FnMut(TextProgress)) -> Result<Self> {
        let broken = |what: &dyn std::fmt::Display| Error::Msg(format!("broken ids: {}: {what}", path.display()));
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let (mut file, len) = input::open(&input::inside(folder, name)?)?;
        if len < LENGTH_BYTES as u64 {
            return Err(broken(&format!("expected a safetensors file, got {len} bytes")));
        }
        let (metadata, start) = read_header(&mut file).map_err(|error| broken(&error))?;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if len != expected {
            return Err(broken(&format!("expected {expected} bytes, got {len}")));
        }
        let file = Arc::new(IdsFile::kept(file, path));
        let ids = |name| ids_of(&metadata, name, start, &file).ok_or_else(|| broken(&format!("no ids {name}")));
        let texts = metadata.metadata().clone().unwrap_or_default();
        let corpus = Self {
            train: ids("train")?,
            validation: ids("validation")?,
            train_bytes: number(&texts, "train_bytes").map_err(|error| broken(bare(&error)))?,
            validation_bytes: number(&texts, "validation_bytes").map_err(|error| broken(bare(&error)))?,
            separator: separator(&texts).map_err(|error| broken(bare(&error)))?,
            fingerprint: texts.get("fingerprint").cloned().unwrap_or_default(),
        };
        let corpus = if len <= MOST_BYTES_IN_MEMORY { corpus.into_memory()? } else { corpus };
        if fingerprint(&corpus.train, &corpus.validation, progress)? != corpus.fingerprint {
            return Err(broken(&"the ids are not those that were written"));
        }
        Ok(corpus)
    }

    fn into_memory(self) -> Result<Self> {
        let (train, validation) = (self.train.to_vec()?.into(), self.validation.to_vec()?.into());
        Ok(Self { train, validation, ..self })
    }
}

/// The header, and the offset of the ids.
fn read_header(file: &mut File) -> std::io::Result<(Metadata, u64)> {
    /// Ours has a thousand bytes; another program that rewrites the file may need some more.
    const MOST: u64 = 1 << 16;
    let mut len = [0; LENGTH_BYTES];
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MOST {
        return Err(std::io::Error::other(format!("expected a header of at most {MOST} bytes, got {len}")));
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header)?;
    Ok((serde_json::from_slice(&header)?, LENGTH_BYTES as u64 + len))
}

fn ids_of(metadata: &Metadata, name: &str, start: u64, file: &Arc<IdsFile>) -> Option<Ids> {
    let info = metadata.info(name)?;
    let width = match info.dtype {
        Dtype::U16 => Width::Two,
        Dtype::U32 => Width::Four,
        _ => return None,
    };
    let &[len] = &info.shape[..] else { return None };
    let (from, to) = info.data_offsets;
    let fits = to.checked_sub(from)? == len.checked_mul(width.bytes())?;
    fits.then(|| Ids::in_file(file.clone(), width, start + from as u64, len))
}

fn number(texts: &HashMap<String, String>, name: &str) -> Result<usize> {
    match texts.get(name).map(|text| text.parse()) {
        Some(Ok(number)) => Ok(number),
        _ => bail!("expected a number as {name}"),
    }
}

/// The name of the separator in the metadata.
const SEPARATOR: &str = "separator";

fn separator_text(separator: Separator) -> String {
    match separator {
        Separator::Unneeded => "unneeded".into(),
        Separator::Missing => "missing".into(),
        Separator::Token(id) => id.to_string(),
    }
}

fn separator(texts: &HashMap<String, String>) -> Result<Separator> {
    match texts.get(SEPARATOR).map(|text| (text.as_str(), text.parse())) {
        Some(("unneeded", _)) => Ok(Separator::Unneeded),
        Some(("missing", _)) => Ok(Separator::Missing),
        Some((_, Ok(id))) => Ok(Separator::Token(id)),
        _ => bail!("expected an id, unneeded or missing as {SEPARATOR}; giving the texts again replaces the ids"),
    }
}

fn cannot_write(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::text::{
        BatchSampler, CorpusOptions, Document, Rest, Spill, Tokenizer, TokenizerChoice, Validation, prepare, windows,
    };

    /// Documents in files, two of them of several pieces.
    fn documents(folder: &Path) -> Vec<Document> {
        let text = "não é só ça, 🦀 it's 42\r\n\n".repeat(20_000);
        let document = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            Document::open(folder.join(name)).unwrap()
        };
        vec![document("a", &text), document("b", "b"), document("c", &text[..text.len() / 2])]
    }

    fn on_file(folder: &Path) -> CorpusOptions {
        CorpusOptions { context_len: 7, spill: Some(Spill { folder: folder.to_path_buf(), above: 0 }) }
    }

    fn files_in(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn ids_are_the_same_in_memory_and_on_file() {
        let dir = tempfile::tempdir().unwrap();
        let (texts, spill) = (dir.path().join("texts"), dir.path().join("spill"));
        std::fs::create_dir(&texts).unwrap();
        std::fs::create_dir(&spill).unwrap();
        let documents = documents(&texts);
        let validation = Validation::Fraction(0.3);
        for choice in ["char", "byte", "bpe:300"] {
            let choice = choice.parse::<TokenizerChoice>().unwrap();
            let of = |options: &CorpusOptions| prepare(&documents, &validation, &choice, options, &mut |_| {}).unwrap();
            let ((tokenizer, memory), (_, file)) = (of(&CorpusOptions::in_memory(7)), of(&on_file(&spill)));
            let last_id = tokenizer.vocab_size() as u32 - 1;
            assert_eq!(files_in(&spill), 1);
            assert!(file.train.bytes_in_memory() == 0 && memory.train.bytes_in_memory() > 1 << 18);
            let ids = |corpus: &Corpus| (corpus.train.to_vec().unwrap(), corpus.validation.to_vec().unwrap());
            assert!(ids(&memory) == ids(&file), "{choice}");
            assert_eq!((memory.fingerprint.len(), &memory.fingerprint), (64, &file.fingerprint));
            assert_eq!((memory.separator, file.separator), (Separator::Token(last_id), Separator::Token(last_id)));
            assert_eq!((memory.train_bytes, memory.validation_bytes), (file.train_bytes, file.validation_bytes));

            let sampler = BatchSampler { seed: 3, batch_size: 5, context_len: 7 };
            assert_eq!(sampler.batch(&memory.train, 11).unwrap(), sampler.batch(&file.train, 11).unwrap());
            let last =
                |corpus: &Corpus| windows(&corpus.validation, 7, 5, Rest::Keep).unwrap().last().unwrap().unwrap();
            assert_eq!(last(&memory), last(&file));

            // Saved, both are the same safetensors file.
            let [from_memory, from_file] = ["memory", "file"].map(|name| dir.path().join(name));
            memory.save(&from_memory).unwrap();
            file.save(&from_file).unwrap();
            let bytes = std::fs::read(&from_memory).unwrap();
            assert!(bytes == std::fs::read(&from_file).unwrap(), "{choice}");
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let train = tensors.tensor("train").unwrap();
            assert_eq!((train.dtype(), train.shape()), (Dtype::U16, &[memory.train.len()][..]));
            assert_eq!(train.data()[..2], (memory.train.read(0..1).unwrap()[0] as u16).to_le_bytes());
            let opened = Corpus::open(&from_memory, &mut |_| {}).unwrap();
            assert!(ids(&opened) == ids(&memory) && opened.separator == memory.separator);
            drop(file);
            assert_eq!(files_in(&spill), 0, "the temporary file stays");
            for path in [from_memory, from_file] {
                std::fs::remove_file(path).unwrap();
            }
        }
    }

    #[test]
    fn ids_beyond_16_bits_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let (train, validation, separator) =
            (Ids::from(vec![0, 70_000, 7]), Ids::from(vec![]), Separator::Token(70_000));
        let fingerprint = fingerprint(&train, &validation, &mut |_| {}).unwrap();
        let corpus = Corpus { train, validation, train_bytes: 5, validation_bytes: 0, separator, fingerprint };
        corpus.save(&path).unwrap();
        let again = Corpus::open(&path, &mut |_| {}).unwrap();
        assert_eq!((again.train.to_vec().unwrap(), again.separator), (vec![0, 70_000, 7], separator));
        assert!(again.validation.is_empty() && again.train_bytes == 5);
        assert!(corpus.save(&path).is_err(), "a file is overwritten");
        assert_eq!(Corpus::open(&path, &mut |_| {}).unwrap().train.len(), 3);
    }

    #[test]
    fn damaged_ids_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let tokenizer = Tokenizer::bytes(false).unwrap();
        let documents = [Document::new("text", "some words ".repeat(10))];
        let options = CorpusOptions::in_memory(3);
        let corpus = Corpus::new(&tokenizer, &documents, &Validation::Fraction(0.5), &options, &mut |_| {}).unwrap();
        corpus.save(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Corpus::open(&path, &mut |_| {}).unwrap_err().to_string()
        };
        let changed = |at: usize, byte: u8| [&good[..at], &[byte], &good[at + 1..]].concat();
        assert!(error(&changed(HEADER_BYTES + 4, good[HEADER_BYTES + 4] ^ 1)).contains("not those that were written"));
        assert!(error(&good[..good.len() - 1]).contains("expected 1244 bytes, got 1243"));
        assert!(error(&[&good[..], &[0]].concat()).contains("expected 1244 bytes, got 1245"));
        assert!(error(&changed(5, 1)).contains("header of at most 65536 bytes"));
        for len in [0, 5, 8, 100, HEADER_BYTES] {
            assert!(error(&good[..len]).contains("broken ids"), "{len}");
        }
        // A cut in another place.
        let text = String::from_utf8_lossy(&good[LENGTH_BYTES..HEADER_BYTES]).replace("[55]", "[54]");
        assert!(
            error(&[&good[..LENGTH_BYTES], text.as_bytes(), &good[HEADER_BYTES..]].concat()).contains("broken ids")
        );
        assert!(error(&vec![0; HEADER_BYTES]).contains("broken ids"), "a file that was never finished");
        let text = String::from_utf8_lossy(&good[LENGTH_BYTES..HEADER_BYTES]).replace("unneeded", "nonsense");
        assert!(
            error(&[&good[..LENGTH_BYTES], text.as_bytes(), &good[HEADER_BYTES..]].concat())
                .contains("as separator; giving")
        );
    }

    #[test]
    fn a_file_truncated_while_it_is_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(dir.path());
        let tokenizer = Tokenizer::bytes(true).unwrap();
        let validation = Validation::Fraction(0.5);
        let corpus = Corpus::new(&tokenizer, &documents, &validation, &on_file(dir.path()), &mut |_| {}).unwrap();
        let file = corpus.train.file().unwrap();
        File::options().write(true).open(&file.path).unwrap().set_len(1 << 16).unwrap();
        assert!(corpus.train.read(0..100).is_ok());
        let error = corpus.train.read(40_000..40_010).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains(".attn-ids-"), "{error}");
        let error = corpus.train.read(5..corpus.train.len() + 1).unwrap_err().to_string();
        assert!(error.contains("expected positions up to"), "{error}");
    }
}
