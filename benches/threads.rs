//! What the team of threads costs: a region without work beside one of rayon's, threads that have nothing to do, and
//! processes that share the processor.
//!
//!     cargo bench -p candle-attention --bench threads
//!
//! Microseconds of a region are the median and the 99th percentile of many. The processes each run causal attention,
//! forward and backward; a figure is the median over rounds of the mean over processes, on one thread, on one thread per
//! core, and that with a second process beside it. If `CANDLE_ATTENTION_OTHER_BUILD` is set to the program of this bench
//! from another commit, its processes run in turns with these.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_attention::ops::{AttentionOptions, attention};
use candle_core::{Device, Var};

#[path = "../attn/src/allocator.rs"]
mod allocator;
#[path = "../src/cpu/team.rs"]
mod team;

mod support {
    pub mod args;
    pub mod peer;
    pub mod rivals;
    pub mod timing;
}
use support::{args, peer, peer::Peer, rivals, timing};
use team::Team;

/// B, H, T, D, and calls a question.
const SHAPES: [([usize; 4], usize); 3] = [([12, 4, 64, 32], 100), ([8, 6, 256, 64], 15), ([2, 8, 1024, 64], 5)];

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    if peer::served_side().is_some() {
        return peer::serve(measure);
    }
    let (is_bench, _) = args::read();
    let repeats = if is_bench { 1000 } else { 2 };
    regions(repeats);
    idle(if is_bench { 200 } else { 2 })?;
    let rounds = if is_bench { 9 } else { 1 };
    println!("\n| ms, forward and backward | 1 thread | 2 threads | 2 processes of 2 threads |\n|---|---|---|---|");
    for (shape, calls) in if is_bench { &SHAPES[..] } else { &[([1, 2, 7, 5], 1)] } {
        processes(*shape, *calls, rounds)?;
    }
    Ok(())
}

/// Regions on threads that spin, that sleep, and rayon's.
fn regions(repeats: usize) {
    let (team, threads) = (Team::new(), peer::THREADS);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let empty = || team.run(threads - 1, &|| ());
    let all_inside = || {
        let inside = AtomicUsize::new(0);
        team.run(threads - 1, &|| {
            inside.fetch_add(1, Ordering::AcqRel);
            while inside.load(Ordering::Acquire) < threads {
                std::hint::spin_loop();
            }
        });
    };
    println!("| a region of {threads} threads, µs | median | 99 % |\n|---|---|---|");
    let print = |name: &str, pause: u64, region: &dyn Fn()| {
        (0..10).for_each(|_| region());
        let one = |_| {
            std::thread::sleep(Duration::from_millis(pause));
            let begun = Instant::now();
            region();
            begun.elapsed().as_secs_f64() * 1e6
        };
        let mut times: Vec<f64> = (0..if pause > 0 { repeats.div_ceil(10) } else { repeats }).map(one).collect();
        times.sort_by(f64::total_cmp);
        println!("| {name} | {:.2} | {:.2} |", times[times.len() / 2], times[times.len() * 99 / 100]);
    };
    print("empty", 0, &empty);
    print("in which all meet", 0, &all_inside);
    print("empty, after 5 ms", 5, &empty);
    print("in which all meet, after 5 ms", 5, &all_inside);
    if let Ok(pool) = pool {
        print("rayon's broadcast", 0, &|| drop(pool.broadcast(|_| ())));
        print("rayon's broadcast, after 5 ms", 5, &|| drop(pool.broadcast(|_| ())));
    }
}

/// The processor's time that a team takes from 1 ms after a region on, where Linux tells.
fn idle(ms: u64) -> Result<()> {
    let team = Team::new();
    team.run(peer::THREADS - 1, &|| std::thread::sleep(Duration::from_millis(1)));
    std::thread::sleep(Duration::from_millis(1));
    let before = others_ns()?;
    std::thread::sleep(Duration::from_millis(ms));
    println!("\nIn {ms} ms without work the workers ran for {} µs.", (others_ns()? - before) / 1000);
    Ok(())
}

/// Nanoseconds on a processor of all threads but this one.
fn others_ns() -> Result<u64> {
    let mut ns = 0;
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Ok(0) };
    for thread in threads {
        let thread = thread?;
        if thread.file_name().to_string_lossy() != std::process::id().to_string() {
            let times = std::fs::read_to_string(thread.path().join("schedstat"))?;
            ns += times.split(' ').next().context("expected three times")?.parse::<u64>()?;
        }
    }
    Ok(ns)
}

/// Prints the row of a shape, for this build and the other one.
fn processes(shape: [usize; 4], calls: usize, rounds: usize) -> Result<()> {
    let [b, h, t, d] = shape;
    let question = format!("{calls} {b} {h} {t} {d}");
    let mut builds = vec![("", peer::this_bench("ours")?)];
    builds.extend(rivals::other_build("ours").map(|command| (", other build", command)));
    let mut sides = vec![];
    for (name, command) in builds {
        let start = |threads: usize| {
            let mut copy = std::process::Command::new(command.get_program());
            copy.args(command.get_args()).env("RAYON_NUM_THREADS", threads.to_string()).env("CANDLE_NUM_THREADS", "1");
            Peer::start(copy)
        };
        sides.push((name, [vec![start(1)?], vec![start(2)?], vec![start(2)?, start(2)?]], [vec![], vec![], vec![]]));
    }
    for _ in 0..rounds {
        for (_, groups, times) in &mut sides {
            for (group, times) in groups.iter_mut().zip(times) {
                times.push(mean_at_once(group, &question)?);
            }
        }
    }
    for (name, _, times) in sides {
        let [one, two, beside] = times.map(timing::median);
        println!("| B {b} H {h} T {t} D {d}{name} | {one:.3} | {two:.3} | {beside:.3} |");
    }
    Ok(())
}

/// The mean of what processes answer to one question at the same time.
fn mean_at_once(peers: &mut [Peer], question: &str) -> Result<f64> {
    let answers: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
        let asked: Vec<_> = peers.iter_mut().map(|peer| scope.spawn(|| peer.ask(question))).collect();
        asked.into_iter().filter_map(|answer| answer.join().ok()).collect()
    });
    let count = answers.len() as f64;
    Ok(answers.into_iter().collect::<Result<Vec<_>>>()?.concat().iter().sum::<f64>() / count)
}

/// Milliseconds of a call, of so many after an uncounted one.
fn measure(question: &str) -> Result<Vec<f64>> {
    let numbers = question.split(' ').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [calls, b, h, t, d] = numbers[..] else { anyhow::bail!("expected calls, B, H, T and D") };
    let input = || Var::randn(0f32, 1f32, (b, t, h, d), &Device::Cpu);
    let (q, k, v, options) = (input()?, input()?, input()?, AttentionOptions::default());
    attention(&q, &k, &v, &options)?.backward()?;
    let all = timing::ms(|| (0..calls).try_for_each(|_| attention(&q, &k, &v, &options)?.backward().map(drop)))?;
    Ok(vec![all / calls as f64])
}
