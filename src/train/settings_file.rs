//! The settings of a run: one file of all its options, `training/settings.toml`.

use std::path::Path;

use super::TrainOptions;
use crate::host::{Error, Result, bail_option, disk, input};

/// The options that a resumed run may change and that change its result: rates, and the lengths that they follow.
pub const CHANGE_THE_RESULT: [&str; 12] = [
    "steps",
    "minutes",
    "lr",
    "min-lr",
    "warmup",
    "schedule",
    "decay",
    "weight-decay",
    "matrix-lr",
    "matrix-weight-decay",
    "embedding-lr",
    "clip",
];

/// The other options that a resumed run may change: how often it validates, saves and reports, what it
/// watches, and when it stops.
pub const KEEP_THE_RESULT: [&str; 6] = ["eval-every", "patience", "save-every", "keep", "statistics-every", "watch"];

/// The settings of a run in the folder `training`, and the options among them.
///
/// # Errors
/// If the file cannot be read or does not hold all options, or one is out of its bounds.
pub(super) fn read(training: &Path) -> Result<(toml::Table, TrainOptions)> {
    let path = training.join("settings.toml");
    let text = input::read_text(&input::inside(training, "settings.toml")?, input::MAX_CONFIG_BYTES)?;
    let damaged = |error: toml::de::Error| Error::corrupt(&path, error.message());
    let table: toml::Table = toml::from_str(&text).map_err(damaged)?;
    let all = toml::Table::try_from(TrainOptions::default()).map_err(|error| Error::Input(error.to_string()))?;
    if let Some(missing) = all.keys().find(|name| !table.contains_key(*name)) {
        return Err(Error::corrupt(
            &path,
            format!("it does not say {missing}: it is damaged, or of an earlier version"),
        ));
    }
    let options: TrainOptions = table.clone().try_into().map_err(damaged)?;
    options.validate()?;
    Ok((table, options))
}

/// These settings with other values of some options, and all options then.
///
/// # Errors
/// If a change is neither in [`CHANGE_THE_RESULT`] nor in [`KEEP_THE_RESULT`], or an option is out of its bounds.
pub(super) fn with(mut table: toml::Table, changes: &toml::Table) -> Result<(toml::Table, TrainOptions)> {
    for (name, value) in changes {
        if !CHANGE_THE_RESULT.contains(&&**name) && !KEEP_THE_RESULT.contains(&&**name) {
            bail_option!(name, "cannot be changed when resuming");
        }
        table.insert(name.clone(), value.clone());
    }
    if changes.contains_key("steps") {
        // What decides on the length is the one that is given.
        table.insert("minutes".into(), 0.0.into());
    }
    let wrong = |error: toml::de::Error| Error::Input(error.message().to_string());
    let options: TrainOptions = table.clone().try_into().map_err(wrong)?;
    options.validate()?;
    Ok((table, options))
}

/// All training options, and what else the caller keeps with them.
///
/// # Errors
/// If an option has a value that TOML does not.
pub(super) fn merged(others: &toml::Table, options: &TrainOptions) -> Result<toml::Table> {
    let mut table = others.clone();
    table.extend(toml::Table::try_from(options).map_err(|error| Error::Input(error.to_string()))?);
    Ok(table)
}

/// Writes the settings of a run, all training options and what else the caller keeps with them, and gives them back.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write(training: &Path, others: &toml::Table, options: &TrainOptions) -> Result<toml::Table> {
    let table = merged(others, options)?;
    disk::replace_with(&training.join("settings.toml"), table.to_string().as_bytes())?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(toml: &str) -> toml::Table {
        toml.parse().unwrap()
    }

    /// A run's settings with these in addition, changed so.
    fn changed(others: &str, changes: &str) -> Result<(toml::Table, TrainOptions)> {
        let space = tempfile::tempdir().unwrap();
        write(space.path(), &table(others), &TrainOptions { seed: 7, ..Default::default() }).unwrap();
        with(read(space.path())?.0, &table(changes))
    }

    #[test]
    fn all_options_are_written_and_come_back() {
        let (settings, options) = changed("tokenizer = \"char\"\n[nested]\na = 1", "").unwrap();
        assert_eq!(options, TrainOptions { seed: 7, ..Default::default() });
        assert_eq!(settings["tokenizer"], "char".into());
        assert_eq!(settings["nested"], table("a = 1").into());
        // Also those that are off, or follow from others.
        assert_eq!((&settings["average"], &settings["eval-every"]), (&0.0.into(), &"auto".into()));
        for name in CHANGE_THE_RESULT.iter().chain(&KEEP_THE_RESULT) {
            assert!(settings.contains_key(*name), "{name} is no option");
        }
    }

    #[test]
    fn a_resumed_run_may_change_rates_and_intervals_only() {
        let (settings, options) = changed("tokenizer = \"char\"", "lr = 0.5\neval-every = 3\nsteps = 9").unwrap();
        let expected = TrainOptions { lr: 0.5, eval_every: Some(3), steps: 9, seed: 7, ..Default::default() };
        assert_eq!((options, &settings["lr"]), (expected, &0.5.into()));
        // What decides on the length is what is given.
        let timed = "minutes = 5.0\nschedule = \"warmup-stable-decay\"";
        assert_eq!(changed(timed, timed).unwrap().1.minutes, 5.0);
        assert_eq!(changed("", &format!("{timed}\nsteps = 9")).unwrap().1.minutes, 0.0);
        for (changes, expected) in [
            ("batch = 3", "batch: cannot be changed when resuming"),
            ("tokenizer = \"byte\"", "tokenizer: cannot be changed when resuming"),
            ("lr = -1.0", "lr: expected a number above 0, got -1.0"),
            ("steps = \"many\"", "invalid type: string \"many\", expected u64"),
        ] {
            let error = changed("tokenizer = \"char\"", changes).unwrap_err();
            assert!(
                matches!(error, Error::Input(_) | Error::Option { .. }) && error.to_string().contains(expected),
                "{changes}: {error:?}"
            );
        }
    }

    #[test]
    fn settings_that_are_not_what_was_written_are_damaged() {
        let space = tempfile::tempdir().unwrap();
        let path = space.path().join("settings.toml");
        for damaged in ["lr = ", "lr = \"x\""] {
            std::fs::write(&path, damaged).unwrap();
            let error = read(space.path()).unwrap_err();
            assert!(matches!(&error, Error::Corrupt { path: its, .. } if *its == path), "{damaged}: {error:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read(space.path()).unwrap_err().to_string().contains("settings.toml"));
    }
}
