//! Several processes on one run: the first has its folder, and gives the others what they need of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::latest::parse;
use super::resume::trainer_at;
use super::{RunDir, Trainer, checkpoint, settings_file};
use crate::host::file_names::{ADAPTER_CONFIG, CONFIG, GENERATION_CONFIG};
use crate::host::{Error, Result};
use crate::processes::{Processes, gather};

const SETTINGS: &str = "training/settings.toml";

/// Bytes of a file that are sent together.
const TOGETHER: u64 = if cfg!(test) { 1000 } else { 1 << 26 };

/// Shares the run of the first process with the others, which call [`join`] at the same time: its ids, its settings and the
/// checkpoint that `trainer` is at. From here on [`train`](super::train()) divides the work among all of them.
///
/// # Errors
/// If the files cannot be read or sent, and those of [`Trainer::divide`]. A new run without a step is removed when it is dropped then.
pub fn lead(run: &mut RunDir, trainer: &mut Trainer, processes: Arc<dyn Processes>) -> Result<()> {
    let (root, settings) = (run.root().to_path_buf(), run.settings().clone());
    let is_untrained = trainer.steps_done() == 0;
    send_run(&root, &settings, trainer, processes).inspect_err(|_| {
        if is_untrained {
            run.let_go();
        }
    })
}

/// Sends the run in `root` to all processes, if there are others, with these settings in place of its own.
pub(super) fn send_run(
    root: &Path,
    settings: &toml::Table,
    trainer: &mut Trainer,
    processes: Arc<dyn Processes>,
) -> Result<()> {
    if processes.count() == 1 {
        return Ok(());
    }
    let settings = settings_file::merged(settings, trainer.options())?.to_string();
    let mut names: Vec<String> = match trainer.lora() {
        None => vec![CONFIG.into()],
        Some(_) => vec![ADAPTER_CONFIG.into(), format!("training/{CONFIG}")],
    };
    if root.join(GENERATION_CONFIG).exists() {
        names.push(GENERATION_CONFIG.into());
    }
    names.extend(["training/ids.safetensors".into(), checkpoint_name(trainer.steps_done())]);
    let size = |name: String| {
        let path = root.join(&name);
        let len = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        Ok((name, len))
    };
    let mut files: Vec<(String, u64)> = names.into_iter().map(size).collect::<Result<_>>()?;
    files.push((SETTINGS.into(), settings.len() as u64));
    let json = serde_json::to_vec(&(trainer.steps_done(), &files)).map_err(|error| Error::Input(error.to_string()))?;
    gather(&*processes, &json)?;
    for (name, len) in files {
        let path = root.join(&name);
        let mut file: Box<dyn Read> = match &*name {
            SETTINGS => Box::new(settings.as_bytes()),
            _ => Box::new(File::open(&path).map_err(Error::io("read", &path))?),
        };
        each_part(len, |part| {
            let mut bytes = vec![0; part];
            file.read_exact(&mut bytes).map_err(Error::io("read", &path))?;
            broadcast(&*processes, &mut bytes)
        })?;
    }
    trainer.divide(processes)
}

/// Joins the run of the first process, which calls [`lead`] at the same time. A model below adapters (LoRA) has to be where it is
/// for the first.
///
/// # Errors
/// If the files cannot be received or kept for a moment in the folder for temporary files, and those of [`Trainer::divide`].
pub fn join(processes: Arc<dyn Processes>) -> Result<Trainer> {
    let device = &Device::Cpu;
    let all = gather(&*processes, &[])?;
    let (step, files): (u64, Vec<(String, u64)>) =
        serde_json::from_slice(&all[0]).map_err(|error| Error::Input(error.to_string()))?;
    let folder = tempfile::tempdir().map_err(Error::io("create a folder in", &std::env::temp_dir()))?;
    let training = folder.path().join("training");
    fs::create_dir(&training).map_err(Error::io("create", &training))?;
    for (name, len) in files {
        let path = folder.path().join(name);
        let mut file = File::create(&path).map_err(Error::io("create", &path))?;
        each_part(len, |part| {
            let mut bytes = vec![0; part];
            broadcast(&*processes, &mut bytes)?;
            file.write_all(&bytes).map_err(Error::io("write", &path))
        })?;
    }
    let path = folder.path().join(checkpoint_name(step));
    let (state, mut tensors) = checkpoint::read(&path, device)?;
    let (_, options) = settings_file::read(&training)?;
    let state = parse(&path, &state)?.trainer;
    // The ids stay open when the folder is gone.
    let mut trainer = trainer_at(folder.path(), state, &mut tensors, &options, device, &mut |_| ())?;
    trainer.divide(processes)?;
    Ok(trainer)
}

fn checkpoint_name(step: u64) -> String {
    checkpoint::path(Path::new("training"), step).to_string_lossy().into_owned()
}

/// Calls `send` with the length of each part of a file of so many bytes.
fn each_part(len: u64, mut send: impl FnMut(usize) -> Result<()>) -> Result<()> {
    (0..len).step_by(TOGETHER as usize).try_for_each(|start| send((len - start).min(TOGETHER) as usize))
}

/// Sends the bytes of the first process to all.
fn broadcast(processes: &dyn Processes, bytes: &mut [u8]) -> Result<()> {
    let mut received = vec![0; processes.count()];
    received[0] = bytes.len();
    let own = if processes.rank() == 0 { bytes.to_vec() } else { vec![] };
    Ok(processes.all_gather(&own, bytes, &received)?)
}
