//! Ids in a file: a safetensors file with the tensors `train` and `validation`, of `U16` where the vocabulary fits and
//! `U32` elsewhere, and as metadata the fingerprint and the bytes of text.
//!
//! What lies in the file is known only at its end, so its header has a fixed length, filled up with spaces as the format
//! allows, and is written last: before that the file is no safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use candle_core::{Error, Result, bail};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::ids::{IdsFile, Width};
use super::ids_writer::IdsWriter;
use super::{Corpus, Ids, Progress};
use crate::{files, input};

/// Bytes before the ids: the header's length as the format has it, and the header.
pub(super) const HEADER: usize = 1024;
const LENGTH: usize = 8;

/// Bytes of ids up to which an opened file is read into memory.
const IN_MEMORY: u64 = 32 << 20;

/// Completes the file of a corpus whose ids have just been written.
pub(super) fn write_header(corpus: &Corpus, file: &IdsFile, width: Width) -> Result<()> {
    let write = || {
        let mut handle = &file.file;
        handle.seek(SeekFrom::Start(0))?;
        handle.write_all(&header(corpus, width)?)?;
        handle.sync_all()
    };
    write().map_err(|error| cannot_write(&file.path, &error))
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
        },
        "train": info(0, train),
        "validation": info(train, validation),
    });
    let mut header = ((HEADER - LENGTH) as u64).to_le_bytes().to_vec();
    serde_json::to_writer(&mut header, &json)?;
    header.resize(HEADER, b' ');
    Ok(header)
}

impl Corpus {
    /// Writes the ids to a new file, for [`Corpus::open`] and anything that reads safetensors. Where they lie in a temporary
    /// file already, that file gets a second name, or is copied where the file system has no such thing.
    ///
    /// # Errors
    /// A file that exists or can't be written, and a disk without space for it, which is looked at before.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(file) = self.train.file() {
            if std::fs::hard_link(&file.path, path).is_ok() {
                return Ok(());
            }
            let len = file.file.metadata().map_err(|error| cannot_write(path, &error))?.len();
            files::check_space(files::parent(path), "the ids of the text", len)?;
            let copied =
                std::fs::copy(&file.path, path).and_then(|_| File::options().write(true).open(path)?.sync_all());
            return copied.map_err(|error| cannot_write(path, &error));
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
            None => Ok(()),
        }
    }

    /// Bytes that [`Corpus::save`] adds to the disk, at most: none where it only names a file that is there.
    pub(crate) fn bytes_to_save(&self) -> u64 {
        if self.train.file().is_some() { 0 } else { self.ids_bytes(Width::Four) }
    }

    fn ids_bytes(&self, width: Width) -> u64 {
        (HEADER + (self.train.len() + self.validation.len()) * width.bytes()) as u64
    }

    /// Removes the temporary file of ids that are part of a run now. They can still be read.
    pub fn forget_temporary(&self) {
        if let Some(file) = self.train.file() {
            file.forget();
        }
    }

    /// Opens what [`Corpus::save`] has written, and reads all of it once: ids that are not those that were written are
    /// refused. They stay in the file where they are many.
    ///
    /// # Errors
    /// A file that can't be read, isn't such a file or is damaged.
    pub fn open(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        let broken = |what: &dyn std::fmt::Display| Error::Msg(format!("broken ids: {}: {what}", path.display()));
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let (mut file, len) = input::open(&input::inside(folder, name)?)?;
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
            train_bytes: number(&texts, "train_bytes").map_err(|error| broken(&error))?,
            validation_bytes: number(&texts, "validation_bytes").map_err(|error| broken(&error))?,
            fingerprint: texts.get("fingerprint").cloned().unwrap_or_default(),
        };
        let corpus = if len <= IN_MEMORY { corpus.into_memory()? } else { corpus };
        if super::corpus::fingerprint(&corpus.train, &corpus.validation, progress)? != corpus.fingerprint {
            return Err(broken(&"the ids are not those that were written"));
        }
        Ok(corpus)
    }

    fn into_memory(self) -> Result<Self> {
        let (train, validation) = (self.train.to_vec()?.into(), self.validation.to_vec()?.into());
        Ok(Self { train, validation, ..self })
    }
}

/// The header, and where the ids begin.
fn read_header(file: &mut File) -> std::io::Result<(Metadata, u64)> {
    /// Ours has a thousand bytes; who writes the file anew may need some more.
    const MOST: u64 = 1 << 16;
    let mut len = [0; LENGTH];
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MOST {
        return Err(std::io::Error::other(format!("expected a header of at most {MOST} bytes, got {len}")));
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header)?;
    Ok((serde_json::from_slice(&header)?, LENGTH as u64 + len))
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

pub(super) fn cannot_write(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Msg(format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::text::{
        BatchSampler, CorpusOptions, Document, Rest, Spill, Tokenizer, TokenizerChoice, Validation, prepare, windows,
    };

    /// Some documents of several pieces each, in files.
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
            let of =
                |options: &CorpusOptions| prepare(&documents, &validation, &choice, options, &mut |_| {}).unwrap().1;
            let (memory, file) = (of(&CorpusOptions::in_memory(7)), of(&on_file(&spill)));
            assert_eq!(files_in(&spill), 1);
            assert!(file.train.bytes_in_memory() == 0 && memory.train.bytes_in_memory() > 1 << 18);
            let ids = |corpus: &Corpus| (corpus.train.to_vec().unwrap(), corpus.validation.to_vec().unwrap());
            assert!(ids(&memory) == ids(&file), "{choice}");
            assert_eq!(memory.fingerprint, file.fingerprint);
            assert_eq!((memory.train_bytes, memory.validation_bytes), (file.train_bytes, file.validation_bytes));

            let sampler = BatchSampler { seed: 3, batch_size: 5, context_len: 7 };
            assert_eq!(sampler.batch(&memory.train, 11).unwrap(), sampler.batch(&file.train, 11).unwrap());
            let last =
                |corpus: &Corpus| windows(&corpus.validation, 7, 5, Rest::Keep).unwrap().last().unwrap().unwrap();
            assert_eq!(last(&memory), last(&file));

            // Saved, both are the same file, which anything reads that reads safetensors.
            let [from_memory, from_file] = ["memory", "file"].map(|name| dir.path().join(name));
            memory.save(&from_memory).unwrap();
            file.save(&from_file).unwrap();
            let bytes = std::fs::read(&from_memory).unwrap();
            assert!(bytes == std::fs::read(&from_file).unwrap(), "{choice}");
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let train = tensors.tensor("train").unwrap();
            assert_eq!((train.dtype(), train.shape()), (Dtype::U16, &[memory.train.len()][..]));
            assert_eq!(train.data()[..2], (memory.train.read(0..1).unwrap()[0] as u16).to_le_bytes());
            assert_eq!(ids(&Corpus::open(&from_memory, &mut |_| {}).unwrap()), ids(&memory));
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
        let (train, validation) = (Ids::from(vec![0, 70_000, 7]), Ids::from(vec![]));
        let fingerprint = super::super::corpus::fingerprint(&train, &validation, &mut |_| {}).unwrap();
        let corpus = Corpus { train, validation, train_bytes: 5, validation_bytes: 0, fingerprint };
        corpus.save(&path).unwrap();
        let again = Corpus::open(&path, &mut |_| {}).unwrap();
        assert_eq!(again.train.to_vec().unwrap(), [0, 70_000, 7]);
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
        assert!(error(&changed(HEADER + 4, good[HEADER + 4] ^ 1)).contains("not those that were written"));
        assert!(error(&good[..good.len() - 1]).contains("expected 1244 bytes, got 1243"));
        assert!(error(&[&good[..], &[0]].concat()).contains("expected 1244 bytes, got 1245"));
        assert!(error(&changed(5, 1)).contains("header of at most 65536 bytes"));
        for len in [0, 5, 8, 100, HEADER] {
            assert!(error(&good[..len]).contains("broken ids"), "{len}");
        }
        // A cut that is somewhere else.
        let text = String::from_utf8_lossy(&good[LENGTH..HEADER]).replace("[55]", "[54]");
        assert!(error(&[&good[..LENGTH], text.as_bytes(), &good[HEADER..]].concat()).contains("broken ids"));
        assert!(error(&vec![0; HEADER]).contains("broken ids"), "a file that was never finished");
    }

    #[test]
    fn a_file_that_is_shortened_while_it_is_read_is_an_error() {
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
        assert!(error.contains("expected places up to"), "{error}");
    }
}
