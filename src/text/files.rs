//! Documents from files and folders.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Error, Result, bail};
use walkdir::{DirEntry, WalkDir};

use super::Document;

/// The documents of files and folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// One document per file: in the order given and, within a folder, in the order of the names.
    pub documents: Vec<Document>,
    /// What else the folders contain.
    pub skipped: SkippedFiles,
}

/// What was skipped in folders: hidden files and folders, whose names begin with a dot, empty files, and what is
/// neither file nor folder, such as a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkippedFiles {
    /// Hidden files, and hidden folders with all their content.
    pub hidden: usize,
    /// Empty files.
    pub empty: usize,
    /// Anything that is neither file nor folder.
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
    /// Opens files, and all files of folders and their subfolders. Every file counts, whatever its name: one that is
    /// not text is an error when it is read, so that nothing is skipped silently. Links are followed, except those that
    /// lead back to a folder they are in.
    ///
    /// # Errors
    /// Those of [`Document::open`], a folder that can't be read, and one without any suitable file.
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

    /// Removes the documents whose files are among the files and folders `others`, by whatever path, and returns them.
    /// The others are not opened: a pipe can be read only once.
    ///
    /// # Errors
    /// A file or folder that can't be looked at.
    pub fn remove_files_of(&mut self, others: &[PathBuf]) -> Result<Vec<Document>> {
        let mut identities = BTreeSet::new();
        for path in others {
            for entry in WalkDir::new(path).follow_links(true) {
                match entry {
                    Err(error) if error.loop_ancestor().is_some() => {}
                    Err(error) => bail!("cannot read {}: {}", path.display(), reason(error)),
                    Ok(entry) if entry.file_type().is_dir() => {}
                    Ok(entry) => drop(identities.insert(identity(entry.path())?)),
                }
            }
        }
        let (mut kept, mut removed) = (Vec::new(), Vec::new());
        for document in std::mem::take(&mut self.documents) {
            let identity = document.path().map(identity).transpose()?;
            let is_removed = identity.is_some_and(|identity| identities.contains(&identity));
            if is_removed { removed.push(document) } else { kept.push(document) }
        }
        self.documents = kept;
        Ok(removed)
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

/// The system's error message, with the path.
fn reason(error: walkdir::Error) -> String {
    let path = error.path().map(|path| format!("{}: ", path.display())).unwrap_or_default();
    match error.into_io_error() {
        Some(error) => format!("{path}{error}"),
        None => format!("{path}a folder that cannot be listed"),
    }
}

/// What tells whether two paths lead to the same file.
#[cfg(unix)]
fn identity(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(metadata) => Ok((metadata.dev(), metadata.ino())),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    }
}

/// What tells whether two paths lead to the same file; hard links are not seen.
#[cfg(not(unix))]
fn identity(path: &Path) -> Result<PathBuf> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
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

    #[test]
    fn files_of_other_documents_are_removed_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("b")).unwrap();
        for path in ["a.txt", "b/c.txt", "b/d.txt"] {
            std::fs::write(root.join(path), path).unwrap();
        }
        let mut files = Files::open(&[root.to_path_buf()]).unwrap();
        files.documents.push(Document::new("b/d.txt", "in memory"));
        std::fs::create_dir(root.join("val")).unwrap();
        std::fs::hard_link(root.join("a.txt"), root.join("val/same.txt")).unwrap();
        let removed = files.remove_files_of(&[root.join("b/../b/d.txt"), root.join("val")]).unwrap();
        let hard_links_are_seen = cfg!(unix);
        assert_eq!(removed.len(), if hard_links_are_seen { 2 } else { 1 });
        let kept: Vec<&str> = files.documents.iter().map(|document| document.name()).collect();
        assert!(kept.last() == Some(&"b/d.txt") && kept.iter().any(|name| name.ends_with("c.txt")), "{kept:?}");
        assert!(files.remove_files_of(&[]).unwrap().is_empty());
        let error = files.remove_files_of(&[root.join("missing")]).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
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
