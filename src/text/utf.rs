//! Telling the encodings of Unicode apart by the first bytes of a text.

/// U+FEFF, with which some editors begin a text in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The name, as iconv knows it, of an encoding other than UTF-8 that these first bytes of a text are in: by its byte order
/// mark or, without one, by where the zeros are that Latin letters, digits and spaces have in it.
pub(super) fn encoding(head: &[u8]) -> Option<&'static str> {
    /// Of fewer characters the pattern may be chance.
    const MIN_CHARACTERS: usize = 4;
    match head {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Some("UTF-32"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Some("UTF-16"),
        _ => {}
    }
    let quads = head.as_chunks::<4>().0;
    let zeros = |i: usize| quads.iter().filter(|quad| quad[i] == 0).count();
    let (count, zeros) = (quads.len(), [0, 1, 2, 3].map(zeros));
    // More than half, and fewer than a tenth.
    let (many, few) = (|i: usize| 2 * zeros[i] > count, |i: usize| 10 * zeros[i] < count);
    match count >= MIN_CHARACTERS {
        true if many(1) && many(2) && many(3) && few(0) => Some("UTF-32LE"),
        true if many(0) && many(1) && many(2) && few(3) => Some("UTF-32BE"),
        true if many(1) && many(3) && few(0) && few(2) => Some("UTF-16LE"),
        true if many(0) && many(2) && few(1) && few(3) => Some("UTF-16BE"),
        _ => None,
    }
}
