//! The options that a run keeps: one name each, on the command line, in files and in errors.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use toml::{Table, Value};

mod list;

use list::DATA;
pub use list::{MODEL, TRAINING};

/// What an option's value is.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number of at least this.
    Whole(i64),
    /// The same, or `auto`: it follows from other options.
    WholeOrAuto(i64),
    /// A number, by its name in the help.
    Number(&'static str),
    NumberOrAuto(&'static str),
    /// `--name` or `--no-name`; in files true or false.
    Switch,
    Text(&'static str),
    /// Several texts.
    Texts(&'static str),
    Choice(&'static [&'static str]),
}

use Kind::{Choice, Number, NumberOrAuto, Switch, Text, Texts, Whole, WholeOrAuto};

/// An option: its name, what its value is, and its help.
pub struct Opt {
    pub name: &'static str,
    kind: Kind,
    help: &'static str,
}

const fn opt(name: &'static str, kind: Kind, help: &'static str) -> Opt {
    Opt { name, kind, help }
}

/// All options, in the order of the help.
pub fn all() -> impl Iterator<Item = &'static Opt> {
    DATA.iter().chain(MODEL).chain(TRAINING)
}

/// Options that have no effect unless another one has a certain value.
const NEEDS: [(&str, &str, &str); 5] = [
    ("minutes", "schedule", "warmup-stable-decay"),
    ("decay", "schedule", "warmup-stable-decay"),
    ("matrix-lr", "optimizer", "muon"),
    ("matrix-weight-decay", "optimizer", "muon"),
    ("momentum", "optimizer", "muon"),
];

/// Refuses a given option that has no effect among all `settings`.
pub fn check_effect(given: &Table, settings: &Table) -> Result<()> {
    for (name, other, needed) in NEEDS {
        if given.contains_key(name) && settings.get(other).and_then(Value::as_str) != Some(needed) {
            bail!("--{name} needs --{other} {needed}");
        }
    }
    let has_adapters = settings.get("lora").and_then(Value::as_integer).is_some_and(|rank| rank > 0);
    if given.contains_key("lora-alpha") && !has_adapters {
        bail!("--lora-alpha needs --lora N");
    }
    if given.contains_key("embedding-lr") && has_adapters {
        bail!("--embedding-lr has no effect with --lora, which trains no embeddings");
    }
    Ok(())
}

impl Kind {
    /// The value in a text of the command line.
    fn parse(self, text: &str) -> Result<Value> {
        let value = match self {
            Whole(_) | WholeOrAuto(_) => text.parse().map(Value::Integer).ok(),
            Number(_) | NumberOrAuto(_) => text.parse().map(Value::Float).ok(),
            Switch | Text(_) | Texts(_) | Choice(_) => None,
        };
        self.checked(value.unwrap_or_else(|| text.into()))
    }

    /// The value, if it is one of this kind. Whole numbers are numbers too.
    fn checked(self, value: Value) -> Result<Value> {
        let is_auto = value.as_str() == Some("auto");
        let value = match (self, &value) {
            (Number(_) | NumberOrAuto(_), Value::Integer(n)) => Value::Float(*n as f64),
            _ => value,
        };
        let fits = match (self, &value) {
            (Whole(min) | WholeOrAuto(min), Value::Integer(n)) => *n >= min,
            (WholeOrAuto(_) | NumberOrAuto(_), _) if is_auto => true,
            (Number(_) | NumberOrAuto(_), Value::Float(_))
            | (Switch, Value::Boolean(_))
            | (Text(_), Value::String(_)) => true,
            (Texts(_), Value::Array(all)) => all.iter().all(Value::is_str),
            (Texts(_), Value::String(_)) => true,
            (Choice(all), Value::String(one)) => all.contains(&one.as_str()),
            _ => false,
        };
        if !fits {
            bail!("expected {}, got {value}", self.described());
        }
        Ok(value)
    }

    fn described(self) -> String {
        match self {
            Whole(min) => format!("a whole number of at least {min}"),
            WholeOrAuto(min) => format!("a whole number of at least {min}, or auto"),
            Number(_) => "a number".into(),
            NumberOrAuto(_) => "a number, or auto".into(),
            Switch => "true or false".into(),
            Text(_) => "a string".into(),
            Texts(_) => "a list of strings".into(),
            Choice(all) => all.join(", "),
        }
    }
}

/// The arguments of all options.
pub fn args() -> impl Iterator<Item = Arg> {
    let with_heading = |options: &'static [Opt], heading: Option<&'static str>| {
        options.iter().flat_map(|option| option.args()).map(move |arg| match heading {
            Some(heading) => arg.help_heading(heading),
            None => arg,
        })
    };
    with_heading(DATA, None).chain(with_heading(MODEL, Some("Model"))).chain(with_heading(TRAINING, Some("Training")))
}

impl Opt {
    fn args(&self) -> Vec<Arg> {
        let &Self { name, kind, help } = self;
        let with_value = |value: &'static str| {
            let arg = Arg::new(name).help(help).value_name(value);
            let arg = arg.value_parser(move |text: &str| kind.parse(text).map_err(|error| error.to_string()));
            if name == "texts" { arg } else { arg.long(name) }
        };
        match kind {
            Switch => {
                let off = format!("no-{name}");
                let switch = |name: String| Arg::new(name.clone()).long(name).action(ArgAction::SetTrue);
                vec![
                    switch(name.into()).overrides_with(off.clone()).help(format!("{help}; --{off} turns it off")),
                    switch(off).overrides_with(name).hide(true),
                ]
            }
            Texts(value) => vec![with_value(value).action(ArgAction::Append)],
            Choice(all) => vec![with_value("NAME").help(format!("{help} [possible values: {}]", all.join(", ")))],
            Whole(_) | WholeOrAuto(_) => vec![with_value("N")],
            Number(value) | NumberOrAuto(value) | Text(value) => vec![with_value(value)],
        }
    }
}

/// Checks that a length given on the command line is one: in files, 0 minutes say that the number of steps decides.
pub fn check_length(given: &Table) -> Result<()> {
    match given.get("minutes").and_then(Value::as_float) {
        Some(minutes) if !(0.1..=1000.0).contains(&minutes) => {
            bail!("--minutes: expected a number from 0.1 to 1000, got {minutes}")
        }
        Some(_) if given.contains_key("steps") => bail!("--minutes cannot be given with --steps"),
        _ => Ok(()),
    }
}

/// The options given on the command line.
pub fn given(matches: &ArgMatches) -> Table {
    let mut table = Table::new();
    for Opt { name, kind, .. } in all() {
        let value = match kind {
            Switch if matches.get_flag(name) => Some(true.into()),
            Switch => matches.get_flag(&format!("no-{name}")).then_some(false.into()),
            Texts(_) => matches.get_many::<Value>(name).map(|all| Value::Array(all.cloned().collect())),
            _ => matches.get_one::<Value>(name).cloned(),
        };
        table.extend(value.map(|value| (name.to_string(), value)));
    }
    table
}

/// The options in a TOML file.
pub fn read(path: &Path) -> Result<Table> {
    if path.exists() && !path.is_file() {
        bail!("--config: expected a file, got a folder, a pipe or a device: {}", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// The options in the text of a TOML file.
pub fn parse(text: &str) -> Result<Table> {
    let table: Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            bail!("line {}: {}", 1 + text[..at.min(text.len())].matches('\n').count(), error.message())
        }
    };
    let check = |(name, value): (String, Value)| {
        let Some(option) = all().find(|option| option.name == name) else { bail!("there is no option {name}") };
        let value = option.kind.checked(value).with_context(|| name.clone())?;
        Ok((name, value))
    };
    table.into_iter().map(check).collect()
}

/// A number of threads or samples on the command line.
pub fn count(max: u64) -> clap::builder::RangedU64ValueParser {
    value_parser!(u64).range(1..=max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_a_file_name_the_option_and_what_it_takes() {
        for (toml, expected) in [
            ("layers = \"2\"", "layers: expected a whole number of at least 1, got \"2\""),
            ("\nsteps = -1", "steps: expected a whole number of at least 1, got -1"),
            ("heads = \"automatic\"", "heads: expected a whole number of at least 1, or auto, got \"automatic\""),
            ("lr = \"x\"", "lr: expected a number, got \"x\""),
            ("dropout = true", "dropout: expected a number, or auto, got true"),
            ("texts = 1", "texts: expected a list of strings, got 1"),
            ("texts = [1]", "texts: expected a list of strings, got [1]"),
            ("bias = 1", "bias: expected true or false, got 1"),
            ("init = []", "init: expected a string, got []"),
            ("optimizer = \"sgd\"", "optimizer: expected adamw, muon, got \"sgd\""),
            ("layer = 1", "there is no option layer"),
            ("layers = 1\nlayers = 2", "line 2: duplicate key"),
        ] {
            let error = format!("{:#}", parse(toml).unwrap_err());
            assert_eq!(error, expected, "{toml}");
        }
    }

    #[test]
    fn whole_numbers_are_numbers_too() {
        let table = parse("lr = 1\nsteps = 2\ndropout = 0\ntexts = 'a'").unwrap();
        assert_eq!((&table["lr"], &table["steps"], &table["dropout"]), (&1.0.into(), &2.into(), &0.0.into()));
        assert!(parse("steps = 2.0").is_err());
    }

    #[test]
    fn the_command_line_gives_the_values_of_a_file() {
        let command = || clap::Command::new("train").args(args()).args_override_self(true);
        let given = |line: &str| given(&command().get_matches_from(line.split_whitespace()));
        for (line, toml) in [
            ("train", ""),
            ("train a.txt b.txt", "texts = ['a.txt', 'b.txt']"),
            ("train --validation c.txt --validation d", "validation = ['c.txt', 'd']"),
            (
                "train --lr 1 --steps 3 --heads auto --dropout auto",
                "lr = 1.0\nsteps = 3\nheads = 'auto'\ndropout = 'auto'",
            ),
            ("train --tie a.txt --no-bias", "tie = true\nbias = false\ntexts = ['a.txt']"),
            ("train --tie --no-tie --bias --no-bias --bias", "tie = false\nbias = true"),
            ("train --lr 1 --lr 2 --schedule linear --schedule cosine", "lr = 2.0\nschedule = 'cosine'"),
            ("train --tokenizer bpe:300 --init runs/a", "tokenizer = 'bpe:300'\ninit = 'runs/a'"),
        ] {
            assert_eq!(given(line), parse(toml).unwrap(), "{line}");
        }
        for wrong in
            ["train --tie=true", "train --lr x", "train --steps 0", "train --layers auto", "train --optimizer sgd"]
        {
            assert!(command().try_get_matches_from(wrong.split_whitespace()).is_err(), "{wrong}");
        }
    }
}
