//! The processes that `mpirun` has started: what they agree on before a run, and how they end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use candle_attention::processes::{Alone, Processes, gather};
use candle_attention::train::agree;
use clap::ArgMatches;

use super::terminal::{note, one_line, quoted};
use super::{exit_code, message, processor, signals, terminal};

/// The processes that train together: those that a launcher has started, or this one alone.
pub fn start() -> Result<Arc<dyn Processes>> {
    let Some((count, rank)) = place() else { return Ok(Arc::new(Alone)) };
    let started = start_mpi(count);
    match &started {
        Ok(_) if rank > 0 => terminal::silence(),
        Ok(_) => {}
        Err(_) => wait_for_turn(),
    }
    started
}

/// Whether a launcher has started several processes.
pub fn are_several() -> bool {
    place().is_some()
}

/// How many processes a launcher has started, if they are several, and which this is.
fn place() -> Option<(usize, usize)> {
    /// Where launchers say so: Open MPI; MPICH and Intel MPI; Slurm, with PMIx and without.
    const PLACES: [[&str; 2]; 4] = [
        ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"],
        ["PMI_SIZE", "PMI_RANK"],
        ["SLURM_STEP_NUM_TASKS", "PMIX_RANK"],
        ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"],
    ];
    let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    let place = PLACES.iter().find_map(|[count, rank]| Some((number(count)?, number(rank)?)));
    place.filter(|(count, _)| *count > 1)
}

/// Waits before an error is told: what fails on several processes is told by the first of them, which ends the others meanwhile.
pub fn wait_for_turn() {
    const TURN: Duration = Duration::from_secs(3);
    /// As long as an end takes to get from one process to another.
    const BETWEEN: Duration = Duration::from_millis(500);
    if let Some((_, rank @ 1..)) = place() {
        std::thread::sleep(TURN + BETWEEN * rank.min(20) as u32);
    }
}

#[cfg(feature = "mpi")]
fn start_mpi(count: usize) -> Result<Arc<dyn Processes>> {
    let mpi = candle_attention::processes::Mpi::start()?;
    if mpi.count() != count {
        bail!(
            "the launcher started {count} processes, of which MPI finds {}: it is of another MPI, or of none; start them with \
             mpirun, or with srun --mpi=pmix where Slurm has it",
            mpi.count()
        );
    }
    Ok(Arc::new(mpi))
}

#[cfg(not(feature = "mpi"))]
fn start_mpi(count: usize) -> Result<Arc<dyn Processes>> {
    bail!("this is one of {count} processes, and was built without MPI: cargo install --path attn --features mpi")
}

/// Refuses processes with other arguments or of another version, and notes other processors.
pub fn check(processes: &dyn Processes, matches: &ArgMatches) -> Result<()> {
    if processes.count() == 1 {
        return Ok(());
    }
    let version = ("the version of attn".to_string(), env!("CARGO_PKG_VERSION").to_string());
    agree(processes, &BTreeMap::from([version]))?;
    let value = |id: &clap::Id| {
        let name = if *id == "texts" { "TEXT".to_string() } else { format!("--{id}") };
        let values = matches.get_raw(id.as_str()).into_iter().flatten();
        (name, values.map(|value| quoted(Path::new(value))).collect::<Vec<_>>().join(" "))
    };
    // A machine may have more cores than another.
    agree(processes, &matches.ids().filter(|id| **id != "threads").map(value).collect())?;
    for name in ["dry-run", "overfit-one-batch"] {
        if matches.get_flag(name) {
            bail!("--{name}: expected a single process, got {}; start it without mpirun", processes.count());
        }
    }
    let processors = gather(processes, rounding().as_bytes())?;
    if let Some(rank) = processors.iter().position(|other| *other != processors[0]) {
        let [first, other] = [0, rank].map(|rank| String::from_utf8_lossy(&processors[rank]));
        note(&format!(
            "process {rank} runs on {}, process 0 on {}: processors of another kind round differently, so that another number \
             of processes gives other bits",
            one_line(&other),
            one_line(&first)
        ));
    }
    Ok(())
}

/// The processor, and which of its instructions are asked for.
fn rounding() -> String {
    let name = processor::name();
    match std::env::var("CANDLE_ATTENTION_SIMD") {
        Ok(simd) => format!("{name} ({simd})"),
        Err(_) => name,
    }
}

/// Ends all processes if one has failed, which would leave the others waiting.
pub fn conclude(processes: Arc<dyn Processes>, result: Result<ExitCode>) -> Result<ExitCode> {
    if processes.count() == 1 {
        return result;
    }
    let error = match result {
        Ok(ExitCode::SUCCESS) => return result,
        Ok(code) => {
            // To part from one another they would need the launcher, which waits for their end.
            std::mem::forget(processes);
            return Ok(code);
        }
        Err(error) => error,
    };
    signals::wait_for_end();
    wait_for_turn();
    let what = format!("attn: process {}: {}", processes.rank(), one_line(&message(&error)));
    terminal::report(&what);
    processes.abort(exit_code(&error))
}
