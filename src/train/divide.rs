//! Dividing the work of a training among processes that have the same of everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Trainer;
use super::part::Part;
use crate::cpu::sums::BLOCK;
use crate::host::{Error, Result, bail};
use crate::processes::{Processes, gather};

impl Trainer {
    /// Divides the work of this trainer among processes, each of which has to call this with a trainer of the same options,
    /// data and weights: each computes some shards of a batch and some batches of a validation, and updates some of the
    /// weights, with the optimizer's state of these alone. What comes out are the bits of a single process.
    ///
    /// From here on [`Trainer::step`], [`Trainer::validate`] and [`Trainer::tensors`] have to be called by all of them. A process
    /// that fails leaves the others waiting: it has to end them.
    ///
    /// # Errors
    /// If there are more processes than shards in a batch, they have not all the same, which is named, or the device is not
    /// the CPU.
    pub fn divide(&mut self, processes: Arc<dyn Processes>) -> Result<()> {
        agree(&*processes, &self.described()?)?;
        self.check_processes(processes.count())?;
        let device = self.model().device();
        if !device.is_cpu() {
            bail!("expected the CPU, for several processes, got {:?}", device.location());
        }
        let json = |error: serde_json::Error| Error::Input(error.to_string());
        let states = gather(&*processes, &serde_json::to_vec(&self.state).map_err(json)?)?;
        self.state = serde_json::from_slice(&states[0]).map_err(json)?;
        let (part, mut optimizer) = Part::new(processes, self.trained())?;
        let whole = self.optimizer.state().into_iter().collect();
        optimizer.restore(&mut part.cut_state(&whole)?)?;
        (self.part, self.optimizer) = (Some(part), optimizer);
        Ok(())
    }

    /// Refuses more processes than shards in a batch.
    ///
    /// # Errors
    /// If there are.
    pub fn check_processes(&self, count: usize) -> Result<()> {
        let shards = self.options().shards_of(self.options().batch).len();
        if count > shards {
            bail!(
                "expected at least a shard of a batch for each of {count} processes, got {shards}; see --shards and --batch"
            );
        }
        Ok(())
    }

    /// What has to be the same on all processes, by name.
    fn described(&self) -> Result<BTreeMap<String, String>> {
        let text = |error: &dyn std::fmt::Display| Error::Input(error.to_string());
        let options = toml::Table::try_from(self.options()).map_err(|error| text(&error))?;
        let mut values: BTreeMap<String, String> =
            options.into_iter().map(|(name, value)| (name, value.to_string())).collect();
        let mut checksum = 0;
        for (_, var) in &self.vars {
            for chunk in var.flatten_all()?.to_vec1::<f32>()?.chunks(BLOCK) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
                checksum = crc32c::crc32c_append(checksum, &bytes);
            }
        }
        values.extend([
            ("the version of candle-attention".into(), env!("CARGO_PKG_VERSION").into()),
            ("the model".into(), self.config().to_json()?),
            ("the texts".into(), self.corpus().fingerprint.clone()),
            ("the checksum of the weights".into(), format!("{checksum:08x}")),
            ("the checksum of the model below the adapters".into(), self.state.base.clone().unwrap_or_default()),
            ("the device".into(), format!("{:?}", self.model().device().location())),
        ]);
        Ok(values)
    }
}

/// Refuses processes that do not have the same of everything: named values, of which the first that differs is told. All of them
/// get the error.
///
/// # Errors
/// If one differs, or they cannot be exchanged.
pub fn agree(processes: &dyn Processes, values: &BTreeMap<String, String>) -> Result<()> {
    let own = serde_json::to_vec(values).map_err(|error| Error::Input(error.to_string()))?;
    let all = gather(processes, &own)?;
    let parse = |bytes: &Vec<u8>| serde_json::from_slice::<BTreeMap<String, String>>(bytes);
    let all = all.iter().map(parse).collect::<Result<Vec<_>, _>>().map_err(|error| Error::Input(error.to_string()))?;
    for (rank, theirs) in all.iter().enumerate() {
        let differs = |name: &&String| all[0].get(*name) != theirs.get(*name);
        if let Some(name) = all[0].keys().chain(theirs.keys()).find(differs) {
            let of = |values: &BTreeMap<String, String>| values.get(name).cloned().unwrap_or_else(|| "none".into());
            bail!("{name}: expected the same on all processes, got {} on 0 and {} on {rank}", of(&all[0]), of(theirs));
        }
    }
    Ok(())
}
