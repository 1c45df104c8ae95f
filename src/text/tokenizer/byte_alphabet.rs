//! GPT-2's alphabet: a printable character for each byte, so that a vocabulary of bytes can be written as text.
//!
//! A printable byte is the character with the same code; the other 68 are numbered in order from U+0100.

use std::collections::HashMap;

/// The character of each byte.
pub(super) fn characters() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
}

/// The byte of each character.
pub(super) fn bytes() -> HashMap<char, u8> {
    characters().into_iter().zip(0..=u8::MAX).collect()
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn is_the_alphabet_of_the_tokenizers_library() {
        let ours: Vec<char> = super::characters().to_vec();
        assert_eq!(ours[b' ' as usize], 'Ġ');
        assert_eq!(ours[b'\n' as usize], 'Ċ');
        assert_eq!(ours[0xad], 'Ń');
        let theirs = ByteLevel::alphabet();
        assert!(theirs.len() == 256 && ours.iter().all(|c| theirs.contains(c)));
        assert_eq!(super::bytes()[&'Ġ'], b' ');
    }
}
