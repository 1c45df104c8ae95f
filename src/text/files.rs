//! The documents in files and folders.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};
use walkdir::{DirEntry, WalkDir};

use super::Document;

/// The documents in some files and folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// One for each file: in the order they were given, those of a folder in the order of their names.
    pub documents: Vec<Document>,
    /// What the folders hold beside.
    pub skipped: SkippedFiles,
}

/// What is in folders and is no document: hidden files and folders, whose names begin with a dot, files without a byte,
/// and what is no file, such as a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkippedFiles {
    /// Hidden files, and hidden folders with all they hold.
    pub hidden: usize,
    /// Empty files.
    pub empty: usize,
    /// What is neither file nor folder.
    pub special: usize,
}

impl fmt::Display for SkippedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.hidden, "hidden"), (self.empty, "empty"), (self.special, "neither file nor folder")];
        let some: Vec<String> =
            named.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}")).collect();
        f.write_str(&some.join(", "))
    }
}

impl SkippedFiles {
    /// Whether nothing was skipped.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Files {
    /// Opens files, and all files of folders and of the folders in them. Every file counts, whatever its name: what is no
    /// text is an error once it is read, so that nothing is left out in silence. Links are followed, but for those that lead
    /// back to a folder they are in.
    ///
    /// # Errors
    /// Those of [`Document::open`], a folder that can't be read, and one without any file to take.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut files = Self::default();
        for path in paths {
            match path.is_dir() {
                true => files.add_folder(path)?,
                false => files.documents.push(Document::open(path)?),
            }
        }
        Ok(files)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<()> {
        let before = self.documents.len();
        let mut entries = WalkDir::new(folder).follow_links(true).sort_by_file_name().min_depth(1).into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Err(error) if error.loop_ancestor().is_some() => continue,
                Err(error) => bail!("cannot read {}: {}", folder.display(), reason(error)),
                Ok(entry) => entry,
            };
            if is_hidden(&entry) {
                self.skipped.hidden += 1;
                if entry.file_type().is_dir() {
                    entries.skip_current_dir();
                }
                continue;
            }
            self.add_entry(&entry)?;
        }
        if self.documents.len() == before {
            bail!("expected text files in {}, got none", folder.display());
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: &DirEntry) -> Result<()> {
        let kind = entry.file_type();
        if kind.is_dir() {
            return Ok(());
        }
        let is_empty = || entry.metadata().map(|metadata| metadata.len() == 0).map_err(Error::wrap);
        if !kind.is_file() {
            self.skipped.special += 1;
        } else if is_empty()? {
            self.skipped.empty += 1;
        } else {
            self.documents.push(Document::open(entry.path())?);
        }
        Ok(())
    }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}

/// The error as the system tells it, with the path it happened at.
fn reason(error: walkdir::Error) -> String {
    let path = error.path().map(|path| format!("{}: ", path.display())).unwrap_or_default();
    match error.into_io_error() {
        Some(error) => format!("{path}{error}"),
        None => format!("{path}a folder that cannot be listed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &Files, folder: &Path) -> Vec<String> {
        let prefix = format!("{}/", folder.display());
        files.documents.iter().map(|document| document.name().trim_start_matches(&prefix).to_string()).collect()
    }

    #[test]
    fn a_folder_is_its_files_in_order_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["b/2.txt", "b/10.md", "a.txt", "c/d/e/deep", ".hidden/f.txt", ".g.txt", "b/.h", "z.rs"] {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), path).unwrap();
        }
        std::fs::write(root.join("empty.txt"), "").unwrap();
        let files = Files::open(&[root.to_path_buf()]).unwrap();
        assert_eq!(names(&files, root), ["a.txt", "b/10.md", "b/2.txt", "c/d/e/deep", "z.rs"]);
        assert_eq!(files.skipped, SkippedFiles { hidden: 3, empty: 1, special: 0 });
        assert_eq!(files.skipped.to_string(), "3 hidden, 1 empty");

        let twice = Files::open(&[root.join("z.rs"), root.join("b"), root.join("z.rs")]).unwrap();
        assert_eq!(names(&twice, root), ["z.rs", "b/10.md", "b/2.txt", "z.rs"]);
        let error = Files::open(&[root.join(".hidden"), root.join("empty.txt")]).unwrap_err().to_string();
        assert!(error.contains("empty.txt, got an empty file"), "{error}");
        std::fs::create_dir(root.join("nothing")).unwrap();
        let error = Files::open(&[root.join("nothing")]).unwrap_err().to_string();
        assert!(error.contains("expected text files in") && error.contains("nothing, got none"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("inner")).unwrap();
        std::fs::write(root.join("inner/a.txt"), "a").unwrap();
        std::fs::write(dir.path().join("outside.txt"), "o").unwrap();
        std::os::unix::fs::symlink(&root, root.join("inner/loop")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside.txt"), root.join("link.txt")).unwrap();
        assert_eq!(names(&Files::open(std::slice::from_ref(&root)).unwrap(), &root), ["inner/a.txt", "link.txt"]);
        std::os::unix::fs::symlink("nowhere", root.join("broken.txt")).unwrap();
        let error = Files::open(&[root]).unwrap_err().to_string();
        assert!(error.contains("broken.txt"), "{error}");
    }
}
