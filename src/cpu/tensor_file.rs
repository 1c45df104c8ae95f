//! Tensors in a safetensors file that is replaced as a whole.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::{Device, Error, Result, Tensor, bail};

/// Writes tensors to a file beside `path`, which then takes its place: after an error or a crash, `path` is as it was.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn save(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let write = || {
        candle_core::safetensors::save(tensors, &temporary)?;
        // Opened to write, as some systems want it.
        File::options().write(true).open(&temporary)?.sync_all()?;
        Ok(fs::rename(&temporary, path)?)
    };
    write().map_err(|error: Error| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
        error.with_path(path)
    })
}

/// Reads the tensors of a file, on the CPU: exactly the `expected` ones, by name and shape.
///
/// # Errors
/// If the file cannot be read, or tensors are missing, left over or misshapen: the first of these are named.
pub(crate) fn load<'a>(
    path: &Path,
    expected: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<HashMap<String, Tensor>> {
    let mut left = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| error.with_path(path))?;
    let (mut found, mut wrong) = (HashMap::new(), vec![]);
    for (name, like) in expected {
        match left.remove(name) {
            None => wrong.push(format!("{name} of shape {:?} is missing", like.dims())),
            Some(tensor) if tensor.shape() != like.shape() => {
                wrong.push(format!("expected {name} of shape {:?}, got {:?}", like.dims(), tensor.dims()));
            }
            Some(tensor) => drop(found.insert(name.clone(), tensor)),
        }
    }
    let mut left: Vec<String> = left.into_keys().map(|name| format!("{name} is left over")).collect();
    left.sort_unstable();
    wrong.extend(left);
    /// As many as can be read.
    const NAMED: usize = 5;
    let more = match wrong.len().checked_sub(NAMED) {
        None | Some(0) => String::new(),
        Some(more) => format!("; and {more} more"),
    };
    wrong.truncate(NAMED);
    match wrong.is_empty() {
        true => Ok(found),
        false => bail!("{}: {}{more}", path.display(), wrong.join("; ")),
    }
}
