//! The space on a disk.

use std::path::Path;

use candle_core::{Result, bail};

/// Refuses to begin what would need more space than there is where the folder `path` lies.
///
/// # Errors
/// Naming `what` is to be written, and both figures.
pub(crate) fn check_space(path: &Path, what: &str, needed: u64) -> Result<()> {
    let Some(available) = available_space(path) else { return Ok(()) };
    if needed > available {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        bail!(
            "no space for {what}: it needs {} on the disk of {}, with {} available",
            megabytes(needed),
            path.display(),
            megabytes(available)
        );
    }
    Ok(())
}

/// Bytes that can be written where the folder `path` lies, or will; `None` where the system does not say.
fn available_space(path: &Path) -> Option<u64> {
    #[cfg(test)]
    if let Some(available) = super::faults::available_space() {
        return Some(available);
    }
    let is_there = |folder: &&Path| folder.as_os_str().is_empty() || folder.exists();
    let folder = path.ancestors().find(is_there).filter(|folder| !folder.as_os_str().is_empty());
    fs4::available_space(folder.unwrap_or(Path::new("."))).ok()
}
