//! The command, killed or asked to stop at any moment: the run that it leaves goes on as if nothing had happened.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::signals::send;
use crate::support::{Running, Space, assert_same};

const START: &str =
    "train text.txt --out run --layers 1 --heads 2 --dim 16 --context 16 --batch 4 --steps 60 --eval-every 4";
const RESUME: &str = "train --resume --out run";

/// The line that begins the run or goes on with it. What was killed before its first checkpoint is removed, as the
/// command says.
fn next_line(space: &Space) -> &'static str {
    // An empty folder is as good as none.
    if !space.path("run/training").exists() {
        return START;
    }
    if !space.checkpoints("run").is_empty() {
        return RESUME;
    }
    for line in [START, RESUME] {
        space.refuses(line, "run holds a run that was never completed; remove that folder");
    }
    space.remove("run");
    START
}

/// How long a run takes that nothing ends, and its result. It is removed.
fn uninterrupted(space: &Space) -> (Duration, BTreeMap<String, Vec<u8>>) {
    let started = Instant::now();
    space.works(START);
    let (whole, expected) = (started.elapsed(), space.last_result("run"));
    space.remove("run");
    (whole, expected)
}

#[test]
fn a_run_that_is_killed_a_hundred_times_ends_as_if_it_was_not() {
    const KILLS: usize = 100;
    // So many at least after a new checkpoint, not only while the command starts.
    const KILLS_IN_TRAINING: usize = 30;
    let space = Space::new();
    let (whole, expected) = uninterrupted(&space);

    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut kills, mut in_training, mut finished) = (0, 0, 0);
    while kills < KILLS || in_training < KILLS_IN_TRAINING {
        assert!(kills < 20 * KILLS, "in only {in_training} of {kills} rounds was a checkpoint written");
        let line = next_line(&space);
        let before = space.checkpoints("run");
        let mut child = space.command(line).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rng.random_range(0.0..0.7)).max(Duration::from_millis(1)));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            in_training += usize::from(space.checkpoints("run") != before);
            continue;
        }
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "after {kills} kills: {}", String::from_utf8_lossy(&output.stderr));
        space.works(next_line(&space));
        assert_same(&format!("after {kills} kills"), &space.last_result("run"), &expected);
        space.remove("run");
        finished += 1;
    }
    space.works(next_line(&space));
    assert_same(&format!("at the end, {finished} runs finished before"), &space.last_result("run"), &expected);
    assert_eq!(space.entries("."), ["run", "text.txt"], "more than the run is left");
    println!("{kills} kills, {in_training} of them in training; {finished} runs finished in between");
}

/// From the first moment on: a request finds nothing to keep and leaves nothing, or the run is saved.
#[test]
fn a_run_that_is_asked_to_stop_at_any_moment_is_saved_or_leaves_nothing() {
    const REQUESTS: usize = 60;
    let space = Space::new();
    let (whole, expected) = uninterrupted(&space);

    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut nothing, mut saved) = (0, 0);
    for request in 0..REQUESTS {
        let child = Running(space.command(START).spawn().unwrap());
        std::thread::sleep(whole.mul_f64(rng.random_range(0.0..0.9)));
        send(libc::SIGTERM, &child);
        let output = child.end();
        let told = String::from_utf8(output.stderr).unwrap();
        let is_unheard = output.status.signal() == Some(libc::SIGTERM) && told.is_empty();
        let is_finished = output.status.success();
        assert!(is_unheard || is_finished || output.status.code() == Some(143), "{:?}: {told}", output.status);
        if !space.path("run").exists() {
            assert!(is_unheard || told.ends_with("stopped; nothing was saved\n"), "{told}");
            nothing += 1;
            continue;
        }
        let newest = space.checkpoints("run").last().copied();
        assert!(newest.is_some(), "request {request} left a run without a checkpoint: {told}");
        let line = format!("stopped and saved at step {}", newest.unwrap());
        assert!(
            is_finished || !told.contains("stopping after") || String::from_utf8_lossy(&output.stdout).contains(&line)
        );
        saved += usize::from(!is_finished);
        space.works(RESUME);
        assert_same(&format!("request {request}"), &space.last_result("run"), &expected);
        space.remove("run");
    }
    println!("{nothing} requests found nothing to keep, {saved} a run to be saved");
}
