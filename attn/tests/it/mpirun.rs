//! The command on several processes, as `mpirun` starts them: the result of one process, whatever happens to them. The command of
//! these tests is built with the feature `mpi`; they need Linux and an `mpirun`.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::signals::{send, wait_until};
use crate::support::{Running, Space, assert_same, heeding_signals};

const RUN: &str =
    "train text.txt --layers 1 --heads 2 --dim 48 --context 16 --batch 5 --shards 4 --eval-every 10 --threads 1";

/// `mpirun` with the words of `line`, which goes on where there are fewer cores than processes, and where root starts it.
fn mpirun(space: &Space, line: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(line.split_whitespace()).current_dir(space.path("."));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"] {
        command.env(name, "1");
    }
    // As docs/many-machines.md says: else a process that is killed can leave a lock behind that `mpirun` waits for.
    command.env("PMIX_MCA_gds", "hash");
    heeding_signals(command)
}

/// On so many processes.
fn processes(space: &Space, count: usize, line: &str) -> Command {
    mpirun(space, &format!("-np {count} {} {line}", env!("CARGO_BIN_EXE_attn")))
}

fn works(space: &Space, count: usize, line: &str) -> String {
    let output = processes(space, count, line).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{count} processes, attn {line}: {:?}: {told}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What several processes refuse, which one of them says.
fn refuse(output: &Output, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    let said: Vec<&str> = told.lines().filter(|line| line.starts_with("attn: ")).collect();
    assert!(said.len() == 1 && said[0].contains(expected), "expected {expected:?} once in {told}");
}

/// Goes on with the run, or begins it, on so many processes.
fn next(space: &Space, count: usize, line: &str) -> Command {
    match space.checkpoints("run").is_empty() {
        true => {
            let _ = std::fs::remove_dir_all(space.path("run"));
            processes(space, count, &format!("{line} --out run"))
        }
        false => processes(space, count, "train --resume --out run --threads 1"),
    }
}

/// What is printed, without times and the names of runs.
fn sample(printed: &str) -> String {
    let after = printed.split_once("a sample").unwrap().1;
    after.split_once(" steps in").unwrap().0.to_string()
}

#[test]
fn any_number_of_processes_gives_the_files_of_one() {
    for more in ["--steps 20", "--steps 20 --optimizer muon --accumulate 2 --average 0.5 --dropout 0.1 --no-tie"] {
        let space = Space::new();
        let printed = space.works(&format!("{RUN} {more} --out alone"));
        let expected = space.result("alone");
        for count in 1..=4 {
            let on_several = works(&space, count, &format!("{RUN} {more} --out run-{count}"));
            assert_same(&format!("{count} processes"), &space.result(&format!("run-{count}")), &expected);
            assert_eq!(sample(&on_several), sample(&printed));
        }
    }
}

/// The model below the adapters is read by each process.
#[test]
fn adapters_are_trained_with_the_same_bits() {
    let space = Space::new();
    space.works(&format!("{RUN} --steps 10 --out base"));
    let line = "train text.txt --init base --lora 3 --batch 4 --steps 10 --eval-every 5 --threads 1 --out";
    space.works(&format!("{line} alone"));
    works(&space, 3, &format!("{line} run"));
    assert_same("adapters", &space.result("run"), &space.result("alone"));
}

/// The processes that `mpirun` has started.
fn children(mpirun: &Running) -> Vec<i32> {
    let id = mpirun.0.id();
    let listed = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// At any moment; then the run goes on with another number of processes.
#[test]
fn a_process_that_is_killed_ends_all_and_the_run_goes_on_with_any_number() {
    const KILLS: usize = 12;
    // So many at least after a new checkpoint, not only while the processes start.
    const KILLS_IN_TRAINING: usize = 4;
    let space = Space::new();
    let line = format!("{RUN} --steps 3000 --eval-every 500 --save-every 0.002");
    space.works(&format!("{line} --out alone"));
    let expected = space.last_result("alone");
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut kills, mut in_training, mut finished) = (0, 0, 0);
    while kills < KILLS || in_training < KILLS_IN_TRAINING {
        assert!(kills < 20 * KILLS, "in only {in_training} of {kills} rounds was a checkpoint written");
        let before = space.checkpoints("run");
        let mut job = Running(next(&space, rng.random_range(2..=4), &line).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(rng.random_range(100..3000)));
        let children = children(&job);
        if job.0.try_wait().unwrap().is_some() || children.is_empty() {
            let output = job.end();
            assert!(output.status.success(), "after {kills} kills: {}", String::from_utf8_lossy(&output.stderr));
            assert_same(&format!("after {kills} kills"), &space.last_result("run"), &expected);
            space.remove("run");
            finished += 1;
            continue;
        }
        let victim = children[rng.random_range(0..children.len())];
        // SAFETY: at worst it has ended, and the signal finds no process: ids are used again only much later.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        let killed = Instant::now();
        let output = job.end();
        assert!(killed.elapsed() < Duration::from_secs(20), "the others took {:?} to end", killed.elapsed());
        if !output.status.success() {
            let (told, trained) = (String::from_utf8_lossy(&output.stderr), space.checkpoints("run") != before);
            // Of a process that had not joined the others yet, Open MPI sometimes gives no rank.
            assert!(told.contains("rank") || !trained && told.contains("1 process returned"), "{told}");
            kills += 1;
            in_training += usize::from(trained);
        }
    }
    let output = next(&space, 3, &line).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&format!("after {kills} kills, {finished} finished"), &space.last_result("run"), &expected);
}

/// Where `mpirun` leaves them the time, they stop after the same step and save; where it does not, the last checkpoint is whole.
#[test]
fn a_request_to_stop_is_saved_or_leaves_the_last_checkpoint() {
    // Weights after a step do not depend on how many there will be. Validations are few: while `mpirun` waits it reads nothing of
    // what is printed, and a process with a full pipe would wait too.
    const EVERY: u64 = 100;
    let line =
        RUN.replace("--eval-every 10", &format!("--eval-every {EVERY} --preset gpt2 --schedule constant --warmup 0"));
    for patience in [Some("5"), None] {
        let space = Space::new();
        let mut command = processes(&space, 2, &format!("{line} --steps 1000000 --out run"));
        patience.map(|seconds| command.env("OMPI_MCA_odls_base_sigkill_timeout", seconds));
        let mut job = Running(command.spawn().unwrap());
        wait_until(&mut job, || space.checkpoints("run").last().is_some_and(|step| *step > 0));
        send(libc::SIGTERM, &job);
        assert!(!job.end().status.success());
        let newest = *space.checkpoints("run").last().unwrap();
        if patience.is_some() {
            // Its output is not forwarded any more.
            assert_eq!(space.metrics("run").last().unwrap()["step"], newest, "steps were made that are not saved");
        }
        // To the next validation that is due in both.
        let steps = (newest / EVERY + 1) * EVERY;
        let resumed = processes(&space, 3, &format!("train --resume --out run --steps {steps} --threads 1")).output();
        assert!(resumed.unwrap().status.success());
        space.works(&format!("{line} --steps {steps} --out alone"));
        assert_same(&format!("{patience:?}"), &space.last_result("run"), &space.last_result("alone"));
    }
}

#[test]
fn processes_that_do_not_fit_together_are_refused_by_name() {
    let space = Space::new();
    let output = processes(&space, 5, &format!("{RUN} --steps 4 --out run")).output().unwrap();
    refuse(&output, "expected at most 4 processes, one for each shard of a batch, got 5; see --shards and --batch");
    assert!(!space.path("run").exists());
    let attn = env!("CARGO_BIN_EXE_attn");
    for (one, other, expected) in [
        ("--steps 4", "--steps 5", "--steps: expected the same on all processes, got 4 on 0 and 5 on 1"),
        ("--steps 4", "--steps 4 --lr 0.1", "--lr: expected the same on all processes, got none on 0 and 0.1 on 1"),
        ("--steps 4 --dry-run", "--steps 4 --dry-run", "--dry-run: expected a single process, got 2"),
    ] {
        let line = format!("-np 1 {attn} {RUN} --out run {one} : -np 1 {attn} {RUN} --out run {other}");
        refuse(&mpirun(&space, &line).output().unwrap(), expected);
        assert!(!space.path("run").exists());
    }
    let output = processes(&space, 2, "train missing.txt --steps 4 --out run").output().unwrap();
    refuse(&output, "missing.txt");
    let output = processes(&space, 2, "train text.txt --steps zero").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.matches("invalid value 'zero'").count(), 1, "{told}");
    let line = format!("{RUN} --steps 4 --out text.txt");
    refuse(&processes(&space, 3, &line).output().unwrap(), "text.txt");
}

/// The others do not wait for it.
#[test]
fn what_only_one_process_meets_is_told_with_its_rank() {
    let space = Space::new();
    let attn = env!("CARGO_BIN_EXE_attn");
    let with = |variable: &str| {
        let line = format!("{RUN} --steps 4 --out run");
        mpirun(&space, &format!("-np 1 {attn} {line} : -np 1 -x {variable} {attn} {line}")).output().unwrap()
    };
    refuse(&with("TMPDIR=missing"), "attn: process 1: cannot create a folder in missing");
    assert!(!space.path("run").exists());
    // Processors of two kinds.
    let output = with("CANDLE_ATTENTION_SIMD=scalar");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.contains("another number of processes gives other bits"), "{told}");
    // A run that is not resumed keeps its settings.
    let before = space.settings("run");
    let resumed = "train --resume --out run --threads 1 --steps 8 --lr 0.5";
    refuse(&processes(&space, 5, resumed).output().unwrap(), "expected at most 4 processes");
    let line = format!("-np 1 {attn} {resumed} : -np 1 -x TMPDIR=missing {attn} {resumed}");
    refuse(&mpirun(&space, &line).output().unwrap(), "attn: process 1: cannot create a folder in missing");
    assert_eq!(space.settings("run"), before);
}
