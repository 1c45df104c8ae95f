//! Untrusted text on a terminal: control characters are made visible instead of sent.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// The longest error shown, in characters: it may quote the content of a file.
const LONGEST: usize = 2000;

/// Standard output, named in its errors.
pub struct Output<W>(pub W);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    match error.kind() {
        // The caller retries.
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {error}")),
    }
}

/// Whether standard error can show a bar that changes in place.
pub fn takes_bars() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes a line to standard error. If it cannot be written, nothing is lost that matters.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{}", plain(line));
}

/// An error as one line: control characters made visible, without a backtrace, and truncated if very long.
pub fn one_line(message: &str) -> String {
    // candle appends its backtrace, if any, to the message.
    let message = message.split("\n   0: ").next().unwrap_or_default().trim_end();
    let mut line: String = message.chars().take(LONGEST).map(|c| shown(c, &[])).collect();
    if message.chars().nth(LONGEST).is_some() {
        line.push_str(" ...");
    }
    line
}

/// A path, quoted for a shell.
pub fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+@%,:".contains(c);
    if path.chars().all(is_plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// A line that may contain untrusted names, safe to show.
pub fn plain(line: &str) -> String {
    line.chars().map(|c| shown(c, &['\n', '\t'])).collect()
}

/// Replaces control characters, except those in `kept`, by their symbols from U+2400 on, or U+FFFD where there is none.
fn shown(c: char, kept: &[char]) -> char {
    match c {
        c if kept.contains(&c) || !c.is_control() => c,
        '\u{7f}' => '\u{2421}',
        c if c.is_ascii() => char::from_u32(0x2400 + c as u32).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ => char::REPLACEMENT_CHARACTER,
    }
}

/// Writes to a terminal with control characters, except line breaks and tabs, made visible. Everything else, including
/// invalid UTF-8, passes through.
pub struct Shown<W> {
    terminal: W,
    /// Whether the first byte of a two-byte character is held back: U+0080 to U+009F are control characters too.
    waiting: bool,
}

/// The first byte, in UTF-8, of the characters from U+0080 to U+00BF.
const FIRST_BYTE: u8 = 0xc2;

impl<W: Write> Shown<W> {
    /// Wraps `terminal`.
    pub fn new(terminal: W) -> Self {
        Self { terminal, waiting: false }
    }
}

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let was_waiting = std::mem::replace(&mut self.waiting, byte == FIRST_BYTE);
            match byte {
                0x80..=0x9f if was_waiting => text.extend("\u{fffd}".bytes()),
                _ => {
                    text.extend(was_waiting.then_some(FIRST_BYTE));
                    if byte < 0x80 {
                        text.extend(shown(char::from(byte), &['\n', '\t']).to_string().bytes());
                    } else if byte != FIRST_BYTE {
                        text.push(byte);
                    }
                }
            }
        }
        self.terminal.write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.terminal.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\u{1b}[31m\nb\u{9b}2J\u{7f}"), "a␛[31m␊b\u{fffd}2J␡");
        assert_eq!(one_line("bad\n   0: candle::there\n   1: main"), "bad");
        let long = one_line(&"é".repeat(5000));
        assert!(long.ends_with("é ...") && long.chars().count() == 2004);
    }

    #[test]
    fn a_terminal_gets_text_but_no_control_characters() {
        let through = |parts: &[&[u8]]| {
            let mut terminal = Shown::new(Vec::new());
            parts.iter().for_each(|part| terminal.write_all(part).unwrap());
            terminal.terminal
        };
        assert_eq!(through(&[b"a\x1b]0;title\x07\r\n\tb"]), "a␛]0;title␇␍\n\tb".as_bytes());
        let text = "ação «ß» 🦀 ⠤\n".as_bytes();
        assert_eq!(through(&[text]), text);
        let one_by_one: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(through(&one_by_one), text);
        assert_eq!(through(&[b"\xc2", b"\x9b2J"]), "\u{fffd}2J".as_bytes());
        assert_eq!(through(&[b"\xff\xc2\xc2\xa0\x80"]), b"\xff\xc2\xc2\xa0\x80");
    }
}
