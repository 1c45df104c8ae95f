//! `attn completions`: what a shell needs to complete the command line.

use std::io::Write;

use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::{Shell, generate};

/// The command line of `attn completions`.
pub fn command() -> Command {
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell));
    Command::new("completions")
        .about("Print a script that completes this command in a shell")
        .arg(shell.help("The shell"))
}

/// Prints the script for a shell.
pub fn run(matches: &ArgMatches, mut attn: Command, out: &mut dyn Write) -> Result<()> {
    let shell = matches.get_one::<Shell>("shell").context("SHELL")?;
    // In memory first: the generator panics where it cannot write.
    let mut script = vec![];
    generate(*shell, &mut attn, "attn", &mut script);
    out.write_all(&script)?;
    Ok(())
}
