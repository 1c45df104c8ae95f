//! Free disk space.

use std::path::Path;

use candle_core::{Result, bail};

/// Checks that the disk of the folder `path` has room before anything is written.
///
/// # Errors
/// If it has less than `needed` bytes: names `what` was to be written, and both figures.
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

/// Bytes free on the disk of the folder `path`, which need not exist yet; `None` if the system does not say.
fn available_space(path: &Path) -> Option<u64> {
    #[cfg(test)]
    if let Some(available) = super::faults::available_space() {
        return Some(available);
    }
    let is_there = |folder: &&Path| folder.as_os_str().is_empty() || folder.exists();
    let folder = path.ancestors().find(is_there).filter(|folder| !folder.as_os_str().is_empty());
    fs4::available_space(folder.unwrap_or(Path::new("."))).ok()
}
