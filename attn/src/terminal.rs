//! Untrusted text on a terminal: control characters are made visible instead of sent.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::HumanCount;

/// Standard output, named in its errors; a terminal gets no control characters but line breaks and tabs.
pub struct Output<W> {
    pub out: W,
    pub is_terminal: bool,
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.is_terminal {
            true => self.out.write_all(plain(&String::from_utf8_lossy(bytes)).as_bytes()),
            false => self.out.write_all(bytes),
        };
        written.map(|()| bytes.len()).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

/// Whether standard error can show a bar that changes in place.
pub fn takes_bars() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether this process says nothing, as another does.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// From here on [`note`] writes nothing.
pub fn silence() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Writes a line to standard error. If it cannot be written, nothing is lost that matters.
pub fn note(line: &str) {
    if !IS_SILENT.load(Ordering::Relaxed) {
        report(line);
    }
}

/// Ends the process with a last note: what other threads have to say after it is not written.
pub fn end(line: &str, code: i32) -> ! {
    let _locked = io::stderr().lock();
    note(line);
    std::process::exit(code)
}

/// A note, also of a silent process.
pub fn report(line: &str) {
    let _ = writeln!(io::stderr(), "{}", plain(line));
}

/// An error as one line: control characters made visible, and truncated if very long.
pub fn one_line(message: &str) -> String {
    /// It may quote the content of a file.
    const MAX_CHARACTERS: usize = 2000;
    let mut line: String = message.chars().take(MAX_CHARACTERS).map(|c| shown(c, &[])).collect();
    if message.chars().nth(MAX_CHARACTERS).is_some() {
        line.push_str(" ...");
    }
    line
}

/// A number of things, by the name of one.
pub fn counted(count: usize, name: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {name}{plural}", HumanCount(count as u64))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\u{1b}[31m\nb\u{9b}2J\u{7f}"), "a␛[31m␊b\u{fffd}2J␡");
        let long = one_line(&"é".repeat(5000));
        assert!(long.ends_with("é ...") && long.chars().count() == 2004);
    }

    #[test]
    fn a_terminal_gets_text_but_no_control_characters() {
        let through = |is_terminal, text: &[u8]| {
            let mut output = Output { out: vec![], is_terminal };
            output.write_all(text).unwrap();
            output.out
        };
        let odd = b"a\x1b]0;title\x07\r\n\tb\xc2\x9b2J\xff";
        assert_eq!(through(true, odd), "a␛]0;title␇␍\n\tb\u{fffd}2J\u{fffd}".as_bytes());
        assert_eq!(through(false, odd), odd);
        let text = "ação «ß» 🦀 ⠤\n".as_bytes();
        assert_eq!((through(true, text), through(false, text)), (text.to_vec(), text.to_vec()));
    }

    #[test]
    fn errors_of_standard_output_name_it_and_keep_their_kind() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut output = Output { out: Full, is_terminal: false };
        let (written, flushed) = (output.write_all(b"a").unwrap_err(), output.flush().unwrap_err());
        assert_eq!((written.kind(), flushed.kind()), (io::ErrorKind::BrokenPipe, io::ErrorKind::StorageFull));
        assert!(flushed.to_string().starts_with("cannot write to standard output: "), "{flushed}");
    }

    #[test]
    fn a_path_is_quoted_as_a_shell_needs_it() {
        for (path, expected) in [
            ("runs/text-1", "runs/text-1"),
            ("my runs/a", "'my runs/a'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("ação", "ação"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
