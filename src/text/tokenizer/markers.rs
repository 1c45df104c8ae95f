//! Tokens that stand for a whole string wherever it occurs in a text, such as `<|endoftext|>`. They are looked for before
//! anything else, and the text between them is encoded piece by piece.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::END_OF_TEXT;
use crate::host::{Error, Result};

/// The strings to look for; by default none.
#[derive(Clone, Debug, Default)]
pub(in crate::text) struct Markers {
    search: Option<AhoCorasick>,
    strings: Vec<String>,
    ids: Vec<u32>,
}

impl Markers {
    /// Strings with the ids that they stand for. Where several begin at one place, the longest counts.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Result<Self> {
        let (strings, ids): (Vec<&str>, Vec<u32>) = tokens.into_iter().filter(|(string, _)| !string.is_empty()).unzip();
        if ids.is_empty() {
            return Ok(Self::default());
        }
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&strings);
        let search = search.map_err(|error| Error::Input(format!("the added tokens of the tokenizer: {error}")))?;
        Ok(Self { search: Some(search), strings: strings.into_iter().map(String::from).collect(), ids })
    }

    /// The string `<|endoftext|>`, whatever it stands for.
    pub(in crate::text) fn end_of_text() -> Result<Self> {
        Self::new([(END_OF_TEXT, 0)])
    }

    /// The same strings, and `<|endoftext|>`.
    pub(in crate::text) fn with_end_of_text(&self) -> Result<Self> {
        Self::new(self.strings.iter().map(|string| (&**string, 0)).chain([(END_OF_TEXT, 0)]))
    }

    /// Where they occur, in order, with their ids.
    fn find<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (Range<usize>, u32)> + 'a {
        let found = self.search.iter().flat_map(move |search| search.find_iter(text));
        found.map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }

    /// The number of occurrences.
    pub(in crate::text) fn count(&self, text: &[u8]) -> usize {
        self.find(text).count()
    }

    /// The whole text in pieces: each marker, with its id, and what is between two of them.
    pub(in crate::text) fn pieces<'a>(
        &'a self,
        text: &'a [u8],
    ) -> impl Iterator<Item = (Range<usize>, Option<u32>)> + 'a {
        let mut start = 0;
        let end = std::iter::once((text.len()..text.len(), None));
        let found = self.find(text).map(|(range, id)| (range, Some(id)));
        found.chain(end).flat_map(move |(range, id)| {
            let before = (start..range.start, None);
            start = range.end;
            [before, (range, id)].into_iter().filter(|(range, _)| !range.is_empty())
        })
    }

    /// What is between the markers.
    pub(in crate::text) fn between<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        self.pieces(text.as_bytes()).filter(|(_, id)| id.is_none()).map(|(range, _)| &text[range])
    }

    /// The number of bytes on both sides of a place that decide whether it is inside a marker.
    pub(in crate::text) fn reach(&self) -> usize {
        self.search.as_ref().map_or(0, |search| search.max_pattern_len().saturating_sub(1))
    }

    /// Where the last marker begins before the place `at`, and after the beginning.
    pub(in crate::text) fn last_start(&self, text: &[u8], at: usize) -> Option<usize> {
        self.find(text).map(|(range, _)| range.start).take_while(|&start| start < at).filter(|&start| start > 0).last()
    }

    /// The marker that goes across the place `at`, which has [`reach`](Self::reach) bytes after it unless the text ends.
    pub(in crate::text) fn across(&self, text: &[u8], at: usize) -> Option<Range<usize>> {
        let mut found = self.find(text).map(|(range, _)| range).take_while(|range| range.start < at);
        found.find(|range| range.end > at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_its_pieces_with_the_longest_marker_at_each_place() {
        let markers = Markers::new([("<a>", 7), ("<a><b>", 8), ("", 9)]).unwrap();
        let text = "x<a><a><b>y<a";
        let pieces: Vec<(&str, Option<u32>)> =
            markers.pieces(text.as_bytes()).map(|(range, id)| (&text[range], id)).collect();
        assert_eq!(pieces, [("x", None), ("<a>", Some(7)), ("<a><b>", Some(8)), ("y<a", None)]);
        assert_eq!(markers.between(text).collect::<Vec<_>>(), ["x", "y<a"]);
        assert_eq!((markers.count(text.as_bytes()), markers.reach()), (2, 5));
        assert_eq!(Markers::default().pieces(b"ab").collect::<Vec<_>>(), [(0..2, None)]);
        assert_eq!(Markers::default().pieces(b"").count(), 0);
    }

    #[test]
    fn a_place_inside_a_marker_is_told_from_one_beside_it() {
        let (markers, text) = (Markers::new([("<a>", 7)]).unwrap(), b"x<a><a>y");
        let across: Vec<Option<Range<usize>>> = (0..=text.len()).map(|at| markers.across(text, at)).collect();
        let (first, second) = (Some(1..4), Some(4..7));
        assert_eq!(across, [None, None, first.clone(), first, None, second.clone(), second, None, None]);
    }
}
