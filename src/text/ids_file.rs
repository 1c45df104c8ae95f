//! Ids in a file: a safetensors file with the tensors `train` and `validation`, of type `U16` if the vocabulary fits
//! and `U32` otherwise, with the fingerprint, the bytes of text and the separator of documents as metadata. Those of
//! conversations are `U32` whose two highest bits are marks ([`super::ids`]), with `conversations` as metadata.
//!
//! The lengths are only known at the end, so the header has a fixed length, padded with spaces as the format allows,
//! and is written last: an incomplete file is not a safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::corpus::Remarks;
use super::ids::{IdsFile, NOT_LEARNED, Width};
use super::{Corpus, Ids, TextProgress};
use crate::host::{Error, Result, disk, input};
use crate::text::prepare::Stage;

/// Bytes before the ids: the length of the header, and the header.
const HEADER_BYTES: usize = 1024;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// Ids of at most this many bytes are kept in memory.
const MAX_BYTES_IN_MEMORY: usize = 32 << 20;

/// Where the ids of a corpus go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdsStore<'a> {
    /// A new file, which [`Corpus::open`] opens again.
    File(&'a Path),
    /// Memory or, for more than 32 MiB, a temporary file without a name, which is gone with the corpus.
    Temporary,
}

/// Collects ids as they come: first the training ids, then the validation ids.
pub(super) struct IdsWriter {
    file: Option<(File, PathBuf)>,
    width: Width,
    /// Bytes not yet in the file.
    bytes: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// Ids of each part so far.
    lens: [usize; 2],
    /// In conversations, how many of these are learned.
    learned: Option<[usize; 2]>,
    hash: Sha256,
}

impl IdsWriter {
    /// For ids of a vocabulary of this size, in conversations with marks.
    pub(super) fn new(store: IdsStore, vocab_size: usize, is_marked: bool) -> Result<Self> {
        let file = match store {
            IdsStore::File(path) => Some((disk::create_file(path)?, path.to_path_buf())),
            IdsStore::Temporary => None,
        };
        let width = if is_marked { Width::Four } else { Width::of(vocab_size) };
        let (bytes, learned) = (vec![0; HEADER_BYTES], is_marked.then_some([0, 0]));
        Ok(Self { file, width, bytes, written: 0, lens: [0, 0], learned, hash: Sha256::new() })
    }

    /// Appends ids of part 0 (training) or 1 (validation), as marked words if they are to be marked.
    pub(super) fn extend(&mut self, part: usize, ids: &[u32]) -> Result<()> {
        /// Bytes that are written together.
        const BUFFER_BYTES: usize = 1 << 18;
        self.width.extend(&mut self.bytes, ids);
        self.lens[part] += ids.len();
        if let Some(learned) = &mut self.learned {
            learned[part] += count_learned(ids);
        }
        hash_ids(&mut self.hash, ids);
        if self.file.is_none() && self.bytes.len() > MAX_BYTES_IN_MEMORY {
            let folder = std::env::temp_dir();
            let file = tempfile::tempfile().map_err(Error::io("create a temporary file in", &folder))?;
            self.file = Some((file, folder.join("(ids of the text)")));
        }
        if self.bytes.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if let Some((file, path)) = &self.file {
            disk::write_at(file, path, self.written, &self.bytes)?;
            self.written += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }

    /// The corpus of the ids that were written.
    pub(super) fn finish(
        mut self,
        [train_bytes, validation_bytes]: [usize; 2],
        separator: Option<u32>,
    ) -> Result<Corpus> {
        self.flush()?;
        let Self { file, width, bytes, lens: [train, validation], learned, hash, .. } = self;
        let second = HEADER_BYTES + train * width.bytes();
        let fingerprint =
            fingerprint(hash, [train, validation, train_bytes, validation_bytes], separator, learned.is_some());
        let mut corpus = Corpus {
            train: vec![].into(),
            validation: vec![].into(),
            train_bytes,
            validation_bytes,
            separator,
            remarks: Remarks::default(),
            fingerprint,
        };
        let Some((file, path)) = file else {
            [corpus.train, corpus.validation] =
                [&bytes[HEADER_BYTES..second], &bytes[second..]].map(|part| width.ids(part).into());
            return Ok(corpus.marked(learned));
        };
        let is_marked = learned.is_some();
        disk::write_at(&file, &path, 0, &header(&corpus, [train, validation], width, is_marked)?)?;
        disk::sync_file(&file, &path)?;
        let file = Arc::new(IdsFile { file: file.into(), path });
        corpus.train = Ids::in_file(file.clone(), width, HEADER_BYTES as u64, train);
        corpus.validation = Ids::in_file(file, width, second as u64, validation);
        corpus.marked(learned).into_memory_if_small()
    }
}

/// The number of words whose ids are learned.
fn count_learned(words: &[u32]) -> usize {
    words.iter().filter(|word| *word & NOT_LEARNED == 0).count()
}

fn hash_ids(hash: &mut Sha256, ids: &[u32]) {
    let mut bytes = Vec::with_capacity(4 * ids.len());
    Width::Four.extend(&mut bytes, ids);
    hash.update(&bytes);
}

/// SHA-256, in hexadecimal, of all ids with their marks, the separator, and the numbers of ids and of bytes of both parts.
fn fingerprint(mut hash: Sha256, lens: [usize; 4], separator: Option<u32>, is_marked: bool) -> String {
    hash.update(format!("{separator:?}{}", if is_marked { " marked" } else { "" }));
    lens.into_iter().for_each(|len| hash.update((len as u64).to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header(corpus: &Corpus, [train, validation]: [usize; 2], width: Width, is_marked: bool) -> Result<Vec<u8>> {
    let dtype = if width == Width::Two { Dtype::U16 } else { Dtype::U32 };
    let info = |from: usize, len: usize| TensorInfo {
        dtype,
        shape: vec![len],
        data_offsets: (from * width.bytes(), (from + len) * width.bytes()),
    };
    let mut metadata = json!({
        "fingerprint": corpus.fingerprint,
        "train_bytes": corpus.train_bytes.to_string(),
        "validation_bytes": corpus.validation_bytes.to_string(),
    });
    if let Some(separator) = corpus.separator {
        metadata["separator"] = separator.to_string().into();
    }
    if is_marked {
        metadata["conversations"] = "true".into();
    }
    let json = json!({ "__metadata__": metadata, "train": info(0, train), "validation": info(train, validation) });
    let mut header = ((HEADER_BYTES - LENGTH_BYTES) as u64).to_le_bytes().to_vec();
    header.extend(json.to_string().bytes());
    header.resize(HEADER_BYTES, b' ');
    Ok(header)
}

impl Corpus {
    /// Opens the file `path` that was written to [`IdsStore::File`], and reads it once to check that the ids are those
    /// that were written. If there are many, they stay in the file.
    ///
    /// # Errors
    /// A file that can't be read, isn't such a file or is damaged.
    pub fn open(path: &Path, progress: &mut dyn FnMut(TextProgress)) -> Result<Self> {
        let (folder, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let (mut file, len) = input::open(&input::inside(folder, name)?)?;
        let (metadata, start) = read_header(&mut file).map_err(|error| Error::corrupt(path, error))?;
        if Some(len) != start.checked_add(metadata.data_len() as u64) {
            return Err(Error::corrupt(
                path,
                format!("expected {} bytes of ids, got a file of {len}", metadata.data_len()),
            ));
        }
        let file = Arc::new(IdsFile { file: file.into(), path: path.to_path_buf() });
        let texts = metadata.metadata().clone().unwrap_or_default();
        let read = || {
            Some(Self {
                train: ids_of(&metadata, "train", start, &file)?,
                validation: ids_of(&metadata, "validation", start, &file)?,
                train_bytes: number(&texts, "train_bytes")?,
                validation_bytes: number(&texts, "validation_bytes")?,
                separator: texts.get("separator").map_or(Some(None), |id| id.parse().ok().map(Some))?,
                remarks: Remarks::default(),
                fingerprint: texts.get("fingerprint")?.clone(),
            })
        };
        let corpus = read().ok_or_else(|| Error::corrupt(path, "it does not hold the ids of a text"))?;
        let is_marked = texts.contains_key("conversations");
        corpus.verify(path, is_marked, progress)?.into_memory_if_small()
    }

    /// The same, with its ids taken for marked words of which so many are learned, if they are.
    fn marked(self, learned: Option<[usize; 2]>) -> Self {
        match learned {
            None => self,
            Some([train, validation]) => {
                let (train, validation) = (self.train.marked(train), self.validation.marked(validation));
                Self { train, validation, ..self }
            }
        }
    }

    /// Compares the ids with the fingerprint, and counts those that are learned.
    fn verify(self, path: &Path, is_marked: bool, progress: &mut dyn FnMut(TextProgress)) -> Result<Self> {
        let lens = [self.train.len(), self.validation.len()];
        let (mut hash, mut done, total) = (Sha256::new(), 0, lens.iter().sum::<usize>() as u64);
        let mut learned = [0, 0];
        let blocks = |part: usize| [&self.train, &self.validation][part].blocks().map(move |block| (part, block));
        for (part, block) in blocks(0).chain(blocks(1)) {
            let block = block?;
            learned[part] += count_learned(&block);
            hash_ids(&mut hash, &block);
            done += block.len() as u64;
            progress(TextProgress { stage: Stage::Checking, done, total });
        }
        let [train, validation] = lens;
        let lens = [train, validation, self.train_bytes, self.validation_bytes];
        match fingerprint(hash, lens, self.separator, is_marked) == self.fingerprint {
            true => Ok(self.marked(is_marked.then_some(learned))),
            false => Err(Error::corrupt(path, "the ids are not those that were written")),
        }
    }

    fn into_memory_if_small(self) -> Result<Self> {
        if self.train.len() + self.validation.len() > MAX_BYTES_IN_MEMORY / size_of::<u32>() {
            return Ok(self);
        }
        let (train, validation) = (self.train.into_memory()?, self.validation.into_memory()?);
        Ok(Self { train, validation, ..self })
    }
}

/// The header, and the offset of the ids.
fn read_header(file: &mut File) -> std::io::Result<(Metadata, u64)> {
    /// Ours has a thousand bytes; another program that rewrites the file may need some more.
    const MAX: u64 = 1 << 16;
    let mut len = [0; LENGTH_BYTES];
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX {
        return Err(std::io::Error::other(format!("expected a header of at most {MAX} bytes, got {len}")));
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

fn number(texts: &HashMap<String, String>, name: &str) -> Option<usize> {
    texts.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::host::faults::{Fault, with};
    use crate::text::{Document, TextOptions, Tokenizer, TokenizerChoice, Validation, encode, prepare};

    /// Documents in files, two of them of several chunks.
    fn documents(folder: &Path) -> Vec<Document> {
        let text = "não é só ça, 🦀 it's 42\r\n\n".repeat(20_000);
        let document = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            Document::open(folder.join(name)).unwrap()
        };
        vec![document("a", &text), document("b", "b"), document("c", &text[..text.len() / 2])]
    }

    fn ids(corpus: &Corpus) -> [Vec<u32>; 2] {
        [&corpus.train, &corpus.validation].map(|ids| ids.to_vec().unwrap())
    }

    /// A corpus of bytes of `text`, half of them to validate on, in the file `path`.
    fn in_bytes(text: String, path: &Path) -> Corpus {
        let (tokenizer, documents) = (Tokenizer::bytes(false).unwrap(), [Document::new("text", text)]);
        encode(
            &tokenizer,
            &documents,
            &Validation::Fraction(0.5),
            TextOptions::default(),
            IdsStore::File(path),
            &mut |_| {},
        )
        .unwrap()
    }

    #[test]
    fn a_corpus_of_any_store_is_the_same_and_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(dir.path());
        for choice in ["char", "byte", "bpe:300"] {
            let path = dir.path().join(choice);
            let of = |store| {
                let choice: TokenizerChoice = choice.parse().unwrap();
                prepare(&documents, &Validation::Fraction(0.3), &choice, TextOptions::default(), store, &mut |_| {})
                    .unwrap()
            };
            let ((tokenizer, memory), (_, file)) = (of(IdsStore::Temporary), of(IdsStore::File(&path)));
            let opened = Corpus::open(&path, &mut |_| {}).unwrap();
            let last_id = tokenizer.vocab_size() as u32 - 1;
            for corpus in [&file, &opened] {
                assert!(ids(corpus) == ids(&memory), "{choice}");
                assert_eq!((corpus.fingerprint.len(), &corpus.fingerprint), (64, &memory.fingerprint));
                assert_eq!((corpus.separator, memory.separator), (Some(last_id), Some(last_id)));
                let bytes = |corpus: &Corpus| (corpus.train_bytes, corpus.validation_bytes);
                assert_eq!(bytes(corpus), bytes(&memory));
            }
            // Any other program reads it too.
            let bytes = std::fs::read(&path).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let train = tensors.tensor("train").unwrap();
            assert_eq!((train.dtype(), train.shape()), (Dtype::U16, &[memory.train.len()][..]));
            assert_eq!(train.data()[..2], (memory.train.read(0..1).unwrap()[0] as u16).to_le_bytes());
        }
    }

    #[test]
    fn many_ids_stay_in_their_file_or_in_one_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let vocab_size = (1 << 16) + 1;
        let block: Vec<u32> = (0..1 << 16).collect();
        let written = |store| {
            let mut writer = IdsWriter::new(store, vocab_size, false).unwrap();
            (0..130).for_each(|n| writer.extend(n / 70, &block).unwrap());
            writer.finish([7, 5], None).unwrap()
        };
        let (temporary, named) = (written(IdsStore::Temporary), written(IdsStore::File(&path)));
        let opened = Corpus::open(&path, &mut |_| {}).unwrap();
        for corpus in [temporary, named, opened] {
            assert_eq!((corpus.train.bytes_in_memory(), corpus.validation.bytes_in_memory()), (0, 0));
            assert_eq!((corpus.train.len(), corpus.validation.len()), (70 << 16, 60 << 16));
            for (ids, at) in [(&corpus.train, (69 << 16) + 65_530), (&corpus.validation, (3 << 16) - 6)] {
                assert_eq!(*ids.read(at..at + 6).unwrap(), [65_530, 65_531, 65_532, 65_533, 65_534, 65_535]);
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn ids_beyond_16_bits_are_kept_and_no_file_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let mut writer = IdsWriter::new(IdsStore::File(&path), 70_001, false).unwrap();
        writer.extend(0, &[0, 70_000, 7]).unwrap();
        writer.finish([5, 0], Some(70_000)).unwrap();
        let corpus = Corpus::open(&path, &mut |_| {}).unwrap();
        assert_eq!((ids(&corpus), corpus.separator), ([vec![0, 70_000, 7], vec![]], Some(70_000)));
        assert_eq!((corpus.train_bytes, corpus.validation_bytes), (5, 0));
        assert!(IdsWriter::new(IdsStore::File(&path), 7, false).is_err());
        assert_eq!(Corpus::open(&path, &mut |_| {}).unwrap().train.len(), 3);
    }

    #[test]
    fn damaged_ids_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        in_bytes("some words ".repeat(10), &path);
        let good = std::fs::read(&path).unwrap();
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = Corpus::open(&path, &mut |_| {}).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            error.to_string()
        };
        let changed = |at: usize, byte: u8| [&good[..at], &[byte], &good[at + 1..]].concat();
        assert!(error(&changed(HEADER_BYTES + 4, good[HEADER_BYTES + 4] ^ 1)).contains("not those that were written"));
        assert!(error(&good[..good.len() - 1]).contains("expected 220 bytes of ids, got a file of 1243"));
        assert!(error(&[&good[..], &[0]].concat()).contains("expected 220 bytes of ids, got a file of 1245"));
        assert!(error(&changed(5, 1)).contains("header of at most 65536 bytes"));
        for len in [0, 5, 8, 100, HEADER_BYTES] {
            error(&good[..len]);
        }
        error(&vec![0; good.len()]);
        let edited = |from: &str, to: &str| {
            let header = String::from_utf8_lossy(&good[LENGTH_BYTES..HEADER_BYTES]);
            assert!(header.contains(from), "{header}");
            let header = header.replace(from, to);
            [&good[..LENGTH_BYTES], header.as_bytes(), &good[HEADER_BYTES..]].concat()
        };
        for (from, to) in [
            ("[55]", "[54]"),
            ("[55]", "[5,11]"),
            ("U16", "I16"),
            (r#""train":{"#, r#""trail":{"#),
            (r#""train_bytes":"55""#, r#""train_bytes":"5x""#),
            (r#""train_bytes":"55""#, r#""separator":"-1""#),
        ] {
            error(&edited(from, to));
        }
        // The same ids with the cut in another place.
        let mut header: serde_json::Value = serde_json::from_slice(&good[LENGTH_BYTES..HEADER_BYTES]).unwrap();
        header["train"]["shape"][0] = 54.into();
        header["train"]["data_offsets"][1] = 108.into();
        header["validation"]["shape"][0] = 56.into();
        header["validation"]["data_offsets"][0] = 108.into();
        let header = header.to_string();
        let moved = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &good[HEADER_BYTES..]].concat();
        assert!(error(&moved).contains("not those that were written"));
        std::fs::write(&path, &good).unwrap();
        Corpus::open(&path, &mut |_| {}).unwrap();
    }

    #[test]
    fn the_fingerprint_notices_a_changed_id_and_a_moved_cut() {
        let of = |train: &[u32], validation: &[u32]| {
            let mut writer = IdsWriter::new(IdsStore::Temporary, 100, false).unwrap();
            writer.extend(0, train).unwrap();
            writer.extend(1, validation).unwrap();
            writer.finish([3, 2], None).unwrap().fingerprint
        };
        assert_eq!(of(&[1, 2, 3], &[4, 5]), of(&[1, 2, 3], &[4, 5]));
        assert_ne!(of(&[1, 2, 3], &[4, 5]), of(&[1, 2, 3], &[4, 6]));
        assert_ne!(of(&[1, 2, 3], &[4, 5]), of(&[1, 2], &[3, 4, 5]));
    }

    #[test]
    fn a_file_truncated_while_it_is_in_use_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let corpus = in_bytes("some words ".repeat(1_700_000), &path);
        assert_eq!(corpus.train.bytes_in_memory(), 0);
        File::options().write(true).open(&path).unwrap().set_len(1 << 16).unwrap();
        assert!(corpus.train.read(0..100).is_ok());
        let error = corpus.train.read(40_000..40_010).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("ids"), "{error}");
        let error = corpus.train.read(5..corpus.train.len() + 1).unwrap_err().to_string();
        assert!(error.contains("expected positions up to"), "{error}");
    }

    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let written = |fault| {
            let block = vec![7; 1 << 18];
            with(fault, || {
                let mut writer = IdsWriter::new(IdsStore::File(&path), 100, false)?;
                (0..4).try_for_each(|_| writer.extend(0, &block))?;
                writer.finish([1, 0], None)
            })
        };
        let (whole, changes) = written(None);
        assert!(changes.len() > 4, "{changes:?}");
        let fingerprint = whole.unwrap().fingerprint;
        for at in (0..changes.len()).filter(|at| changes[*at].0 == disk::Change::Write) {
            std::fs::remove_file(&path).unwrap();
            let error = written(Some(Fault::Full(at))).0.unwrap_err();
            assert!(matches!(error, Error::NoSpace { .. }), "{at}: {error}");
            // What is left is not taken for another text; the header, which is written last over what was there, may be
            // there.
            match Corpus::open(&path, &mut |_| {}) {
                Err(Error::Corrupt { .. }) => {}
                found => assert_eq!(found.unwrap().fingerprint, fingerprint, "{at}"),
            }
        }
    }
}
