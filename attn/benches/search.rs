//! Regret: how far the recipe that `attn train` chooses is behind the best that a search finds in equal time.
//!
//!     python3 benches/texts.py TEXTS && cargo bench --bench search -- TEXTS [SEED] [NAME...]
//!
//! For each text of the folder, or those named, and round by round for all of them: 24 recipes for 10 seconds, from the seed,
//! half of them drawn at large and half the automatic choice with two things changed; the best six and each of them one size
//! larger for a minute; for 5 minutes the best with the model of the automatic choice, and the automatic choice with a model
//! one size smaller and one larger, and with the next tokenizer (what wins in seconds is much too small for minutes). For the
//! texts prose and code then, for 20 minutes, the last three. The automatic choice itself runs for each time.
//!
//! A run takes one thread, and two run side by side. Before the runs of a round the steps of each recipe are settled that fit into
//! its time, with reading the text and learning its tokens, in seconds of the processor: the recipes take turns of a tenth of
//! a second, in two processes side by side. So a machine whose speed drifts is the same for all of them, and what runs
//! later does not matter. A round that goes on later is measured once more, beside what it has run, which gives the time.
//! The validation part chooses; the figure is that of a part of the text
//! that neither training nor choosing saw. Results are appended to `search.jsonl` beside this program, from which a search
//! goes on where it stopped; the table, at the start and at the end, is of all that is there. A round of a text is of one
//! processor: what another one has found with the same seed is not run again, and the next round begins from it.

use std::ffi::OsStr;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::de::DeserializeOwned;
use toml::Table;

#[path = "../src/allocator.rs"]
mod allocator;
#[path = "../../benches/support/args.rs"]
mod args;
#[path = "../src/held_out.rs"]
mod held_out;
#[path = "../src/model_sizes.rs"]
mod model_sizes;
#[path = "support/point.rs"]
mod point;
#[path = "../src/processor.rs"]
mod processor;
#[path = "support/recipes.rs"]
mod recipes;
#[path = "support/results.rs"]
mod results;
#[path = "../../benches/support/timing.rs"]
#[allow(dead_code)]
mod timing;
#[path = "support/training.rs"]
#[allow(dead_code)]
mod training;
use point::{Costs, MIN_STEPS, Score};
use recipes::{CHOSEN, changed, drawn, resized, shown, small, with_model_of, with_next_tokenizer};
use results::{Line, Results, ranked};

const SIDE_BY_SIDE: usize = 2;

/// Seconds of the rounds.
const ROUNDS: [u64; 4] = [10, 60, 300, 1200];
/// Recipes of the first round, and how many of them go on.
const DRAWN: usize = 24;
const KEPT: usize = 6;
/// The points of a round that is whole, without those that are the same.
const MIN_POINTS: [usize; 4] = [DRAWN - 4, KEPT, 3, 2];
/// The texts that have the last round.
const LONG_TEXTS: [&str; 2] = ["prose", "code"];

/// The version of the rules of the automatic choice: one more when these choose otherwise for a text, a time and a machine.
const RULES: u32 = 5;

fn main() -> Result<()> {
    allocator::keep_freed_memory();
    let (_, args) = args::read();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--costs", text, ref recipes @ ..] => {
            let recipes = recipes.iter().map(|recipe| recipe.parse()).collect::<Result<Vec<Table>, _>>()?;
            println!("{}", serde_json::to_string(&point::costs(Path::new(text), &recipes)?)?);
            Ok(())
        }
        ["--point", text, test, steps, recipe] => {
            let score = point::run(Path::new(text), Path::new(test), steps.parse()?, &recipe.parse()?)?;
            println!("{}", serde_json::to_string(&score)?);
            Ok(())
        }
        [] => rehearse(),
        [folder, ref more @ ..] => {
            let (seed, names) = match more.split_first() {
                Some((seed, names)) if seed.parse::<u64>().is_ok() => (seed.parse()?, names),
                _ => (1, more),
            };
            let search = Search { folder: folder.into(), seed, results: Results::read()? };
            search.results.print_table();
            search.search(&search.texts(names)?)?;
            search.results.print_table();
            Ok(())
        }
    }
}

struct Search {
    folder: PathBuf,
    seed: u64,
    results: Results,
}

impl Search {
    /// The names of the texts: those given, or all in the folder.
    fn texts(&self, names: &[&str]) -> Result<Vec<String>> {
        if !names.is_empty() {
            return Ok(names.iter().map(|name| name.to_string()).collect());
        }
        let mut all = vec![];
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let name = name.strip_suffix(".txt").unwrap_or(&name);
            all.extend(name.strip_suffix(".test").map(String::from));
        }
        all.sort();
        Ok(all)
    }

    /// The text to train on, and the one that nobody saw.
    fn paths(&self, text: &str) -> [PathBuf; 2] {
        [text.to_string(), format!("{text}.test")].map(|name| {
            let (file, folder) = (self.folder.join(format!("{name}.txt")), self.folder.join(name));
            if folder.is_dir() { folder } else { file }
        })
    }

    /// Round by round for all texts.
    fn search(&self, texts: &[String]) -> Result<()> {
        let mut best: Vec<Vec<Table>> = vec![vec![]; texts.len()];
        for (round, &seconds) in ROUNDS.iter().enumerate() {
            let is_last = round + 1 == ROUNDS.len();
            let mut searched = vec![];
            for (text, best) in
                texts.iter().zip(&mut best).filter(|(text, _)| !is_last || LONG_TEXTS.contains(&text.as_str()))
            {
                let elsewhere = self.results.found_elsewhere(text, seconds, self.seed, MIN_POINTS[round]);
                // The automatic choice times the machine: it is made before anything runs.
                if elsewhere.is_empty() {
                    searched.push((text, self.automatic(text, seconds)?, best));
                } else {
                    *best = elsewhere;
                }
            }
            for (text, automatic, best) in searched {
                *best = self.round(round, text, automatic, best)?;
            }
        }
        Ok(())
    }

    /// One round of a text, from the best recipes of the round before. Gives its own, the best first.
    fn round(&self, round: usize, text: &str, automatic: Table, best: &[Table]) -> Result<Vec<Table>> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let neighbours =
            || [resized(&automatic, -1), resized(&automatic, 1), with_next_tokenizer(&automatic)].into_iter();
        let points: Vec<Table> = match round {
            0 => (0..DRAWN).map(|i| if i % 2 == 0 { drawn(&mut rng) } else { changed(&automatic, &mut rng) }).collect(),
            1 => best.iter().take(KEPT).flat_map(|point| [point.clone(), resized(point, 1)]).collect(),
            2 => best.iter().take(1).map(|point| with_model_of(point, &automatic)).chain(neighbours()).collect(),
            _ => neighbours().collect(),
        };
        // No recipe twice.
        let is_new = |(i, point): &(usize, &Table)| !points[..*i].contains(point);
        let points: Vec<Table> = points.iter().enumerate().filter(is_new).map(|(_, point)| point.clone()).collect();
        let scores = self.run(text, ROUNDS[round], automatic, &points)?;
        Ok(ranked(scores.iter().map(|score| score.validation).zip(points)))
    }

    /// The automatic choice, as far as a search chooses. It times the machine, and two do so side by side as two runs will.
    fn automatic(&self, text: &str, seconds: u64) -> Result<Table> {
        let is_it = |line: &Line| line.rules == Some(RULES) && line.text == text && line.seconds == seconds;
        if let Some(line) = self.results.found(is_it) {
            return Ok(line.recipe);
        }
        let printed = side_by_side(&[(); SIDE_BY_SIDE], |()| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
            command
                .args(["train", "--dry-run", "--threads", "1", "--minutes"])
                .arg((seconds as f64 / 60.0).to_string());
            Ok(training::timed(command.arg(&self.paths(text)[0]))?.1)
        })?;
        let all: Table = printed[0].parse()?;
        // A recipe of a search has no other.
        ensure!(all["architecture"].as_str() == Some("qwen3") && all["tie"].as_bool() == Some(false), "{}", printed[0]);
        Ok(all.into_iter().filter(|(name, _)| CHOSEN.contains(&name.as_str())).collect())
    }

    /// Runs what has not been run yet, and gives the scores of all points but the automatic choice.
    fn run(&self, text: &str, seconds: u64, automatic: Table, points: &[Table]) -> Result<Vec<Score>> {
        let is_it =
            |line: &Line, recipe: &Table| line.text == text && line.seconds == seconds && line.recipe == *recipe;
        let score = |recipe: &Table| Some(self.results.found(|line| is_it(line, recipe))?.score);
        // One recipe can be chosen by the rules and be a point of the search: a line for each.
        let lines: Vec<_> =
            iter::once((&automatic, Some(RULES))).chain(points.iter().map(|point| (point, None))).collect();
        let add = |recipe: &Table, score: &Score| {
            let is_there = |rules| self.results.found(|line| is_it(line, recipe) && line.rules == rules).is_some();
            let of_recipe = lines.iter().filter(|(of, rules)| *of == recipe && !is_there(*rules));
            of_recipe.map(|(_, rules)| *rules).try_for_each(|rules| {
                self.results.add(Line {
                    text: text.into(),
                    seconds,
                    rules,
                    seed: self.seed,
                    recipe: recipe.clone(),
                    score: score.clone(),
                    processor: self.results.processor.clone(),
                })
            })
        };
        let recipes: Vec<&Table> =
            iter::once(&automatic).chain(points.iter().filter(|point| **point != automatic)).collect();
        if recipes.iter().any(|recipe| score(recipe).is_none()) {
            let costs = self.costs(text, &recipes)?;
            let steps = |recipe| score(recipe).map(|score| score.steps).filter(|steps| *steps > MIN_STEPS);
            let known = recipes.iter().zip(&costs).filter_map(|(recipe, costs)| Some(costs.seconds(steps(recipe)?)));
            let known: Vec<f64> = known.collect();
            let time = if known.is_empty() { seconds as f64 } else { timing::median(known) };
            let missing: Vec<(&Table, u64)> = recipes
                .iter()
                .zip(&costs)
                .filter(|(recipe, _)| score(recipe).is_none())
                .map(|(recipe, costs)| (*recipe, costs.steps(time)))
                .collect();
            side_by_side(&missing, |&(recipe, steps)| add(recipe, &self.train(text, steps, recipe)?))?;
        }
        recipes.iter().try_for_each(|recipe| score(recipe).map_or(Ok(()), |score| add(recipe, &score)))?;
        points.iter().map(|point| score(point).context("expected a score")).collect()
    }

    /// What these recipes cost: the mean of two processes side by side.
    fn costs(&self, text: &str, recipes: &[&Table]) -> Result<Vec<Costs>> {
        let [text, _] = self.paths(text);
        let recipes: Vec<String> = recipes.iter().map(|recipe| recipe.to_string()).collect();
        let mut args: Vec<&OsStr> = vec!["--costs".as_ref(), text.as_os_str()];
        args.extend(recipes.iter().map(OsStr::new));
        let measured: Vec<Vec<Costs>> = side_by_side(&[(); SIDE_BY_SIDE], |()| on_one_thread(&args))?;
        let [first, second] = &measured[..] else { bail!("expected two measurements") };
        Ok(first.iter().zip(second).map(|(a, b)| a.mean(*b)).collect())
    }

    fn train(&self, text: &str, steps: u64, recipe: &Table) -> Result<Score> {
        let [text, test] = self.paths(text);
        let (steps, recipe) = (steps.to_string(), recipe.to_string());
        on_one_thread(&["--point".as_ref(), text.as_os_str(), test.as_os_str(), steps.as_ref(), recipe.as_ref()])
    }
}

/// What this program prints with these arguments, in a process of its own with one thread.
fn on_one_thread<T: DeserializeOwned>(args: &[&OsStr]) -> Result<T> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.env("RAYON_NUM_THREADS", "1").env("CANDLE_NUM_THREADS", "1").args(args).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What `work` makes of each, as many at a time as run side by side.
fn side_by_side<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let worker = || -> Result<()> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = all.get(i) else { return Ok(()) };
            let result = work(one)?;
            results.lock().map_err(|_| anyhow::anyhow!("another run panicked"))?.push((i, result));
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..SIDE_BY_SIDE).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(i, _)| *i);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// One short run, as a test.
fn rehearse() -> Result<()> {
    let space = tempfile::tempdir()?;
    let text = training::rehearsal(space.path())?;
    let recipe = small();
    let [costs] = point::costs(&text, std::slice::from_ref(&recipe))?[..] else {
        bail!("expected the costs of a recipe")
    };
    let steps = costs.steps(0.1);
    let score = point::run(&text, &text, steps, &recipe)?;
    println!("{}: {:.4} bits per byte", shown(&recipe), score.test);
    Ok(())
}
