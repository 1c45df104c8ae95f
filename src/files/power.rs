//! A simulated disk. After a power failure it keeps what was synced and, of the rest, nothing or any part: names
//! without their bytes, half of the bytes, a later change without an earlier one. The target of a rename is the old
//! file or the new one, as file systems promise.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Change;

/// A change that was made.
#[derive(Clone, Debug)]
pub(crate) enum Made {
    CreateFolder(PathBuf),
    Write(PathBuf, Vec<u8>),
    Copy(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    WriteAt(PathBuf, u64, Vec<u8>),
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
            Change::Link { from, to } => Self::Link(from.into(), to.into()),
            Change::WriteAt { path, at, bytes, .. } => Self::WriteAt(path.into(), at, bytes.into()),
            Change::Truncate { path, len, .. } => Self::Truncate(path.into(), len),
            Change::SyncFile(path) => Self::SyncFile(path.into()),
            Change::SyncFolder(path) => Self::SyncFolder(path.into()),
            Change::Rename { from, to } => Self::Rename(from.into(), to.into()),
            Change::RemoveFile(path) | Change::RemoveFolder(path) => Self::Remove(path.into()),
        }
    }
}

/// A file or a folder: its current content, and its content when it was last synced.
#[derive(Clone, Debug)]
enum Node {
    File { now: Vec<u8>, synced: Vec<u8> },
    Folder { now: BTreeMap<OsString, usize>, synced: BTreeMap<OsString, usize> },
}

/// All nodes that ever existed; the first is the root folder.
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
            Made::Link(from, to) => {
                let node = self.find(from);
                self.names_beside(to).insert(to.file_name().unwrap().into(), node);
            }
            Made::WriteAt(path, at, bytes) => {
                let (file, at) = (self.file(path), *at as usize);
                file.resize(file.len().max(at + bytes.len()), 0);
                file[at..at + bytes.len()].copy_from_slice(bytes);
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

    /// Writes into the folder `target` what a power failure leaves: what was synced and a random part of the rest, or
    /// without `rng` none of it.
    pub(crate) fn survivors(&self, target: &Path, mut rng: Option<&mut ChaCha8Rng>) {
        let mut is_kept = || rng.as_mut().is_some_and(|rng| rng.random());
        let mut folders = vec![(0, target.to_path_buf())];
        while let Some((folder, path)) = folders.pop() {
            let Node::Folder { now, synced } = &self.nodes[folder] else { continue };
            for name in now.keys().chain(synced.keys()).collect::<BTreeSet<_>>() {
                let node = if is_kept() { now.get(name) } else { synced.get(name) };
                let (Some(&node), path) = (node, path.join(name)) else { continue };
                match &self.nodes[node] {
                    Node::File { now, synced } if is_kept() => {
                        let part = if is_kept() { now.len() } else { now.len() / 2 };
                        std::fs::write(path, [&now[..part], synced.get(part..).unwrap_or_default()].concat()).unwrap();
                    }
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
