//! A disk in memory that keeps, through a power failure, only what was synced: the worst that a file system may do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Change;

/// A change that was made, with paths relative to the disk's root.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    CreateFolder(PathBuf),
    Write(PathBuf, Vec<u8>),
    Copy(PathBuf, PathBuf),
    Append(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    SyncFile(PathBuf),
    SyncFolder(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Made {
    pub(super) fn of(change: Change) -> Self {
        match change {
            Change::CreateFolder(path) => Self::CreateFolder(path.into()),
            Change::Write(path, bytes) => Self::Write(path.into(), bytes.into()),
            Change::Copy { from, to } => Self::Copy(from.into(), to.into()),
            Change::Append { path, at, bytes, .. } => Self::Append(path.into(), at, bytes.into()),
            Change::Truncate { path, len, .. } => Self::Truncate(path.into(), len),
            Change::SyncFile(path) => Self::SyncFile(path.into()),
            Change::SyncFolder(path) => Self::SyncFolder(path.into()),
            Change::Rename { from, to } => Self::Rename(from.into(), to.into()),
            Change::RemoveFile(path) | Change::RemoveFolder(path) => Self::Remove(path.into()),
        }
    }
}

/// A file or a folder, as it is and as it was when it was last synced.
#[derive(Clone, Debug)]
enum Node {
    File { now: Vec<u8>, synced: Vec<u8> },
    Folder { now: BTreeMap<OsString, usize>, synced: BTreeMap<OsString, usize> },
}

/// All nodes that there ever were; the first is the folder that was there before everything.
pub(crate) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
}

impl Disk {
    /// An empty disk for changes below `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into(), nodes: vec![Self::empty_folder()] }
    }

    fn empty_folder() -> Node {
        Node::Folder { now: BTreeMap::new(), synced: BTreeMap::new() }
    }

    fn find(&self, path: &Path) -> usize {
        let names = path.strip_prefix(&self.root).unwrap().iter();
        names.fold(0, |node, name| match &self.nodes[node] {
            Node::Folder { now, .. } => now[name],
            Node::File { .. } => panic!("{} leads through a file", path.display()),
        })
    }

    fn file(&mut self, path: &Path) -> &mut Vec<u8> {
        let node = self.find(path);
        match &mut self.nodes[node] {
            Node::File { now, .. } => now,
            Node::Folder { .. } => panic!("{} is a folder", path.display()),
        }
    }

    fn names_beside(&mut self, path: &Path) -> &mut BTreeMap<OsString, usize> {
        let folder = self.find(path.parent().unwrap());
        match &mut self.nodes[folder] {
            Node::Folder { now, .. } => now,
            Node::File { .. } => panic!("{} lies in a file", path.display()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let added = self.nodes.len() - 1;
        self.names_beside(path).insert(path.file_name().unwrap().into(), added);
    }

    /// Makes a change.
    pub(crate) fn apply(&mut self, change: &Made) {
        match change {
            Made::CreateFolder(path) => self.add(path, Self::empty_folder()),
            Made::Write(path, bytes) => self.add(path, Node::File { now: bytes.clone(), synced: vec![] }),
            Made::Copy(from, to) => {
                let now = self.file(from).clone();
                self.add(to, Node::File { now, synced: vec![] });
            }
            Made::Append(path, at, bytes) => {
                let file = self.file(path);
                file.truncate(*at as usize);
                file.extend(bytes);
            }
            Made::Truncate(path, len) => self.file(path).truncate(*len as usize),
            Made::SyncFile(path) | Made::SyncFolder(path) => {
                let node = self.find(path);
                match &mut self.nodes[node] {
                    Node::File { now, synced } => synced.clone_from(now),
                    Node::Folder { now, synced } => synced.clone_from(now),
                }
            }
            Made::Rename(from, to) => {
                let node = self.names_beside(from).remove(from.file_name().unwrap()).unwrap();
                self.names_beside(to).insert(to.file_name().unwrap().into(), node);
            }
            Made::Remove(path) => drop(self.names_beside(path).remove(path.file_name().unwrap())),
        }
    }

    /// Writes what a power failure leaves into the folder `target`.
    pub(crate) fn survivors(&self, target: &Path) {
        let mut folders = vec![(0, target.to_path_buf())];
        while let Some((folder, path)) = folders.pop() {
            let Node::Folder { synced, .. } = &self.nodes[folder] else { continue };
            for (name, &node) in synced {
                let path = path.join(name);
                match &self.nodes[node] {
                    Node::File { synced, .. } => std::fs::write(path, synced).unwrap(),
                    Node::Folder { .. } => {
                        std::fs::create_dir(&path).unwrap();
                        folders.push((node, path));
                    }
                }
            }
        }
    }
}
