//! Several sides measured in turn, round by round, because a machine's speed drifts: ratios are taken within a round.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::peer::Peer;
use super::timing::median;

/// Between two turns, so that threads of the last side that still spin go to sleep.
const PAUSE: Duration = Duration::from_millis(50);

/// The sides; the others are compared with the first.
#[derive(Default)]
pub struct Contest {
    sides: Vec<Side>,
}

struct Side {
    name: &'static str,
    /// `None` once it has failed.
    peer: Option<Peer>,
    /// Of each round of the last question, one number or more.
    answers: Vec<Vec<f64>>,
}

impl Contest {
    /// Adds a side and starts its process.
    pub fn enter(&mut self, name: &'static str, command: Command) -> Result<()> {
        self.sides.push(Side { name, peer: Some(Peer::start(command)?), answers: Vec::new() });
        Ok(())
    }

    /// Asks every side the same question, in turn, so many times. A side that fails, unless it is the first, is left
    /// out from then on, with a note.
    pub fn ask(&mut self, question: &str, rounds: usize) -> Result<()> {
        for side in &mut self.sides {
            side.answers.clear();
        }
        for _ in 0..rounds {
            for (i, side) in self.sides.iter_mut().enumerate() {
                let Some(peer) = &mut side.peer else { continue };
                std::thread::sleep(PAUSE);
                match peer.ask(question) {
                    Ok(numbers) => side.answers.push(numbers),
                    Err(error) if i == 0 => bail!("{}: {error:#}", side.name),
                    Err(error) => {
                        eprintln!("{} is left out: {error:#}", side.name);
                        side.peer = None;
                        side.answers.clear();
                    }
                }
            }
        }
        Ok(())
    }

    /// The head of a table in Markdown.
    pub fn print_head(&self, title: &str) {
        let others = self.sides.iter().skip(1).map(|side| format!(" {} | ratio |", side.name));
        println!("| {title} | {} |{}", self.sides[0].name, others.collect::<String>());
        println!("|---|---|{}", "---|---|".repeat(self.sides.len() - 1));
    }

    /// A row of it, from number `i` of the answers: the median of each side, and of its ratios to the first.
    pub fn print_row(&self, label: &str, i: usize) {
        let first: Vec<f64> = self.sides[0].answers.iter().map(|numbers| numbers[i]).collect();
        let others = self.sides.iter().skip(1).map(|side| {
            if side.answers.is_empty() {
                return " - | - |".to_string();
            }
            let own = side.answers.iter().map(|numbers| numbers[i]);
            let ratios = own.clone().zip(&first).map(|(own, first)| own / first).collect();
            format!(" {} | {:.2} |", rounded(median(own.collect())), median(ratios))
        });
        let others: String = others.collect();
        println!("| {label} | {} |{others}", rounded(median(first)));
    }
}

/// Three digits or more.
fn rounded(x: f64) -> String {
    let decimals = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.decimals$}")
}
