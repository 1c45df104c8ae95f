//! Several sides measured in turn, round by round: as the speed of a machine drifts, ratios are taken within a round.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::peer::Peer;
use super::timing::median;

/// Between two turns, so that spinning threads of the last side go to sleep.
const PAUSE: Duration = Duration::from_millis(50);

/// The sides, of which the others are compared with the first.
#[derive(Default)]
pub struct Contest {
    sides: Vec<Side>,
}

struct Side {
    name: &'static str,
    peer: Peer,
    /// The answers to the last question: one or more numbers for each round.
    answers: Vec<Vec<f64>>,
}

#[allow(dead_code, reason = "a bench prints one of the two tables")]
impl Contest {
    /// Adds a side and starts its process.
    pub fn enter(&mut self, name: &'static str, command: Command) -> Result<()> {
        self.sides.push(Side { name, peer: Peer::start(command)?, answers: Vec::new() });
        Ok(())
    }

    /// Asks every side the same question in turn, for this many rounds.
    pub fn ask(&mut self, question: &str, rounds: usize) -> Result<()> {
        for side in &mut self.sides {
            side.answers.clear();
        }
        for _ in 0..rounds {
            for side in &mut self.sides {
                std::thread::sleep(PAUSE);
                side.answers.push(side.peer.ask(question).context(side.name)?);
            }
        }
        Ok(())
    }

    /// Prints the head of a table in Markdown.
    pub fn print_head(&self, title: &str) {
        let others = self.sides.iter().skip(1).map(|side| format!(" {} | ratio |", side.name));
        println!("| {title} | {} |{}", self.sides[0].name, others.collect::<String>());
        println!("|---|---|{}", "---|---|".repeat(self.sides.len() - 1));
    }

    /// Prints a row of it from number `i` of the answers: the median of each side, and of its ratios to the first.
    pub fn print_row(&self, label: &str, i: usize) {
        let first: Vec<f64> = self.sides[0].answers.iter().map(|numbers| numbers[i]).collect();
        let others = self.sides.iter().skip(1).map(|side| {
            let own = side.answers.iter().map(|numbers| numbers[i]);
            let ratios = own.clone().zip(&first).map(|(own, first)| own / first).collect();
            format!(" {} | {} |", rounded(median(own.collect())), rounded(median(ratios)))
        });
        let others: String = others.collect();
        println!("| {label} | {} |{others}", rounded(median(first)));
    }

    /// Prints a table in Markdown with a row for each side and two such columns for each number of the answers.
    pub fn print_sides(&self, numbers: &[&str]) {
        let heads: String = numbers.iter().map(|name| format!(" {name} | ratio |")).collect();
        println!("| |{heads}\n|---|{}", "---|---|".repeat(numbers.len()));
        for side in &self.sides {
            let cells = (0..numbers.len()).map(|i| {
                let own: Vec<f64> = side.answers.iter().map(|numbers| numbers[i]).collect();
                let ratios = own.iter().zip(&self.sides[0].answers).map(|(own, first)| own / first[i]).collect();
                format!(" {} | {:.2} |", rounded(median(own)), median(ratios))
            });
            println!("| {} |{}", side.name, cells.collect::<String>());
        }
    }
}

/// At least three digits; a dash for NaN, which a side answers if it cannot measure something.
fn rounded(x: f64) -> String {
    if x.is_nan() {
        return "-".to_string();
    }
    let decimals = if x < 10.0 { 2 } else { usize::from(x < 100.0) };
    format!("{x:.decimals$}")
}
