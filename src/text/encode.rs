//! From documents to ids, by an existing tokenizer.

use rayon::prelude::*;

use super::chunks::{Chunk, Chunks};
use super::conversations::{Conversations, needed_chat_template};
use super::encode_error::EncodeError;
use super::ids::ENDS;
use super::ids_file::IdsWriter;
use super::prepare::{Stage, TextProgress};
use super::split::{Section, split};
use super::{ChatTemplate, Corpus, Document, IdsStore, Tokenizer, Validation};
use crate::host::{Memory, Result, bail};

/// The corpus of documents encoded with an existing tokenizer. The tokenizers of this crate, and GPT-2's, read them
/// chunk by chunk; any other `tokenizer.json` takes each document whole, which needs some fifty times its size in
/// memory. Files of conversations are read line by line, and written as the tokenizer's chat template says.
///
/// # Errors
/// Text the tokenizer can't encode, with the document and the place; a document too large for memory; and a file that
/// can't be read or written; conversations without a chat template, or that it refuses, and lines that are not conversations.
pub fn encode(
    tokenizer: &Tokenizer,
    documents: &[Document],
    validation: &Validation,
    store: IdsStore,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Corpus> {
    let held_out: &[Document] = if let Validation::Documents(held_out) = validation { held_out } else { &[] };
    let template = needed_chat_template(documents.iter().chain(held_out), Some(tokenizer))?;
    let parts = split(documents, validation)?;
    let is_several = template.is_some() || parts.iter().any(|part| part.len() > 1);
    let separator = tokenizer.end_of_text_id().filter(|_| is_several);
    let encoder = Encoder { tokenizer, template, separator };
    let (mut done, total) = (0, parts.iter().flatten().map(Section::len).sum());
    let mut writer = IdsWriter::new(store, tokenizer.vocab_size(), encoder.template.is_some())?;
    let mut bytes = [0, 0];
    for (number, part) in parts.iter().enumerate() {
        bytes[number] = encoder.encode(part, &mut |ids, bytes| {
            done += bytes;
            progress(TextProgress { stage: Stage::Encoding, done, total });
            writer.extend(number, ids)
        })? as usize;
    }
    let corpus = writer.finish(bytes, separator)?;
    if !corpus.train.is_empty() && corpus.train.learned() == 0 {
        bail!("expected a turn of the role `assistant` in the conversations to learn from, got none");
    }
    Ok(corpus)
}

/// Takes ids in order (marked, if there are conversations), with the number of bytes of the document that they encode.
pub(super) type Take<'a> = &'a mut dyn FnMut(&[u32], u64) -> Result<()>;

/// How documents become ids.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// If there are conversations.
    template: Option<ChatTemplate>,
    separator: Option<u32>,
}

impl Encoder<'_> {
    /// Encodes sections, with the separator after each that ends its document; gives the bytes of the text that is learned.
    fn encode(&self, sections: &[Section], take: Take) -> Result<u64> {
        let Self { tokenizer, template, separator } = self;
        let mut bytes = 0;
        for same in sections.chunk_by(|a, b| a.document.has_conversations().ok() == b.document.has_conversations().ok())
        {
            match (template, same) {
                (Some(template), [first, ..]) if first.document.has_conversations()? => {
                    let conversations = Conversations { tokenizer, template, separator: *separator };
                    for section in same {
                        bytes += conversations.encode(section, take)?;
                    }
                }
                _ => {
                    self.encode_texts(same, take)?;
                    bytes += same.iter().map(Section::len).sum::<u64>();
                }
            }
        }
        Ok(bytes)
    }

    fn encode_texts(&self, sections: &[Section], take: Take) -> Result<()> {
        let tokenizer = self.tokenizer;
        let mark = if self.template.is_some() { ENDS } else { 0 };
        let end = |section: &Section, take: Take| {
            take(self.separator.map(|id| id | mark).filter(|_| section.ends()).as_slice(), 0)
        };
        if tokenizer.reads_chunks() {
            for section in sections {
                encode_chunks(tokenizer, section, take)?;
                end(section, take)?;
            }
            return Ok(());
        }
        for group in groups(sections, Memory::now().available as u64)? {
            for (section, ids) in group.iter().zip(in_parallel(group, |section| encode_whole(tokenizer, section))?) {
                take(&ids, section.len())?;
                end(section, take)?;
            }
        }
        Ok(())
    }
}

/// Encodes a section in chunks, several at once on all threads.
fn encode_chunks(tokenizer: &Tokenizer, Section { document, range }: &Section, take: Take) -> Result<()> {
    let chunks = if tokenizer.takes_any_bytes() { Chunks::bytes } else { Chunks::text };
    let mut chunks = chunks(document, range.clone())?;
    loop {
        let group = chunks.next_group()?;
        if group.is_empty() {
            return Ok(());
        }
        let encode = |chunk: &Chunk| match tokenizer.takes_any_bytes() {
            true => Ok(chunk.bytes.iter().copied().map(u32::from).collect()),
            false => tokenizer.try_encode(chunk.text()).map_err(|error| error.in_document(document, chunk.offset)),
        };
        for (chunk, ids) in group.iter().zip(in_parallel(&group, encode)?) {
            take(&ids, chunk.bytes.len() as u64)?;
        }
    }
}

fn encode_whole(tokenizer: &Tokenizer, Section { document, range }: &Section) -> Result<Vec<u32>> {
    let bytes = document.read(range.clone())?;
    let text = std::str::from_utf8(&bytes).map_err(|error| EncodeError::not_utf8(&bytes, error.valid_up_to()));
    text.and_then(|text| tokenizer.try_encode(text)).map_err(|error| error.in_document(document, range.start))
}

/// The results for all items, or the error of the first that has one.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Send + Sync,
) -> Result<Vec<R>> {
    items.par_iter().map(work).collect::<Vec<_>>().into_iter().collect()
}

/// Sections that are encoded side by side: as many as there are threads for and the available memory, in bytes, can hold.
fn groups<'a, 'b>(sections: &'a [Section<'b>], available: u64) -> Result<Vec<&'a [Section<'b>]>> {
    /// Memory that the library takes for each byte of text, about.
    const BYTES_PER_BYTE: u64 = 50;
    let needed = |bytes: u64| bytes.saturating_mul(BYTES_PER_BYTE);
    if let Some(section) = sections.iter().find(|section| needed(section.len()) > available) {
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        bail!(
            "{}: its tokenizer encodes a text as a whole, and this one of {} MB would need {} MB of memory, with {} MB \
             available; divide it into several files",
            section.document.name(),
            megabytes(section.len()),
            megabytes(needed(section.len())),
            megabytes(available)
        );
    }
    let (mut groups, mut start, mut bytes) = (vec![], 0, 0);
    for (i, section) in sections.iter().enumerate() {
        let is_full = i - start == rayon::current_num_threads() || needed(bytes + section.len()) > available;
        if is_full {
            groups.push(&sections[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += section.len();
    }
    groups.push(&sections[start..]);
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::chunks::CHUNK_BYTES;
    use crate::text::{Ids, prepare};

    fn corpus(tokenizer: &Tokenizer, documents: &[Document], validation: Validation) -> Result<Corpus> {
        encode(tokenizer, documents, &validation, IdsStore::Temporary, &mut |_| {})
    }

    fn document(name: &str, text: &str) -> Document {
        Document::new(name, text)
    }

    /// A tokenizer of another maker, which merges across white space, with an end of text.
    fn third_party() -> Tokenizer {
        let end = json!({
            "id": 6, "content": "</s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        });
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null,
            "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
            "model": {
                "type": "BPE", "vocab": { "a": 0, "b": 1, "▁": 2, "ab": 3, "b▁": 4, "\n": 5, "</s>": 6 },
                "merges": [["b", "▁"], ["a", "b"]]
            }
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_text_is_cut_at_a_character_and_each_part_encoded_on_its_own() {
        let text = "não é só ça 🦀\r\n".repeat(40);
        let tokenizer = Tokenizer::characters(&[&text], false).unwrap();
        for percent in 1..50 {
            let validation = Validation::Fraction(f64::from(percent) / 100.0);
            let made = corpus(&tokenizer, &[document("a", &text)], validation).unwrap();
            let [train, validation] =
                [&made.train, &made.validation].map(|ids| tokenizer.decode(&ids.to_vec().unwrap()).unwrap());
            assert_eq!((made.train_bytes, made.validation_bytes), (train.len(), validation.len()));
            assert_eq!(train + &validation, text);
        }
        let bytes = |bytes: &[u8], fraction| {
            let documents = [Document::new("a", bytes)];
            let made = corpus(&Tokenizer::bytes(false).unwrap(), &documents, Validation::Fraction(fraction));
            made.unwrap().train.len()
        };
        assert_eq!(bytes("abcdé".as_bytes(), 0.5), 3);
        assert_eq!(bytes("ab🦀cd".as_bytes(), 0.4), 2); // byte 0.6 * 8 = 4 is inside the crab
        assert_eq!(bytes(&[0x80; 11], 0.3), 7);
    }

    #[test]
    fn each_of_several_documents_is_followed_by_an_end_of_text() {
        let tokenizer = Tokenizer::bytes(true).unwrap();
        let documents = [document("a", "aa"), document("b", "bbbb"), document("c", "ccccc")];
        let letters = |ids: &Ids| -> String {
            ids.to_vec().unwrap().iter().map(|&id| if id == 256 { '.' } else { char::from(id as u8) }).collect()
        };
        let of = |validation| {
            let made = corpus(&tokenizer, &documents, validation).unwrap();
            (letters(&made.train), letters(&made.validation), made.train_bytes, made.validation_bytes)
        };
        assert_eq!(of(Validation::Fraction(0.6)), ("aa.bb".into(), "bb.ccccc.".into(), 4, 7));
        assert_eq!(of(Validation::Fraction(0.45)), ("aa.bbbb.".into(), "ccccc.".into(), 6, 5));
        assert_eq!(of(Validation::Fraction(0.0)), ("aa.bbbb.ccccc.".into(), "".into(), 11, 0));
        let held_out = Validation::Documents(vec![document("d", "ddd")]);
        assert_eq!(of(held_out.clone()), ("aa.bbbb.ccccc.".into(), "ddd.".into(), 11, 3));
        let one = corpus(&tokenizer, &documents[..1], held_out.clone()).unwrap();
        assert_eq!((letters(&one.train), letters(&one.validation), one.separator), ("aa".into(), "ddd".into(), None));
        let several = corpus(&tokenizer, &documents, held_out.clone()).unwrap();
        assert_eq!(several.separator, Some(256));
        let without_end = corpus(&Tokenizer::bytes(false).unwrap(), &documents, held_out).unwrap();
        assert_eq!((letters(&without_end.train), without_end.separator), ("aabbbbccccc".into(), None));
        // Two documents, but each part has one.
        let cut_between = corpus(&tokenizer, &documents[..2], Validation::Fraction(0.66)).unwrap();
        assert_eq!((letters(&cut_between.train), cut_between.separator), ("aa".into(), None));
    }

    #[test]
    fn a_text_of_many_chunks_encodes_as_in_one_piece() {
        let text = "não é só ça, 🦀 it's 42\r\n\n".repeat(1 + 40 * CHUNK_BYTES / 30);
        for choice in ["char", "byte", "bpe:300"] {
            let documents = [document("a", &text)];
            let (validation, choice) = (Validation::Fraction(0.0), choice.parse().unwrap());
            let (tokenizer, corpus) =
                prepare(&documents, &validation, &choice, IdsStore::Temporary, &mut |_| {}).unwrap();
            assert!(corpus.train.to_vec().unwrap() == tokenizer.encode(&text).unwrap(), "{choice}");
        }
    }

    #[test]
    fn a_third_party_tokenizer_encodes_each_document_whole() {
        let tokenizer = third_party();
        let long = "ab a\nab ".repeat(CHUNK_BYTES / 4);
        // As few and as many documents as there are threads, and more.
        for count in [1, 2, 3, 7, 40] {
            let texts: Vec<String> =
                (0..count).map(|i| if i == 2 { long.clone() } else { "ab a".repeat(1 + i) }).collect();
            let documents: Vec<Document> = texts.iter().map(|text| document("a", text)).collect();
            let mut done = vec![];
            let progress = &mut |progress: TextProgress| done.push(progress.done);
            let made = encode(&tokenizer, &documents, &Validation::Fraction(0.0), IdsStore::Temporary, progress);
            let end: &[u32] = if count > 1 { &[6] } else { &[] };
            let expected: Vec<u32> =
                texts.iter().flat_map(|text| [&tokenizer.encode(text).unwrap()[..], end].concat()).collect();
            assert!(made.unwrap().train.to_vec().unwrap() == expected, "{count}");
            let ends: Vec<u64> = texts
                .iter()
                .scan(0, |sum, text| {
                    *sum += text.len() as u64;
                    Some(*sum)
                })
                .collect();
            done.dedup();
            assert_eq!(done, ends);
        }
    }

    #[test]
    fn groups_have_a_document_for_each_thread_as_far_as_memory_allows() {
        let document = document("a", "");
        let sections = |lens: &[u64]| -> Vec<Section> {
            lens.iter().map(|&len| Section { document: &document, range: 0..len }).collect()
        };
        let lens = |lens: &[u64], available| -> Vec<Vec<u64>> {
            let sections = sections(lens);
            let groups = groups(&sections, available).unwrap();
            groups.iter().map(|group| group.iter().map(Section::len).collect()).collect()
        };
        rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(|| {
            assert_eq!(lens(&[5, 6, 7, 8, 9, 1, 2], 10_000), [vec![5, 6, 7], vec![8, 9, 1], vec![2]]);
            assert_eq!(lens(&[5, 6, 7, 8, 9, 1, 2], 600), [vec![5, 6], vec![7], vec![8], vec![9, 1, 2]]);
        });
        let sections = sections(&[3, 70_000_000]);
        let error = groups(&sections, 1_000_000_000).unwrap_err().to_string();
        let expected = "a: its tokenizer encodes a text as a whole, and this one of 70 MB would need 3500 MB of memory, \
                        with 1000 MB available; divide it into several files";
        assert_eq!(error, expected);
    }

    #[test]
    fn a_document_too_large_for_memory_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.txt");
        // A hole, which takes no space on disk.
        std::fs::File::create(&path).unwrap().set_len(1 << 43).unwrap();
        let documents = [Document::open(&path).unwrap()];
        std::fs::remove_file(&path).unwrap();
        let error = corpus(&third_party(), &documents, Validation::Fraction(0.0)).unwrap_err().to_string();
        assert!(
            error.contains("large.txt: its tokenizer") && error.ends_with("divide it into several files"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_encoded_is_located_in_its_document_even_after_the_cut() {
        let ours = Tokenizer::characters(&["ab\n"], false).unwrap();
        let documents = [document("good", "ab"), document("bad", "ab\nab\nabz")];
        for tokenizer in [ours, third_party()] {
            for fraction in [0.0, 0.2, 0.5] {
                let error = corpus(&tokenizer, &documents, Validation::Fraction(fraction)).unwrap_err().to_string();
                let expected = "bad: unknown character 'z' (U+007A) at line 3, column 3 (byte 8)";
                assert!(error.starts_with(expected), "{error}");
            }
            let not_text = [Document::new("bytes", b"a\na\xffa".to_vec())];
            let error = corpus(&tokenizer, &not_text, Validation::Fraction(0.0)).unwrap_err().to_string();
            assert!(error.starts_with("bytes: ") && error.contains("0xff at line 2, column 2 (byte 3)"), "{error}");
            assert!(error.contains("use the tokenizer `byte`"), "{error}");
        }
    }
}
