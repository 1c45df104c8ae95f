//! From documents to ids, by an existing tokenizer.

use super::conversations::{Conversations, needed_chat_template};
use super::ids_file::IdsWriter;
use super::prepare::{Stage, TextProgress};
use super::reader::{Event, Reader};
use super::split::{Section, split};
use super::tokenizer::END_OF_TEXT;
use super::{Corpus, Document, IdsStore, Remarks, Tokenizer, Validation};
use crate::host::Result;

/// How texts are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// `<|endoftext|>` in a text ends a document and begins another. Otherwise it is read as any other token of that name,
    /// or as ordinary text by a tokenizer that has none.
    pub split_at_end_of_text: bool,
    /// What the tokenizer has no token for is counted, and becomes its unknown token or nothing. Otherwise it is an error.
    pub accept_unknown: bool,
}

/// The corpus of documents encoded with an existing tokenizer. The tokenizers of this crate, and GPT-2's, read them
/// chunk by chunk; any other `tokenizer.json` takes each document whole, which needs some fifty times its size in
/// memory. Conversations are read line by line, and written as the tokenizer's chat template says.
///
/// # Errors
/// Text the tokenizer can't encode, with the document and the place; a document too large for memory; a file that can't be
/// read or written; documents to split where the tokenizer has nothing to put between them; conversations without a chat template, or that it
/// refuses, and lines that are not conversations.
pub fn encode(
    tokenizer: &Tokenizer,
    documents: &[Document],
    validation: &Validation,
    options: TextOptions,
    store: IdsStore,
    progress: &mut dyn FnMut(TextProgress),
) -> Result<Corpus> {
    let held_out: &[Document] = if let Validation::Documents(held_out) = validation { held_out } else { &[] };
    let reader = Reader::new(tokenizer, options)?;
    if let Some(template) = needed_chat_template(documents.iter().chain(held_out), Some(tokenizer))? {
        let parts = split(documents, validation, reader.whole())?;
        return Conversations::new(tokenizer, template, options).encode(&parts, store, progress);
    }
    let parts = split(documents, validation, reader.whole())?;
    let has_several = options.split_at_end_of_text || parts.iter().any(|part| part.len() > 1);
    let separator = tokenizer.end_of_text_id().filter(|_| has_several);
    let mut bytes = parts.each_ref().map(|part| part.iter().map(Section::len).sum::<u64>());
    let (mut done, total) = (0, bytes.iter().sum());
    let mut ids = IdsWriter::new(store, tokenizer.vocab_size(), false)?;
    let mut remarks = Remarks::default();
    for (number, part) in parts.iter().enumerate() {
        let mut writer = DocumentWriter { template: tokenizer.template(), separator, is_open: false, last: None };
        let mut extend = |new: &[u32]| ids.extend(number, new);
        reader.read(part, &mut |event| match event {
            Event::Section(section) => {
                writer.is_open = !section.starts();
                Ok(())
            }
            Event::Read(read, len) => {
                done += len;
                progress(TextProgress { stage: Stage::Encoding, done, total });
                remarks.add(&read.remarks);
                // What ends a document inside a text is none of it.
                let ends = read.documents.len().saturating_sub(1);
                bytes[number] -= (ends * END_OF_TEXT.len()) as u64;
                writer.write(&read.documents, &mut extend)
            }
            Event::End => writer.end(&mut extend),
        })?;
    }
    let corpus = ids.finish(bytes.map(|bytes| bytes as usize), separator)?;
    Ok(Corpus { remarks, ..corpus })
}

/// Writes the ids of documents, with what comes in front of each, behind it and between two.
struct DocumentWriter<'a> {
    template: (&'a [u32], &'a [u32]),
    separator: Option<u32>,
    /// Whether the current document has begun.
    is_open: bool,
    /// The last id that was written.
    last: Option<u32>,
}

/// Takes ids in order.
type Extend<'a> = &'a mut dyn FnMut(&[u32]) -> Result<()>;

impl DocumentWriter<'_> {
    /// Goes on with the current document, and with others after it. What is empty is no document.
    fn write(&mut self, documents: &[Vec<u32>], extend: Extend) -> Result<()> {
        for (i, ids) in documents.iter().enumerate() {
            if i > 0 {
                self.end(extend)?;
            }
            if !self.is_open && !ids.is_empty() {
                // A separator before it may be what it begins with.
                let front = self.template.0;
                let is_there =
                    self.separator.is_some() && self.last == self.separator && front.first() == self.last.as_ref();
                self.put(&front[usize::from(is_there)..], extend)?;
                self.is_open = true;
            }
            self.put(ids, extend)?;
        }
        Ok(())
    }

    /// Ends the current document.
    fn end(&mut self, extend: Extend) -> Result<()> {
        if std::mem::take(&mut self.is_open) {
            self.put(self.template.1, extend)?;
            if let Some(separator) = self.separator.filter(|_| self.last != self.separator) {
                self.put(&[separator], extend)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, ids: &[u32], extend: Extend) -> Result<()> {
        self.last = ids.last().copied().or(self.last);
        extend(ids)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::chunks::CHUNK_BYTES;
    use crate::text::{Ids, prepare};

    fn corpus(tokenizer: &Tokenizer, documents: &[Document], validation: Validation) -> Result<Corpus> {
        encode(tokenizer, documents, &validation, TextOptions::default(), IdsStore::Temporary, &mut |_| {})
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
    fn documents_in_one_text_are_those_in_several() {
        let tokenizer = Tokenizer::bytes(true).unwrap();
        let options = TextOptions { split_at_end_of_text: true, ..TextOptions::default() };
        let of = |texts: &[&str]| {
            let documents: Vec<Document> = texts.iter().map(|text| document("a", text)).collect();
            encode(&tokenizer, &documents, &Validation::Fraction(0.0), options, IdsStore::Temporary, &mut |_| {})
                .unwrap()
        };
        let (one, several) = (of(&["aa<|endoftext|>bbb<|endoftext|>c"]), of(&["aa", "bbb", "c"]));
        assert_eq!(one.train.to_vec().unwrap(), several.train.to_vec().unwrap());
        assert_eq!((one.train_bytes, several.train_bytes), (6, 6));
    }

    #[test]
    fn a_text_of_many_chunks_encodes_as_in_one_piece() {
        let text = "não é só ça, 🦀 it's 42\r\n\n".repeat(1 + 40 * CHUNK_BYTES / 30);
        for choice in ["char", "byte", "bpe:300"] {
            let documents = [document("a", &text)];
            let (validation, choice) = (Validation::Fraction(0.0), choice.parse().unwrap());
            let (tokenizer, corpus) =
                prepare(&documents, &validation, &choice, TextOptions::default(), IdsStore::Temporary, &mut |_| {})
                    .unwrap();
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
            let made = encode(
                &tokenizer,
                &documents,
                &Validation::Fraction(0.0),
                TextOptions::default(),
                IdsStore::Temporary,
                progress,
            );
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
            assert!(error.contains("--tokenizer byte takes any bytes"), "{error}");
        }
    }

    /// The ids, each the code of a character, of a text and another one, `z`, by a tokenizer that puts the characters of
    /// `template` in front of a text and behind it, and has `separator` as its end of text.
    fn split(text: &str, template: [&str; 2], separator: Option<char>) -> String {
        let id = |c: char| json!({ "id": c.to_string(), "ids": [u32::from(c)], "tokens": [c.to_string()] });
        let special = |c: char| json!({ "SpecialToken": { "id": c.to_string(), "type_id": 0 } });
        let [front, rear] = template.map(|tokens| tokens.chars().map(special).collect::<Vec<_>>());
        let single = [front, vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })], rear].concat();
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::bytes(true).unwrap().save(dir.path(), 8).unwrap();
        let json = std::fs::read(dir.path().join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        json["post_processor"] = json!({
            "type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": { "B": id('B'), "E": id('E'), ".": id('.') }
        });
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
        let tokenizer = tokenizer.with_end_of_text(separator.map(u32::from));
        let options = TextOptions { split_at_end_of_text: true, ..TextOptions::default() };
        let documents = [document("a", text), document("b", "z")];
        let all = Validation::Fraction(0.0);
        let made = encode(&tokenizer, &documents, &all, options, IdsStore::Temporary, &mut |_| {}).unwrap();
        assert_eq!(made.separator, separator.map(u32::from));
        String::from_utf8(made.train.to_vec().unwrap().into_iter().map(|id| id as u8).collect()).unwrap()
    }

    #[test]
    fn an_end_of_text_inside_a_text_separates_documents_as_its_borders_do() {
        let text = "ab<|endoftext|>c<|endoftext|><|endoftext|>d<|endoftext|>";
        assert_eq!(split(text, ["", ""], Some('.')), "ab.c.d.z.");
        assert_eq!(split(text, ["B", ""], Some('.')), "Bab.Bc.Bd.Bz.");
        assert_eq!(split(text, ["B", "E"], Some('.')), "BabE.BcE.BdE.BzE.");
        assert_eq!(split(text, ["B", ""], None), "BabBcBdBz");
        // Never twice: the template may already give the separator, behind a text or in front of the next one.
        assert_eq!(split(text, ["B", "."], Some('.')), "Bab.Bc.Bd.Bz.");
        assert_eq!(split(text, [".", ""], Some('.')), ".ab.c.d.z.");
        assert_eq!(split(text, [".", "."], Some('.')), ".ab.c.d.z.");
        let without = Tokenizer::bytes(false).unwrap();
        let options = TextOptions { split_at_end_of_text: true, ..TextOptions::default() };
        let (documents, all) = ([document("a", text)], Validation::Fraction(0.0));
        let made = encode(&without, &documents, &all, options, IdsStore::Temporary, &mut |_| {});
        assert!(made.unwrap_err().to_string().contains("expected a tokenizer with an end-of-text token"));
    }

    #[test]
    fn a_marker_on_the_border_of_two_chunks_is_one() {
        let end = "<|endoftext|>";
        for words in ["não-é-só-ça,🦀", "it's 42\r\n\n ", "x"] {
            let text = format!("{words}{end}").repeat(CHUNK_BYTES / 6);
            let bpe = prepare(
                &[document("a", words), document("b", words)],
                &Validation::Fraction(0.0),
                &"bpe:270".parse().unwrap(),
                TextOptions::default(),
                IdsStore::Temporary,
                &mut |_| {},
            );
            let characters = Tokenizer::characters(&[words], true).unwrap();
            for tokenizer in [characters, Tokenizer::bytes(true).unwrap(), bpe.unwrap().0] {
                let made = corpus(&tokenizer, &[document("a", &text)], Validation::Fraction(0.0)).unwrap();
                assert!(made.train.to_vec().unwrap() == tokenizer.encode(&text).unwrap(), "{words:?} {tokenizer:?}");
                assert_eq!(made.remarks, Remarks::default());
            }
            let made = corpus(&Tokenizer::bytes(false).unwrap(), &[document("a", &text)], Validation::Fraction(0.0));
            assert_eq!(made.unwrap().remarks.unread_ends, CHUNK_BYTES / 6);
        }
    }
}
