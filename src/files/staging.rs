//! Folders that grow beside the place where they belong.

use std::path::{Path, PathBuf};
use std::{fs, io};

use candle_core::{Result, bail};

use super::{Change, cannot, parent};

/// Creates an empty folder beside `path` of a name that nobody else uses, to be renamed to `path` when it is complete.
pub(crate) fn staging_folder(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for n in 0.. {
        let staging = path.with_file_name(format!(".{name}{STAGING}{}-{n}", std::process::id()));
        match Change::CreateFolder(&staging).apply() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot("create", &staging, &error)),
            Ok(()) => return Ok(staging),
        }
    }
    bail!("no name is free beside {}", path.display())
}

/// The staging folders that there are beside `path`, for it and others, of this process and others.
pub(crate) fn staging_folders(path: &Path) -> Vec<PathBuf> {
    let is_staging = |name: &str| {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = name.strip_prefix('.').and_then(|rest| rest.rsplit_once(STAGING)?.1.split_once('-'));
        numbers.is_some_and(|(process, n)| digits(process) && digits(n))
    };
    let Ok(entries) = fs::read_dir(parent(path)) else { return Vec::new() };
    let names = entries.flatten().filter(|entry| is_staging(&entry.file_name().to_string_lossy()));
    names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// What stands between the name of a folder and the numbers of the process that creates it.
const STAGING: &str = ".attn-";
