//! Documents from files and folders.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::Document;
use crate::host::{Error, Result, bail};

/// The documents of files and folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Files {
    /// One document per file: in the order given and, within a folder, in the order of the names.
    pub documents: Vec<Document>,
    /// How many of what else the folders contain: hidden files and folders, whose names begin with a dot; empty files;
    /// folders of training runs; and what is neither file nor folder, such as a socket.
    pub skipped: BTreeMap<&'static str, usize>,
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
        paths.iter().try_for_each(|path| files.add(path))?;
        Ok(files)
    }

    /// Opens a file or a folder more.
    ///
    /// # Errors
    /// Those of [`Files::open`].
    pub fn add(&mut self, path: &Path) -> Result<()> {
        match path.is_dir() {
            true => self.add_folder(path)?,
            false => self.documents.push(Document::open(path)?),
        }
        Ok(())
    }

    /// The documents whose file, by whatever path, is that of an earlier one.
    ///
    /// # Errors
    /// A file that can't be looked at.
    pub fn repeated(&self) -> Result<Vec<&Document>> {
        let mut seen = BTreeSet::new();
        let mut repeated = vec![];
        for document in &self.documents {
            let identity = document.path().map(identity).transpose()?;
            if identity.is_some_and(|identity| !seen.insert(identity)) {
                repeated.push(document);
            }
        }
        Ok(repeated)
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
                    Err(error) => return Err(unreadable(path, error)),
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
        let mut entries = WalkDir::new(folder).follow_links(true).sort_by_file_name().into_iter();
        while let Some(entry) = entries.next() {
            match entry {
                Err(error) if error.loop_ancestor().is_some() => {}
                Err(error) => return Err(unreadable(folder, error)),
                Ok(entry) if entry.file_type().is_dir() => {
                    if self.leaves_out(&entry) {
                        entries.skip_current_dir();
                    }
                }
                Ok(entry) => self.add_file(&entry)?,
            }
        }
        if self.documents.len() == before {
            let left_out =
                if self.skipped.is_empty() { String::new() } else { format!(" (left out: {})", self.left_out()) };
            bail!("expected text files in {}, got none{left_out}", folder.display());
        }
        Ok(())
    }

    /// What was skipped, in words; empty if nothing was.
    pub fn left_out(&self) -> String {
        let counted: Vec<String> = self.skipped.iter().map(|(what, count)| format!("{count} {what}")).collect();
        counted.join(", ")
    }

    fn skip(&mut self, what: &'static str) {
        *self.skipped.entry(what).or_default() += 1;
    }

    /// Whether a folder is left out with all that it contains. The folder that was given may be hidden.
    fn leaves_out(&mut self, folder: &DirEntry) -> bool {
        if folder.depth() > 0 && is_hidden(folder) {
            self.skip("hidden");
        } else if is_run(folder.path()) {
            self.skip("runs");
        } else {
            return false;
        }
        true
    }

    fn add_file(&mut self, entry: &DirEntry) -> Result<()> {
        if is_hidden(entry) {
            self.skip("hidden");
        } else if !entry.file_type().is_file() {
            self.skip("neither file nor folder");
        } else if entry.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            self.skip("empty");
        } else {
            self.documents.push(Document::open(entry.path())?);
        }
        Ok(())
    }
}

/// The file that a path leads to, by whatever way.
fn identity(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(Error::io("read", path))
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with('.')
}

/// Whether this is the folder of a training run, complete or being created: its files are results, not texts.
fn is_run(folder: &Path) -> bool {
    folder.join("training/lock").is_file()
}

/// The system's error, with the path.
fn unreadable(folder: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(folder).to_path_buf();
    // Without the path, which would be there twice.
    Error::io("read", &path)(error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of links")))
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
        assert_eq!(files.left_out(), "1 empty, 3 hidden");

        let twice = Files::open(&[root.join("z.rs"), root.join("b"), root.join("z.rs")]).unwrap();
        assert_eq!(names(&twice, root), ["z.rs", "b/10.md", "b/2.txt", "z.rs"]);
        assert_eq!(twice.repeated().unwrap(), [&twice.documents[3]]);
        assert!(files.repeated().unwrap().is_empty());
        let error = Files::open(&[root.join(".hidden"), root.join("empty.txt")]).unwrap_err().to_string();
        assert!(error.contains("empty.txt, got an empty file"), "{error}");
        std::fs::create_dir(root.join("nothing")).unwrap();
        let error = Files::open(&[root.join("nothing")]).unwrap_err().to_string();
        assert!(error.contains("expected text files in") && error.ends_with("nothing, got none"), "{error}");
    }

    #[test]
    fn runs_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["a.txt", "runs/a-1/config.json", "runs/a-1/training/lock", "training/lock.txt"] {
            std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            std::fs::write(root.join(path), path).unwrap();
        }
        let files = Files::open(&[root.to_path_buf()]).unwrap();
        assert_eq!(names(&files, root), ["a.txt", "training/lock.txt"]);
        assert_eq!(files.left_out(), "1 runs");
        let error = Files::open(&[root.join("runs/a-1")]).unwrap_err().to_string();
        assert!(error.contains("runs/a-1, got none (left out: 1 runs)"), "{error}");
    }

    #[cfg(unix)]
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
        std::os::unix::fs::symlink(root.join("a.txt"), root.join("val/same.txt")).unwrap();
        let removed = files.remove_files_of(&[root.join("b/../b/d.txt"), root.join("val")]).unwrap();
        assert_eq!(removed.len(), 2);
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
