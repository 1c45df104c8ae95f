//! The names of files to write.

use std::path::Path;

use anyhow::{Result, bail};

use super::terminal::quoted;

/// Which of the extensions `allowed`, in lower case, the name of a file to write has.
pub fn extension(file: &Path, allowed: &[&'static str]) -> Result<&'static str> {
    let given = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match allowed.iter().find(|known| known.eq_ignore_ascii_case(given)) {
        Some(known) => Ok(known),
        None => bail!("--out: expected a file whose name ends in .{}, got {}", allowed.join(", ."), quoted(file)),
    }
}
