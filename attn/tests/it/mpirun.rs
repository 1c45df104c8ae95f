//! The command on several processes, as `mpirun` starts them: the result of one process, whatever happens to them. The command of
//! these tests is built with the feature `mpi`; they need Linux and an `mpirun`.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
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
    heeding_signals(command)
}

/// On so many processes.
fn processes(space: &Space, count: usize, line: &str) -> Command {
    mpirun(space, &format!("-np {count} {} {line}", env!("CARGO_BIN_EXE_attn")))
}

fn works(space: &Space, count: usize, line: &str) -> String {
    let output = finished(processes(space, count, line));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{count} processes, attn {line}: {:?}: {told}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it to its end.
fn finished(mut command: Command) -> Output {
    end(Running(command.spawn().unwrap()))
}

/// The end of `mpirun`. Where not all processes ended by themselves, that of Open MPI 4.1 with PMIx 4.2 now and then waits for ever in
/// its own last clean-up: it is killed when it has had no process for half a minute.
fn end(job: Running) -> Output {
    const PAUSE: Duration = Duration::from_millis(100);
    const CLEAN_UP: Duration = Duration::from_secs(30);
    // Far longer than any of these runs takes on a busy machine.
    const LIMIT: Duration = Duration::from_secs(600);
    let (id, (job_is_alive, is_over)) = (job.0.id(), channel::<()>());
    let watch = std::thread::spawn(move || {
        let (begun, mut last_seen) = (Instant::now(), Instant::now());
        while is_over.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
            if is_training(id) {
                last_seen = Instant::now();
            }
            let hangs = begun.elapsed() > LIMIT;
            if hangs || last_seen.elapsed() > CLEAN_UP {
                // SAFETY: at worst it has just ended, and the signal finds no process: ids are used again only much later.
                unsafe { libc::kill(id as i32, libc::SIGKILL) };
                return hangs;
            }
        }
        false
    });
    let output = job.end();
    drop(job_is_alive);
    assert!(!watch.join().unwrap(), "processes wait for ever: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Whether it ended by itself, not in that clean-up.
fn has_ended(output: &Output) -> bool {
    output.status.signal() != Some(libc::SIGKILL)
}

/// What several processes refuse, which one of them says.
fn refuse(output: &Output, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!has_ended(output) || output.status.code() == Some(2), "{told}");
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

/// The processes that the `mpirun` of this id has started.
fn children(id: u32) -> Vec<i32> {
    let listed = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    listed.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Whether one of them runs.
fn is_training(id: u32) -> bool {
    children(id).into_iter().any(|id| !is_zombie(id))
}

/// Whether a process has ended, and waits for `mpirun` to take note.
fn is_zombie(id: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('Z'))
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
    let (mut kills, mut in_training, mut completed) = (0, 0, 0);
    while kills < KILLS || in_training < KILLS_IN_TRAINING {
        assert!(kills < 20 * KILLS, "in only {in_training} of {kills} rounds was a checkpoint written");
        let before = space.checkpoints("run");
        let mut job = Running(next(&space, rng.random_range(2..=4), &line).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(rng.random_range(100..3000)));
        let children = children(job.0.id());
        if job.0.try_wait().unwrap().is_some() || children.is_empty() {
            let output = end(job);
            assert!(output.status.success(), "after {kills} kills: {}", String::from_utf8_lossy(&output.stderr));
            assert_same(&format!("after {kills} kills"), &space.last_result("run"), &expected);
            space.remove("run");
            completed += 1;
            continue;
        }
        let victim = children[rng.random_range(0..children.len())];
        // SAFETY: at worst it has ended, and the signal finds no process: ids are used again only much later.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        let killed = Instant::now();
        while is_training(job.0.id()) {
            assert!(killed.elapsed() < Duration::from_secs(20), "the others still run 20 seconds after a kill");
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = end(job);
        if !output.status.success() {
            let (told, trained) = (String::from_utf8_lossy(&output.stderr), space.checkpoints("run") != before);
            // Of a process that had not joined the others yet, Open MPI sometimes gives no rank.
            let names_it = told.contains("rank") || !trained && told.contains("1 process returned");
            assert!(names_it || !has_ended(&output), "{told}");
            kills += 1;
            in_training += usize::from(trained);
        }
    }
    let output = finished(next(&space, 3, &line));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&format!("after {kills} kills, {completed} completed"), &space.last_result("run"), &expected);
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
        assert!(!end(job).status.success());
        let newest = *space.checkpoints("run").last().unwrap();
        if patience.is_some() {
            // Its output is not forwarded any more.
            assert_eq!(space.metrics("run").last().unwrap()["step"], newest, "steps were made that are not saved");
        }
        // To the next validation that is due in both.
        let steps = (newest / EVERY + 1) * EVERY;
        works(&space, 3, &format!("train --resume --out run --steps {steps} --threads 1"));
        space.works(&format!("{line} --steps {steps} --out alone"));
        assert_same(&format!("{patience:?}"), &space.last_result("run"), &space.last_result("alone"));
    }
}

#[test]
fn processes_that_do_not_fit_together_are_refused_by_name() {
    let space = Space::new();
    let output = finished(processes(&space, 5, &format!("{RUN} --steps 4 --out run")));
    refuse(&output, "expected at least a shard of a batch for each of 5 processes, got 4; see --shards and --batch");
    assert!(!space.path("run").exists());
    let attn = env!("CARGO_BIN_EXE_attn");
    for (one, other, expected) in [
        ("--steps 4", "--steps 5", "--steps: expected the same on all processes, got 4 on 0 and 5 on 1"),
        ("--steps 4", "--steps 4 --lr 0.1", "--lr: expected the same on all processes, got none on 0 and 0.1 on 1"),
        ("--steps 4 --dry-run", "--steps 4 --dry-run", "--dry-run: expected a single process, got 2"),
    ] {
        let line = format!("-np 1 {attn} {RUN} --out run {one} : -np 1 {attn} {RUN} --out run {other}");
        refuse(&finished(mpirun(&space, &line)), expected);
        assert!(!space.path("run").exists());
    }
    let output = finished(processes(&space, 2, "train missing.txt --steps 4 --out run"));
    refuse(&output, "missing.txt");
    let output = finished(processes(&space, 2, "train text.txt --steps zero"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told.matches("invalid value 'zero'").count(), 1, "{told}");
    let line = format!("{RUN} --steps 4 --out text.txt");
    refuse(&finished(processes(&space, 3, &line)), "text.txt");
}

/// The others do not wait for it.
#[test]
fn what_only_one_process_meets_is_told_with_its_rank() {
    let space = Space::new();
    let attn = env!("CARGO_BIN_EXE_attn");
    let with = |variable: &str| {
        let line = format!("{RUN} --steps 4 --out run");
        // Time enough for the first to remove the run.
        let patience = "--mca odls_base_sigkill_timeout 5";
        finished(mpirun(&space, &format!("{patience} -np 1 {attn} {line} : -np 1 -x {variable} {attn} {line}")))
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
    refuse(&finished(processes(&space, 5, resumed)), "a shard of a batch for each of 5 processes, got 4");
    let line = format!("-np 1 {attn} {resumed} : -np 1 -x TMPDIR=missing {attn} {resumed}");
    refuse(&finished(mpirun(&space, &line)), "attn: process 1: cannot create a folder in missing");
    assert_eq!(space.settings("run"), before);
}
