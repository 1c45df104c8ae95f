//! The error type of everything behind the feature `lm`.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a text, a model folder or a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option, a text or a file that cannot be used as it is.
    #[error("{0}")]
    Input(String),
    /// A value that an option cannot have, by the option's name as it stands in a file of options. A program that takes
    /// options on its command line may write the name as it is typed there: `--steps`.
    #[error("{name}: {what}")]
    Option {
        /// The option.
        name: String,
        /// What was expected, and what was got.
        what: String,
    },
    /// A loss, a gradient or a weight is no longer finite: training has diverged. Nothing was saved since the last
    /// checkpoint.
    #[error("step {step}: {what} is {value}")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// What is not finite; tensors are named.
        what: String,
        /// Its value; for a tensor its norm.
        value: f64,
    },
    /// Weights that no gradient reaches.
    #[error("gradient audit: {0}")]
    NoGradient(String),
    /// A new run is to be created where there is something.
    #[error("{} exists and is not empty", .0.display())]
    Exists(PathBuf),
    /// A folder in which a run was being created when its process ended.
    #[error("{} holds a run that was never completed; remove that folder", .0.display())]
    Unfinished(PathBuf),
    /// Another process is training in this folder.
    #[error("another process is training in {}", .0.display())]
    Locked(PathBuf),
    /// A file that is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk is full.
    #[error("cannot {action} {}: {error}", path.display())]
    NoSpace {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Another error of the system.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// An error of a computation.
    #[error("{0}")]
    Candle(candle_core::Error),
}

/// The result of a function behind the feature `lm`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The system's error when `action` was attempted on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { action, path, error }
            }
            _ => Self::Io { action, path, error },
        }
    }

    /// That the file `path` is not what was written.
    pub(crate) fn corrupt(path: &Path, what: impl ToString) -> Self {
        Self::Corrupt { path: path.to_path_buf(), what: what.to_string() }
    }

    /// This error, in front of which its place is named.
    pub(crate) fn at(self, place: impl std::fmt::Display) -> Self {
        match self {
            Self::Input(message) => Self::Input(format!("{place}: {message}")),
            Self::Option { name, what } => Self::Input(format!("{place}: {name}: {what}")),
            Self::Candle(error) => Self::Input(format!("{place}: {error}")),
            other => other,
        }
    }
}

impl From<candle_core::Error> for Error {
    /// Without the backtrace that candle keeps in its errors, and shows as part of their text.
    fn from(error: candle_core::Error) -> Self {
        match error {
            candle_core::Error::WithBacktrace { inner, .. } => Self::from(*inner),
            error => Self::Candle(error),
        }
    }
}

/// Returns an [`Error::Input`].
macro_rules! bail {
    ($($message:tt)*) => {
        return Err($crate::host::Error::Input(format!($($message)*)))
    };
}
pub(crate) use bail;

/// Returns an [`Error::Option`]: the option's name, then the message.
macro_rules! bail_option {
    ($name:expr, $($message:tt)*) => {
        return Err($crate::host::Error::Option { name: $name.into(), what: format!($($message)*) })
    };
}
pub(crate) use bail_option;

/// Faults as one line; of many, the first twelve and how many more there are.
pub(crate) fn listed(faults: &[String]) -> String {
    let (named, rest) = faults.split_at(faults.len().min(12));
    let more = if rest.is_empty() { String::new() } else { format!("; and {} more", rest.len()) };
    format!("{}{more}", named.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_errors_of_the_system() {
        let path = Path::new("a/b.txt");
        let full = Error::io("write", path)(io::ErrorKind::StorageFull.into());
        assert!(
            matches!(full, Error::NoSpace { .. }) && full.to_string().starts_with("cannot write a/b.txt: "),
            "{full}"
        );
        let missing = Error::io("read", path)(io::ErrorKind::NotFound.into());
        assert!(
            matches!(missing, Error::Io { .. }) && missing.to_string().starts_with("cannot read a/b.txt: "),
            "{missing}"
        );
    }

    #[test]
    fn an_error_of_candle_loses_its_backtrace_and_not_its_text() {
        let backtrace = Box::new(std::backtrace::Backtrace::force_capture());
        let inner = Box::new(candle_core::Error::Msg("shapes differ".into()));
        let error = Error::from(candle_core::Error::WithBacktrace { inner, backtrace });
        assert_eq!(error.to_string(), "shapes differ");
        assert_eq!(error.at("text.txt").to_string(), "text.txt: shapes differ");
    }

    #[test]
    fn of_many_faults_the_first_are_listed() {
        let faults: Vec<String> = (1..=13).map(|i| format!("fault {i}")).collect();
        assert_eq!(listed(&faults[..2]), "fault 1; fault 2");
        assert!(listed(&faults).ends_with("; fault 12; and 1 more"), "{}", listed(&faults));
    }
}
