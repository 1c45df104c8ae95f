//! Processes that measure on request: one line in, one line of numbers out.
//!
//! Each side of a comparison is a process of its own, so that its threads, allocator and environment do not affect the
//! others.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Threads of every side: two, or as many as `CANDLE_ATTENTION_THREADS` says.
pub fn threads() -> usize {
    std::env::var("CANDLE_ATTENTION_THREADS").ok().and_then(|threads| threads.parse().ok()).unwrap_or(2)
}

/// The first argument of a bench that answers as one of the sides.
const SERVE: &str = "serve";

/// This bench, answering as `side`.
pub fn this_bench(side: &str) -> Result<Command> {
    Ok(bench(std::env::current_exe()?.as_os_str(), side))
}

/// A bench's program, answering as `side`. candle's own pool would compete with rayon's threads.
pub fn bench(program: &OsStr, side: &str) -> Command {
    let mut command = Command::new(program);
    command.args([SERVE, side]).env("RAYON_NUM_THREADS", threads().to_string()).env("CANDLE_NUM_THREADS", "1");
    command
}

/// The same command, on one thread.
#[allow(dead_code, reason = "not every bench shows how its figures scale")]
pub fn on_one_thread(mut command: Command) -> Command {
    command.env("RAYON_NUM_THREADS", "1").env("CANDLE_NUM_THREADS", "1");
    command
}

/// The side that this process answers as, if a bench started it for that.
pub fn served_side() -> Option<String> {
    let mut args = std::env::args().skip(1);
    args.next().filter(|arg| arg == SERVE).and(args.next())
}

/// Answers each line of standard input with a line of numbers.
pub fn serve(mut answer: impl FnMut(&str) -> Result<Vec<f64>>) -> Result<()> {
    for question in std::io::stdin().lines() {
        let numbers: Vec<String> = answer(&question?)?.iter().map(f64::to_string).collect();
        println!("{}", numbers.join(" "));
    }
    Ok(())
}

/// A running process that answers questions.
pub struct Peer {
    process: Child,
    /// `None` once there are no more questions.
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the process.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let questions = process.stdin.take();
        let answers = process.stdout.take().context("peer: expected a standard output")?;
        Ok(Self { process, questions, answers: BufReader::new(answers) })
    }

    /// Asks a question, and returns the numbers of the answer.
    pub fn ask(&mut self, question: &str) -> Result<Vec<f64>> {
        let questions = self.questions.as_mut().context("peer: expected a standard input")?;
        writeln!(questions, "{question}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let numbers: Vec<f64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>().context(answer)?;
        if numbers.is_empty() {
            bail!("peer: expected an answer to {question:?}, got the end of the process");
        }
        Ok(numbers)
    }
}

impl Drop for Peer {
    /// Ends the questions, and so the process, and waits for it.
    fn drop(&mut self) {
        self.questions = None;
        let _ = self.process.wait();
    }
}
