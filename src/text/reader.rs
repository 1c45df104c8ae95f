//! Sections of documents as ids, by an existing tokenizer.

use super::chunks::{Chunk, Chunks};
use super::encode_error::EncodeError;
use super::split::Section;
use super::tokenizer::{END_OF_TEXT, Markers};
use super::{Document, Remarks, TextOptions, Tokenizer};
use crate::cpu::parallel::{map, threads};
use crate::host::{Memory, Result, bail};

/// Part of a text as ids.
#[derive(Default)]
pub(super) struct ReadText {
    /// The ids of the current document, and of those after it.
    pub(super) documents: Vec<Vec<u32>>,
    pub(super) remarks: Remarks,
}

/// What happens while sections are read.
pub(super) enum Event<'a> {
    Section(&'a Section<'a>),
    /// Part of it, with its length in bytes.
    Read(ReadText, u64),
    /// The section ends its document.
    End,
}

/// Takes what is read, in order.
type Take<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

/// Encodes texts piece by piece.
pub(super) struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    accept_unknown: bool,
    /// What ends a document inside a text.
    ends: Markers,
    /// What would, but is ordinary text.
    unread: Markers,
    /// What must not be cut.
    whole: Markers,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        TextOptions { split_at_end_of_text, accept_unknown }: TextOptions,
    ) -> Result<Self> {
        let none = || Ok(Markers::default());
        let is_read = tokenizer.has_marker(END_OF_TEXT);
        if split_at_end_of_text && tokenizer.end_of_text_id().is_none() && tokenizer.template() == (&[], &[]) {
            bail!("expected a tokenizer with an end-of-text token to split a text at <|endoftext|>, got one without");
        }
        Ok(Self {
            tokenizer,
            accept_unknown,
            ends: if split_at_end_of_text { Markers::end_of_text() } else { none() }?,
            unread: if is_read || split_at_end_of_text { none() } else { Markers::end_of_text() }?,
            whole: tokenizer.markers().with_end_of_text()?,
        })
    }

    /// The strings that no cut of a text may divide.
    pub(super) fn whole(&self) -> &Markers {
        &self.whole
    }

    /// Encodes sections in order.
    pub(super) fn read(&self, sections: &[Section], take: Take) -> Result<()> {
        let end = |section: &Section, take: Take| if section.ends() { take(Event::End) } else { Ok(()) };
        if self.tokenizer.reads_chunks() {
            for section in sections {
                take(Event::Section(section))?;
                self.read_chunks(section, take)?;
                end(section, take)?;
            }
            return Ok(());
        }
        for group in groups(sections, Memory::now().available as u64)? {
            for (section, read) in group.iter().zip(in_parallel(group, |section| self.read_whole(section))?) {
                take(Event::Section(section))?;
                take(Event::Read(read, section.len()))?;
                end(section, take)?;
            }
        }
        Ok(())
    }

    /// Encodes a section in chunks, several at once on all threads.
    fn read_chunks(&self, Section { document, range }: &Section, take: Take) -> Result<()> {
        let takes_bytes = self.tokenizer.takes_any_bytes();
        let chunks = if takes_bytes { Chunks::bytes } else { Chunks::text };
        let mut chunks = chunks(document, range.clone())?.around(&self.whole);
        loop {
            let group = chunks.next_group()?;
            if group.is_empty() {
                return Ok(());
            }
            let encode = |chunk: &Chunk| match takes_bytes {
                true => Ok(self.bytes(&chunk.bytes)),
                false => self.text(chunk.text(), document, chunk.offset),
            };
            for (chunk, read) in group.iter().zip(in_parallel(&group, encode)?) {
                take(Event::Read(read, chunk.bytes.len() as u64))?;
            }
        }
    }

    fn read_whole(&self, Section { document, range }: &Section) -> Result<ReadText> {
        document.expect_utf8()?;
        let bytes = document.read(range.clone())?;
        let text = std::str::from_utf8(&bytes).map_err(|error| EncodeError::not_utf8(&bytes, error.valid_up_to()));
        text.map_err(|error| error.in_document(document, range.start))
            .and_then(|text| self.text(text, document, range.start))
    }

    /// Encodes a text that begins `start` bytes into a document.
    fn text(&self, text: &str, document: &Document, start: u64) -> Result<ReadText> {
        let mut read = ReadText { documents: vec![vec![]], remarks: self.remarks(text.as_bytes()) };
        for (range, end) in self.ends.pieces(text.as_bytes()) {
            if end.is_some() {
                read.documents.push(vec![]);
                continue;
            }
            let (piece, start) = (&text[range.clone()], start + range.start as u64);
            let encoded = self.tokenizer.try_encode(piece).map_err(|error| error.in_document(document, start))?;
            if let Some(offset) = encoded.first_unknown {
                let error = EncodeError::unknown_character(piece, offset).in_document(document, start);
                if !self.accept_unknown {
                    return Err(error);
                }
                read.remarks.first_unknown.get_or_insert(error.to_string());
            }
            read.remarks.unknown += encoded.unknown;
            read.remarks.cut_words += encoded.cut_words;
            if let Some(document) = read.documents.last_mut() {
                *document = encoded.ids;
            }
        }
        Ok(read)
    }

    fn bytes(&self, bytes: &[u8]) -> ReadText {
        let mut read = ReadText { documents: vec![vec![]], remarks: self.remarks(bytes) };
        for (range, end) in self.ends.pieces(bytes) {
            match (end, read.documents.last_mut()) {
                (None, Some(document)) => *document = self.tokenizer.encode_bytes(&bytes[range]),
                _ => read.documents.push(vec![]),
            }
        }
        read
    }

    fn remarks(&self, bytes: &[u8]) -> Remarks {
        Remarks { unread_ends: self.unread.count(bytes), ..Remarks::default() }
    }
}

impl Remarks {
    /// Adds those of the text that follows.
    pub(super) fn add(&mut self, Self { unknown, first_unknown, unread_ends, cut_words }: &Self) {
        self.unknown += unknown;
        self.first_unknown = self.first_unknown.take().or_else(|| first_unknown.clone());
        self.unread_ends += unread_ends;
        self.cut_words += cut_words;
    }
}

/// The results for all items, or the error of the first that has one.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Send + Sync,
) -> Result<Vec<R>> {
    map(items.len(), |i| work(&items[i])).into_iter().collect()
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
        let is_full = i - start == threads() || needed(bytes + section.len()) > available;
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
    use super::*;

    #[test]
    fn groups_have_a_document_for_each_thread_as_far_as_memory_allows() {
        let document = Document::new("a", "");
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
}
